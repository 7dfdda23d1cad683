"""Adapters that were tampered with, in their header or anywhere: refused in words, or fit to serve.

In-process on what checks every upload.  An input is a small valid adapter of the bundled base's
shape whose header or bytes were changed at random; it fails when anything but InvalidInput comes
out, when it takes longer than a second, or when a file appears outside its folder.
"""

import json
import random
import struct
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from pruning.adapters.peft_format import read_adapter
from pruning.errors import InvalidInput
from pruning.geometry import Geometry

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 16,
    "head_dim": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "tie_word_embeddings": True,
}
ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 2**200, 1e308, float("nan"), "", "\0", "../../etc/passwd",
    "a" * 10_000, [], {}, [[]], [2**40, 2**40], "F64", "BOOL", {"dtype": "F32"},
)  # fmt: skip


def valid() -> bytes:
    chance = np.random.default_rng(0)
    shapes = {"q_proj": (16, 16), "v_proj": (8, 16)}
    tensors = {}
    for linear, (out, inside) in shapes.items():
        name = f"base_model.model.model.layers.0.self_attn.{linear}"
        tensors[f"{name}.lora_A.weight"] = chance.normal(size=(2, inside)).astype(np.float32)
        tensors[f"{name}.lora_B.weight"] = chance.normal(size=(out, 2)).astype(np.float32)
    return save(tensors)


def tamper(content: bytes, chance: random.Random) -> bytes:
    """One of many ways to be wrong."""
    (length,) = struct.unpack("<Q", content[:8])
    head, data = content[8 : 8 + length], content[8 + length :]
    match chance.randrange(7):
        case 0:
            return struct.pack("<Q", chance.choice((0, 1, length - 1, 2**31, 2**63, 2**64 - 1))) + (
                head + data
            )
        case 1:
            return content[: chance.randrange(len(content))]
        case 2:
            return content + chance.randbytes(chance.randrange(1, 64))
        case 3:  # a few bytes of the header
            changed = bytearray(head)
            for _ in range(chance.randint(1, 4)):
                changed[chance.randrange(length)] = chance.randrange(256)
            return content[:8] + bytes(changed) + data
        case 4:  # values
            values = bytearray(data)
            at = 4 * chance.randrange(len(values) // 4)
            values[at : at + 4] = chance.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff" * 4))
            return content[: 8 + length] + bytes(values)
        case 5:
            return head_of(changed_json(json.loads(head), chance)) + data
        case _:
            bomb = b'{"a":' * chance.randint(1, 20_000)
            return struct.pack("<Q", len(bomb)) + bomb
    raise AssertionError


def head_of(header: Any) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def changed_json(value: Any, chance: random.Random) -> Any:
    """The same but for one place, at any depth."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(list(value))
        if chance.random() < 0.15:
            return {(chance.choice(("../x", "", "__metadata__", key * 50)) if k == key else k): v
                    for k, v in value.items()}  # fmt: skip
        return {**value, key: changed_json(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.85:
        at = chance.randrange(len(value))
        return [*value[:at], changed_json(value[at], chance), *value[at + 1 :]]
    return chance.choice(ODD)


def play(num: int, seconds: float, seed: int = 0) -> dict[str, Any]:
    """So many inputs, or as many as there is time for."""
    chance, geometry, good = random.Random(seed), Geometry.from_config(CONFIG), valid()
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    started, slowest, done = time.monotonic(), 0.0, 0
    with tempfile.TemporaryDirectory(dir="/dev/shm") as parent:
        folder = Path(parent) / "adapter"
        folder.mkdir()
        while done < num and time.monotonic() - started < seconds:
            config: Any = ADAPTER
            if chance.random() < 0.2:
                config = changed_json(config, chance)
            (folder / "adapter_config.json").write_text(json.dumps(config))
            content = tamper(good, chance)
            (folder / "adapter_model.safetensors").write_bytes(content)
            before = time.perf_counter()
            try:
                read_adapter(folder, geometry, 64)
                outcomes["taken"] += 1
            except InvalidInput:
                outcomes["refused"] += 1
            except Exception as error:
                outcomes["failed"] += 1
                failures.append(f"{done}: {type(error).__name__}: {str(error)[:200]}")
            took = time.perf_counter() - before
            slowest, done = max(slowest, took), done + 1
            if took > 1:
                failures.append(f"{done}: {took:.1f} s")
            if done % 1000 == 0 and len(list(Path(parent).rglob("*"))) != 3:
                failures.append(f"{done}: a file outside")
    return {
        "fuzzed_inputs": done,
        "fuzz_failures": len(failures),
        "outcomes": dict(outcomes),
        "slowest_ms": round(slowest * 1e3, 1),
        "seconds": round(time.monotonic() - started),
        "failures": failures[:10],
    }
