"""Jobs on adapters, and merging, compressing, profiling, comparing: adapters in, an artifact out.

Each stage reads what earlier ones wrote below the work directory and writes WORK/STAGE/, as those
of `pruning.pipeline` do.  Below the recipe's floor the second stage fails, and nothing is sealed.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruning import artifacts, evaluation
from pruning.adapters import algebra, atoms, similarity
from pruning.adapters.algebra import Bags
from pruning.adapters.compose import profile as profiles
from pruning.adapters.compression import Deltas, Probe, applied
from pruning.adapters.generate.recipes import TrainGeneratorSpec
from pruning.adapters.inputs import all_rows, deltas_of, measuring_rows, on_base, open_sources
from pruning.adapters.jobs import (
    AdapterSpec,
    AnyAdapterSpec,
    CompareRecipe,
    CompareReport,
    CompressRecipe,
    JobReport,
    MergeRecipe,
    ProfileRecipe,
    ResultReport,
    stages_of,
)
from pruning.adapters.merging import Merged, merge_all
from pruning.adapters.peft_format import EVALUATION, WEIGHTS
from pruning.adapters.quality import check_floor, losses_of, silent, task_report
from pruning.adapters.search import search
from pruning.adapters.source import Source
from pruning.adapters.train.recipes import TrainSpec
from pruning.digest import tree_digest
from pruning.errors import InvalidInput
from pruning.geometry import Geometry
from pruning.methods import resolve
from pruning.progress import Progress
from pruning.registry import compress, merge
from pruning.text import calibration_ids, load_tokenizer

Stage = Callable[[AdapterSpec, Path, Progress], None]

PUBLISHED = (  # besides the adapters, what is there of it
    "combine/origins.json",
    "combine/weights.json",
    "measure/report.json",
    "profile/profile.json",
    "profile/report.json",
    "compare/report.json",
)
PROBE_ROWS = 8  # for compressions that look at outputs


def combine(spec: AdapterSpec, work: Path, progress: Progress) -> None:
    """Make the adapters: WORK/combine/adapters/NAME, and what they are made of as JSON."""
    out = _begin(work, "combine")
    sources = open_sources(spec)
    progress(0.1, "sources checked")
    recipe = spec.recipe
    if isinstance(recipe, MergeRecipe):
        weights = _weights(spec, recipe, sources)
        merged = _merged(recipe, sources, weights)
        results: Mapping[str, Bags] = {recipe.name: {key: m.bag for key, m in merged.items()}}
        _write_origins(merged, sources, out / "origins.json")
    else:
        assert isinstance(recipe, CompressRecipe)
        weights, results = {}, _compressed(spec, recipe, sources[0])
    (out / "weights.json").write_text(json.dumps(weights, sort_keys=True) + "\n")
    dtype = reduce(torch.promote_types, (source.dtype for source in sources))
    for done, (name, bags) in enumerate(sorted(results.items())):
        progress(0.5 + done / len(results) / 2, f"writing {name}")
        _write(spec, bags, dtype, out / "adapters" / name)


def measure(spec: AdapterSpec, work: Path, progress: Progress) -> None:
    """Run base, sources and results over the sources' rows; refuse what is below the floor."""
    out = _begin(work, "measure")
    sources, rows = open_sources(spec), measuring_rows(spec)
    directories = sorted((work / "combine" / "adapters").iterdir())
    weights = json.loads((work / "combine" / "weights.json").read_text())
    losses = losses_of(spec, sources, directories, rows, progress)
    results = tuple(
        ResultReport(
            name=directory.name,
            ranks={
                f"{layer}.{linear}": len(own.a)
                for (layer, linear), own in atoms.read(directory, "result").atoms.items()
            },
            bytes=(directory / WEIGHTS).stat().st_size,
            tasks=tuple(
                task_report(name, weights.get(name, 1.0), rows, losses, directory.name)
                for name in sorted(spec.sources)
            ),
        )
        for directory in directories
    )
    recipe = spec.recipe
    assert isinstance(recipe, MergeRecipe | CompressRecipe)
    report = JobReport(
        recipe=recipe,
        paper=resolve(recipe.kind, recipe.method)[0].paper.url,
        source_bytes={source.name: source.weights.stat().st_size for source in sources},
        results=results,
    )
    (out / "report.json").write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    for result in results:
        check_floor(result, recipe.floor)


def profile(spec: AdapterSpec, work: Path, progress: Progress) -> None:
    """Run base and adapter over the text: WORK/profile/profile.json, and its sums as a report."""
    out, recipe = _begin(work, "profile"), spec.recipe
    assert isinstance(recipe, ProfileRecipe)
    (source,) = open_sources(spec)
    tokenizer, model = load_tokenizer(spec.base), evaluation.load(spec.base)
    ids_ST = calibration_ids(tokenizer, spec.calibration, recipe.text, recipe.seed)
    progress(0.1, f"{len(ids_ST)} sequences")
    found = profiles.profile(model, {key: source.bag(key) for key in source.places}, ids_ST)
    profiles.write(found, out / "profile.json")
    report = {"recipe": recipe.model_dump(mode="json"), **profiles.summary(found)}
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def compare(spec: AdapterSpec, work: Path, progress: Progress) -> None:
    """Measure the angle between every two sources: WORK/compare/report.json."""
    out, recipe, sources = _begin(work, "compare"), spec.recipe, open_sources(spec)
    assert isinstance(recipe, CompareRecipe)
    gram_NN = similarity.products(sources, progress)
    report = CompareReport(
        recipe=recipe,
        names=tuple(source.name for source in sources),
        norms=tuple(gram_NN.diagonal().clamp(min=0).sqrt().tolist()),
        cosines=tuple(map(tuple, similarity.cosines(gram_NN))),
    )
    (out / "report.json").write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")


def publish(spec: AdapterSpec, work: Path, progress: Progress) -> None:
    """Link the outputs together and seal them as an artifact in WORK/publish."""
    draft = _begin(work, "publish")
    if (adapters := work / "combine" / "adapters").is_dir():
        shutil.copytree(adapters, draft / "adapters", copy_function=os.link)
    for file in PUBLISHED:
        if (work / file).is_file():
            os.link(work / file, draft / Path(file).name)
    parents = artifacts.Parents(
        base=tree_digest(spec.base),
        adapters={name: tree_digest(source.path) for name, source in spec.sources.items()},
    )
    artifacts.seal(draft, spec.recipe, parents)


OF_SOURCES: dict[str, Stage] = {
    "combine": combine,
    "measure": measure,
    "profile": profile,
    "compare": compare,
    "publish": publish,
}


AnyStage = Callable[[Any, Path, Progress], None]


def _stage(name: str) -> AnyStage:
    """A stage as the kind of what it is given has it."""

    def run(spec: AnyAdapterSpec, work: Path, progress: Progress) -> None:
        _code(spec)[name](spec, work, progress)

    return run


def _code(spec: AnyAdapterSpec) -> Mapping[str, AnyStage]:
    if isinstance(spec, AdapterSpec):
        return OF_SOURCES
    from pruning.adapters.generate import making, training  # peft: seconds that others do without
    from pruning.adapters.train import job

    if isinstance(spec, TrainSpec):
        return job.STAGES
    return training.STAGES if isinstance(spec, TrainGeneratorSpec) else making.STAGES


STAGES = {name: _stage(name) for name in (*OF_SOURCES, "families", "train", "generate")}


def run(spec: AnyAdapterSpec, work: Path, store: Path, progress: Progress) -> Path:
    """All stages one after the other; the artifact's directory in `store`.

    Raises InvalidInput for a source that cannot be used, naming it and its tensor, and for a
    result below the floor; nothing is published then.
    """
    for stage in stages_of(spec.recipe):
        STAGES[stage](spec, work, progress)
    digest = artifacts.read(work / "publish").digest
    artifacts.publish(work / "publish", store, digest)
    return store / digest


def _begin(work: Path, stage: str) -> Path:
    torch.use_deterministic_algorithms(True)
    shutil.rmtree(work / stage, ignore_errors=True)
    (work / stage).mkdir(parents=True)
    return work / stage


def _merged(
    recipe: MergeRecipe, sources: list[Source], weights: Mapping[str, float]
) -> dict[tuple[int, str], Merged]:
    method, _, params = merge(recipe.method)
    return {
        key: merged for key, merged, _ in merge_all(sources, weights, method, params, recipe.seed)
    }


def _weights(spec: AdapterSpec, recipe: MergeRecipe, sources: list[Source]) -> dict[str, float]:
    """Those of the recipe, or what a search that begins with them finds."""
    given = {name: source.weight for name, source in spec.sources.items()}
    if recipe.search is None:
        return given
    examples = {n: own[: recipe.search.rows] for n, own in all_rows(spec).items()}
    if not examples:
        raise InvalidInput("search", "no source has an eval.jsonl to search on; leave it out")
    model = evaluation.load(spec.base)
    names = sorted(given)

    def loss(weights: Any) -> float:
        bags = _merged(recipe, sources, dict(zip(names, weights, strict=True)))
        served = on_base(spec, {key: merged.bag for key, merged in bags.items()})
        with applied(model, deltas_of(served)):
            found = [evaluation.completion_loss(model, e, silent) for e in examples.values()]
        return sum(found) / len(found)

    start = [given[name] for name in names]
    found = search(loss, start, recipe.search.evaluations, recipe.seed)
    return dict(zip(names, found, strict=True))


def _compressed(spec: AdapterSpec, recipe: CompressRecipe, source: Source) -> dict[str, Bags]:
    method, entry, params = compress(recipe.method)
    probe = _probe(spec) if entry.needs_rows else None
    bags = {key: source.bag(key) for key in source.places}
    made = method(bags, params, recipe.seed, probe)
    return {f"{recipe.name}-{label}" if label else recipe.name: own for label, own in made.items()}


def _probe(spec: AdapterSpec) -> Probe:
    """The base's logits on some rows of the source."""
    rows = list(all_rows(spec).values())
    if not rows:
        raise InvalidInput(
            "method", "this method looks at outputs; give the adapter an eval.jsonl with rows"
        )
    model = evaluation.load(spec.base)

    @torch.inference_mode()
    def probe(deltas: Deltas) -> Tensor:
        with applied(model, deltas):
            outputs = [
                model(torch.tensor([ids], device=model.device), use_cache=False).logits[0].cpu()
                for ids, _ in rows[0][:PROBE_ROWS]
            ]
        return torch.cat(outputs)

    return probe


def _write(spec: AdapterSpec, bags: Bags, dtype: torch.dtype, directory: Path) -> None:
    served = on_base(spec, bags)
    if not served:
        raise InvalidInput("base", "it has none of the linears that the sources adapt")
    geometry = Geometry.of(spec.base)
    atoms.write(algebra.adapter_of(served, dtype), directory, geometry, spec.recipe.base)
    texts = [
        (source.path / EVALUATION).read_text(encoding="utf-8").rstrip("\n") + "\n"
        for _, source in sorted(spec.sources.items())
        if (source.path / EVALUATION).is_file()
    ]
    if texts:
        (directory / EVALUATION).write_text("".join(texts), encoding="utf-8")


def _write_origins(
    merged: Mapping[tuple[int, str], Merged], sources: list[Source], path: Path
) -> None:
    """For each atom of each linear: the sources' atoms that went into it, with their shares."""
    found = {}
    for key, linear in merged.items():
        names = [source.name for source in sources if key in source.places]
        if linear.origins:
            found["{}.{}".format(*key)] = [
                [{"source": names[o.part], "atom": o.atom, "share": o.share} for o in own]
                for own in linear.origins
            ]
    if found:
        path.write_text(json.dumps(found, sort_keys=True) + "\n")
