"""Search: dynamic programming, then an evolution of widths, by the real loss of the masked base.

Each round of the programming measures what the loss becomes when one block alone changes its width,
and takes the widths that would be best were these changes additive; the first round starts from the
dense base, as in rate-distortion (Xu et al., ICCV 2023, https://arxiv.org/abs/2308.10438), each
other from what the last has found, where changes are smaller and so nearer to additive.  Mutations
that switch levels and keep the budget, and selection on more and more text, are those of Sieberling
et al., "EvoPress: Accurate Dynamic Model Compression via Evolutionary Search", ICML 2025,
https://arxiv.org/abs/2410.14649.  Uniform and global widths are parents too, so that only what has
a lower loss than both on the calibration text is chosen over them.  With `refit` the readers are
refit to every candidate, so that widths are judged as `closed_form` will repair them; the fitness
`divergence`, from the dense base's distributions, tells candidates apart on less text than the loss
does.  The whole base is held in memory in float32 (`memory_gib` bounds it): it is meant for small
bases.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from pruning.allocation.budget import Space
from pruning.allocation.programming import changed, least, widest
from pruning.allocation.selection import select
from pruning.allocation.spread import settled
from pruning.allocation.trial import Trial
from pruning.methods.allocators import SearchParams
from pruning.plan import Widths
from pruning.progress import Progress
from pruning.recipe import Method
from pruning.registry import Problem, allocator
from pruning.units import Kind

Loss = Callable[[Widths, int], float]  # on the first so many sequences

_ROUND_PART = 4  # of the text is what a round looks at
_SELECTIONS = ((16, 4), (4, 2))  # one of so many sequences, and how many pass it
_AMOUNTS = (1 / 32, 1 / 16, 1 / 8)  # of the dense FFN width: what one switch moves


def allocate(problem: Problem, params: SearchParams) -> Widths:
    """The fittest widths after some generations; never worse than uniform on the same text."""
    ids_ST = problem.calibration()[: params.sequences]
    damping = params.damping if params.refit else None
    trial = Trial(problem.checkpoint, ids_ST, problem.statistics, damping)
    fitness = trial.loss if params.fitness == "loss" else trial.divergence

    @cache
    def loss(widths: Widths, sequences: int) -> float:
        plan = select(problem.scores, widths, problem.recipe.bias_compensation)
        return fitness(plan, sequences)

    first = []
    for name in ("uniform", "global"):
        parent, _, default = allocator(Method(name=name))
        first.append(parent(problem, default))
    stages = params.rounds + params.generations

    def progress(stage: float, message: str) -> None:
        problem.progress(stage / stages, message)

    first += approach(problem.space, loss, params, progress)
    generator = random.Random(problem.recipe.seed)
    *_, fittest = _told(evolve(problem.space, first, loss, params, generator), params, progress)
    return fittest


def _told(
    generations: Iterator[Widths], params: SearchParams, progress: Progress
) -> Iterator[Widths]:
    for number, fittest in enumerate(generations):
        progress(params.rounds + number, f"generation {number} of {params.generations}")
        yield fittest


def approach(
    space: Space, loss: Loss, params: SearchParams, progress: Progress
) -> Iterator[Widths]:
    """What each round of the programming finds, as long as the loss falls; progress in rounds."""
    around, lowest = widest(space), math.inf
    sequences = max(1, params.sequences // _ROUND_PART)
    for finer in range(params.rounds):

        def measure(kind: Kind, layer: int, count: int, around: Widths = around) -> float:
            return loss(changed(around, kind, layer, count), sequences)

        def told(part: float, message: str, done: int = finer) -> None:
            progress(done + part, f"round {done + 1} of at most {params.rounds}: {message}")

        around = least(space, measure, params.levels + finer, told)
        yield around
        if loss(around, params.sequences) >= lowest:
            return
        lowest = loss(around, params.sequences)


def evolve(
    space: Space,
    first: Sequence[Widths],
    loss: Loss,
    params: SearchParams,
    generator: random.Random,
) -> Iterator[Widths]:
    """The fittest of the first, then of each generation; its loss never rises."""
    parent = min(first, key=lambda widths: loss(widths, params.sequences))
    lowest = loss(parent, params.sequences)
    yield parent
    for _ in range(params.generations):
        offspring = {mutated(space, parent, generator): None for _ in range(params.offspring)}
        offspring.pop(parent, None)
        passed = list(offspring)
        for part, count in _SELECTIONS:
            sequences = max(1, params.sequences // part)
            passed = sorted(passed, key=lambda widths: loss(widths, sequences))[:count]
        for widths in passed:
            found = loss(widths, params.sequences)
            if found < lowest:
                parent, lowest = widths, found
        yield parent


def mutated(space: Space, parent: Widths, generator: random.Random) -> Widths:
    """One to three switches; the budget is kept."""
    widths = parent
    for _ in range(min(generator.randint(1, 3), generator.randint(1, 3))):
        widths = _switched(space, widths, generator)
    return widths


def _switched(space: Space, widths: Widths, generator: random.Random) -> Widths:
    """Units of a kind move from layer to layer, or KV groups are exchanged for FFN channels."""
    groups = {i: widths.kv_groups[i] for i in space.kv_groups}
    channels = {i: float(widths.ffn_channels[i]) for i in space.ffn_channels}
    giver, taker = generator.choice(list(channels)), generator.choice(list(channels))
    donor, receiver = generator.choice(list(groups)), generator.choice(list(groups))
    switch = generator.choice(("channels", "groups", "fewer groups", "more groups"))
    if switch == "channels":
        amount = generator.choice(_AMOUNTS) * space.ffn_channels[giver][0]
        channels[giver] -= amount
        channels[taker] += amount
    if switch in ("groups", "fewer groups"):
        groups[donor] -= 1
    if switch in ("groups", "more groups"):
        groups[receiver] += 1
    return settled(space, groups, channels) or widths
