"""Training a generator as a job: families, then the network, then what both are worth.

The stages read what earlier ones wrote below the work directory and write WORK/STAGE/, as those of
`pruning.pipeline` do; what a kill shall not undo is in WORK/STAGE.state/.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruning import artifacts, evaluation
from pruning.adapters.algebra import Bags
from pruning.adapters.compression import applied
from pruning.adapters.generate.conditions import states_of_rows, states_of_text
from pruning.adapters.generate.families import read_family, train_family
from pruning.adapters.generate.generator import FILE, PAPER, Generator, train_generator
from pruning.adapters.generate.recipes import (
    GeneratorReport,
    TaskMeasure,
    TrainGeneratorSpec,
)
from pruning.adapters.inputs import deltas_of
from pruning.adapters.quality import silent
from pruning.digest import file_digest, tree_digest
from pruning.errors import InvalidInput
from pruning.evaluation import Example
from pruning.geometry import Geometry
from pruning.jobs.outputs import emptied
from pruning.jobs.resuming import kept_in
from pruning.progress import Progress, part
from pruning.text import load_tokenizer

TRAINED = "trained.json"  # what the training tells, in WORK/train


class Lessons:
    """The rows of every task, in the base's tokens: some to learn from, the others to measure."""

    def __init__(self, spec: TrainGeneratorSpec):
        self.spec = spec
        self.tokenizer = load_tokenizer(spec.base)

    @cached_property
    def model(self) -> Any:
        return evaluation.load(self.spec.base)

    @property
    def tasks(self) -> list[str]:
        return sorted(self.spec.rows)

    def rows(self, task: str) -> tuple[list[Example], list[Example]]:
        """Rows to learn from, and every so many one to measure by; InvalidInput for too few."""
        params, field = self.spec.recipe.families, f"tasks.{task}"
        rows = evaluation.rows(self.tokenizer, self.spec.rows[task], params.length, field)
        count = min(params.held_out, len(rows) // 5)
        if not count:
            raise InvalidInput(field, f"has {len(rows)} rows; give 5 or more, better hundreds")
        held_out = {i * len(rows) // count for i in range(count)}
        return (
            [row for i, row in enumerate(rows) if i not in held_out],
            [rows[i] for i in sorted(held_out)],
        )

    def states(self) -> dict[str, list[Tensor]]:
        """The conditions of every task, by kind."""
        recipe = self.spec.recipe
        count = recipe.families.demonstrations
        found = {
            "examples": [
                states_of_rows(self.model, self.tokenizer, self.rows(task)[0][:count])
                for task in self.tasks
            ]
        }
        texts = {task: recipe.tasks[task].description for task in self.tasks}
        described = {task: text for task, text in texts.items() if text is not None}
        if described:
            found["description"] = [
                states_of_text(self.model, self.tokenizer, text, f"tasks.{task}.description")
                for task, text in described.items()
            ]
        return found


def families(spec: TrainGeneratorSpec, work: Path, progress: Progress) -> None:
    """Train the adapters: WORK/families/TASK/STEP.safetensors, all of one layout."""
    torch.use_deterministic_algorithms(True)
    spec.recipe.families.check(Geometry.of(spec.base).architecture.linears)
    recipe, lessons, out = spec.recipe, Lessons(spec), emptied(work, "families")
    learnt = {task: lessons.rows(task)[0] for task in lessons.tasks}
    texts = {f"rows.{task}": file_digest(path) for task, path in spec.rows.items()}
    kept = kept_in(
        work / "families.state",
        base=tree_digest(spec.base),
        families=recipe.families.model_dump_json(),
        seed=str(recipe.seed),
        **texts,
    )
    for done, task in enumerate(lessons.tasks):
        own = part(progress, done / len(learnt), (done + 1) / len(learnt))
        finished, course = kept / "checkpoints" / task, kept / "courses" / task
        for folder in (finished, course):
            folder.mkdir(parents=True, exist_ok=True)
        say = _named(own, task)
        train_family(
            lessons.model, learnt[task], recipe.families, recipe.seed, finished, course, say
        )
        shutil.copytree(finished, out / task, copy_function=os.link)


def train(spec: TrainGeneratorSpec, work: Path, progress: Progress) -> None:
    """Train the network: WORK/train/generator.safetensors."""
    torch.use_deterministic_algorithms(True)
    out, recipe = emptied(work, "train"), spec.recipe
    progress(0.0, "reading demonstrations")
    states = Lessons(spec).states()
    kept = kept_in(
        work / "train.state", spec=spec.model_dump_json(), families=tree_digest(work / "families")
    )
    trained = train_generator(
        _families(work), states, recipe.network, recipe.seed, kept, part(progress, 0.1, 1)
    )
    trained.generator.save(out / FILE)
    told = {"explained": trained.explained, "kl": trained.kl}
    (out / TRAINED).write_text(json.dumps(told) + "\n")


def measure(spec: TrainGeneratorSpec, work: Path, progress: Progress) -> None:
    """Run the base, the last adapter of each family and the generated one over held-out rows."""
    lessons, out = Lessons(spec), emptied(work, "measure")
    generator = Generator.load(work / "train" / FILE)
    own = {task: checkpoints[-1] for task, checkpoints in _families(work).items()}
    tasks = []
    for done, task in enumerate(lessons.tasks):
        progress(done / len(own), f"measuring {task}")
        tasks.append(measured(lessons, generator, task, own[task]))
    told = json.loads((work / "train" / TRAINED).read_text())
    size, one = (work / "train" / FILE).stat().st_size, 2 * generator.layout.numbers
    report = GeneratorReport(
        recipe=spec.recipe,
        paper=PAPER,
        tasks=tuple(tasks),
        explained=told["explained"],
        kl=told["kl"],
        parameters=generator.parameters,
        bytes=size,
        adapter_bytes=one,
        break_even=math.ceil(size / one),
        largest_distance={kind: known.radius for kind, known in generator.conditions.items()},
    )
    (out / "report.json").write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")


def measured(lessons: Lessons, generator: Generator, task: str, own: Bags) -> TaskMeasure:
    """One task, with its own vector as the condition and z = 0."""
    rows = lessons.rows(task)[1]
    vector_h = generator.conditions["examples"].vectors_Th[generator.tasks.index(task)]
    made = generator.make("examples", vector_h, generator.latents(1, 0)[0])
    losses = [evaluation.completion_loss(lessons.model, rows, silent)]
    for bags in (own, made):
        with applied(lessons.model, deltas_of(bags)):
            losses.append(evaluation.completion_loss(lessons.model, rows, silent))
    base, trained, generated = losses
    recovered = (base - generated) / (base - trained) if trained < base else None
    return TaskMeasure(
        task=task,
        rows=len(rows),
        base=base,
        own=trained,
        generated=generated,
        recovered=recovered,
    )


def publish(spec: TrainGeneratorSpec, work: Path, progress: Progress) -> None:
    """Seal the generator and its report as an artifact in WORK/publish."""
    draft = emptied(work, "publish")
    os.link(work / "train" / FILE, draft / FILE)
    os.link(work / "measure" / "report.json", draft / "report.json")
    texts = {f"tasks.{task}": file_digest(path) for task, path in spec.rows.items()}
    parents = artifacts.Parents(base=tree_digest(spec.base), adapters={}, texts=texts)
    artifacts.seal(draft, spec.recipe, parents)


def _families(work: Path) -> Mapping[str, list[Bags]]:
    return {path.name: read_family(path) for path in sorted((work / "families").iterdir())}


def _named(progress: Progress, name: str) -> Progress:
    return lambda fraction, message: progress(fraction, f"{name}: {message}")


STAGES: dict[str, Callable[[TrainGeneratorSpec, Path, Progress], None]] = {
    "families": families,
    "train": train,
    "measure": measure,
    "publish": publish,
}
