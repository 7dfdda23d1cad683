"""What trains an adapter, checked before anything runs (torch-free)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pruning.adapters.generate.recipes import Rows
from pruning.errors import InvalidInput
from pruning.methods import resolve
from pruning.recipe import Method
from pruning.sources import Name

BEGIN_AT_ZERO = ("lora", "eva")  # initialisations whose B is zero
KEEP_FACTORS = ("core", "diagonal")  # forms that train nothing but what stands between B and A
BEST = (Method(name="allora"),)  # hooks of a recipe that names no method; see docs/training.md
OWN_FACTORS = ("nola", "randlora", "growable")  # forms that draw their factors themselves


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Hyperparameters(_Frozen):
    """The course of a training."""

    n_epochs: float = Field(3.0, gt=0, le=1000, description="passes over the training rows")
    steps: int | None = Field(None, ge=1, le=1_000_000, description="instead of n_epochs")
    batch_size: int = Field(8, ge=1, le=4096, description="rows of a step")
    length: int = Field(256, ge=8, description="tokens of a row; what exceeds it is cut")
    learning_rate: float = Field(3e-3, gt=0, description="the highest; it falls to zero")
    warmup: float = Field(0.1, ge=0, le=1, description="of the steps")
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0, description="of the gradient's norm")
    checks: int = Field(20, ge=1, le=1000, description="how often validation rows are looked at")
    patience: int = Field(5, ge=1, description="checks without a lower loss before it stops early")

    def num_steps(self, num_rows: int) -> int:
        """How many steps so many rows make."""
        return self.steps or max(1, round(self.n_epochs * num_rows / self.batch_size))


class Forgetting(_Frozen):
    """What is to be forgotten while the training rows are remembered (GS-LoRA)."""

    rows: Rows
    weight: float = Field(0.2, gt=0, le=100, description="of what is to be forgotten in the loss")
    bound: float | None = Field(
        None, gt=0, description="nats at which it counts as forgotten; ln of the vocabulary"
    )


class TrainRecipe(_Frozen):
    """Train an adapter on rows of prompt and completion, or of chat."""

    kind: Literal["train"] = "train"
    name: Name = Field(description="the adapter to be made")
    base: Name = Field(description="the registered base that it will serve")
    training: Rows
    validation: Rows | None = Field(None, description="rows to judge by; held out if not given")
    held_out: float = Field(0.1, gt=0, lt=1, description="of the training rows, else")
    rank: int = Field(8, ge=1, le=512)
    alpha: float = Field(16.0, gt=0)
    linears: tuple[str, ...] | None = Field(None, min_length=1, description="all if not given")
    layers: tuple[int, ...] | None = Field(None, min_length=1, description="all if not given")
    ranks: Method = Method(name="uniform")
    init: Method = Method(name="lora")
    form: Method = Method(name="plain")
    hooks: tuple[Method, ...] = Field(
        (), max_length=8, description="allora where neither init, form nor forget is given"
    )
    forget: Forgetting | None = None
    hyperparameters: Hyperparameters = Hyperparameters()
    seed: int = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _choose(cls, given: Any) -> Any:
        if isinstance(given, dict) and not given.keys() & {"init", "form", "hooks", "forget"}:
            return given | {"hooks": BEST}
        return given

    @model_validator(mode="after")
    def _fit(self) -> "TrainRecipe":
        init, form = self.init.name, self.form.name
        if form in KEEP_FACTORS and init in BEGIN_AT_ZERO:
            raise ValueError(
                f"form {form} keeps B as it is, which init {init} begins at zero; choose another"
            )
        if form in OWN_FACTORS and init != "lora":
            raise ValueError(f"form {form} draws its own factors; leave init out")
        if self.ranks.name == "cfsp" and init == "eva":
            raise ValueError("init eva shares ranks out itself; leave ranks out")
        return self

    def check(self, linears: Sequence[str], num_layers: int) -> None:
        """Raise InvalidInput for an unfit method, or for a linear or layer that the base lacks."""
        resolve("ranks", self.ranks)
        resolve("init", self.init)
        resolve("form", self.form)
        for hook in self.hooks:
            resolve("hook", hook)
        for name in self.linears or ():
            if name not in linears:
                raise InvalidInput(
                    "linears", f"the base has no {name!r}; choose of: {', '.join(linears)}"
                )
        for layer in self.layers or ():
            if not 0 <= layer < num_layers:
                raise InvalidInput(
                    "layers", f"the base has no layer {layer}, but those from 0 to {num_layers - 1}"
                )


class TrainSpec(_Frozen):
    """A recipe with every name resolved to a path."""

    recipe: TrainRecipe
    base: Path
    tenant: str = "local"  # whose job it is, and whose what it makes will be
    training: Path
    validation: Path | None = None
    forget: Path | None = None


class Check(_Frozen):
    """Where a training stood; nats per completion token."""

    step: int
    training: float  # mean over the steps since the last check
    validation: float


class LayerLimits(_Frozen):
    """The largest entries of what a layer's attention compares, and of what the adapter adds."""

    query: float
    key: float
    added_query: float
    added_key: float


class Limits(_Frozen):
    """Of the adapter on some validation rows, the longest of so many tokens.

    See pruning.adapters.limits and pruning.adapters.order.
    """

    tokens: int
    threshold: float  # √ln tokens: entries far below it are what a sub-quadratic method needs
    layers: dict[int, LayerLimits]
    break_even_tokens: int  # up to which it is no dearer beside the base than merged into it


class TrainReport(_Frozen):
    """What a training did; losses are nats per completion token of the validation rows."""

    recipe: TrainRecipe
    papers: tuple[str, ...]  # of init, form and hooks
    rows: dict[str, int]  # by what they were for
    parameters: int  # that were trained
    ranks: dict[str, int]  # by linear, of what is served
    bytes: int
    steps: int
    best_step: int  # whose weights these are
    base: float
    result: float  # of the adapter as it was written
    forget_base: float | None = None
    forget_result: float | None = None
    curve: tuple[Check, ...]
    limits: Limits
