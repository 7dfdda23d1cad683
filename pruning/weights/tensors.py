"""Which tensors a decoder of a given geometry has, by name and shape (torch-free)."""

from collections.abc import Iterator

from pruning.architectures import ARCHITECTURES
from pruning.architectures.layout import Block
from pruning.geometry import Geometry

EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"

_BLOCKS = {
    linear: block.name
    for architecture in ARCHITECTURES.values()
    for block in architecture.blocks
    for linear in block.linears
}


def block_of(linear: str) -> str:
    """The block of a decoder layer that a linear belongs to."""
    return _BLOCKS[linear]


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
    hidden, head = (geometry.hidden_size,), (geometry.head_dim,)
    present = [b for b in geometry.architecture.blocks if geometry.rows(index, b.reads)]
    for block in present:
        yield f"{block.norm}.weight", hidden
        for norm in block.head_norms:
            yield f"{block.name}.{norm}.weight", head
        if block.post_norm:
            yield f"{block.post_norm}.weight", hidden
    for block in present:
        for linear in block.linears:
            shape = geometry.linear_shape(index, linear)
            assert shape is not None
            yield f"{block.name}.{linear}.weight", shape
            if _biased(geometry, index, block, linear):
                yield f"{block.name}.{linear}.bias", shape[:1]


def _biased(geometry: Geometry, index: int, block: Block, linear: str) -> bool:
    layer = geometry.layers[index]
    if block == geometry.architecture.attention:
        return layer.o_bias if linear == block.reader else layer.qkv_bias
    return layer.down_bias if linear == block.reader else layer.gate_up_bias
