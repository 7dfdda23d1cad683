"""What leaves together: KV groups and FFN channels as rows and columns of a layer's linears."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pruning.geometry import Geometry
from pruning.plan import LayerPlan

Kind = Literal["kv_group", "ffn_channel"]
KINDS: tuple[Kind, ...] = ("kv_group", "ffn_channel")
BLOCKS: dict[Kind, str] = {"kv_group": "self_attn", "ffn_channel": "mlp"}
READERS: dict[Kind, str] = {"kv_group": "o_proj", "ffn_channel": "down_proj"}  # weigh the units


@dataclass(frozen=True)
class Member:
    """A linear's part in a unit: unit u holds channels [u * channels, (u + 1) * channels)."""

    linear: str
    axis: Literal[0, 1]  # 0: rows of the weight (outputs), 1: columns (inputs)
    channels: int

    def indices(self, units: Iterable[int]) -> list[int]:
        """The channels of `units`, in the order given."""
        return [u * self.channels + c for u in units for c in range(self.channels)]


def members(geometry: Geometry, layer: int, kind: Kind) -> tuple[Member, ...]:
    """The linears that a unit of `kind` runs through, the same for all families.

    A KV group is a key-value head with the query heads that share it: query heads are numbered so
    that those of one group are neighbours.
    """
    if kind == "ffn_channel":
        return (Member("gate_proj", 0, 1), Member("up_proj", 0, 1), Member("down_proj", 1, 1))
    kv = geometry.head_dim
    q = kv * geometry.layers[layer].group_size
    return (
        Member("q_proj", 0, q),
        Member("k_proj", 0, kv),
        Member("v_proj", 0, kv),
        Member("o_proj", 1, q),
    )


def kept(plan: LayerPlan, kind: Kind) -> tuple[int, ...]:
    """The units of `kind` that a layer's plan keeps."""
    return plan.kv_groups if kind == "kv_group" else plan.ffn_channels


@dataclass(frozen=True)
class Selection:
    """The rows (axis 0) or columns (axis 1) of a linear that stay."""

    kind: Kind
    axis: Literal[0, 1]
    indices: tuple[int, ...]


def selections(geometry: Geometry, layer: int, plan: LayerPlan) -> Mapping[str, Selection]:
    """What of each linear stays; linears of removed blocks are absent."""
    return {
        member.linear: Selection(kind, member.axis, tuple(member.indices(kept(plan, kind))))
        for kind in KINDS
        if kept(plan, kind)
        for member in members(geometry, layer, kind)
    }
