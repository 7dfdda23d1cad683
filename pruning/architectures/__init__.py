"""The supported architectures, one descriptor file each; nothing else knows a family by name."""

from collections.abc import Mapping

from pruning.architectures.gemma2 import GEMMA2
from pruning.architectures.layout import Architecture
from pruning.architectures.llama import LLAMA
from pruning.architectures.mistral import MISTRAL
from pruning.architectures.phi3 import PHI3
from pruning.architectures.qwen2 import QWEN2
from pruning.architectures.qwen3 import QWEN3

ARCHITECTURES: Mapping[str, Architecture] = {
    architecture.family: architecture
    for architecture in (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, PHI3)
}
