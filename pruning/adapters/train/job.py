"""Training an adapter as a job: rows in, a plain LoRA with its report out.

The stages read what earlier ones wrote below the work directory and write WORK/STAGE/, as those of
`pruning.pipeline` do; what a kill shall not undo is in WORK/STAGE.state/.
"""

import math
import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pruning import artifacts, evaluation
from pruning.adapters import algebra, atoms
from pruning.adapters.atoms import Key
from pruning.adapters.form import nola
from pruning.adapters.limits import limits
from pruning.adapters.peft_format import CALIBRATION, EVALUATION, WEIGHTS
from pruning.adapters.quality import silent
from pruning.adapters.train.loop import Lesson, Outcome, Unlearning, fit
from pruning.adapters.train.recipes import TrainRecipe, TrainReport, TrainSpec
from pruning.adapters.train.starts import Starts
from pruning.adapters.train.tuned import Around, Batch, Setting, Site, Tuned
from pruning.digest import file_digest, tree_digest
from pruning.errors import InvalidInput
from pruning.evaluation import Example, padded
from pruning.geometry import Geometry
from pruning.jobs.outputs import emptied
from pruning.jobs.resuming import kept_in
from pruning.methods.entry import Params
from pruning.progress import Progress, part
from pruning.registry import form, hook, init, ranks
from pruning.text import load_tokenizer

COMPACT = "compact.safetensors"  # of an adapter that is a seed and coefficients
MOST_ROWS = 50  # of the validation rows that go with the adapter
EXCERPT = 64  # of the training rows
LOOK = 4  # rows that an initialisation has in one batch


class Material:
    """The rows of a training in the base's tokens, and the lines that they came from."""

    def __init__(self, spec: TrainSpec):
        self.spec = spec
        self.tokenizer = load_tokenizer(spec.base)

    @cached_property
    def lesson(self) -> Lesson:
        """Rows to learn from, and to judge by; InvalidInput for too few."""
        return self._lesson(self.spec.training, "training", self.spec.validation)

    @cached_property
    def unlearning(self) -> Unlearning | None:
        """What is to be forgotten."""
        forget, path = self.spec.recipe.forget, self.spec.forget
        if forget is None or path is None:
            return None
        bound = forget.bound or math.log(Geometry.of(self.spec.base).vocab_size)
        return Unlearning(self._lesson(path, "forget.rows", None), forget.weight, bound)

    def _lesson(self, path: Path, field: str, validation: Path | None) -> Lesson:
        rows = self._rows(path, field)
        if validation is not None:
            return Lesson(rows, self._rows(validation, "validation"))
        if len(rows) < 2:
            raise InvalidInput(field, "one row cannot be learnt and judge as well; give more")
        count = min(max(1, round(self.spec.recipe.held_out * len(rows))), len(rows) - 1)
        chosen = set(random.Random(self.spec.recipe.seed).sample(range(len(rows)), count))
        return Lesson(
            [row for i, row in enumerate(rows) if i not in chosen],
            [row for i, row in enumerate(rows) if i in chosen],
        )

    def _rows(self, path: Path, field: str) -> list[Example]:
        length = self.spec.recipe.hyperparameters.length
        return evaluation.rows(self.tokenizer, path, length, field)


def starts(
    model: Any, recipe: TrainRecipe, keys: tuple[Key, ...], rows: Sequence[Example]
) -> Starts:
    """With which factors the training of a recipe begins."""
    hyper = recipe.hyperparameters
    num_steps = hyper.num_steps(len(rows))
    share, _, share_params = ranks(recipe.ranks)
    begin, _, begin_params = init(recipe.init)
    site = Site(
        model=model,
        ranks=dict.fromkeys(keys, recipe.rank),
        scale=recipe.alpha / recipe.rank,
        batches=_batches(rows, share_params, recipe.seed),
        seed=recipe.seed,
        first_update=hyper.learning_rate / max(1, math.ceil(hyper.warmup * num_steps)),
    )
    shared = share(site, share_params)
    batches = _batches(rows, begin_params, recipe.seed)
    return begin(replace(site, ranks=shared, batches=batches), begin_params)


def _batches(rows: Sequence[Example], params: Params, seed: int) -> list[Batch]:
    """As many rows as a method looks at, LOOK at a time."""
    looked_at = sample(rows, getattr(params, "rows", 0), seed)
    return [padded(looked_at[i : i + LOOK]) for i in range(0, len(looked_at), LOOK)]


def sample(rows: Sequence[Example], count: int, seed: int) -> list[Example]:
    """At most `count` rows, drawn by the seed."""
    drawn = random.Random(seed).sample(range(len(rows)), min(count, len(rows)))
    return [rows[i] for i in drawn]


def keys_of(recipe: TrainRecipe, geometry: Geometry) -> tuple[Key, ...]:
    """The linears that a recipe trains, sorted; InvalidInput for what the base lacks."""
    linears, num_layers = geometry.architecture.linears, len(geometry.layers)
    recipe.check(linears, num_layers)
    return tuple(
        (layer, linear)
        for layer in (range(num_layers) if recipe.layers is None else sorted(set(recipe.layers)))
        for linear in sorted(linears)
        if recipe.linears is None or linear in recipe.linears
        if geometry.linear_shape(layer, linear) is not None
    )


def attach(
    model: Any, recipe: TrainRecipe, began: Starts, num_steps: int
) -> tuple[Tuned, list[Around]]:
    """The form and the hooks of a recipe on the factors that it begins with."""
    setting = Setting(recipe.seed, num_steps)
    tuned = Tuned.of(model, began)
    form_of, _, params = form(recipe.form)
    around = [form_of(tuned, params, setting)]
    for method in recipe.hooks:
        attach_hook, _, params = hook(method)
        around.append(attach_hook(tuned, params, setting))
    return tuned, [one for one in around if one is not None]


def train(spec: TrainSpec, work: Path, progress: Progress) -> None:
    """Train: WORK/train/adapters/NAME and report.json.

    Raises InvalidInput for rows that are none, for methods that do not go together, and when
    nothing better than the base was found.
    """
    torch.use_deterministic_algorithms(True)
    recipe, out = spec.recipe, emptied(work, "train")
    geometry, material = Geometry.of(spec.base), Material(spec)
    keys, lesson = keys_of(recipe, geometry), material.lesson
    texts = {"training": spec.training, "validation": spec.validation, "forget": spec.forget}
    kept = kept_in(
        work / "train.state",
        base=tree_digest(spec.base),
        recipe=recipe.model_dump_json(),
        **{name: file_digest(path) for name, path in texts.items() if path},
    )
    model = evaluation.load(spec.base)
    began = Starts.load(kept)
    if began is None:
        progress(0.0, f"initialising by {recipe.init.name}")
        began = starts(model, recipe, keys, lesson.training)
        began.save(kept)
    hyper = recipe.hyperparameters
    tuned, around = attach(model, recipe, began, hyper.num_steps(len(lesson.training)))
    outcome = fit(
        tuned,
        around,
        lesson,
        hyper,
        recipe.seed,
        kept,
        part(progress, 0.02, 0.95),
        material.unlearning,
    )
    directory = out / "adapters" / recipe.name
    bags = tuned.bake()
    if not bags:
        raise InvalidInput(
            "hyperparameters.learning_rate",
            "nothing was better than the base on the validation rows, or hooks left nothing; try "
            "another rate, more steps, or weaker hooks",
            code="no_gain",
        )
    atoms.write(algebra.adapter_of(bags), directory, geometry, recipe.base)
    if recipe.form.name == "nola":
        nola.write_compact(tuned, recipe.seed, out / COMPACT)
    _leave_rows(spec, directory)
    progress(0.95, "measuring what was written")
    report = _report(spec, material, tuned, directory, outcome)
    (out / "report.json").write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _report(
    spec: TrainSpec, material: Material, tuned: Tuned, directory: Path, outcome: Outcome
) -> TrainReport:
    recipe, lesson, unlearning = spec.recipe, material.lesson, material.unlearning
    rows = {"training": len(lesson.training), "validation": len(lesson.validation)}
    judged = [lesson.validation]
    if unlearning:
        rows["forget"] = len(unlearning.lesson.training)
        judged.append(unlearning.lesson.validation)
    base = evaluation.load(spec.base)  # afresh: an initialisation may have moved the other one
    before = [evaluation.completion_loss(base, one, silent) for one in judged]
    borders = limits(base, Geometry.of(spec.base), tuned.bake(), lesson.validation)
    adapted = evaluation.with_adapter(base, directory)
    after = [evaluation.completion_loss(adapted, one, silent) for one in judged]
    begun = ranks(recipe.ranks), init(recipe.init)
    methods = (*begun, form(recipe.form), *map(hook, recipe.hooks))
    return TrainReport(
        recipe=recipe,
        papers=tuple(dict.fromkeys(entry.paper.url for _, entry, _ in methods)),
        rows=rows,
        parameters=sum(p.numel() for p in tuned.parameters.values()),
        ranks={
            f"{layer}.{linear}": len(own.a)
            for (layer, linear), own in atoms.read(directory, "result").atoms.items()
        },
        bytes=(directory / WEIGHTS).stat().st_size,
        steps=outcome.steps,
        best_step=outcome.best_step,
        base=before[0],
        result=after[0],
        forget_base=before[1] if unlearning else None,
        forget_result=after[1] if unlearning else None,
        curve=outcome.curve,
        limits=borders,
    )


def _leave_rows(spec: TrainSpec, directory: Path) -> None:
    """Rows of the task beside the adapter, for jobs that need some: held out ones and others."""
    for path, name, most in (
        (spec.validation, EVALUATION, MOST_ROWS),
        (spec.training, CALIBRATION, EXCERPT),
    ):
        if path is not None:
            lines = [one for one in path.read_text(encoding="utf-8").split("\n") if one.strip()]
            kept = lines[:: -(-len(lines) // most)]
            (directory / name).write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def publish(spec: TrainSpec, work: Path, progress: Progress) -> None:
    """Seal the adapter and its report as an artifact in WORK/publish."""
    draft, made = emptied(work, "publish"), work / "train"
    shutil.copytree(made / "adapters", draft / "adapters", copy_function=os.link)
    for name in ("report.json", COMPACT):
        if (made / name).is_file():
            os.link(made / name, draft / name)
    texts = {"training": spec.training, "validation": spec.validation, "forget.rows": spec.forget}
    digests = {place: file_digest(path) for place, path in texts.items() if path}
    parents = artifacts.Parents(base=tree_digest(spec.base), adapters={}, texts=digests)
    artifacts.seal(draft, spec.recipe, parents)


STAGES: dict[str, Callable[[TrainSpec, Path, Progress], None]] = {
    "train": train,
    "publish": publish,
}
