"""Safetensors headers: no file is believed that does not hold exactly what it declares."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from pruning.errors import InvalidInput
from pruning.weights.header import HEADER_LIMIT, TensorInfo, read_header

GOOD = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def write(path: Path, header: object, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_tensors_are_listed_with_dtype_shape_and_place(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    save_file({"a": np.ones((2, 3), np.float32), "b": np.ones(1, np.float16)}, path)
    start = path.stat().st_size - 26
    assert read_header(path, "file") == {
        "a": TensorInfo("F32", (2, 3), start),
        "b": TensorInfo("F16", (1,), start + 24),
    }


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        pytest.param(GOOD, b"\0" * 7, "declares", id="truncated"),
        pytest.param(GOOD, b"\0" * 9, "declares", id="trailing bytes"),
        pytest.param(b"{", b"", "Expecting", id="no JSON"),
        pytest.param(b"[1]", b"", "not an object", id="no object"),
        pytest.param(b"[" * 200_000, b"", "", id="nested without end"),
        pytest.param(b'{"a": 1, "a": 2}', b"", "repeats", id="repeated name"),
        pytest.param({"a": {"shape": [2]}}, b"", "'a' is malformed", id="no dtype"),
        pytest.param(
            {"a": {**GOOD["a"], "dtype": "F33"}}, b"\0" * 8, "unknown dtype 'F33'", id="dtype"
        ),
        pytest.param(
            {"a": {**GOOD["a"], "shape": [-2]}}, b"\0" * 8, "shape [-2]", id="negative shape"
        ),
        pytest.param(
            {"a": {**GOOD["a"], "shape": [10**30]}}, b"\0" * 8, "fill", id="enormous shape"
        ),
        pytest.param(
            {"a": GOOD["a"], "b": GOOD["a"]}, b"\0" * 8, "overlap", id="overlapping tensors"
        ),
        pytest.param(
            {"a": {**GOOD["a"], "data_offsets": [8, 16]}}, b"\0" * 16, "gaps", id="a hole"
        ),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: object, data: bytes, said: str):
    path = write(tmp_path / "x.safetensors", header, data)
    with pytest.raises(InvalidInput) as caught:
        read_header(path, "file")
    assert caught.value.field == "file"
    assert said in caught.value.message


def test_a_header_bomb_is_not_even_read(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as stream:
        stream.write((HEADER_LIMIT + 1).to_bytes(8, "little"))
        stream.truncate(HEADER_LIMIT + 9)
    with pytest.raises(InvalidInput, match=f"exceeds {HEADER_LIMIT}"):
        read_header(path, "file")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 90), flips=st.lists(st.tuples(st.integers(0, 90), st.integers(1, 255))))
def test_garbage_is_refused_or_else_fills_the_file(
    tmp_path: Path, cut: int, flips: list[tuple[int, int]]
):
    path = write(tmp_path / "x.safetensors", GOOD, b"\0" * 8)
    content = bytearray(path.read_bytes())
    for position, mask in flips:
        content[position % len(content)] ^= mask
    path.write_bytes(content[: max(0, len(content) - cut)])
    try:
        tensors = read_header(path, "file")
    except InvalidInput:
        return
    data = path.stat().st_size - sum(tensor.bytes for tensor in tensors.values())
    assert data == 8 + int.from_bytes(path.read_bytes()[:8], "little")
