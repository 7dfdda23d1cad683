"""One request to a generator: how far it is from what was learnt, samples, and the best of them."""

# Shape suffixes:  N = demonstrations or tokens,  h = hidden size.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pruning.adapters.algebra import Bag
from pruning.adapters.atoms import Key
from pruning.adapters.compression import applied
from pruning.adapters.generate.generator import Generator
from pruning.adapters.inputs import deltas_of
from pruning.adapters.quality import silent
from pruning.errors import InvalidInput
from pruning.evaluation import Example, completion_loss


@dataclass(frozen=True)
class Nearest:
    """What of a generator's training is nearest to a request."""

    task: str
    distance: float
    largest: float

    @property
    def is_beyond(self) -> bool:
        """Further than any condition of training was from its own task."""
        return self.distance > self.largest


def nearest(generator: Generator, kind: str, states_Nh: Tensor) -> tuple[Tensor, Nearest]:
    """The task vector of a request, and what is nearest to it; InvalidInput on `kind`.

    When the generator was trained without conditions of that kind.
    """
    if kind not in generator.conditions:
        raise InvalidInput(
            kind, "the generator was trained without descriptions of its tasks; give examples"
        )
    known = generator.conditions[kind]
    vector_h = known.vector(states_Nh)
    task, distance = known.nearest(vector_h)
    return vector_h, Nearest(generator.tasks[task], distance, known.radius)


def check_near(near: Nearest, kind: str) -> None:
    """Raise InvalidInput for a request that lies beyond what the generator has learnt."""
    if near.is_beyond:
        raise InvalidInput(
            kind,
            f"the nearest task that the generator knows is {near.task}, at a distance of "
            f"{near.distance:.3f}; training saw none beyond {near.largest:.3f}. Give more "
            "examples, train a generator on this task, or set force for what may be no better "
            "than the base",
            code="too_far",
        )


def best_of(
    candidates: Sequence[dict[Key, Bag]], model: Any, examples: Sequence[Example]
) -> tuple[int, tuple[float, ...]]:
    """Which adapter has the lowest loss on the examples, and the losses of all."""
    losses = []
    for bags in candidates:
        with applied(model, deltas_of(bags)):
            losses.append(completion_loss(model, examples, silent))
    return min(range(len(losses)), key=losses.__getitem__), tuple(losses)
