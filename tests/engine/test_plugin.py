"""What the plugin puts into vLLM, looked at without starting an engine."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from service.engine.punica import GraftworkPunicaWrapperCPU, fits

RANK, INPUTS, SLICES = 3, 7, (4, 2)
SLOTS: list[int | None] = [5, 7, 9]


def test_this_vllm_calls_its_wrapper_in_the_way_that_ours_expects():
    assert fits()


def test_vllm_knows_nothing_of_ours_before_the_plugin_ran_and_everything_after():
    script = (
        "from service.engine.plugin import missing, register\n"
        "print(len(missing()))\nregister()\nregister()\nprint(len(missing()))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["5", "0"]


BATCHES = pytest.mark.parametrize(
    "ids",
    [
        pytest.param([0, 0, 0], id="base only"),
        pytest.param([5, 5, 5], id="identical"),
        pytest.param([5, 9, 7], id="distinct"),
        pytest.param([0, 9, 0, 5, 5, 0, 9], id="mixed"),
    ],
)


class Case:
    """A linear of two slices with three adapters, of ranks 1, 2 and 3, and a batch for it."""

    def __init__(self, ids: list[int]) -> None:
        generator = torch.manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.ids = ids
        self.a = tuple(random(3, 1, RANK, INPUTS) for _ in SLICES)
        self.b = tuple(random(3, 1, width, RANK) for width in SLICES)
        for slot in range(RANK):
            for matrices in self.a:
                matrices[slot, 0, slot + 1 :] = 0
        self.x, self.y = random(len(ids), INPUTS), random(len(ids), sum(SLICES))

    def expected(self, scale: float) -> Tensor:
        y = self.y.clone()
        for row, adapter in enumerate(self.ids):
            if adapter:
                slot = SLOTS.index(adapter)
                deltas = [
                    b[slot, 0] @ a[slot, 0] @ self.x[row]
                    for a, b in zip(self.a, self.b, strict=True)
                ]
                y[row] += scale * torch.cat(deltas)
        return y

    def run(self, wrapper: Any, is_prefill: bool, scale: float) -> Tensor:
        y = self.y.clone()
        mapping = LoRAMapping(tuple(self.ids), tuple(self.ids), is_prefill=is_prefill)
        wrapper.update_metadata(mapping, SLOTS, max_loras=4, vocab_size=100)
        wrapper.add_lora_linear(y, self.x, self.a, self.b, scale, SLICES)
        return y


@BATCHES
@pytest.mark.parametrize("is_prefill", [True, False], ids=["prefill", "decode"])
def test_every_row_gets_its_own_adapter_and_a_base_row_none(ids: list[int], is_prefill: bool):
    case = Case(ids)
    wrapper = GraftworkPunicaWrapperCPU(16, max_batches=16, device="cpu")
    torch.testing.assert_close(case.run(wrapper, is_prefill, 0.5), case.expected(0.5))


@BATCHES
def test_the_kernels_do_the_same_with_each_adapters_own_rank(kernels: None, ids: list[int]):
    case = Case(ids)
    wrapper = GraftworkPunicaWrapperCPU(16, max_batches=16, device="cpu")
    linear = SimpleNamespace(lora_a_stacked=case.a, lora_b_stacked=case.b, output_slices=SLICES)
    embedding = SimpleNamespace(lora_a_stacked=torch.zeros(3, 1, RANK, INPUTS))
    for slot in range(len(SLOTS)):
        wrapper.load(slot, [embedding, linear])
    assert wrapper.pool is not None
    assert wrapper.pool.packed
    expected = case.expected(1.0)
    for stacked in (*case.a, *case.b):
        stacked.zero_()  # the kernels read their own copy
    torch.testing.assert_close(case.run(wrapper, True, 1.0), expected)


@pytest.mark.parametrize("is_prefill", [True, False], ids=["prefill", "decode"])
def test_vllms_own_wrapper_gives_a_base_row_the_adapter_of_the_last_slot(is_prefill: bool):
    """When this fails, vLLM has mended it."""
    case = Case([0, 9, 0, 5])
    wrapper = PunicaWrapperCPU(16, max_batches=16, device="cpu")
    wrong = (case.run(wrapper, is_prefill, 1.0) - case.expected(1.0)).abs().amax(1) > 1e-3
    assert wrong.tolist() == [True, False, True, False]
    case.ids = [9, 9, 9, 9]
    as_if = case.run(wrapper, is_prefill, 1.0)
    case.ids = [0, 9, 0, 5]
    torch.testing.assert_close(case.run(wrapper, is_prefill, 1.0)[0], as_if[0])
