"""What was measured about an artifact, as data."""

import json
import math
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pruning.geometry import Geometry
from pruning.methods.entry import MethodEntry
from pruning.plan import Plan
from pruning.recipe import Recipe


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


class LayerReport(_Frozen):
    """What stays of a layer of the dense base, and what it had."""

    layer: int
    kv_groups: int
    dense_kv_groups: int
    heads: int
    dense_heads: int
    ffn_channels: int
    dense_ffn_channels: int


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
    adapters: tuple[AdapterReport, ...]
    layers: tuple[LayerReport, ...]
    stages: tuple[StageReport, ...]
    evaluation_tokens: int
    methods: tuple[Citation, ...]
    versions: dict[str, str]


def size_of(geometry: Geometry, weight_bytes: int) -> Size:
    """The size of a base of this geometry."""
    shapes = [
        geometry.linear_shape(layer, linear)
        for layer in range(len(geometry.layers))
        for linear in geometry.architecture.linears
    ]
    weights = sum(math.prod(shape) for shape in shapes if shape)
    head = geometry.vocab_size * geometry.hidden_size
    kv_heads = sum(layer.num_kv_heads for layer in geometry.layers)
    return Size(
        parameters=geometry.parameters,
        body_parameters=geometry.body_parameters,
        weight_bytes=weight_bytes,
        flops_per_token=2 * (weights + head),
        kv_cache_values_per_token=2 * kv_heads * geometry.head_dim,
    )


def layers_of(geometry: Geometry, plan: Plan) -> tuple[LayerReport, ...]:
    """What `plan` keeps of each layer."""
    return tuple(
        LayerReport(
            layer=i,
            kv_groups=len(kept.kv_groups),
            dense_kv_groups=dense.num_kv_heads,
            heads=kept.num_heads(dense),
            dense_heads=dense.num_heads,
            ffn_channels=len(kept.ffn_channels),
            dense_ffn_channels=dense.intermediate_size,
        )
        for i, (dense, kept) in enumerate(zip(geometry.layers, plan.layers, strict=True))
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


def timings(work: Path, stages: Iterable[str]) -> tuple[StageReport, ...]:
    """What was measured around the stages that are over, in WORK/STAGE.timing.json."""
    found = {stage: work / f"{stage}.timing.json" for stage in stages}
    return tuple(
        StageReport(stage=stage, **json.loads(path.read_text()))
        for stage, path in found.items()
        if path.is_file()
    )
