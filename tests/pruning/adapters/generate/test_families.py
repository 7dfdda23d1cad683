"""Families: late checkpoints of one adapter, in one frame, whatever stopped their training."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pruning import evaluation
from pruning.adapters.compression import applied
from pruning.adapters.generate.families import (
    bags_of,
    checkpoint_steps,
    read_family,
    train_family,
)
from pruning.adapters.generate.gauge import in_frame
from pruning.adapters.generate.recipes import Families
from pruning.adapters.inputs import deltas_of
from pruning.digest import tree_digest
from pruning.text import load_tokenizer
from pruning.training.lora import with_lora

SMALL = Families(rank=2, alpha=4, steps=24, batch=4, length=24, learning_rate=0.02, checkpoints=3)


def silent(fraction: float, message: str) -> None:
    assert 0 <= fraction <= 1


@pytest.fixture
def base(dense_base: Callable[[str], Path]) -> Path:
    return dense_base("llama")


@pytest.fixture
def rows(base: Path, lines: Callable[[str, int], str], tmp_path: Path) -> Callable[[str], list]:
    def make(task: str) -> list[evaluation.Example]:
        (tmp_path / f"{task}.jsonl").write_text(lines(task, 30))
        return evaluation.rows(load_tokenizer(base), tmp_path / f"{task}.jsonl", 24, task)

    return make


def folders(path: Path) -> tuple[Path, Path]:
    """For the checkpoints and for the state of a training."""
    for name in ("out", "state"):
        (path / name).mkdir(parents=True)
    return path / "out", path / "state"


@pytest.mark.parametrize(
    ("steps", "count", "expected"),
    [(150, 5, [110, 120, 130, 140, 150]), (9, 3, [7, 8, 9]), (2, 1, [2])],
)
def test_checkpoints_are_spread_over_the_last_third(steps: int, count: int, expected: list[int]):
    assert checkpoint_steps(Families(steps=steps, checkpoints=count)) == expected


def test_a_family_learns_its_task_and_leaves_the_base_as_it_was(base, rows, tmp_path):
    model, own = evaluation.load(base), rows("letters")
    before = {name: p.clone() for name, p in model.state_dict().items()}
    out, state = folders(tmp_path / "letters")
    train_family(model, own, SMALL, 0, out, state, silent)
    assert [path.stem for path in sorted(out.iterdir())] == ["000019", "000022", "000024"]
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    family = read_family(out)
    with applied(model, deltas_of(family[-1])):
        trained = evaluation.completion_loss(model, own, silent)
    assert trained < 0.8 * evaluation.completion_loss(model, own, silent)


def test_families_of_all_tasks_are_written_in_one_frame(base, rows, tmp_path):
    frame = with_lora(evaluation.load(base), SMALL, 0)
    begun = bags_of({n: p for n, p in frame.named_parameters() if p.requires_grad}, SMALL)
    for task in ("letters", "digits"):
        out, state = folders(tmp_path / task / "family")
        train_family(evaluation.load(base), rows(task), SMALL, 0, out, state, silent)
        for key, bag in read_family(out)[-1].items():
            again = in_frame(bag, begun[key].a_RI)
            torch.testing.assert_close(again.a_RI, bag.a_RI, rtol=1e-3, atol=1e-4)


def test_stopped_and_begun_again_a_family_has_the_same_bytes(base, rows, tmp_path):
    own = rows("digits")
    out, state = folders(tmp_path / "whole")
    train_family(evaluation.load(base), own, SMALL, 0, out, state, silent)
    again, course = folders(tmp_path / "stopped")
    for limit in (0.3, 0.9):

        def stop(fraction: float, message: str, limit: float = limit) -> None:
            if fraction > limit:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train_family(evaluation.load(base), own, SMALL, 0, again, course, stop)
    train_family(evaluation.load(base), own, SMALL, 0, again, course, silent)
    assert tree_digest(again) == tree_digest(out)


def test_only_the_linears_that_are_named_have_factors(base, rows, tmp_path):
    out, state = folders(tmp_path / "few")
    few = SMALL.model_copy(update={"linears": ("q_proj", "v_proj"), "steps": 3, "checkpoints": 1})
    train_family(evaluation.load(base), rows("marks"), few, 0, out, state, silent)
    assert {linear for _, linear in read_family(out)[0]} == {"q_proj", "v_proj"}
