"""The statistics that need more than activations: each walks over the kept inputs of all layers."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pruning.methods.entry import Statistic
from pruning.progress import Progress
from pruning.statistics import zeroth
from pruning.statistics.gradients import Key, Saliency, SequenceWalk, add_saliency, entropy
from pruning.statistics.lora import LoraWalk
from pruning.statistics.relevance import RelevanceWalk, rules, target_logit
from pruning.statistics.streaming import Objective, Stream, next_token_loss

Walk = Callable[[Stream, Progress], Mapping[Key, Any]]


def _saliency(
    stream: Stream, progress: Progress, objective: Objective = next_token_loss
) -> Mapping[Key, Any]:
    found: dict[Key, Saliency] = {}
    visit = partial(add_saliency, found, stream.checkpoint.geometry)
    stream.backward(visit, progress, objective=objective)
    return found


def _sequence_gradients(stream: Stream, progress: Progress) -> Mapping[Key, Any]:
    walk = SequenceWalk(stream.checkpoint.geometry, len(stream.ids_ST))
    stream.backward(walk.finish, progress, each=walk.add, one_by_one=True)
    return walk.found


def _relevance(stream: Stream, progress: Progress) -> Mapping[Key, Any]:
    walk = RelevanceWalk(stream.ids_ST[:, 1:].numel())
    with rules(stream.layer, stream.norm):
        stream.backward(walk.finish, progress, prepare=walk.prepare, objective=target_logit)
    return walk.found


def _lora_saliency(stream: Stream, progress: Progress) -> Mapping[Key, Any]:
    walk = LoraWalk(stream.checkpoint.geometry, stream.layer)
    stream.backward(walk.finish, progress, prepare=walk.prepare)
    walk.stop()
    return walk.found


WALKS: Mapping[Statistic, Walk] = {
    "saliency": _saliency,
    "entropy_saliency": partial(_saliency, objective=entropy),
    "sequence_gradients": _sequence_gradients,
    "relevance": _relevance,
    "lora_saliency": _lora_saliency,
    "zeroth_order": zeroth.measure,
}
