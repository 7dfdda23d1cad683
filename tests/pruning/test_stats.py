"""Statistics that were saved are those that were collected."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruning.calibration import collect
from pruning.stats import Statistics
from pruning.weights.checkpoint import Checkpoint


def test_saved_statistics_come_back_bit_by_bit(
    dense_base: Callable[[str], Path], ids: Tensor, tmp_path: Path
):
    needs: set[Any] = {"input_moments", "saliency", "influence"}
    before = collect(Checkpoint(dense_base("llama")), ids, needs, tmp_path, lambda *_: None)
    before.save(tmp_path / "statistics.safetensors")
    after = Statistics.load(tmp_path / "statistics.safetensors")
    assert after.moments.keys() == before.moments.keys()
    assert after.saliency.keys() == before.saliency.keys()
    for key, moments in before.moments.items():
        assert after.moments[key].count == moments.count
        assert torch.equal(after.moments[key].mean_C, moments.mean_C)
        assert torch.equal(after.moments[key].squares_C, moments.squares_C)
    assert after.influence == before.influence
    for key, saliency in before.saliency.items():
        assert torch.equal(after.saliency[key].element_C, saliency.element_C)
        assert torch.equal(after.saliency[key].vector_C, saliency.vector_C)
