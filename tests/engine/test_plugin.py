"""What the plugin puts into vLLM, looked at without starting an engine."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from vllm.lora.layers import LoRAMapping

from service.engine.punica import GraftworkPunicaWrapperCPU, fits

RANK, INPUTS, SLICES = 3, 7, (4, 2)


def test_this_vllm_calls_its_wrapper_in_the_way_that_ours_expects():
    assert fits()


def test_vllm_knows_nothing_of_ours_before_the_plugin_ran_and_everything_after():
    script = (
        "from service.engine.plugin import missing, register\n"
        "print(len(missing()))\nregister()\nregister()\nprint(len(missing()))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["5", "0"]


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param([0, 0, 0], id="base only"),
        pytest.param([5, 5, 5], id="identical"),
        pytest.param([5, 9, 7], id="distinct"),
        pytest.param([0, 9, 0, 5, 5, 0, 9], id="mixed"),
    ],
)
def test_every_row_gets_its_own_adapter_and_a_base_row_none(ids: list[int]):
    slots: list[int | None] = [5, 7, 9]
    generator = torch.manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    a = tuple(random(3, 1, RANK, INPUTS) for _ in SLICES)
    b = tuple(random(3, 1, width, RANK) for width in SLICES)
    x, y = random(len(ids), INPUTS), random(len(ids), sum(SLICES))
    expected = y.clone()
    for row, adapter in enumerate(ids):
        if adapter:
            slot = slots.index(adapter)
            deltas = [b[i][slot, 0] @ a[i][slot, 0] @ x[row] for i in range(len(SLICES))]
            expected[row] += 0.5 * torch.cat(deltas)

    wrapper = GraftworkPunicaWrapperCPU(16, max_batches=16, device="cpu")
    mapping = LoRAMapping(tuple(ids), tuple(ids), is_prefill=True)
    wrapper.update_metadata(mapping, slots, max_loras=4, vocab_size=100)
    wrapper.add_lora_linear(y, x, a, b, 0.5, SLICES)
    torch.testing.assert_close(y, expected)
