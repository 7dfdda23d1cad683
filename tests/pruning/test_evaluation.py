"""Metrics of saved models, against the plain definition."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pruning import evaluation
from pruning.errors import InvalidInput
from pruning.recipe import Text
from pruning.text import IGNORED, calibration_ids, load_tokenizer

WORDS = "the quick brown fox\njumps over the lazy dog and\n" * 6  # 288 bytes, as many tokens


def quiet(fraction: float, message: str) -> None:
    return None


@pytest.fixture
def tokenizer(dense_base: Callable[[str], Path]) -> Any:
    return load_tokenizer(dense_base("llama"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(WORDS)
    return path


def log_likelihood(model: Any, ids: list[int], position: int) -> float:
    """Of one token, given all before it in `ids`, computed alone."""
    with torch.no_grad():
        logits = model(torch.tensor([ids[:position]])).logits[0, -1]
    return float(logits.double().log_softmax(-1)[ids[position]])


def test_each_token_but_the_first_is_scored_exactly_once(tokenizer: Any, text: Path):
    cut = evaluation.windows(tokenizer, text, Text(file="f", sequences=1000, length=16))
    stream = tokenizer.encode(WORDS, add_special_tokens=False)
    scored = []
    for window, (ids, labels) in enumerate(zip(cut.ids_WT, cut.labels_WT, strict=True)):
        positions = [window * 8 + i for i in range(1, 16) if labels[i] != IGNORED]
        assert [stream[p] for p in positions] == [int(t) for t in labels[1:] if t != IGNORED]
        assert ids.tolist() == stream[window * 8 : window * 8 + 16]
        scored += positions
    assert scored == list(range(1, cut.num_tokens + 1))
    assert len(stream) - cut.num_tokens <= 8


def test_words_and_line_ends_of_what_is_scored_are_counted(tokenizer: Any, text: Path):
    cut = evaluation.windows(tokenizer, text, Text(file="f", sequences=2, length=32))
    assert WORDS[1:48] == "he quick brown fox\njumps over the lazy dog and\n"
    assert cut.num_tokens == 47
    assert cut.num_words == 10 + 2


def test_perplexity_is_the_exponential_of_the_mean_surprise(
    dense_base: Callable[[str], Path], tokenizer: Any, text: Path
):
    model = evaluation.load(dense_base("llama"))
    cut = evaluation.windows(tokenizer, text, Text(file="f", sequences=2, length=16))
    stream = tokenizer.encode(WORDS, add_special_tokens=False)
    nll = -sum(log_likelihood(model, stream[:16], p) for p in range(1, 16))
    nll -= sum(log_likelihood(model, stream[8:24], p) for p in range(8, 16))
    found = evaluation.perplexity(model, cut, quiet)
    assert found.token == pytest.approx(math.exp(nll / 23), rel=1e-4)
    assert found.word == pytest.approx(math.exp(nll / cut.num_words), rel=1e-4)


def test_the_loss_is_that_of_completion_tokens_and_eos_after_bos_and_prompt(
    dense_base: Callable[[str], Path], tokenizer: Any, tmp_path: Path
):
    rows = [
        {"prompt": "ab", "completion": "cd"},
        {"prompt": "a much longer one", "completion": "x"},
    ]
    path = tmp_path / "eval.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    model = evaluation.load(dense_base("llama"))
    examples = evaluation.rows(tokenizer, path, 64, "adapters.a")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    first = [bos, *tokenizer.encode("abcd", add_special_tokens=False), eos]
    second = [bos, *tokenizer.encode("a much longer onex", add_special_tokens=False), eos]
    assert examples == [(first, 3), (second, 18)]
    nll = -sum(log_likelihood(model, first, p) for p in (3, 4, 5))
    nll -= sum(log_likelihood(model, second, p) for p in (18, 19))
    found = evaluation.completion_loss(model, examples, quiet)
    assert found == pytest.approx(nll / 5, rel=1e-4)


def test_a_row_that_is_too_long_loses_the_head_of_its_prompt(tokenizer: Any, tmp_path: Path):
    path = tmp_path / "eval.jsonl"
    path.write_text(json.dumps({"prompt": "0123456789", "completion": "ab"}))
    ((ids, num_prompt),) = evaluation.rows(tokenizer, path, 8, "adapters.a")
    assert tokenizer.decode(ids) == "<s>6789ab</s>"
    assert num_prompt == 5


def test_where_some_tokens_are_enough_rows_come_from_all_over_the_file(
    tokenizer: Any, tmp_path: Path
):
    path = tmp_path / "eval.jsonl"
    path.write_text("".join(f'{{"prompt": "{i:020}", "completion": "x"}}\n' for i in range(100)))
    every, some, one = (
        evaluation.rows(tokenizer, path, 64, "adapters.a", enough) for enough in (None, 20, 1)
    )
    assert (len(every), len(one)) == (100, 1)
    assert some == [every[i * 100 // len(some)] for i in range(len(some))]
    assert 20 <= sum(len(ids) for ids, _ in some) < sum(len(ids) for ids, _ in every)


@pytest.mark.parametrize("line", ["{", '{"prompt": "a"}', "[]", '{"prompt": 1, "completion": "b"}'])
def test_a_line_that_is_no_row_is_refused_by_its_number(line: str, tokenizer: Any, tmp_path: Path):
    path = tmp_path / "eval.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n' + line)
    with pytest.raises(InvalidInput, match="line 2") as refused:
        evaluation.rows(tokenizer, path, 64, "adapters.a")
    assert refused.value.field == "adapters.a"


def test_texts_that_are_too_short_are_refused(tokenizer: Any, text: Path):
    asked = Text(file="f", length=300)
    with pytest.raises(InvalidInput, match="288 tokens") as refused:
        evaluation.windows(tokenizer, text, asked)
    assert refused.value.field == "evaluation.length"
    with pytest.raises(InvalidInput, match="288 tokens") as refused:
        calibration_ids(tokenizer, text, asked, 0)
    assert refused.value.field == "calibration.length"


def test_a_text_that_is_not_utf8_is_refused(tokenizer: Any, tmp_path: Path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput) as refused:
        calibration_ids(tokenizer, tmp_path / "bytes", Text(file="f"), 0)
    assert refused.value.field == "calibration.file"


def test_calibration_draws_sequences_by_seed_each_opened_by_bos(tokenizer: Any, text: Path):
    asked = Text(file="f", sequences=6, length=10)
    one, again, other = (calibration_ids(tokenizer, text, asked, seed) for seed in (0, 0, 1))
    assert one.shape == (6, 10)
    assert (one[:, 0] == tokenizer.bos_token_id).all()
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    chunks = tokenizer.encode(WORDS, add_special_tokens=False)
    starts = [chunks[i * 9 : i * 9 + 9] for i in range(len(chunks) // 9)]
    assert all(row.tolist() in starts for row in one[:, 1:])
