"""A plan: which units of a base stay, as data without tensors (torch-free)."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, model_validator

from pruning.geometry import Geometry


@dataclass(frozen=True)
class Widths:
    """How many units of each kind every layer keeps; none means that the block is gone."""

    kv_groups: tuple[int, ...]  # by layer
    ffn_channels: tuple[int, ...]


class LayerPlan(BaseModel):
    """The units of one layer that stay, as ascending indices; none left means no such block."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kv_groups: tuple[int, ...]
    ffn_channels: tuple[int, ...]

    @model_validator(mode="after")
    def _ascending(self) -> "LayerPlan":
        for name in ("kv_groups", "ffn_channels"):
            kept = getattr(self, name)
            if list(kept) != sorted(set(kept)):
                raise ValueError(f"{name} must be ascending and without repeats")
        return self


class Plan(BaseModel):
    """What stays of every layer of a dense base.  Same recipe and seed, same plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[LayerPlan, ...]
    bias_compensation: bool = False  # o_proj and down_proj gain a bias where units left

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
