"""What a descriptor says of a decoder architecture, as data (torch-free)."""

from dataclasses import dataclass
from typing import Literal

Part = Literal["query", "key", "value", "gate", "up"]  # what outputs of a linear are


@dataclass(frozen=True)
class Writer:
    """A linear from the hidden state to channels that units own; fused ones have several parts."""

    name: str
    parts: tuple[Part, ...]  # its rows, one part after the other


@dataclass(frozen=True)
class Block:
    """One half of a decoder layer: hidden + post_norm(reader(f(writers(norm(hidden)))))."""

    name: str
    writers: tuple[Writer, ...]
    reader: str  # the linear back to the hidden state
    reads: Part  # it has as many inputs as this part has rows
    norm: str
    post_norm: str | None = None
    head_norms: tuple[str, ...] = ()  # inside the block, over the channels of a head

    @property
    def linears(self) -> tuple[str, ...]:
        """Names of all linears, the reader last."""
        return (*(writer.name for writer in self.writers), self.reader)

    @property
    def entrance(self) -> str:
        """A linear whose input is that of all writers."""
        return self.writers[0].name

    @property
    def norms(self) -> tuple[str, ...]:
        """Norms over the hidden state, named as in the layer."""
        return (self.norm, self.post_norm) if self.post_norm else (self.norm,)


Bias = bool | str  # whether there is one, or the entry of config.json that says so


@dataclass(frozen=True)
class Architecture:
    """A family of decoders: its blocks, and in which details it differs from others."""

    family: str  # model_type in config.json
    stock_class: str  # in transformers and in vLLM
    attention: Block
    mlp: Block
    qkv_bias: Bias = False
    o_bias: Bias = False
    gate_up_bias: Bias = False
    down_bias: Bias = False
    tied: bool = False  # when config.json does not say
    scaled_embedding: bool = False  # by the root of the hidden size
    norm_offset: float = 0.0  # norms over the hidden state multiply by this plus their weight
    logit_cap: str | None = None  # entry of config.json: logits become cap · tanh(logits / cap)
    mixed_windows: bool = False  # layers with and without a sliding window
    attn_implementation: Literal["sdpa", "eager"] = "sdpa"  # which one computes all of it
    heads_divide_hidden: bool = False  # the stock config refuses other head counts
    derives_head_dim: bool = False  # servers take hidden size / heads, whatever head_dim says
    fallback: str | None = None  # family whose stock class computes the same, given more biases
    uniform_only: str | None = None  # why there is no class for layers of different widths

    @property
    def blocks(self) -> tuple[Block, Block]:
        return self.attention, self.mlp

    @property
    def linears(self) -> tuple[str, ...]:
        """Names of all linears of a layer, in the order of the computation."""
        return (*self.attention.linears, *self.mlp.linears)

    @property
    def gains_biases(self) -> bool:
        """Whether the stock class can be told to have biases on both readers."""
        return isinstance(self.o_bias, str) and isinstance(self.down_bias, str)

    def block_of(self, linear: str) -> Block:
        """The block that a linear belongs to."""
        return next(block for block in self.blocks if linear in block.linears)


def attention(*head_norms: str, post_norm: str | None = None) -> Block:
    """Attention with a linear each for queries, keys and values."""
    return Block(
        "self_attn",
        (Writer("q_proj", ("query",)), Writer("k_proj", ("key",)), Writer("v_proj", ("value",))),
        reader="o_proj",
        reads="query",
        norm="input_layernorm",
        post_norm=post_norm,
        head_norms=head_norms,
    )


def gated_mlp(norm: str = "post_attention_layernorm", post_norm: str | None = None) -> Block:
    """A gated MLP with a linear each for gate and values."""
    return Block(
        "mlp",
        (Writer("gate_proj", ("gate",)), Writer("up_proj", ("up",))),
        reader="down_proj",
        reads="up",
        norm=norm,
        post_norm=post_norm,
    )
