"""Fleet-aware importance: units are scored for the base and for every adapter, then together.

An idea of this project.  A tenant is the base, or the base with one adapter merged into it; its
statistics come from its own text, and any criterion scores it as if it were a base.  Combined by
the maximum, a unit leaves only when no tenant misses it; by the mean, when all together miss it
least.  Tenants are streamed one after the other, a layer at a time, and so are their weights.
"""

# Shape suffixes:  T = tenants, but tokens beside S = sequences,  U = units.

from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pruning.adapters.algebra import bags_of
from pruning.adapters.atoms import read
from pruning.adapters.peft_format import read_adapter
from pruning.calibration import collect_into
from pruning.importance import score_layers
from pruning.methods import resolve
from pruning.methods.entry import Statistic
from pruning.progress import Progress, part
from pruning.recipe import Fleet, PruneSpec
from pruning.registry import LayerScores
from pruning.stats import Statistics
from pruning.text import calibration_ids, load_tokenizer
from pruning.weights.checkpoint import Checkpoint
from pruning.weights.tensors import block_of


class Tenant(Checkpoint):
    """A base with an adapter merged into its linears as they are read, in float32."""

    def __init__(self, base: Path, source: Path, name: str):
        """Raises InvalidInput for an adapter that does not fit the base."""
        super().__init__(base)
        read_adapter(source, self.geometry, field=f"adapters.{name}")
        self.bags = bags_of(read(source, f"adapters.{name}"))

    def layer(self, index: int) -> dict[str, Tensor]:
        """The tensors of a decoder layer, W + ΔW in the place of each adapted W."""
        tensors = super().layer(index)
        for (layer, linear), bag in self.bags.items():
            if layer == index:
                name = f"{block_of(linear)}.{linear}.weight"
                tensors[name] = tensors[name].float() + bag.delta
        return tensors


def calibrate(
    spec: PruneSpec,
    needs: Collection[Statistic],
    common_ST: Tensor,
    destination: Path,
    state: Path,
    progress: Progress,
) -> None:
    """Collect the statistics of every adapter that weighs anything, into NAME.safetensors.

    An adapter without a text of its own is shown the calibration sequences, `common_ST`.  What is
    in `state` survives a kill.
    """
    assert spec.recipe.fleet is not None
    weights = _weights(spec, spec.recipe.fleet)
    destination.mkdir()
    for number, name in enumerate(weights):
        tenant = Tenant(spec.base, spec.adapters[name], name)
        ids_ST = _own_ids(spec, spec.recipe.fleet, name)
        ids_ST = common_ST if ids_ST is None else ids_ST
        here = part(progress, number / len(weights), (number + 1) / len(weights))
        path = destination / f"{name}.safetensors"
        collect_into(path, tenant, ids_ST, needs, spec.recipe.sink_tokens, state / name, here)


def scores(
    spec: PruneSpec, own: Statistics, calibrated: Path, state: Path, progress: Progress
) -> list[LayerScores]:
    """The scores of the whole fleet, from the base's own statistics and what `calibrate` wrote."""
    fleet, recipe = spec.recipe.fleet, spec.recipe
    assert fleet is not None
    weights = _weights(spec, fleet)
    count = len(weights) + 1
    steps = [part(progress, n / count, (n + 1) / count) for n in range(count)]
    base, alone = Checkpoint(spec.base), state / "base"
    tenants = [(fleet.base_weight, score_layers(base, own, recipe, steps[0], alone))]
    for (name, weight), step in zip(weights.items(), steps[1:], strict=True):
        tenant = Tenant(spec.base, spec.adapters[name], name)
        statistics = Statistics.load(calibrated / f"{name}.safetensors")
        kept = state / "adapters" / name
        tenants.append((weight, score_layers(tenant, statistics, recipe, step, kept)))
    entry, _ = resolve("criterion", recipe.criterion)
    weighty = [(weight, scores) for weight, scores in tenants if weight]
    return combine(weighty, fleet.combine, entry.comparable)


def _weights(spec: PruneSpec, fleet: Fleet) -> dict[str, float]:
    given = {name: fleet.weight(name) for name in sorted(spec.adapters)}
    return {name: weight for name, weight in given.items() if weight}


def _own_ids(spec: PruneSpec, fleet: Fleet, name: str) -> Tensor | None:
    if text := fleet.texts.get(name):
        tokenizer, field = load_tokenizer(spec.base), f"fleet.texts.{name}"
        return calibration_ids(tokenizer, spec.fleet_texts[name], text, spec.recipe.seed, field)
    return None


def combine(
    tenants: Sequence[tuple[float, Sequence[LayerScores]]],
    how: Literal["mean", "max"],
    comparable: bool,
) -> list[LayerScores]:
    """One score per unit from those of all tenants, each given with its weight.

    Every tenant's scores are brought to one scale first: their root mean square is made that of
    the average tenant, per kind over all layers where layers are comparable, else per kind and
    layer.  Ranks of a tenant, and sums over its blocks, stay what they were.
    """
    weights = [weight for weight, _ in tenants]
    combined = []
    (first, *_) = tenants[0][1]
    kinds = [field.name for field in fields(first) if getattr(first, field.name) is not None]
    for kind in kinds:
        by_tenant = [[getattr(layer, kind) for layer in scores] for _, scores in tenants]
        scaled = _scaled_together(by_tenant) if comparable else _scaled_by_layer(by_tenant)
        combined.append(
            [_joined(torch.stack(layer), weights, how) for layer in zip(*scaled, strict=True)]
        )
    return [
        LayerScores(**dict(zip(kinds, layer, strict=True))) for layer in zip(*combined, strict=True)
    ]


def _scaled_together(by_tenant: list[list[Tensor]]) -> list[list[Tensor]]:
    sizes = [_root_mean_square(torch.cat(layers)) for layers in by_tenant]
    return [
        [layer * _factor(size, sizes) for layer in layers]
        for size, layers in zip(sizes, by_tenant, strict=True)
    ]


def _scaled_by_layer(by_tenant: list[list[Tensor]]) -> list[list[Tensor]]:
    layers = [_scaled_together([[s] for s in layer]) for layer in zip(*by_tenant, strict=True)]
    return [[layer[tenant][0] for layer in layers] for tenant in range(len(by_tenant))]


def _root_mean_square(scores: Tensor) -> float:
    return float(scores.square().mean().sqrt())


def _factor(size: float, sizes: Sequence[float]) -> float:
    return sum(sizes) / len(sizes) / size if size else 1.0


def _joined(scores_TU: Tensor, weights: Sequence[float], how: Literal["mean", "max"]) -> Tensor:
    weights_T1 = torch.tensor(weights, dtype=torch.float64).unsqueeze(1)
    if how == "max":
        return (scores_TU * weights_T1).amax(dim=0)
    return (scores_TU * weights_T1).sum(dim=0) / weights_T1.sum()
