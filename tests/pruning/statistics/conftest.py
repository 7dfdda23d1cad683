"""A whole model, and the same statistics streamed through it layer by layer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from pruning.statistics import streaming
from pruning.stats import Statistics, collect
from pruning.weights.checkpoint import Checkpoint


@pytest.fixture
def whole(dense_base: Callable[[str], Path]) -> Callable[[str], Any]:
    def load(name: str) -> Any:
        path = dense_base(name)
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    return load


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
