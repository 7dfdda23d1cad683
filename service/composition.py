"""Compositions: adapters of one base with weights; one canonical form, however they are spelled.

A request may spell one in its model id, BASE+sql:0.7+style:0.3, or beside the id of the base as
LoRAX does (`adapter_parameters`, also `merged_adapters`) or as llama.cpp does (`lora`).
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pruning import methods
from pruning.errors import InvalidInput
from pruning.methods.entry import Params
from pruning.recipe import Method

EXACT = Method(name="cat")  # the weighted sum itself, no atom lost
SWITCH = "switch"  # one adapter at a time, by turns along the positions
UNSERVED = {
    "cmlora": "engines keep nothing of a sequence between two steps, so nothing can be held; take "
    "the exact sum, @switch, or pruning.adapters.compose in transformers (docs/compositions.md)"
}
MOST_PARTS = 8
MOST_WEIGHT = 10.0
GRAIN = 1 << 16  # weights are whole multiples of 1 / GRAIN, so that equal ones are equal
ARGUMENTS = {
    "svd": "rank",
    "lego": "k",
    SWITCH: "period",
}  # what NAME:ARGUMENT sets; `density` of all others
FIELDS = ("adapter_parameters", "merged_adapters", "lora")  # of a body that spell a composition

_ID = re.compile(
    r"(?P<base>[^+@:]+)(?P<parts>(\+[^+@:]+(:[^+@:]+)?)+)"
    r"(@(?P<strategy>[a-z_]+)(:(?P<argument>[0-9.]+))?)?"
)
_WEIGHT = re.compile(r"-?(\d+\.?\d*|\.\d+)(e-?\d+)?")


@dataclass(frozen=True)
class Part:
    """An adapter, by name, and its weight in the sum."""

    adapter: str
    weight: float


@dataclass(frozen=True)
class Composition:
    """At least one part, sorted by name, none twice and none with weight 0."""

    base: str
    parts: tuple[Part, ...]
    strategy: Method = EXACT

    @classmethod
    def of(
        cls, base: str, parts: Iterable[Part], strategy: Method = EXACT, field: str = "model"
    ) -> "Composition":
        """The canonical form.  InvalidInput, naming `field`, for what has none."""
        rounded = [Part(p.adapter, _rounded(p, field)) for p in parts]
        names = [part.adapter for part in rounded]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InvalidInput(field, f"names {twice[0]} twice; give it the sum of its weights")
        kept = sorted((part for part in rounded if part.weight), key=lambda part: part.adapter)
        if not kept:
            raise InvalidInput(field, "gives no adapter a weight other than 0; ask for the base")
        if len(kept) > MOST_PARTS:
            raise InvalidInput(field, f"names {len(kept)} adapters; at most {MOST_PARTS} go")
        given = _params(strategy, field).model_dump(mode="json", exclude_defaults=True)
        return cls(base, tuple(kept), Method(name=strategy.name, params=given))

    @property
    def exact(self) -> bool:
        """Whether it is the weighted sum itself."""
        return self.strategy.name == EXACT.name

    @property
    def period(self) -> int | None:
        """For how many positions each adapter has its turn, where they take turns."""
        if self.strategy.name != SWITCH:
            return None
        return Switch.model_validate(self.strategy.params).period

    @property
    def id(self) -> str:
        """As a model id spells it, where a strategy has no parameters but its argument."""
        parts = "".join(f"+{part.adapter}:{round(part.weight, 5):g}" for part in self.parts)
        argument = self.strategy.params.get(ARGUMENTS.get(self.strategy.name, "density"))
        suffix = f"@{self.strategy.name}" + ("" if argument is None else f":{argument}")
        return f"{self.base}{parts}" + ("" if self.exact else suffix)

    def digest(self, contents: Mapping[str, str]) -> str:
        """What tells it from every other sum, given the digests of its adapters by name."""
        parts = [[contents[part.adapter], part.weight] for part in self.parts]
        if self.period is None:  # else the order says who comes first
            parts.sort()
        key = json.dumps([self.strategy.model_dump(mode="json"), parts], sort_keys=True)
        return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


class Switch(Params):
    """LoRA Switch: each adapter alone, for `period` positions, in the order of their names.

    Zhong et al., "Multi-LoRA Composition for Image Generation", TMLR 2024,
    https://arxiv.org/abs/2402.16843, whose steps are positions here.
    """

    period: int = Field(1, ge=1, le=4096)


def _params(strategy: Method, field: str) -> Params:
    """The parameters of a strategy; InvalidInput for one that there is not, or is not served."""
    if strategy.name in UNSERVED:
        raise InvalidInput(field, f"{strategy.name} is not served: {UNSERVED[strategy.name]}")
    if strategy.name != SWITCH:
        return methods.resolve("merge", strategy)[1]
    try:
        return Switch.model_validate(strategy.params)
    except ValidationError as error:
        message = "switch takes a period, a whole number of positions from 1 to 4096"
        raise InvalidInput(field, message) from error


def spelled(id: str) -> Composition | None:
    """The composition that a model id spells, be it of one adapter; None for any other id.

    Raises InvalidInput for a weight or a strategy that there is not.
    """
    if (match := _ID.fullmatch(id)) is None:
        return None
    parts = [_part(text) for text in match["parts"][1:].split("+")]
    strategy = _strategy(match["strategy"] or EXACT.name, match["argument"])
    return Composition.of(match["base"], parts, strategy)


def requested(base: str, body: Mapping[str, Any]) -> Composition | None:
    """The composition that a body spells beside the id of its base, or None.

    Raises InvalidInput, naming the field, for one that is malformed.
    """
    given = [field for field in FIELDS if body.get(field)]
    if not given:
        return None
    if len(given) > 1:
        raise InvalidInput(given[1], f"is given together with {given[0]}; give one of them")
    (field,) = given
    try:
        if field == "lora":
            return _LlamaCpp.model_validate({"lora": body[field]}).composition(base)
        return _Lorax.model_validate(body[field]).composition(base, field)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"] if field == "lora" else (field, *first["loc"])))
        raise InvalidInput(where, first["msg"]) from error


class _Spelling(BaseModel):
    model_config = ConfigDict(extra="forbid")


Id = Annotated[str, Field(min_length=1)]


class _Lorax(_Spelling):
    """LoRAX' AdapterParameters; its `linear` is our exact sum, without LoRAX' cross terms."""

    ids: list[Id] = Field(min_length=1)
    weights: list[float] = Field(default_factory=list)
    merge_strategy: Literal["linear", "ties", "dare_linear", "dare_ties"] = "linear"
    density: float | None = Field(None, ge=0, le=1)
    majority_sign_method: Literal["total"] = "total"

    def composition(self, base: str, field: str) -> Composition:
        weights = self.weights or [1.0] * len(self.ids)
        if len(weights) != len(self.ids):
            raise InvalidInput(
                f"{field}.weights", f"has {len(weights)} values for {len(self.ids)} ids"
            )
        parts = [Part(_name(base, i, field), w) for i, w in zip(self.ids, weights, strict=True)]
        params = {"density": self.density} if self.density else {}
        exact = self.merge_strategy == "linear"
        strategy = EXACT if exact else Method(name=self.merge_strategy, params=params)
        return Composition.of(base, parts, strategy, field)


class _Scaled(_Spelling):
    id: Id
    scale: float = 1.0


class _LlamaCpp(_Spelling):
    """llama.cpp's `lora`, with the names of adapters in the place of its numbers."""

    lora: list[_Scaled] = Field(min_length=1)

    def composition(self, base: str) -> Composition:
        parts = [Part(_name(base, item.id, "lora"), item.scale) for item in self.lora]
        return Composition.of(base, parts, field="lora")


def _name(base: str, id: str, field: str) -> str:
    """The name of an adapter of `base` that is given by its name or by its id, BASE+NAME."""
    prefix, plus, name = id.rpartition("+")
    if plus and prefix != base:
        raise InvalidInput(field, f"{id} is an adapter of another base than {base}")
    return name


def _part(text: str) -> Part:
    name, colon, weight = text.partition(":")
    if colon and not _WEIGHT.fullmatch(weight):
        raise InvalidInput("model", f"the weight of {name} must be a number, not {weight!r}")
    return Part(name, float(weight) if colon else 1.0)


def _strategy(name: str, argument: str | None) -> Method:
    if argument is None:
        return Method(name=name)
    number = float(argument) if "." in argument else int(argument)
    return Method(name=name, params={ARGUMENTS.get(name, "density"): number})


def _rounded(part: Part, field: str) -> float:
    if not (math.isfinite(part.weight) and abs(part.weight) <= MOST_WEIGHT):
        raise InvalidInput(
            field,
            f"the weight of {part.adapter} must be a number from {-MOST_WEIGHT:g} to "
            f"{MOST_WEIGHT:g}, not {part.weight:g}",
        )
    return round(part.weight * GRAIN) / GRAIN
