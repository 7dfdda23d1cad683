"""Memory of a calibration pass does not grow with the depth of the base."""

import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from pruning.calibration import collect
from pruning.geometry import Geometry
from pruning.methods.entry import Statistic
from pruning.weights.checkpoint import Checkpoint
from pruning.weights.tensors import expected

NUM_LAYERS, LAYER_BYTES = 24, 4.4e6


@pytest.fixture
def deep_base(tmp_path: Path) -> Path:
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=2730,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    config.save_pretrained(tmp_path)
    geometry = Geometry.from_config(config.to_dict())
    tensors = {name: torch.full(shape, 0.01) for name, shape in expected(geometry)}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("walk", ["saliency", "sequence_gradients", "relevance", "lora_saliency"])
def test_later_layers_need_no_more_memory_than_earlier_ones(deep_base: Path, walk: Statistic):
    resident: dict[str, list[int]] = defaultdict(list)

    def measure(fraction: float, message: str) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident[message.split(",")[0]].append(pages * 4096)

    ids = torch.arange(256).view(4, 64)
    collect(Checkpoint(deep_base), ids, {"input_moments", walk}, deep_base, measure)
    for way in ("forward", "backward"):
        by_layer = resident[way][:: len(resident[way]) // NUM_LAYERS]
        assert len(by_layer) == NUM_LAYERS
        growth = by_layer[-1] - by_layer[3]
        assert growth < 4 * LAYER_BYTES, f"{way}: twenty layers more"
