"""How far two bases are apart, against what their outputs say when put side by side."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pruning import evaluation
from pruning.reports.departure import continuations, divergence, probes, record
from pruning.reports.report import warnings_of
from pruning.text import load_tokenizer

LAYERS = range(4)


@pytest.fixture
def model(dense_base: Callable[[str], Path]) -> Any:
    return evaluation.load(dense_base("llama"))


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, 200, (3, 20), generator=torch.Generator().manual_seed(0))


def test_a_base_does_not_depart_from_itself(model: Any, ids: Tensor, tmp_path: Path):
    record(model, ids, tmp_path)
    found, errors = divergence(model, ids, tmp_path, LAYERS, 4)
    assert found == pytest.approx(0, abs=1e-6)
    assert errors == [0, 0, 0, 0]


def test_the_departure_begins_at_the_layer_that_was_changed(
    model: Any, ids: Tensor, tmp_path: Path
):
    record(model, ids, tmp_path)
    with torch.inference_mode():
        before = model(ids).logits.log_softmax(-1)
        model.model.layers[2].mlp.down_proj.weight.mul_(3)
        after = model(ids).logits.log_softmax(-1)
    found, errors = divergence(model, ids, tmp_path, LAYERS, 4)
    by_hand = (before.exp() * (before - after)).sum(-1).mean()
    assert found == pytest.approx(float(by_hand), rel=1e-3)
    assert errors[:2] == [0, 0]
    assert min(errors[2:]) > 0


def test_where_a_layer_has_left_its_place_is_compared_with_what_passes_it(
    model: Any, ids: Tensor, tmp_path: Path
):
    record(model, ids, tmp_path)
    model.model.layers = model.model.layers[:3]
    _, errors = divergence(model, ids, tmp_path, [0, 1, 2], 4)
    with torch.inference_mode():
        states = model(ids, output_hidden_states=True).hidden_states
    assert errors[:3] == [0, 0, 0]
    assert errors[3] > 0
    assert len(states) == 4


def test_probes_are_windows_from_all_over_the_text():
    ids = torch.arange(40).repeat_interleave(256).view(40, 256)
    assert probes(ids)[:, 0].tolist() == [0, 10, 20, 30]


def test_samples_go_on_from_the_openings_of_the_text_greedily(
    model: Any, ids: Tensor, dense_base: Callable[[str], Path]
):
    tokenizer = load_tokenizer(dense_base("llama"))
    (prompt, written), *rest = continuations(model, tokenizer, ids)
    assert prompt == tokenizer.decode(ids[0, :16], skip_special_tokens=True)
    assert len(rest) == 2
    chosen = int(model(ids[:1, :16]).logits[0, -1].argmax())
    assert written.startswith(tokenizer.decode([chosen], skip_special_tokens=True))


def test_a_collapse_is_a_warning():
    assert warnings_of(2.9) == ()
    (warning,) = warnings_of(3.1)
    assert "3.10 nats" in warning
