"""Sequences of a text that has one origin or several, of plain text and of lines of JSON."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from pruning.errors import InvalidInput
from pruning.recipe import PruneSpec, Recipe, Text
from pruning.text import calibration_ids, load_tokenizer, token_stream

ROWS = [{"id": 1, "text": "one"}, {"id": 2, "text": "twö"}]


@pytest.fixture
def tokenizer(dense_base: Callable[[str], Path]) -> Any:
    return load_tokenizer(dense_base("llama"))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], Path]:
    """Write plain text, or rows as lines of JSON."""

    def write(name: str, content: Any) -> Path:
        text = content if isinstance(content, str) else "\n".join(map(json.dumps, content)) + "\n\n"
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"field": "text"}, "<s>one</s><s>twö</s>"),
        ({"field": ["text", "text"]}, "<s>oneone</s><s>twötwö</s>"),
    ],
)
def test_lines_of_json_give_the_fields_that_are_named(
    asked: dict[str, Any], expected: str, tokenizer: Any, write: Any
):
    stream = token_stream(tokenizer, write("a", ROWS), Text(file="f", **asked), "calibration")
    assert tokenizer.decode(stream) == expected


def test_an_adapters_rows_are_read_as_it_was_trained_on_them(tokenizer: Any, write: Any):
    path = write("calibration.jsonl", [{"prompt": "2+2=", "completion": "4"}])
    stream = token_stream(tokenizer, path, Text(adapter="sums"), "calibration")
    assert tokenizer.decode(stream) == "<s>2+2=4</s>"


@pytest.mark.parametrize("line", ["{", "[1]", '"text"', '{"body": "a"}', '{"text": 1}', "null"])
def test_a_line_without_the_field_is_refused_by_its_number(line: str, tokenizer: Any, write: Any):
    text = Text(sources=({"file": "f"}, {"file": "g", "field": "text"}), length=8)
    paths = write("a", "plain text " * 9), write("b", '{"text": "a"}\n' + line)
    with pytest.raises(InvalidInput, match="line 2") as refused:
        calibration_ids(tokenizer, paths, text, 0)
    assert refused.value.field == "calibration.sources.1.field"


def test_a_mixture_draws_from_its_sources_in_proportion(tokenizer: Any, write: Any):
    sources = ({"file": "f", "weight": 3}, {"file": "g"})
    text = Text(sources=sources, sequences=8, length=10)
    paths = write("a", "a" * 900), write("b", "b" * 900)
    ids = calibration_ids(tokenizer, paths, text, 0)
    assert ids.shape == (8, 10)
    letters = "".join(tokenizer.decode(row[1:2]) for row in ids)
    assert letters == "aabaaaba"
    assert torch.equal(ids, calibration_ids(tokenizer, paths, text, 0))


def test_a_source_of_a_mixture_gives_the_sequences_that_it_would_give_alone(
    tokenizer: Any, write: Any
):
    paths = (
        write("a", "".join(map(str, range(300)))),
        write("b", "".join(map(str, range(300, 600)))),
    )
    text = Text(sources=({"file": "f"}, {"file": "g"}), sequences=6, length=10)
    mixed = calibration_ids(tokenizer, paths, text, 5)
    for number, path in enumerate(paths):
        alone = calibration_ids(tokenizer, path, Text(file="f", sequences=3, length=10), 5)
        assert torch.equal(mixed[number::2], alone)


def test_a_source_that_fills_no_sequence_is_refused(tokenizer: Any, write: Any):
    text = Text(sources=({"file": "f"}, {"file": "g"}), length=64)
    with pytest.raises(InvalidInput, match="only 5 tokens") as refused:
        calibration_ids(tokenizer, (write("a", "a" * 99), write("b", "short")), text, 0)
    assert refused.value.field == "calibration.length"


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"file": "f", "dataset": "wiki", "part": "a.txt"},
        {"file": "f", "sources": [{"file": "g"}]},
        {"sources": [{"file": "g"}], "field": "text"},
        {"sources": [{"weight": 2}]},
        {"sources": [{"file": "g", "weight": 0}]},
        {"dataset": "wiki"},
        {"part": "a.txt", "file": "f"},
        {"dataset": "../wiki", "part": "a.txt"},
        {"dataset": "a/b/c", "part": "a.txt"},
        {"dataset": "wiki", "part": "../a.txt"},
        {"dataset": "wiki", "part": "/a.txt"},
        {"adapter": "sums", "field": "prompt"},
    ],
)
def test_a_text_has_one_origin_or_several_sources(asked: dict[str, Any]):
    with pytest.raises(ValidationError):
        Text.model_validate(asked)


def test_a_spec_tells_which_files_are_parts_of_data_sets():
    part = {"dataset": "wiki", "part": "a.txt"}
    recipe = Recipe.model_validate(
        {
            "name": "slim",
            "base": "dense",
            "target": 0.3,
            "calibration": {"sources": [{"file": "f"}, part]},
            "fleet": {"texts": {"sums": part}},
            "evaluation": {"file": "g"},
        }
    )
    spec = PruneSpec(
        recipe=recipe,
        base=Path("/base"),
        adapters={},
        calibration=(Path("/1"), Path("/2")),
        fleet_texts={"sums": Path("/3")},
        evaluation=Path("/4"),
    )
    assert spec == PruneSpec.model_validate_json(spec.model_dump_json())
    assert spec.parts == {"calibration.sources.1": Path("/2"), "fleet.texts.sums": Path("/3")}
