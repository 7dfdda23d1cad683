"""Qwen3: norms over the channels of each query and key head, and an explicit head size.

Yang et al., "Qwen3 Technical Report", 2025, https://arxiv.org/abs/2505.09388.
"""

from pruning.architectures.layout import Architecture, attention, gated_mlp

QWEN3 = Architecture(
    family="qwen3",
    stock_class="Qwen3ForCausalLM",
    attention=attention("q_norm", "k_norm"),
    mlp=gated_mlp(),
    qkv_bias="attention_bias",
    o_bias="attention_bias",
)
