"""What trains a generator and what it is asked for, checked before anything runs (torch-free)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pruning.errors import InvalidInput
from pruning.sources import Name, Origin

LEAST_EXAMPLES = 4  # a task vector of fewer says little about a task
MOST_EXAMPLES = 64


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rows(Origin):
    """A file with a row {"prompt", "completion"} on each line."""

    @model_validator(mode="after")
    def _one_place(self) -> "Rows":
        if self.given != 1:
            raise ValueError("give one of file, dataset and adapter")
        if self.field is not None:
            raise ValueError("rows have the fields prompt and completion; leave field out")
        return self


class TaskRows(Rows):
    """The rows of a task to learn, and words that stand for it."""

    description: str | None = Field(
        None, min_length=1, max_length=2000, description="adapters are then made from text, too"
    )


class Families(_Frozen):
    """How the adapters of all tasks are trained; the factors A of all begin alike."""

    rank: int = Field(4, ge=1, le=256)
    alpha: float = Field(8.0, gt=0)
    linears: tuple[str, ...] | None = Field(None, min_length=1, description="all if not given")
    steps: int = Field(150, ge=2, le=100_000)
    batch: int = Field(8, ge=1, description="rows of a step")
    length: int = Field(128, ge=8, description="tokens of a row; what exceeds it is cut")
    learning_rate: float = Field(3e-3, gt=0, description="the highest; it falls to zero")
    checkpoints: int = Field(8, ge=1, le=200, description="of a family, from the last third")
    demonstrations: int = Field(
        64, ge=LEAST_EXAMPLES, le=4096, description="rows of a task that make its task vector"
    )
    held_out: int = Field(32, ge=1, le=10_000, description="rows of a task that only measure")

    def check(self, linears: Sequence[str]) -> None:
        """Raise InvalidInput for a linear that is none of a base's."""
        for name in self.linears or ():
            if name not in linears:
                raise InvalidInput(
                    "families.linears",
                    f"the base has no {name!r}; choose of: {', '.join(linears)}",
                )

    @model_validator(mode="after")
    def _fit(self) -> "Families":
        if self.checkpoints > max(1, self.steps // 3):
            raise ValueError("checkpoints are of different steps of the last third; take fewer")
        return self


class Network(_Frozen):
    """The conditional VAE: its size and its training."""

    components: int | None = Field(
        None, ge=1, description="directions that layers are made of; (tasks - 1) times layers"
    )
    latent: int = Field(8, ge=1, le=1024)
    width: int = Field(128, ge=4, le=8192, description="of the hidden layers")
    steps: int = Field(3000, ge=1, le=1_000_000)
    batch: int = Field(128, ge=1, description="layers of checkpoints in a step")
    learning_rate: float = Field(2e-3, gt=0, description="the highest, of AdamW")
    kl_weight: float = Field(1e-3, ge=0, description="of KL(q(z | x, c) ‖ N(0, 1))")


class TrainGeneratorRecipe(_Frozen):
    """Train a family of adapters for each task, and a generator on all of them."""

    kind: Literal["train_generator"] = "train_generator"
    name: Name = Field(description="the generator to be made")
    base: Name = Field(description="the registered base whose adapters it will make")
    tasks: dict[Name, TaskRows] = Field(min_length=2, max_length=1024)
    families: Families = Families()
    network: Network = Network()
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _described_all_or_none(self) -> "TrainGeneratorRecipe":
        described = [task.description is not None for task in self.tasks.values()]
        if any(described) and not all(described):
            raise ValueError("describe all tasks or none")
        return self


class ExampleRow(_Frozen):
    """One demonstration of a task."""

    prompt: str = Field("", max_length=100_000)
    completion: str = Field(min_length=1, max_length=100_000)


class GenerateRecipe(_Frozen):
    """Make an adapter with a generator, from examples of its task or from a description."""

    kind: Literal["generate"] = "generate"
    name: Name = Field(description="the adapter to be made")
    base: Name = Field(description="the registered base that it will serve")
    generator: str = Field(
        min_length=1, max_length=64, description="a generator of the base, by name or by digest"
    )
    examples: tuple[ExampleRow, ...] | Rows | None = Field(
        None, description=f"rows, or a file of them; {LEAST_EXAMPLES} to {MOST_EXAMPLES} are used"
    )
    description: str | None = Field(
        None, min_length=1, max_length=2000, description="instead of examples"
    )
    samples: int = Field(4, ge=1, le=64, description="drawn; the best on the examples is kept")
    force: bool = Field(
        False, description="whatever the distance from what the generator has learnt"
    )
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _one_condition(self) -> "GenerateRecipe":
        if (self.examples is None) == (self.description is None):
            raise ValueError("give either examples or a description")
        if isinstance(self.examples, tuple):
            if not LEAST_EXAMPLES <= len(self.examples) <= MOST_EXAMPLES:
                raise ValueError(f"give {LEAST_EXAMPLES} to {MOST_EXAMPLES} examples")
        return self


class TrainGeneratorSpec(_Frozen):
    """A recipe with every name resolved to a path."""

    recipe: TrainGeneratorRecipe
    base: Path
    tenant: str = "local"  # whose job it is, and whose what it makes will be
    rows: dict[str, Path]  # by task


class GenerateSpec(_Frozen):
    """A recipe with every name resolved to a path; `generator` is an artifact."""

    recipe: GenerateRecipe
    base: Path
    tenant: str = "local"  # whose job it is, and whose what it makes will be
    generator: Path
    rows: Path | None = None  # where the examples are in a file


class Generated(_Frozen):
    """What a manifest tells of an adapter that a generator made."""

    generator: str  # the digest of its artifact
    condition: Literal["examples", "description"]
    nearest_task: str  # of those that the generator learnt
    distance: float  # from it
    largest_distance: float  # of a condition that training saw from its own task
    forced: bool  # beyond that
    sample: int  # which was kept; 0 is that of z = 0
    samples: int


class TaskMeasure(_Frozen):
    """A task of a generator: the last adapter of its family, and the one generated for it.

    Losses are on rows that no adapter was trained on, in nats per completion token; `recovered`
    is (base - generated) / (base - own), None where the family itself gains nothing.
    """

    task: str
    rows: int
    base: float
    own: float
    generated: float
    recovered: float | None


class GeneratorReport(_Frozen):
    """What was measured of a generator."""

    recipe: TrainGeneratorRecipe
    paper: str
    tasks: tuple[TaskMeasure, ...]
    explained: float  # of the variance of the checkpoints, by the components
    parameters: int  # of the network that generation needs
    bytes: int  # of the generator's file
    adapter_bytes: int  # of one adapter, in float16
    break_even: int  # so many adapters take more bytes than the generator
    largest_distance: dict[str, float]  # by condition
    kl: float  # nats per layer; near 0, z says nothing and samples are alike


class GenerationReport(_Frozen):
    """What was measured of a generated adapter, on the examples that chose it; None without."""

    recipe: GenerateRecipe
    paper: str
    generated: Generated
    examples: int
    base: float | None
    losses: tuple[float, ...]  # of each sample
    bytes: int
