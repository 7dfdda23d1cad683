"""Carries all adapters of a job: by index or refit, and distilled where the recipe asks for it.

A kill costs one adapter's work on one layer, or its training since the last check: the state is
found again by the digest of all that it depends on.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from pruning import evaluation
from pruning.adapters.carry import Cut, load, project, save
from pruning.adapters.distill import distill
from pruning.adapters.own_text import OwnText, own_texts, share_of_budget
from pruning.adapters.peft_format import WEIGHTS as ADAPTER
from pruning.adapters.refit import refit_adapters
from pruning.digest import tree_digest
from pruning.jobs.resuming import kept_in
from pruning.progress import Progress, part
from pruning.recipe import AdapterDistillation, PruneSpec
from pruning.weights.checkpoint import Checkpoint
from pruning.weights.rewriting import WEIGHTS


def carry_all(
    spec: PruneSpec,
    cut: Cut,
    slim: Path,
    ids_ST: Tensor,
    out: Path,
    state: Path,
    progress: Progress,
) -> None:
    """Carry the adapters to the base in `slim`, each to a directory of its name below `out`.

    `ids_ST` are the recipe's calibration sequences.  Raises InvalidInput for an adapter that does
    not fit the dense base, of which nothing remains, or whose rows cannot be read.
    """
    recipe = spec.recipe
    kept = kept_in(state, spec=spec.model_dump_json(), slim_base=tree_digest(slim))
    adapters = {n: load(path, cut, f"adapters.{n}") for n, path in sorted(spec.adapters.items())}
    bound = share_of_budget(spec)
    texts = own_texts(spec, ids_ST, None if recipe.carry_distill else bound)
    closing = part(progress, 0, 0.2 if recipe.carry_distill else 1)
    if recipe.carry == "refit":
        least = {name: text.at_most(bound).by_length() for name, text in texts.items()}
        dense, weights = Checkpoint(spec.base), slim / WEIGHTS
        carried = refit_adapters(adapters, least, dense, cut, weights, kept / "refit", closing)
    else:
        carried = {name: project(a, cut.dense, cut.plan) for name, a in adapters.items()}
    for name, adapter in carried.items():
        save(adapter, spec.adapters[name], out / name, cut, f"adapters.{name}")
    if recipe.carry_distill:
        rest = part(progress, 0.2, 1)
        _distill_all(spec, slim, texts, recipe.carry_distill, out, kept / "distill", rest)


def _distill_all(
    spec: PruneSpec,
    slim: Path,
    texts: Mapping[str, OwnText],
    params: AdapterDistillation,
    out: Path,
    state: Path,
    progress: Progress,
) -> None:
    """Both bases stay in memory, in float32; the adapters take turns on them."""
    teacher, student = evaluation.load(spec.base), evaluation.load(slim)
    for number, (name, source) in enumerate(sorted(spec.adapters.items())):
        own = part(progress, number / len(texts), (number + 1) / len(texts))
        taught = evaluation.with_adapter(teacher, source)
        learns = evaluation.with_adapter(student, out / name)
        course = state / name
        course.mkdir(parents=True, exist_ok=True)
        seed = spec.recipe.seed
        distill(learns, taught, texts[name], params, seed, course, _named(own, name))
        _write(learns.state_dict(), out / name / ADAPTER)
        teacher, student = taught.unload(), learns.unload()


def _write(trained: Mapping[str, Tensor], path: Path) -> None:
    """Put trained factors in the place of those in a file, in their dtypes."""
    tensors = {
        name: trained[name.removesuffix("weight") + "default.weight"].to("cpu", old.dtype)
        for name, old in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})


def _named(progress: Progress, name: str) -> Progress:
    return lambda fraction, message: progress(fraction, f"distilling {name}: {message}")
