"""A masked base computes what the sliced one does, for every family."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pruning import evaluation
from pruning.allocation import trial
from pruning.allocation.trial import Trial
from pruning.export import slim_config
from pruning.plan import Plan
from pruning.slicing import slice_base
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
