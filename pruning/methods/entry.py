"""What can be known of a method without running it (torch-free)."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal[
    "criterion",
    "allocator",
    "recovery",
    "schedule",
    "merge",
    "compress",
    "ranks",
    "init",
    "form",
    "hook",
]
Statistic = Literal[
    "input_moments",
    "hidden_moments",
    "absolute_means",
    "released_fluctuation",
    "saliency",
    "entropy_saliency",
    "sequence_gradients",
    "relevance",
    "lora_saliency",
    "zeroth_order",
    "input_grams",
    "guided_grams",
    "influence",
]


@dataclass(frozen=True)
class Paper:
    """Where a method was published."""

    authors: str
    title: str
    venue: str
    url: str


class Params(BaseModel):
    """The parameters of a method; this one has none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def needs(self) -> frozenset[Statistic]:
        """What the calibration pass must collect for these values, besides `MethodEntry.needs`."""
        return frozenset()

    @property
    def least_fraction(self) -> float:
        """What an allocator leaves of each kind in every layer, should the floors be lower."""
        return 0.0

    @property
    def most_memory_gib(self) -> float | None:
        """How large the base may be, in float32, if the method holds all of it in memory."""
        return None


@dataclass(frozen=True)
class MethodEntry:
    """What can be known of a method without running it."""

    kind: Kind
    name: str
    summary: str
    paper: Paper
    params: type[Params] = Params
    needs: frozenset[Statistic] = frozenset()  # what the calibration pass must always collect
    comparable: bool = True  # whether scores of different layers are on one scale
    needs_rows: bool = False  # whether it looks at outputs of the base on an adapter's own rows
    from_dense: bool = False  # a recovery that undoes what others did before it
