"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values.

Yang et al., "Qwen2 Technical Report", 2024, https://arxiv.org/abs/2407.10671.
"""

from pruning.architectures.layout import Architecture, attention, gated_mlp

QWEN2 = Architecture(
    family="qwen2",
    stock_class="Qwen2ForCausalLM",
    attention=attention(),
    mlp=gated_mlp(),
    qkv_bias=True,
    derives_head_dim=True,
    fallback="llama",
)
