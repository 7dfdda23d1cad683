"""What was measured about an artifact, as data."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pruning.allocation.latency import LatencyTable
from pruning.geometry import Geometry
from pruning.jobs.outputs import ROUNDS
from pruning.methods.entry import MethodEntry
from pruning.plan import Plan
from pruning.recipe import Recipe

MOST_NATS = 3.0  # over the dense base, beyond which a slim base writes no language any more


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Size(_Frozen):
    """How large a base is."""

    parameters: int
    body_parameters: int  # without embedding and output head: what a target counts
    weight_bytes: int
    flops_per_token: int  # two per weight of every matrix product, the output head included;
    # attention over the context, which grows with its length, is not counted
    kv_cache_values_per_token: int  # keys and values, all layers


class Quality(_Frozen):
    """Perplexity on the held-out text."""

    token_perplexity: float
    word_perplexity: float


class BaseReport(_Frozen):
    """A base before or after the cut."""

    size: Size
    quality: Quality


class AdapterReport(_Frozen):
    """Loss on the adapter's own held-out rows, nats per completion token; None without rows."""

    name: str
    rows: int
    dense_base: float | None
    dense_adapter: float | None
    slim_base: float | None
    slim_adapter: float | None


class Sample(_Frozen):
    """An opening of the evaluation text, and how both bases go on from there, greedily."""

    prompt: str
    dense: str
    slim: str


class LayerReport(_Frozen):
    """What stays of a layer of the dense base, and what it had.

    `parameters` are those of its linears; `departure` is how far the hidden states after it are
    from those of the dense base, ‖slim − dense‖ / ‖dense‖, the mean over tokens.
    """

    layer: int
    kv_groups: int
    dense_kv_groups: int
    heads: int
    dense_heads: int
    ffn_channels: int
    dense_ffn_channels: int
    parameters: int
    dense_parameters: int
    departure: float


class LatencyReport(_Frozen):
    """A decoding step on the worker, in milliseconds, and the times that the plan was made by."""

    asked: float
    predicted: float  # by the table
    dense: float  # measured, as is the next
    slim: float
    table: LatencyTable


class RoundReport(_Frozen):
    """What a round of the schedule until_stop left; the first is the dense base."""

    target: float  # what had left by then, as a fraction
    index: float  # the PQ index of the weights that stayed


class StageReport(_Frozen):
    """What a stage took."""

    stage: str
    seconds: float
    peak_rss_bytes: int


class Citation(_Frozen):
    """The paper of a method that was used."""

    kind: str
    name: str
    authors: str
    title: str
    venue: str
    url: str


class Report(_Frozen):
    """Everything that a reader of an artifact wants to know first."""

    recipe: Recipe
    export: str  # model_type of the slim base
    removed_fraction: float  # of the dense body's parameters, biases that were gained counted
    dense: BaseReport
    slim: BaseReport
    delta_nats: float  # per token of the held-out text, over the dense base
    divergence: float  # KL(dense ‖ slim) per token of its probes, in nats
    probe_tokens: int
    warnings: tuple[str, ...]
    samples: tuple[Sample, ...]
    adapters: tuple[AdapterReport, ...]
    layers: tuple[LayerReport, ...]
    rounds: tuple[RoundReport, ...] = ()
    latency: LatencyReport | None = None
    stages: tuple[StageReport, ...]
    evaluation_tokens: int
    methods: tuple[Citation, ...]
    versions: dict[str, str]


def size_of(geometry: Geometry, weight_bytes: int) -> Size:
    """The size of a base of this geometry."""
    weights = sum(_weights_of(geometry, layer) for layer in range(len(geometry.layers)))
    head = geometry.vocab_size * geometry.hidden_size
    kv_heads = sum(layer.num_kv_heads for layer in geometry.layers)
    return Size(
        parameters=geometry.parameters,
        body_parameters=geometry.body_parameters,
        weight_bytes=weight_bytes,
        flops_per_token=2 * (weights + head),
        kv_cache_values_per_token=2 * kv_heads * geometry.head_dim,
    )


def layers_of(
    geometry: Geometry, plan: Plan, slim: Geometry, departures: Sequence[float]
) -> tuple[LayerReport, ...]:
    """What `plan` keeps of each layer, and how far the states after it have gone astray."""
    new = {old: number for number, old in enumerate(plan.kept_layers)}
    return tuple(
        LayerReport(
            layer=i,
            kv_groups=len(kept.kv_groups),
            dense_kv_groups=dense.num_kv_heads,
            heads=kept.num_heads(dense),
            dense_heads=dense.num_heads,
            ffn_channels=len(kept.ffn_channels),
            dense_ffn_channels=dense.intermediate_size,
            parameters=_weights_of(slim, new[i]) if i in new else 0,
            dense_parameters=_weights_of(geometry, i),
            departure=departures[i],
        )
        for i, (dense, kept) in enumerate(zip(geometry.layers, plan.layers, strict=True))
    )


def _weights_of(geometry: Geometry, layer: int) -> int:
    shapes = (geometry.linear_shape(layer, linear) for linear in geometry.architecture.linears)
    return sum(math.prod(shape) for shape in shapes if shape)


def warnings_of(delta_nats: float) -> tuple[str, ...]:
    """What a reader must not miss."""
    if delta_nats <= MOST_NATS:
        return ()
    return (
        f"the slim base is {delta_nats:.2f} nats per token worse than the dense one, more than "
        f"{MOST_NATS:g}: it has collapsed; remove less, or add recovery",
    )


def cite(entry: MethodEntry) -> Citation:
    """The paper of a method."""
    paper = entry.paper
    return Citation(
        kind=entry.kind,
        name=entry.name,
        authors=paper.authors,
        title=paper.title,
        venue=paper.venue,
        url=paper.url,
    )


def rounds_of(work: Path) -> tuple[RoundReport, ...]:
    """The rounds of a schedule that chose its own number of them."""
    path = work / "schedule" / ROUNDS
    told = json.loads(path.read_text())["rounds"] if path.is_file() else []
    return tuple(RoundReport.model_validate(one) for one in told)


def timings(work: Path, stages: Iterable[str]) -> tuple[StageReport, ...]:
    """What was measured around the stages that are over, in WORK/STAGE.timing.json."""
    found = {stage: work / f"{stage}.timing.json" for stage in stages}
    return tuple(
        StageReport(stage=stage, **json.loads(path.read_text()))
        for stage, path in found.items()
        if path.is_file()
    )
