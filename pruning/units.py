"""What leaves together: KV groups, query heads and FFN channels as rows and columns of linears."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pruning.architectures.layout import Block, Part
from pruning.geometry import Geometry
from pruning.plan import LayerPlan, Plan

Kind = Literal["kv_group", "query_head", "ffn_channel"]
KINDS: tuple[Kind, ...] = ("kv_group", "ffn_channel")  # the widest units of each block
BLOCKS: dict[Kind, str] = {"kv_group": "self_attn", "ffn_channel": "mlp"}
READERS: dict[Kind, str] = {"kv_group": "o_proj", "ffn_channel": "down_proj"}  # weigh the units

_OWNED: Mapping[Kind, tuple[Part, ...]] = {  # the parts of writers that units of a kind have
    "kv_group": ("query", "key", "value"),
    "query_head": ("query",),
    "ffn_channel": ("gate", "up"),
}


@dataclass(frozen=True)
class Span:
    """Neighbouring channels: unit u has those from start + u · channels on, `channels` of them."""

    start: int
    channels: int


@dataclass(frozen=True)
class Member:
    """A linear's part in the units of a kind: one span, or one for each part of a fused linear."""

    linear: str
    axis: Literal[0, 1]  # 0: rows of the weight (outputs), 1: columns (inputs)
    units: int
    spans: tuple[Span, ...]

    @property
    def channels(self) -> int:
        """Channels of one unit."""
        return sum(span.channels for span in self.spans)

    def indices(self, units: Iterable[int]) -> list[int]:
        """The channels of `units`, span after span, in the order given."""
        chosen = tuple(units)
        return [
            span.start + unit * span.channels + channel
            for span in self.spans
            for unit in chosen
            for channel in range(span.channels)
        ]


def members(geometry: Geometry, layer: int, kind: Kind) -> tuple[Member, ...]:
    """The linears that a unit of `kind` runs through, the one that reads it last.

    A KV group is a key-value head with the query heads that share it: query heads are numbered so
    that those of one group are neighbours.
    """
    return tuple(_members(geometry, layer, kind))


def _members(geometry: Geometry, layer: int, kind: Kind) -> Iterator[Member]:
    architecture = geometry.architecture
    block: Block = architecture.mlp if kind == "ffn_channel" else architecture.attention
    owned = _OWNED[kind]
    units = num_units(geometry, layer, kind)
    for writer in block.writers:
        start, spans = 0, []
        for part in writer.parts:
            rows = geometry.rows(layer, part)
            if part in owned:
                spans.append(Span(start, rows // units))
            start += rows
        if spans:
            yield Member(writer.name, 0, units, tuple(spans))
    inputs = geometry.rows(layer, block.reads)
    yield Member(block.reader, 1, units, (Span(0, inputs // units),))


def num_units(geometry: Geometry, layer: int, kind: Kind) -> int:
    """How many units of `kind` a layer has."""
    widths = geometry.layers[layer]
    return {
        "kv_group": widths.num_kv_heads,
        "query_head": widths.num_heads,
        "ffn_channel": widths.intermediate_size,
    }[kind]


@dataclass(frozen=True)
class Selection:
    """The rows (axis 0) or columns (axis 1) of a linear that stay."""

    axis: Literal[0, 1]
    indices: tuple[int, ...]


def selections(geometry: Geometry, layer: int, plan: LayerPlan) -> Mapping[str, Selection]:
    """What of each linear stays; linears of removed blocks are absent."""
    chosen: dict[str, Selection] = {}
    kept_units: dict[Kind, tuple[int, ...]]
    kept_units = {"kv_group": plan.kv_groups, "ffn_channel": plan.ffn_channels}
    for kind, kept in kept_units.items():
        for member in members(geometry, layer, kind) if kept else ():
            chosen[member.linear] = Selection(member.axis, tuple(member.indices(kept)))
    if plan.kv_groups and plan.query_heads is not None:
        heads = range(geometry.layers[layer].num_heads)
        leaving = set(heads).difference(plan.query_heads)
        for member in members(geometry, layer, "query_head"):
            gone, whole = set(member.indices(leaving)), chosen[member.linear]
            rest = tuple(index for index in whole.indices if index not in gone)
            chosen[member.linear] = replace(whole, indices=rest)
    return chosen


def cuts(geometry: Geometry, layer: int, plan: Plan) -> Mapping[str, tuple[Selection, ...]]:
    """What of each linear stays on the axis of the units, and on the other if channels of the
    hidden state leave: the columns of a writer, the rows of a reader.
    """
    chosen, hidden = selections(geometry, layer, plan.layers[layer]), plan.hidden_channels
    if hidden is None:
        return {linear: (units,) for linear, units in chosen.items()}
    return {
        linear: (units, Selection(0 if units.axis else 1, hidden))
        for linear, units in chosen.items()
    }
