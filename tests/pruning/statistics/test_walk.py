"""Walking a base block by block shows what hooks in the whole model would have shown."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pruning.evaluation import load
from pruning.statistics import streaming
from pruning.statistics.grams import Gram, StoredGrams
from pruning.statistics.walk import (
    Blocks,
    Goal,
    Passage,
    Reader,
    counted,
    dense_grams,
    refit_reader,
)
from pruning.units import BLOCKS, KINDS, READERS
from pruning.weights.checkpoint import Checkpoint

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "llama with biases")


def quiet(fraction: float, message: str) -> None:
    return None


def whole(base: Path) -> Any:
    return load(base)


def seen_inputs(model: Any, ids: Tensor) -> dict[tuple[int, str], Tensor]:
    """What every reader is given, by layer and linear; (sequences, tokens, channels)."""
    seen: dict[tuple[int, str], Tensor] = {}
    for index, layer in enumerate(model.model.layers):
        for kind in KINDS:
            linear = READERS[kind]
            layer.get_submodule(f"{BLOCKS[kind]}.{linear}").register_forward_pre_hook(
                lambda _, inputs, key=(index, linear): seen.update({key: inputs[0]})
            )
    with torch.no_grad():
        model(ids)
    return seen


def assert_equal(found: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max().item()
    torch.testing.assert_close(found.float(), expected.float(), rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("sinks", [0, 2])
def test_streamed_grams_are_those_of_the_whole_model(
    name: str,
    sinks: int,
    dense_base: Callable[[str], Path],
    ids: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(streaming, "BATCH_TOKENS", 24)  # several batches, the last one shorter
    checkpoint = Checkpoint(dense_base(name))
    passage = Passage(checkpoint, ids, counted(ids, sinks), tmp_path / "states")
    dense_grams(passage, checkpoint, tmp_path / "grams", quiet)
    found, seen = StoredGrams(tmp_path / "grams"), seen_inputs(whole(dense_base(name)), ids)
    assert set(found) == set(seen)
    for key, inputs in seen.items():
        tokens = inputs[:, sinks:].flatten(0, 1).double()
        assert_equal(found[key], tokens.T @ tokens)


def test_each_reader_sees_what_went_through_the_new_readers_before_it(
    dense_base: Callable[[str], Path], ids: Tensor, tmp_path: Path
):
    checkpoint, model = Checkpoint(dense_base("llama")), whole(dense_base("llama"))
    passage = Passage(checkpoint, ids, counted(ids, 0), tmp_path)
    blocks, grams = Blocks(checkpoint), dict[tuple[int, str], Gram]()
    generator = torch.Generator().manual_seed(0)
    for layer in range(len(model.model.layers)):
        blocks.fill(layer, checkpoint.layer(layer))
        for kind in KINDS:
            module = model.model.layers[layer].get_submodule(f"{BLOCKS[kind]}.{READERS[kind]}")
            outputs, inputs = module.weight.shape
            kept = torch.arange(layer, inputs, 2)
            new = 0.2 * torch.randn(outputs, len(kept), generator=generator)
            bias = torch.randn(outputs, generator=generator)
            module.weight.data.zero_()[:, kept] = new
            module.bias = torch.nn.Parameter(bias)
            grams[layer, READERS[kind]] = passage.gram(blocks, kind)
            passage.read(blocks, kind, Reader(inputs, kept, new, bias))
        passage.finish_layer()
    for key, inputs in seen_inputs(model, ids).items():
        tokens = inputs.flatten(0, 1).double()
        assert_equal(grams[key].products_CC, tokens.T @ tokens)
        assert_equal(grams[key].mean_C, tokens.mean(0))


def test_a_skipped_block_adds_nothing(
    dense_base: Callable[[str], Path], ids: Tensor, tmp_path: Path
):
    checkpoint, model = Checkpoint(dense_base("llama")), whole(dense_base("llama"))
    passage, blocks = Passage(checkpoint, ids, counted(ids, 0), tmp_path), Blocks(checkpoint)
    tensors = checkpoint.layer(0)
    blocks.fill(0, tensors)
    passage.skip("kv_group")
    passage.gram(blocks, "ffn_channel")
    passage.read(blocks, "ffn_channel", Reader.dense(tensors, "ffn_channel", blocks.device))
    passage.finish_layer()
    blocks.fill(1, checkpoint.layer(1))
    found = passage.gram(blocks, "kv_group").products_CC
    model.model.layers[0].self_attn.o_proj.weight.data.zero_()
    tokens = seen_inputs(model, ids)[1, "o_proj"].flatten(0, 1)
    assert_equal(found, tokens.T @ tokens)


def test_a_refit_bias_makes_up_the_mean_of_what_left():
    # input 1 is always 2 and reads with weight 3: without it the bias must be 6
    gram = Gram(2)
    gram.add(torch.tensor([[1.0, 2.0], [-1.0, 2.0], [3.0, 2.0]]))
    dense = Reader(2, torch.arange(2), torch.tensor([[1.0, 3.0]]))
    kept = torch.tensor([0])
    found = refit_reader(dense, gram, Goal.own(dense, gram, kept), kept, 1e-9, gains_bias=True)
    assert found.weight_HK.tolist() == [[pytest.approx(1)]]
    assert found.bias_H is not None
    assert found.bias_H.tolist() == [pytest.approx(6)]


def test_without_a_bias_the_mean_is_carried_by_the_weights():
    # y = x + 6 is to be fit by w · x on x = 1, -1, 3: w = Σ x y / Σ x² = 29 / 11
    gram = Gram(2)
    gram.add(torch.tensor([[1.0, 2.0], [-1.0, 2.0], [3.0, 2.0]]))
    dense = Reader(2, torch.arange(2), torch.tensor([[1.0, 3.0]]))
    kept = torch.tensor([0])
    found = refit_reader(dense, gram, Goal.own(dense, gram, kept), kept, 1e-9, gains_bias=False)
    assert found.weight_HK.tolist() == [[pytest.approx(29 / 11)]]
    assert found.bias_H is None


def test_the_goal_is_the_step_to_the_states_of_the_guide(
    dense_base: Callable[[str], Path], ids: Tensor, tmp_path: Path
):
    # where nothing has left yet, that step is what the dense reader gives
    checkpoint = Checkpoint(dense_base("llama"))
    passage, guide = (
        Passage(checkpoint, ids, counted(ids, 0), tmp_path / name) for name in ("slim", "dense")
    )
    blocks, tensors = Blocks(checkpoint), checkpoint.layer(0)
    blocks.fill(0, tensors)
    dense = Reader.dense(tensors, "kv_group", blocks.device)
    guide.follow(blocks, "kv_group", dense)
    gram, kept = passage.gram(blocks, "kv_group"), torch.tensor([0, 3, 4])
    found = passage.goal("kv_group", gram, kept, guide)
    own = Goal.own(dense, gram, kept)
    torch.testing.assert_close(found.products_HK, own.products_HK, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        own.products_HK, (dense.weight_HK.to(gram.products_CC) @ gram.products_CC)[:, kept]
    )
    torch.testing.assert_close(found.sum_H, own.sum_H, rtol=1e-4, atol=1e-4)
