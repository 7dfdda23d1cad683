"""Generating as a job: a generator and examples or a description in, an adapter out."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pruning import artifacts, evaluation
from pruning.adapters import algebra, atoms
from pruning.adapters.generate.conditions import states_of_rows, states_of_text
from pruning.adapters.generate.generation import best_of, check_near, nearest
from pruning.adapters.generate.generator import FILE, PAPER, Generator
from pruning.adapters.generate.recipes import (
    LEAST_EXAMPLES,
    MOST_EXAMPLES,
    Generated,
    GenerateSpec,
    GenerationReport,
)
from pruning.adapters.peft_format import CALIBRATION, WEIGHTS
from pruning.adapters.quality import silent
from pruning.artifacts import DamagedArtifact, Manifest
from pruning.digest import file_digest, tree_digest
from pruning.errors import InvalidInput
from pruning.evaluation import Example
from pruning.geometry import Geometry
from pruning.jobs.outputs import emptied
from pruning.progress import Progress
from pruning.text import load_tokenizer

PROVENANCE = "generated.json"  # of the adapter, in WORK/generate


class Request:
    """What is asked of a generator, in the base's tokens."""

    def __init__(self, spec: GenerateSpec):
        self.spec = spec
        self.tokenizer, self.model = load_tokenizer(spec.base), evaluation.load(spec.base)
        self.lines = _lines(spec)

    @property
    def kind(self) -> Literal["examples", "description"]:
        return "examples" if self.spec.recipe.description is None else "description"

    def rows(self, folder: Path) -> list[Example]:
        """The examples, which are left in `folder` as rows of an adapter; none of a description."""
        if self.kind == "description":
            return []
        folder.mkdir(parents=True)
        path = folder / CALIBRATION
        path.write_text("".join(f"{line}\n" for line in self.lines), encoding="utf-8")
        longest = getattr(self.model.config, "max_position_embeddings", None) or 512
        rows = evaluation.rows(self.tokenizer, path, longest, "examples")
        if len(rows) < LEAST_EXAMPLES:
            raise InvalidInput("examples", f"{len(rows)} rows; give {LEAST_EXAMPLES} or more")
        return rows

    def states(self, rows: Sequence[Example]) -> Tensor:
        """What the condition is the mean of; (N, h)."""
        if (text := self.spec.recipe.description) is not None:
            return states_of_text(self.model, self.tokenizer, text, "description")
        return states_of_rows(self.model, self.tokenizer, rows)


def _lines(spec: GenerateSpec) -> list[str]:
    """The examples as lines of JSON, at most MOST_EXAMPLES."""
    if spec.rows is not None:
        text = spec.rows.read_text(encoding="utf-8")
        return [line for line in text.split("\n") if line.strip()][:MOST_EXAMPLES]
    given = spec.recipe.examples
    return [row.model_dump_json() for row in given] if isinstance(given, tuple) else []


def generate(spec: GenerateSpec, work: Path, progress: Progress) -> None:
    """Make the adapter: WORK/generate/adapters/NAME, with report.json and generated.json.

    Raises InvalidInput for a generator that is damaged or of another base, for examples that are
    no rows, and for a condition beyond those of training, unless forced.
    """
    torch.use_deterministic_algorithms(True)
    recipe, out = spec.recipe, emptied(work, "generate")
    digest = verified(spec).digest
    generator = Generator.load(spec.generator / FILE)
    progress(0.1, "generator verified")
    request = Request(spec)
    directory = out / "adapters" / recipe.name
    rows = request.rows(directory)
    vector_h, near = nearest(generator, request.kind, request.states(rows))
    if not recipe.force:
        check_near(near, request.kind)
    progress(0.4, f"nearest task: {near.task}")
    count = recipe.samples if rows else 1  # without examples there is nothing to choose by
    made = [
        generator.make(request.kind, vector_h, z_LZ)
        for z_LZ in generator.latents(count, recipe.seed)
    ]
    base = evaluation.completion_loss(request.model, rows, silent) if rows else None
    chosen, losses = best_of(made, request.model, rows) if rows else (0, ())
    adapter = algebra.adapter_of(made[chosen], torch.float16)
    atoms.write(adapter, directory, Geometry.of(spec.base), recipe.base)
    generated = Generated(
        generator=digest,
        condition=request.kind,
        nearest_task=near.task,
        distance=near.distance,
        largest_distance=near.largest,
        forced=near.is_beyond,
        sample=chosen,
        samples=count,
    )
    report = GenerationReport(
        recipe=recipe,
        paper=PAPER,
        generated=generated,
        examples=len(rows),
        base=base,
        losses=losses,
        bytes=(directory / WEIGHTS).stat().st_size,
    )
    (out / "report.json").write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (out / PROVENANCE).write_text(generated.model_dump_json(indent=2) + "\n", encoding="utf-8")


def verified(spec: GenerateSpec) -> Manifest:
    """The manifest of the generator, all of whose bytes are those that were sealed."""
    try:
        manifest = artifacts.verify(spec.generator)
    except DamagedArtifact as error:
        raise InvalidInput(
            "generator",
            f"{spec.recipe.generator} is damaged: {error}; restore the file or train it again",
            code="damaged_generator",
        ) from error
    if manifest.kind != "generator":
        raise InvalidInput("generator", f"{spec.recipe.generator} is no generator")
    if manifest.parents.base != tree_digest(spec.base):
        raise InvalidInput(
            "generator",
            f"{spec.recipe.generator} makes adapters for another base than {spec.recipe.base!r}",
            code="adapter_mismatch",
        )
    return manifest


def publish(spec: GenerateSpec, work: Path, progress: Progress) -> None:
    """Seal the adapter, its report and where it comes from as an artifact in WORK/publish."""
    draft, made = emptied(work, "publish"), work / "generate"
    shutil.copytree(made / "adapters", draft / "adapters", copy_function=os.link)
    for name in ("report.json", PROVENANCE):
        os.link(made / name, draft / name)
    texts = {} if spec.rows is None else {"examples": file_digest(spec.rows)}
    parents = artifacts.Parents(base=tree_digest(spec.base), adapters={}, texts=texts)
    generated = Generated.model_validate_json((made / PROVENANCE).read_bytes())
    artifacts.seal(draft, spec.recipe, parents, generated)


STAGES: dict[str, Callable[[GenerateSpec, Path, Progress], None]] = {
    "generate": generate,
    "publish": publish,
}
