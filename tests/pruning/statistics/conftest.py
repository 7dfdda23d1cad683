"""A whole model, and the same statistics streamed through it layer by layer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from pruning.calibration import collect
from pruning.evaluation import load
from pruning.statistics import streaming
from pruning.stats import Statistics
from pruning.weights.checkpoint import Checkpoint


@pytest.fixture
def whole(dense_base: Callable[[str], Path]) -> Callable[[str], Any]:
    def make(name: str) -> Any:
        return load(dense_base(name))

    return make


@pytest.fixture
def streamed(
    dense_base: Callable[[str], Path],
    ids: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Statistics]:
    """Collect in several batches, the last one shorter, and several chunks of logits."""
    monkeypatch.setattr(streaming, "BATCH_TOKENS", 24)
    monkeypatch.setattr(streaming, "HEAD_TOKENS", 5)

    def run(name: str, *needs: Any) -> Statistics:
        checkpoint = Checkpoint(dense_base(name))
        return collect(checkpoint, ids, needs, tmp_path, lambda fraction, message: None)

    return run
