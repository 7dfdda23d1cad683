"""Gemma 2: norms before and behind each block, capped logits, every other layer with a window.

Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size", 2024,
https://arxiv.org/abs/2408.00118.  Norms multiply by 1 + weight; attention scores are scaled by
query_pre_attn_scalar, not by a width.
"""

from pruning.architectures.layout import Architecture, attention, gated_mlp

GEMMA2 = Architecture(
    family="gemma2",
    stock_class="Gemma2ForCausalLM",
    attention=attention(post_norm="post_attention_layernorm"),
    mlp=gated_mlp(norm="pre_feedforward_layernorm", post_norm="post_feedforward_layernorm"),
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    tied=True,
    scaled_embedding=True,
    norm_offset=1.0,
    logit_cap="final_logit_softcapping",
    mixed_windows=True,
    attn_implementation="eager",  # scaled_dot_product_attention cannot cap attention scores
    heads_divide_hidden=True,
    uniform_only="its layers differ in kind, and the slim class has one kind of attention",
)
