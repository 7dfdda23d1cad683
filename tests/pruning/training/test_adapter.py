"""An adapter trained on a slim base does the same there as in training, and lifts to the dense."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pruning import evaluation
from pruning.adapters import atoms
from pruning.adapters.carry import lift, project
from pruning.adapters.peft_format import read_adapter
from pruning.export import slim_config
from pruning.geometry import Geometry
from pruning.methods.recovery import LoraParams
from pruning.plan import Plan
from pruning.slicing import slice_base
from pruning.stats import Statistics
from pruning.training.adapter import train_adapter
from pruning.training.data import Split, split
from pruning.training.losses import next_token
from pruning.training.trainer import held_out_loss
from pruning.weights.checkpoint import Checkpoint

PARAMS = LoraParams(rank=2, alpha=4, tokens=3000, learning_rate=0.01, batch=4, checks=4)


def quiet(fraction: float, message: str) -> None:
    return None


@pytest.fixture
def slim(dense_base: Callable[[str], Path], uneven_plan: Plan, tmp_path: Path) -> Path:
    dense = Checkpoint(dense_base("llama"))
    config = slim_config(dense.config, uneven_plan, "auto")
    slice_base(dense, uneven_plan, config, Statistics(), tmp_path / "slim", quiet)
    return tmp_path / "slim"


@pytest.fixture
def data() -> Split:
    """Sequences that count up, each from another token."""
    return split(torch.arange(60)[:, None] + torch.arange(16), held_out=0.2, seed=0)


def test_what_is_written_has_the_held_out_loss_that_training_found(
    slim: Path, data: Split, tmp_path: Path
):
    adapter, outcome = train_adapter(slim, data, PARAMS, 0, tmp_path, quiet)
    assert outcome.loss_after < outcome.loss_before
    atoms.write(adapter, tmp_path / "out", Geometry.of(slim), "slim")
    read_adapter(tmp_path / "out", Geometry.of(slim))
    served = evaluation.with_adapter(evaluation.load(slim), tmp_path / "out")
    assert held_out_loss(next_token(served), data) == pytest.approx(outcome.loss_after, rel=1e-5)


def test_it_is_lifted_to_the_dense_base_and_comes_back_unchanged(
    slim: Path,
    dense_base: Callable[[str], Path],
    uneven_plan: Plan,
    data: Split,
    tmp_path: Path,
):
    dense = Geometry.of(dense_base("llama"))
    adapter, _ = train_adapter(slim, data, PARAMS, 0, tmp_path, quiet)
    lifted = lift(adapter, dense, uneven_plan)
    atoms.write(lifted, tmp_path / "lifted", dense, "dense")
    read_adapter(tmp_path / "lifted", dense)
    back = project(lifted, dense, uneven_plan)
    assert back.atoms.keys() == adapter.atoms.keys()
    for key, own in adapter.atoms.items():
        assert torch.equal(back.atoms[key].a, own.a)
        assert torch.equal(back.atoms[key].b, own.b)
