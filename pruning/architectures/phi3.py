"""Phi-3: Llama with queries, keys and values in one linear, and gate and values in another.

Abdin et al., "Phi-3 Technical Report: A Highly Capable Language Model Locally on Your Phone", 2024,
https://arxiv.org/abs/2404.14219.  Adapters go on the fused linears.
"""

from pruning.architectures.layout import Architecture, Block, Writer

PHI3 = Architecture(
    family="phi3",
    stock_class="Phi3ForCausalLM",
    attention=Block(
        "self_attn",
        (Writer("qkv_proj", ("query", "key", "value")),),
        reader="o_proj",
        reads="query",
        norm="input_layernorm",
    ),
    mlp=Block(
        "mlp",
        (Writer("gate_up_proj", ("gate", "up")),),
        reader="down_proj",
        reads="up",
        norm="post_attention_layernorm",
    ),
    uniform_only="the slim class has a linear each for queries, keys and values",
)
