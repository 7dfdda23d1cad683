"""A plan: which units of a base stay, as data without tensors (torch-free)."""

from collections import Counter
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, model_validator

from pruning.geometry import Geometry, Layer


@dataclass(frozen=True)
class Widths:
    """How many units of each kind every layer keeps; none means that the block is gone."""

    kv_groups: tuple[int, ...]  # by layer
    ffn_channels: tuple[int, ...]
    heads_per_group: int | None = None  # query heads, the same in all layers; None: all stay


class LayerPlan(BaseModel):
    """The units of one layer that stay, as ascending indices; no unit means no such block."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kv_groups: tuple[int, ...]
    ffn_channels: tuple[int, ...]
    query_heads: tuple[int, ...] | None = None  # as many of each KV group that stays; None: all

    @model_validator(mode="after")
    def _ascending(self) -> "LayerPlan":
        for name in ("kv_groups", "ffn_channels", "query_heads"):
            kept = getattr(self, name) or ()
            if list(kept) != sorted(set(kept)):
                raise ValueError(f"{name} must be ascending and without repeats")
        return self

    def num_heads(self, dense: Layer) -> int:
        """Query heads that stay of a layer that had those of `dense`."""
        if self.query_heads is None:
            return len(self.kv_groups) * dense.group_size
        by_group = Counter(head // dense.group_size for head in self.query_heads)
        assert set(by_group) == set(self.kv_groups), "query heads of other groups than stay"
        assert len(set(by_group.values())) <= 1, "groups differ in their number of query heads"
        return len(self.query_heads)


class Plan(BaseModel):
    """What stays of every layer of a dense base.  Same recipe and seed, same plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[LayerPlan, ...]
    bias_compensation: bool = False  # o_proj and down_proj gain a bias where units left
    hidden_channels: tuple[int, ...] | None = None  # that stay, the same in all layers; None: all

    @model_validator(mode="after")
    def _hidden_ascending(self) -> "Plan":
        hidden = self.hidden_channels
        if hidden is not None and (not hidden or list(hidden) != sorted(set(hidden))):
            raise ValueError("hidden_channels must be ascending, without repeats and not empty")
        return self

    def narrowed(self, geometry: Geometry) -> Geometry:
        """The geometry of a dense base with the hidden channels that stay."""
        return geometry.with_hidden(len(self.hidden_channels) if self.hidden_channels else None)

    @classmethod
    def dense(cls, geometry: Geometry) -> "Plan":
        """The plan that keeps everything."""
        return cls(
            layers=tuple(
                LayerPlan(
                    kv_groups=tuple(range(layer.num_kv_heads)),
                    ffn_channels=tuple(range(layer.intermediate_size)),
                )
                for layer in geometry.layers
            )
        )

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """Layers of which at least one block stays; the others leave the model altogether."""
        return tuple(
            i for i, layer in enumerate(self.layers) if layer.kv_groups or layer.ffn_channels
        )
