"""Llama, and all that borrow its classes: the plainest decoder, and the one that holds any bias.

Touvron et al., "Llama 2: Open Foundation and Fine-Tuned Chat Models", 2023,
https://arxiv.org/abs/2307.09288.
"""

from pruning.architectures.layout import Architecture, attention, gated_mlp

LLAMA = Architecture(
    family="llama",
    stock_class="LlamaForCausalLM",
    attention=attention(),
    mlp=gated_mlp(),
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    gate_up_bias="mlp_bias",
    down_bias="mlp_bias",
    heads_divide_hidden=True,
)

LINEARS = LLAMA.linears  # of Llama and of all that name theirs alike
