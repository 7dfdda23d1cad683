"""How large queries and keys are and what an adapter adds to them, beside what a fast method bears.

Hu et al., "Computational Limits of Low-Rank Adaptation (LoRA) Fine-Tuning for Transformer Models",
ICLR 2025, https://arxiv.org/abs/2406.03136: the gradients of LoRA on attention over L tokens can be
approximated in almost linear time where the largest entries of X W_Q, X W_K and of what the
adapter adds to both are o(√log L); beyond, no method is sub-quadratic, if SETH holds.  A report, no
gate: training and serving here are exact.
"""

# Shape suffixes:  T = tokens,  I = inputs and  O = outputs of a linear.

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from pruning.adapters.algebra import Bags
from pruning.adapters.atoms import Key
from pruning.adapters.compression import linear_of
from pruning.adapters.order import Shape, break_even
from pruning.adapters.train.recipes import LayerLimits, Limits
from pruning.architectures.layout import Part
from pruning.evaluation import Example
from pruning.geometry import Geometry

ROWS = 16  # that are looked at


@torch.inference_mode()
def limits(model: Any, geometry: Geometry, bags: Bags, rows: Sequence[Example]) -> Limits:
    """The largest entries over some rows, on the base without the adapter."""
    found: dict[int, dict[str, float]] = defaultdict(dict)
    looked_at = [ids for ids, _ in rows[:ROWS]]
    with ExitStack() as hooks:
        for key, slices in _attention(geometry):
            watch = _watch(found[key[0]], slices, bags.get(key))
            handle = linear_of(model, key).register_forward_hook(watch)
            hooks.callback(handle.remove)
        for ids in looked_at:
            model(input_ids=torch.tensor([ids], device=model.device), logits_to_keep=1)
    shapes = [Shape(bag.a_RI.shape[1], len(bag.b_OR), bag.rank) for bag in bags.values()]
    tokens = max(map(len, looked_at))
    return Limits(
        tokens=tokens,
        threshold=math.sqrt(math.log(tokens)),
        layers={layer: LayerLimits(**entries) for layer, entries in sorted(found.items())},
        break_even_tokens=break_even(shapes),
    )


def _attention(geometry: Geometry) -> Iterator[tuple[Key, dict[Part, slice]]]:
    """The linears that make queries and keys, and which of their outputs these are."""
    for index, layer in enumerate(geometry.layers):
        if not layer.num_heads:
            continue
        heads = {"query": layer.num_heads, "key": layer.num_kv_heads, "value": layer.num_kv_heads}
        for writer in geometry.architecture.attention.writers:
            start, slices = 0, {}
            for part in writer.parts:
                end = start + heads[part] * geometry.head_dim
                slices[part], start = slice(start, end), end
            if slices.keys() & {"query", "key"}:
                yield (index, writer.name), slices


def _watch(entries: dict[str, float], slices: dict[Part, slice], bag: Any) -> Callable[..., None]:
    """A forward hook that keeps the largest entries of both parts."""

    def watch(linear: Any, inputs: tuple[Tensor, ...], output_1TO: Tensor) -> None:
        added_1TO = torch.zeros_like(output_1TO)
        if bag is not None:
            added_1TO = inputs[0] @ bag.a_RI.T.to(output_1TO) @ bag.b_OR.T.to(output_1TO)
        for name, values_1TO in (("", output_1TO), ("added_", added_1TO)):
            for part in slices.keys() & {"query", "key"}:
                largest = float(values_1TO[..., slices[part]].abs().max())
                entries[name + part] = max(largest, entries.get(name + part, 0.0))

    return watch
