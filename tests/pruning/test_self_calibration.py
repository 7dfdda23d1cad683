"""Text that a base writes on from given sequences."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pruning import self_calibration
from pruning.evaluation import load
from pruning.self_calibration import written

BOS, SPECIAL = 256, (256, 257, 258)
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3"]

Write = Callable[..., Tensor]


def quiet(fraction: float, message: str) -> None:
    return None


@pytest.fixture(scope="module")
def given() -> Tensor:
    """Five sequences of 16 tokens, each opened by bos."""
    ids_ST = torch.randint(0, 256, (5, 16), generator=torch.Generator().manual_seed(7))
    ids_ST[:, 0] = BOS
    return ids_ST


@pytest.fixture
def write(
    dense_base: Callable[[str], Path], given: Tensor, tmp_path_factory: pytest.TempPathFactory
) -> Write:
    def write(count: int, seed: int = 0, base: str = "llama", ids: Tensor = given) -> Tensor:
        state = tmp_path_factory.mktemp("state")
        return written(dense_base(base), ids, count, seed, state, quiet)

    return write


def test_each_sequence_goes_on_from_the_end_of_a_given_one(write: Write, given: Tensor):
    found = write(12)
    assert found.shape == (12, 16)
    assert found[:, 0].tolist() == [BOS] * 12
    for number, sequence in enumerate(found):
        turn, source = divmod(number, 5)
        prompt = 2 * (turn + 1)  # an eighth, two and three
        assert sequence[1 : 1 + prompt].tolist() == given[source, -prompt:].tolist()


def test_no_special_token_is_written(write: Write):
    assert not torch.isin(write(12)[:, 1:], torch.tensor(SPECIAL)).any()


def test_what_is_written_depends_on_the_seed_alone(write: Write):
    assert torch.equal(write(7, seed=3), write(7, seed=3))
    assert not torch.equal(write(7, seed=3), write(7, seed=4))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_what_the_base_would_say(
    family: str, write: Write, dense_base: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    # so cold that only the likeliest token is ever drawn
    monkeypatch.setattr(self_calibration, "TEMPERATURE", 1e-6)
    found, model = write(10, base=family), load(dense_base(family))
    logits = whole_logits(model, found)
    logits[..., list(SPECIAL)] = -torch.inf
    likeliest = logits[:, :-1].argmax(dim=-1)
    for number, sequence in enumerate(found):
        prompt = 2 * (number // 5 + 1)
        assert sequence[1 + prompt :].tolist() == likeliest[number, prompt:].tolist()


@torch.no_grad()
def whole_logits(model: Any, ids: Tensor) -> Tensor:
    """Of all tokens at once, nothing cached."""
    return model(ids, use_cache=False).logits


def test_drawn_tokens_are_as_frequent_as_the_base_says_at_the_temperature(
    write: Write, dense_base: Callable[[str], Path]
):
    found = write(4000, ids=torch.tensor([[BOS, *range(40, 47)]]).expand(4000, -1))
    logits = whole_logits(load(dense_base("llama")), found[:1, :2])[0, -1]
    logits[list(SPECIAL)] = -torch.inf
    plain = logits.softmax(dim=-1)
    tempered = (logits / self_calibration.TEMPERATURE).softmax(dim=-1)
    shares = found[:, 2].bincount(minlength=260) / 4000
    likely = tempered.topk(10).indices
    error, other = ((shares - p)[likely].abs().sum() for p in (tempered, plain))
    assert error < 0.04
    assert other > 2 * error


class Killed(Exception):
    pass


def test_a_kill_costs_one_batch_and_changes_no_token(
    write: Write, dense_base: Callable[[str], Path], given: Tensor, tmp_path: Path
):
    heard: list[str] = []

    def killed(fraction: float, message: str) -> None:
        if message == "writing text, batch 2 of 3":
            raise Killed

    def listen(fraction: float, message: str) -> None:
        heard.append(message)

    with pytest.raises(Killed):
        written(dense_base("llama"), given, 12, 0, tmp_path, killed)
    found = written(dense_base("llama"), given, 12, 0, tmp_path, listen)
    assert heard == [f"writing text, batch {number} of 3" for number in (2, 3)]
    assert torch.equal(found, write(12))
