"""Which tensors a decoder of a given geometry has, by name and shape (torch-free)."""

from collections.abc import Iterator

from pruning.geometry import ATTENTION_LINEARS, LINEARS, Geometry

EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


def block_of(linear: str) -> str:
    """The block of a decoder layer that a linear belongs to."""
    return "self_attn" if linear in ATTENTION_LINEARS else "mlp"


def expected(geometry: Geometry) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor, in the order of the computation."""
    hidden = (geometry.hidden_size,)
    yield EMBEDDING, (geometry.vocab_size, *hidden)
    for index in range(len(geometry.layers)):
        for name, shape in _expected_in_layer(geometry, index):
            yield f"model.layers.{index}.{name}", shape
    yield FINAL_NORM, hidden
    if not geometry.tied:
        yield HEAD, (geometry.vocab_size, *hidden)


def _expected_in_layer(geometry: Geometry, index: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    layer, hidden = geometry.layers[index], (geometry.hidden_size,)
    biased = {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj"), layer.qkv_bias),
        **dict.fromkeys(("gate_proj", "up_proj"), layer.gate_up_bias),
        "o_proj": layer.o_bias,
        "down_proj": layer.down_bias,
    }
    if layer.num_heads:
        yield "input_layernorm.weight", hidden
    if layer.num_heads and geometry.qk_norm:
        yield "self_attn.q_norm.weight", (geometry.head_dim,)
        yield "self_attn.k_norm.weight", (geometry.head_dim,)
    if layer.intermediate_size:
        yield "post_attention_layernorm.weight", hidden
    for linear in LINEARS:
        if (shape := geometry.linear_shape(index, linear)) is None:
            continue
        yield f"{block_of(linear)}.{linear}.weight", shape
        if biased[linear]:
            yield f"{block_of(linear)}.{linear}.bias", shape[:1]
