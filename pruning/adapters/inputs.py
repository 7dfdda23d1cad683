"""What a job on adapters reads: its sources in one shape, their rows, and the way to its base."""

import json
from pathlib import Path

from torch import Tensor

from pruning import evaluation
from pruning.adapters import algebra
from pruning.adapters.algebra import Bag, Bags
from pruning.adapters.carry import project
from pruning.adapters.jobs import AdapterSpec, CompressRecipe, MergeRecipe
from pruning.adapters.peft_format import EVALUATION
from pruning.adapters.source import Descent, Source, open_source
from pruning.errors import InvalidInput
from pruning.evaluation import Example
from pruning.geometry import Geometry
from pruning.plan import Plan
from pruning.text import load_tokenizer


def shape_of(spec: AdapterSpec) -> Geometry:
    """The shape that all sources are brought to."""
    return Geometry.of(spec.parent or spec.base)


def open_sources(spec: AdapterSpec) -> list[Source]:
    """All sources by name, checked; InvalidInput names the one that cannot be used."""
    geometry = shape_of(spec)
    sources = []
    for name, source in sorted(spec.sources.items()):
        descent = None
        if source.cut is not None:
            cut = Geometry.of(source.cut.base)
            descent = Descent(cut, geometry, _plan(source.cut.plan))
        sources.append(open_source(name, source.path, geometry, descent))
    return sources


def _plan(path: Path) -> Plan:
    return Plan.model_validate_json(path.read_bytes())


def on_base(spec: AdapterSpec, bags: Bags) -> dict[tuple[int, str], Bag]:
    """Bags in the shape of the sources, in that of the base that they shall serve."""
    if spec.plan is None:
        return dict(bags)
    adapter = algebra.adapter_of(bags)
    return algebra.bags_of(project(adapter, shape_of(spec), _plan(spec.plan)))


def all_rows(spec: AdapterSpec) -> dict[str, list[Example]]:
    """The rows of the sources that have an eval.jsonl, in the base's tokens."""
    measured = [name for name, s in spec.sources.items() if (s.path / EVALUATION).is_file()]
    if not measured:
        return {}
    tokenizer = load_tokenizer(spec.base)
    config = json.loads((spec.base / "config.json").read_text(encoding="utf-8"))
    longest = config.get("max_position_embeddings") or 512
    return {
        name: evaluation.rows(
            tokenizer, spec.sources[name].path / EVALUATION, longest, f"sources.{name}"
        )
        for name in sorted(measured)
    }


def measuring_rows(spec: AdapterSpec) -> dict[str, list[Example]]:
    """The rows that measure: those that a search looked at are left out."""
    recipe = spec.recipe
    assert isinstance(recipe, MergeRecipe | CompressRecipe)
    used = recipe.search.rows if isinstance(recipe, MergeRecipe) and recipe.search else 0
    rows = {name: own[used:] for name, own in all_rows(spec).items() if len(own) > used}
    if recipe.floor > 0 and not rows:
        raise InvalidInput("floor", "no source has rows to measure on; add an eval.jsonl to one")
    return rows


def deltas_of(bags: Bags) -> dict[tuple[int, str], Tensor]:
    """ΔW of every linear."""
    return {key: bag.delta for key, bag in bags.items()}
