"""Jobs on adapters: what to merge, compress, profile, compare, make or train (torch-free)."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pruning.adapters.generate.recipes import (
    GenerateRecipe,
    GenerateSpec,
    TrainGeneratorRecipe,
    TrainGeneratorSpec,
)
from pruning.adapters.train.recipes import TrainRecipe, TrainSpec
from pruning.methods import resolve
from pruning.methods.adapters import LadderParams
from pruning.recipe import Method, Name, Text


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Input(_Frozen):
    """An adapter to merge: one of the recipe's base, or of another slim base of its parent."""

    adapter: Name
    base: Name | None = Field(None, description="where it is registered; that of the recipe")
    weight: float = Field(1.0, ge=-10, le=10)

    @property
    def label(self) -> str:
        """What it is called in weights and reports: ADAPTER, or BASE+ADAPTER."""
        return f"{self.base}+{self.adapter}" if self.base else self.adapter


class Search(_Frozen):
    """Find the weights on some rows of each source's eval.jsonl (LoraHub) from those given."""

    evaluations: int = Field(40, ge=2, le=1000)
    rows: int = Field(5, ge=1, le=100, description="of each source; they do not measure the result")


class _AdapterRecipe(_Frozen):
    name: Name = Field(description="the adapter to be made")
    base: Name = Field(description="the registered base that it will serve")
    floor: float = Field(
        0.0,
        le=1,
        description="of each source's gain over the base on its own rows, the part that must "
        "survive; below it nothing is published",
    )
    seed: int = Field(0, ge=0)


class MergeRecipe(_AdapterRecipe):
    """Several adapters into one."""

    kind: Literal["merge"] = "merge"
    sources: tuple[Input, ...] = Field(min_length=1, max_length=1024)
    method: Method = Method(name="lego")
    search: Search | None = None

    @model_validator(mode="after")
    def _distinct(self) -> "MergeRecipe":
        labels = [source.label for source in self.sources]
        if len(set(labels)) < len(labels):
            raise ValueError("a source is named twice; give it the sum of the weights")
        return self


class CompressRecipe(_AdapterRecipe):
    """One adapter into a smaller one, or a ladder of them."""

    kind: Literal["compress"] = "compress"
    source: Name
    method: Method = Method(name="svd")


class ProfileRecipe(_Frozen):
    """How what an adapter adds varies along a text, for compositions that hold it."""

    kind: Literal["profile"] = "profile"
    base: Name
    source: Name
    calibration: Text | None = Field(None, description="without, the adapter's calibration.jsonl")
    seed: int = Field(0, ge=0)

    @property
    def text(self) -> Text:
        """What the adapter runs over."""
        return self.calibration or Text(adapter=self.source, sequences=16, length=128)


class CompareRecipe(_Frozen):
    """How alike the adapters of one base are."""

    kind: Literal["compare"] = "compare"
    base: Name
    adapters: tuple[Name, ...] | Literal["all"] = "all"
    seed: int = Field(0, ge=0)


SourcedRecipe = MergeRecipe | CompressRecipe | ProfileRecipe | CompareRecipe
AnyAdapterRecipe = SourcedRecipe | TrainGeneratorRecipe | GenerateRecipe | TrainRecipe
AdapterRecipe = Annotated[AnyAdapterRecipe, Field(discriminator="kind")]

_STAGES = {
    "merge": ("combine", "measure", "publish"),
    "compress": ("combine", "measure", "publish"),
    "profile": ("profile", "publish"),
    "compare": ("compare", "publish"),
    "train_generator": ("families", "train", "measure", "publish"),
    "generate": ("generate", "publish"),
    "train": ("train", "publish"),
}


def stages_of(recipe: AnyAdapterRecipe) -> tuple[str, ...]:
    """The stages of a job on adapters, in order."""
    return _STAGES[recipe.kind]


def makes(recipe: AnyAdapterRecipe) -> str:
    """What at most one job at a time is to make."""
    if isinstance(recipe, ProfileRecipe):
        return f"profile of {recipe.base}+{recipe.source}"
    if isinstance(recipe, CompareRecipe):
        return f"comparison of the adapters of {recipe.base}"
    return f"{recipe.base}+{recipe.name}"


def results(recipe: AnyAdapterRecipe) -> tuple[str, ...]:
    """The names of the adapters that a recipe makes.  Raises InvalidInput for an unfit method."""
    if isinstance(recipe, ProfileRecipe | CompareRecipe | TrainGeneratorRecipe):
        return ()
    if isinstance(recipe, GenerateRecipe | TrainRecipe):
        return (recipe.name,)
    _, params = resolve(recipe.kind, recipe.method)
    if isinstance(params, LadderParams):
        return tuple(f"{recipe.name}-r{rank}" for rank in params.ranks)
    return (recipe.name,)


class Cut(_Frozen):
    """A slim base and the plan that made it."""

    base: Path
    plan: Path


class SourceSpec(_Frozen):
    """A PEFT directory, its weight, and its slim base where that is not the recipe's."""

    path: Path
    weight: float = 1.0
    cut: Cut | None = None


class AdapterSpec(_Frozen):
    """A recipe with every name resolved to a path.

    Sources with a `cut` are lifted to `parent`, the dense base that they share; the result is cut
    again by `plan` where the recipe's base is slim itself.
    """

    recipe: SourcedRecipe = Field(discriminator="kind")
    base: Path
    sources: dict[str, SourceSpec] = Field(min_length=1)
    parent: Path | None = None
    plan: Path | None = None
    calibration: tuple[Path, ...] = ()
    tenant: str = "local"  # whose job it is, and whose what it makes will be


AnyAdapterSpec = AdapterSpec | TrainGeneratorSpec | GenerateSpec | TrainSpec


class TaskReport(_Frozen):
    """A result on the rows of one source, in nats per completion token; None without rows.

    `recovered` is (base - result) / (base - own), None also where the source itself gains nothing.
    """

    source: str
    weight: float
    rows: int
    base: float | None
    own: float | None
    result: float | None
    recovered: float | None


class ResultReport(_Frozen):
    """One adapter that was made."""

    name: str
    ranks: dict[str, int]  # by linear
    bytes: int
    tasks: tuple[TaskReport, ...]

    @property
    def worst(self) -> TaskReport | None:
        """The source that lost most, of those that could be measured."""
        measured = [task for task in self.tasks if task.recovered is not None]
        return min(measured, key=lambda task: task.recovered or 0.0, default=None)


class CompareReport(_Frozen):
    """The cosine of the angle between the ΔW of each pair; None where one adds nothing.

    `norms` are the lengths of the ΔW over all linears, as Frobenius norms.
    """

    recipe: CompareRecipe
    names: tuple[str, ...]
    norms: tuple[float, ...]
    cosines: tuple[tuple[float | None, ...], ...]


class JobReport(_Frozen):
    """What was measured of a merge or a compression."""

    recipe: MergeRecipe | CompressRecipe = Field(discriminator="kind")
    paper: str
    source_bytes: dict[str, int]
    results: tuple[ResultReport, ...]
