"""Mistral: Llama without biases, and with a sliding window in all layers or in none.

Jiang et al., "Mistral 7B", 2023, https://arxiv.org/abs/2310.06825.
"""

from pruning.architectures.layout import Architecture, attention, gated_mlp

MISTRAL = Architecture(
    family="mistral",
    stock_class="MistralForCausalLM",
    attention=attention(),
    mlp=gated_mlp(),
    fallback="llama",
)
