"""Recipes: what a pruning job runs, checked before anything is computed (torch-free)."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    model_validator,
)

from pruning.allocation.latency import LatencyTable
from pruning.errors import InvalidInput
from pruning.sources import NAME as NAME
from pruning.sources import Name as Name
from pruning.sources import Origin, Source

MOST_SEQUENCES = 65536


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Method(_Frozen):
    """A registered method by name, with its parameters."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)


class Text(Origin):
    """Text cut into sequences of tokens: what calibrates or measures a model.

    It has one origin, named here, or several `sources`.
    """

    sources: tuple[Source, ...] = Field((), max_length=256, description="instead of one origin")
    sequences: int = Field(128, ge=1, le=MOST_SEQUENCES)
    length: int = Field(256, ge=8, le=131072, description="tokens per sequence")
    select: Literal["random", "prototypes", "easy", "hard"] = Field(
        "random", description="which sequences of a pool calibrate, by their embeddings"
    )
    pool: int = Field(512, ge=1, le=MOST_SEQUENCES, description="sequences to select from")

    @model_validator(mode="after")
    def _one_origin(self) -> "Text":
        if self.given + bool(self.sources) != 1:
            raise ValueError("give one of file, dataset, adapter and sources")
        if self.sources and self.field is not None:
            raise ValueError("each of the sources has a field of its own; leave this one out")
        return self

    def origins(self, purpose: str) -> list[tuple[str, Origin]]:
        """The origins of the text, each with its place in a recipe where `purpose` is the text."""
        if not self.sources:
            return [(purpose, self)]
        return [(f"{purpose}.sources.{i}", source) for i, source in enumerate(self.sources)]

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the origins."""
        return tuple(source.weight for source in self.sources) or (1.0,)


class LayerFloors(_Frozen):
    """The floors of one layer, where they are not those of all layers."""

    kv_groups: int | None = Field(None, ge=1)
    ffn_fraction: float | None = Field(None, gt=0, le=1)


class Floors(_Frozen):
    """What no layer may lose: the least that stays of each kind in a layer that keeps the kind."""

    kv_groups: int = Field(1, ge=1)
    query_heads: int = Field(1, ge=1, description="of each KV group, alike in all layers")
    ffn_fraction: float = Field(0.1, gt=0, le=1, description="of the dense FFN width")
    layers: dict[NonNegativeInt, LayerFloors] = Field(
        default_factory=dict,
        description="layers with floors of their own; they are never removed as blocks",
    )

    def of(self, layer: int) -> tuple[int, float]:
        """The floors of a layer: KV groups, and the fraction of FFN channels."""
        own = self.layers.get(layer, LayerFloors())
        return own.kv_groups or self.kv_groups, own.ffn_fraction or self.ffn_fraction


Measure = Literal["parameters", "bytes", "latency_ms"]


class Size(_Frozen):
    """How large the slim base shall be: so many parameters or bytes, or how fast."""

    parameters: int | None = Field(None, ge=1, description="embedding and output head included")
    bytes: int | None = Field(None, ge=1, description="of the weights and of the KV cache")
    latency_ms: float | None = Field(None, gt=0, description="of a decoding step of the worker's")
    context: int = Field(
        0, ge=0, description="tokens in the KV cache that counts for `bytes` and `latency_ms`"
    )
    value_bytes: float = Field(
        2, gt=0, description="bytes of a weight, and of a cached key or value, for `bytes`"
    )
    batch: int = Field(1, ge=1, le=4096, description="sequences of a step, for `latency_ms`")
    table: LatencyTable | None = Field(
        None, description="measured times, for `latency_ms`; the worker measures where not given"
    )

    @model_validator(mode="after")
    def _one(self) -> "Size":
        if sum(amount is not None for amount in self._amounts.values()) != 1:
            raise ValueError("give either parameters, bytes or latency_ms")
        return self

    @property
    def _amounts(self) -> dict[Measure, float | None]:
        return {
            "parameters": self.parameters,
            "bytes": self.bytes,
            "latency_ms": self.latency_ms,
        }

    @property
    def measure(self) -> Measure:
        """What it is given in."""
        return next(name for name, amount in self._amounts.items() if amount is not None)

    @property
    def amount(self) -> float:
        """How much of the measure."""
        return self._amounts[self.measure] or 0

    def aiming_at(self, amount: int) -> "Size":
        """The same measure, another size."""
        return self.model_copy(update={self.measure: amount})


class Blocks(_Frozen):
    """Whole blocks to remove before the rest of the budget is spent on narrower units."""

    attention: int = Field(0, ge=0)
    mlp: int = Field(0, ge=0)


class Fleet(_Frozen):
    """Units scored for the base and all adapters together, not for the base alone."""

    combine: Literal["max", "mean"] = Field(
        "max", description="max: what any tenant needs stays; mean: what all need on average"
    )
    base_weight: float = Field(1, ge=0, description="of the base without an adapter")
    weights: dict[Name, float] = Field(
        default_factory=dict, description="of adapters, 1 where not given, 0 to leave one out"
    )
    texts: dict[Name, Text] = Field(
        default_factory=dict,
        description="what calibrates an adapter; the calibration text where not given",
    )

    @model_validator(mode="after")
    def _weighted(self) -> "Fleet":
        if any(weight < 0 for weight in self.weights.values()):
            raise ValueError("weights must not be negative")
        return self

    def weight(self, adapter: str) -> float:
        return self.weights.get(adapter, 1.0)

    def check(self, adapters: Collection[str]) -> None:
        """Raise InvalidInput for a name that the job carries no adapter of, or no weight at all."""
        for entry, named in (("weights", self.weights), ("texts", self.texts)):
            for name in named:
                if name not in adapters:
                    known = ", ".join(sorted(adapters)) or "none"
                    raise InvalidInput(
                        f"fleet.{entry}.{name}", f"the job carries no such adapter, but: {known}"
                    )
        if not self.base_weight and not any(map(self.weight, adapters)):
            raise InvalidInput("fleet.base_weight", "nothing has a weight; give one above 0")


class AdapterDistillation(_Frozen):
    """Short training of carried adapters towards the dense base with the adapter as it was."""

    steps: int = Field(50, ge=1, le=10_000)
    learning_rate: float = Field(4e-3, gt=0, description="the highest, of AdamW")
    batch_tokens: int = Field(4096, ge=1, description="in a step, about: whole rows or sequences")


class Recipe(_Frozen):
    """One pruning job: same recipe, same base and adapters, same seed, same artifact."""

    name: Name = Field(description="the name under which the slim base is served")
    base: Name = Field(description="a registered base")
    adapters: tuple[Name, ...] | Literal["all"] = Field(
        "all", description="adapters of the base to carry through the cut"
    )
    target: float | None = Field(
        None, gt=0, lt=1, description="fraction of the non-embedding parameters to remove"
    )
    size: Size | None = Field(None, description="instead of `target`: what shall be left")
    criterion: Method = Method(name="fluctuation")
    fleet: Fleet | None = Field(
        None, description="score units for the adapters too; else for the base alone"
    )
    allocator: Method = Method(name="uniform")
    units: tuple[Literal["ffn_channel", "kv_group", "query_head"], ...] = Field(
        ("ffn_channel", "kv_group"), min_length=1
    )
    hidden_size: int | None = Field(
        None, ge=1, description="channels of the hidden state that stay; all if not given"
    )
    blocks: Blocks = Blocks()
    floors: Floors = Floors()
    ffn_multiple: int = Field(
        16, ge=1, le=1024, description="FFN widths are multiples of this (64 or 128 on a GPU)"
    )
    bias_compensation: bool = Field(
        False, description="fold the mean of what was removed into o_proj and down_proj biases"
    )
    export: Literal["auto", "uniform", "per_layer"] = Field(
        "auto",
        description="uniform: a stock config that any tool loads, an error where layers differ; "
        "per_layer: our slim class; auto: uniform where the plan allows it",
    )
    schedule: Method = Method(name="one_shot")
    recovery: tuple[Method, ...] = Field(
        (), description="what repairs the slim base, one method after the other"
    )
    carry: Literal["project", "refit"] = Field(
        "project",
        description="project: adapters keep the rows and columns of what stays; refit: their atoms "
        "on o_proj and down_proj are also refit in closed form",
    )
    carry_distill: AdapterDistillation | None = Field(
        None, description="train each adapter for some steps after it was carried"
    )
    calibration: Text
    training: Text | None = Field(
        None, description="what recovery trains on; all of the calibration text if not given"
    )
    sink_tokens: int = Field(
        0, ge=0, le=7, description="at the start of each sequence, that count in no Gram matrix"
    )
    evaluation: Text
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _calibration_selects(self) -> "Recipe":
        others = [
            self.training,
            self.evaluation,
            *(self.fleet.texts.values() if self.fleet else ()),
        ]
        if any(text and text.select != "random" for text in others):
            raise ValueError("only the calibration text selects; leave select out of the others")
        return self

    @model_validator(mode="after")
    def _one_evaluation(self) -> "Recipe":
        if self.evaluation.sources:
            raise ValueError("evaluation has one origin; give no sources")
        return self

    @model_validator(mode="after")
    def _one_target(self) -> "Recipe":
        if (self.target is None) == (self.size is None):
            raise ValueError("give either target or size")
        if set(self.units) == {"query_head"}:
            raise ValueError("units: query heads leave all layers at once; add ffn_channel")
        return self

    @property
    def aim(self) -> str:
        """The target or the size in words."""
        if self.size is None:
            return f"{self.target:.1%} of the parameters outside of the embedding removed"
        if self.size.parameters is not None:
            return f"{self.size.parameters:,} parameters"
        if self.size.latency_ms is not None:
            return f"{self.size.latency_ms:g} ms for a decoding step"
        return f"{self.size.bytes:,} bytes with the KV cache of {self.size.context:,} tokens"


def _several(paths: Any) -> Any:
    return (paths,) if isinstance(paths, str | Path) else paths


Paths = Annotated[tuple[Path, ...], BeforeValidator(_several)]  # of a text: one for each origin


class PruneSpec(_Frozen):
    """A recipe with every name resolved to a path: the input of the durable workflow."""

    recipe: Recipe
    base: Path
    adapters: dict[str, Path]
    calibration: Paths
    training: Paths | None = None
    fleet_texts: dict[str, Paths] = Field(default_factory=dict)  # by adapter
    evaluation: Path
    tenant: str = "local"  # whose job it is, and whose what it makes will be

    @property
    def parts(self) -> dict[str, Path]:
        """The files that are parts of data sets, by their place in the recipe."""
        recipe, fleet = self.recipe, self.recipe.fleet
        texts = [
            ("calibration", recipe.calibration, self.calibration),
            ("training", recipe.training, self.training),
            ("evaluation", recipe.evaluation, (self.evaluation,)),
            *((f"fleet.texts.{n}", t, self.fleet_texts[n]) for n, t in _items(fleet)),
        ]
        return {
            place: path
            for purpose, text, paths in texts
            if text and paths
            for (place, origin), path in zip(text.origins(purpose), paths, strict=True)
            if origin.dataset
        }


def _items(fleet: Fleet | None) -> list[tuple[str, Text]]:
    return list(fleet.texts.items()) if fleet else []
