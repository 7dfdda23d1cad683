"""A masked base computes what the sliced one does, for every family."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pruning import evaluation
from pruning.allocation import trial
from pruning.allocation.trial import Trial
from pruning.calibration import collect_into
from pruning.export import slim_config
from pruning.plan import Plan
from pruning.slicing import slice_base
from pruning.statistics.grams import refit
from pruning.stats import Statistics
from pruning.weights.checkpoint import Checkpoint


def sliced(base: Path, plan: Plan, statistics: Statistics, directory: Path) -> Path:
    config = slim_config(Checkpoint(base).config, plan, "per_layer")
    slice_base(Checkpoint(base), plan, config, statistics, directory, lambda *_: None)
    return directory


@pytest.mark.parametrize("bias_compensation", [False, True])
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "llama with biases"])
def test_a_masked_loss_is_the_loss_of_the_sliced_base(
    name: str,
    bias_compensation: bool,
    dense_base: Callable[[str], Path],
    uneven_plan: Plan,
    means: Callable[[int, int], Statistics],
    ids: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(trial, "BATCH_TOKENS", 24)  # several batches, the last one shorter
    plan = uneven_plan.model_copy(update={"bias_compensation": bias_compensation})
    checkpoint = Checkpoint(dense_base(name))
    heads = checkpoint.geometry.layers[0].num_heads * checkpoint.geometry.head_dim
    statistics = means(heads, 48)
    model = evaluation.load(sliced(dense_base(name), plan, statistics, tmp_path / "slim"))
    with torch.no_grad():
        logits = model(ids).logits[:, :-1]
    expected = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    tried = Trial(checkpoint, ids, statistics)
    tried.loss(Plan.dense(checkpoint.geometry), len(ids))  # the last plan is forgotten
    assert tried.loss(plan, len(ids)) == pytest.approx(float(expected), rel=1e-5)


def test_a_difference_of_final_states_moves_the_logits_by_the_gram_of_the_head(
    dense_base: Callable[[str], Path], even_plan: Plan, ids: Tensor
):
    checkpoint = Checkpoint(dense_base("qwen2"))
    tried = Trial(checkpoint, ids, Statistics())
    plans = (Plan.dense(checkpoint.geometry), even_plan)
    before, after = (torch.cat(tried.final_states(plan, len(ids))) for plan in plans)
    head = checkpoint.head()
    moved = (after - before).flatten(0, 1)
    squared = ((after - before) @ head.T).square().sum()
    gram = ((moved @ tried.head_gram()) * moved).sum()
    torch.testing.assert_close(gram, squared, rtol=1e-4, atol=0)


def test_with_a_damping_readers_are_refit_to_the_plan_and_put_back_for_the_next(
    dense_base: Callable[[str], Path], ids: Tensor, tmp_path: Path
):
    checkpoint, path = Checkpoint(dense_base("llama")), tmp_path / "statistics.safetensors"
    collect_into(path, checkpoint, ids, {"input_grams"}, 0, tmp_path / "state", lambda *_: None)
    statistics, dense = Statistics.load(path), Plan.dense(checkpoint.geometry)
    units = tuple(range(20, 48))
    narrow = dense.layers[3].model_copy(update={"ffn_channels": units})
    plan = dense.model_copy(update={"layers": (*dense.layers[:3], narrow)})

    def expected(model: Any) -> Any:
        with torch.no_grad():
            logits = model(ids).logits[:, :-1]
        return pytest.approx(float(cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())))

    tried = Trial(checkpoint, ids, statistics, 0.01)
    model = evaluation.load(dense_base("llama"))
    assert tried.loss(dense, len(ids)) == expected(model)
    weight = model.model.layers[3].mlp.down_proj.weight.data
    gram = statistics.grams[3, "down_proj"]
    weight[:, 20:] = refit(weight, gram, torch.tensor(units), 0.01).float()
    weight[:, :20] = 0
    refitted = expected(model)
    assert tried.loss(plan, len(ids)) == refitted
    assert tried.loss(dense, len(ids)) != refitted


def test_the_divergence_is_that_of_the_distributions_of_the_first_sequences(
    dense_base: Callable[[str], Path],
    even_plan: Plan,
    ids: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(trial, "BATCH_TOKENS", 24)  # several batches
    base = dense_base("llama")
    slim = sliced(base, even_plan, Statistics(), tmp_path / "slim")
    with torch.no_grad():
        dense, found = (evaluation.load(d)(ids[:3]).logits.log_softmax(-1) for d in (base, slim))
    expected = (dense.exp() * (dense - found)).sum(dim=-1).mean()
    tried = Trial(Checkpoint(base), ids, Statistics())
    assert tried.divergence(even_plan, 3) == pytest.approx(float(expected), rel=1e-4)
    assert tried.divergence(Plan.dense(Checkpoint(base).geometry), 3) == pytest.approx(0, abs=1e-6)
