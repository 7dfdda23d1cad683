"""Our wrappers in the place of vLLM's: every row sees its own adapter, and what does not fit stays.

The wrapper for a GPU runs here on a CPU, with the kernels for one: what that does not show are
launches and captured graphs.
"""

import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.config.lora import LoRAConfig
from vllm.lora.layers import LoRAMapping
from vllm.lora.ops.triton_ops.lora_kernel_metadata import LoRAKernelMeta
from vllm.lora.punica_wrapper import punica_gpu as theirs_gpu
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform
from vllm.utils.import_utils import resolve_obj_by_qualname

from multilora import native
from service.engine import punica
from service.engine.punica_cpu import GraftworkPunicaWrapperCPU
from service.engine.punica_gpu import GraftworkPunicaWrapperGPU

RANK, INPUTS, SLICES = 8, 7, (4, 2)
SLOTS: list[int | None] = [5, 7, 9]
CPU_KINDS = pytest.mark.parametrize("is_prefill", [True, False], ids=["prefill", "decode"])
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
        for slot in range(len(SLOTS)):
            for matrices in self.a:
                matrices[slot, 0, slot + 1 :] = 0
        self.x, self.y = random(len(ids), INPUTS), random(len(ids), sum(SLICES))

    def expected(self, scale: float = 1.0) -> Tensor:
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

    def module(self, wrapper: Any) -> Any:
        """A linear of vLLM with empty buffers."""
        a, b = (tuple(map(torch.zeros_like, stacked)) for stacked in (self.a, self.b))
        return SimpleNamespace(
            lora_a_stacked=a, lora_b_stacked=b, output_slices=SLICES, punica_wrapper=wrapper
        )

    def activate(self, wrapper: Any, module: Any, slot: int) -> None:
        """What vLLM does when it fills a slot, and then our manager."""
        for stacked, mine in ((module.lora_a_stacked, self.a), (module.lora_b_stacked, self.b)):
            for buffer, matrices in zip(stacked, mine, strict=True):
                buffer[slot] = 0
                buffer[slot].copy_(matrices[slot])
        wrapper.load(slot, {"linear": module})

    def adopt(self, wrapper: Any, **others: Any) -> Any:
        module = self.module(wrapper)
        wrapper.adopt({"linear": module, **others}, torch.float32, False)
        assert wrapper.pool is not None
        for slot in range(len(SLOTS)):
            self.activate(wrapper, module, slot)
        return module

    def begin(self, wrapper: Any, is_prefill: bool = True) -> None:
        mapping = LoRAMapping(tuple(self.ids), tuple(self.ids), is_prefill=is_prefill)
        wrapper.update_metadata(mapping, SLOTS, max_loras=4, vocab_size=100)

    def run(self, wrapper: Any, module: Any, scale: float = 1.0) -> Tensor:
        y, (a, b) = self.y.clone(), (module.lora_a_stacked, module.lora_b_stacked)
        wrapper.add_lora_linear(y, self.x, a, b, scale, SLICES)
        return y


def on_cpu() -> GraftworkPunicaWrapperCPU:
    return GraftworkPunicaWrapperCPU(16, max_batches=16, device="cpu")


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[], GraftworkPunicaWrapperGPU]:
    """Make the wrapper for a GPU; vLLM leaves its metadata out where there is no Triton."""
    monkeypatch.setattr(theirs_gpu, "LoRAKernelMeta", LoRAKernelMeta, raising=False)
    config = LoRAConfig(max_lora_rank=RANK, max_loras=len(SLOTS))
    return lambda: GraftworkPunicaWrapperGPU(16, max_batches=16, device="cpu", lora_config=config)


@pytest.fixture(params=["cpu", "gpu"])
def wrapper(request: pytest.FixtureRequest, kernels: None) -> Any:
    return on_cpu() if request.param == "cpu" else request.getfixturevalue("on_gpu")()


@BATCHES
def test_every_row_gets_its_own_adapter_and_a_base_row_none(wrapper: Any, ids: list[int]):
    case = Case(ids)
    module = case.adopt(wrapper)
    case.begin(wrapper)
    torch.testing.assert_close(case.run(wrapper, module), case.expected())


@BATCHES
@CPU_KINDS
def test_without_kernels_a_cpu_does_the_same_in_torch(ids: list[int], is_prefill: bool):
    case, wrapper = Case(ids), on_cpu()
    module = SimpleNamespace(lora_a_stacked=case.a, lora_b_stacked=case.b)
    case.begin(wrapper, is_prefill)
    torch.testing.assert_close(case.run(wrapper, module, 0.5), case.expected(0.5))


def test_an_adapter_takes_its_own_rank_and_vllms_buffers_one_slot(wrapper: Any):
    case = Case([0])
    module = case.adopt(wrapper)
    assert wrapper.pool.tables[punica._name(module.lora_a_stacked)][:3, 0, 2].tolist() == [8, 8, 8]
    assert wrapper.pool.nbytes == 3 * 4 * (2 * 32 * 8 + 2 * 32 * 8)  # padded to 8 and to 32
    for stacked in (*module.lora_a_stacked, *module.lora_b_stacked):
        assert stacked.shape[0] == len(SLOTS)
        assert stacked.untyped_storage().nbytes() == stacked[0].nbytes


def test_a_slot_that_is_filled_again_has_nothing_of_the_adapter_before(wrapper: Any):
    case = Case([5, 9, 7])
    module = case.adopt(wrapper)
    for matrices in (*case.a, *case.b):
        matrices[0] = 0
    case.activate(wrapper, module, 0)
    case.begin(wrapper)
    result = case.run(wrapper, module)
    torch.testing.assert_close(result, case.expected())
    assert torch.equal(result[0], case.y[0])


def test_only_what_is_not_ours_makes_vllm_prepare_for_its_own_operators(wrapper: Any):
    case = Case([5, 9, 7])
    case.adopt(wrapper)
    case.begin(wrapper)
    assert wrapper.indices_len == [None] * 4
    embedding = SimpleNamespace(lora_a_stacked=torch.zeros(3, 1, RANK, INPUTS))
    case.adopt(wrapper, embedding=embedding)
    case.begin(wrapper)
    assert wrapper.token_lora_indices.tolist() == [0, 2, 1]


def test_a_model_that_there_are_no_kernels_for_keeps_vllms_buffers(wrapper: Any):
    case = Case([5])
    module = case.module(wrapper)
    for dtype, sharded in ((torch.float16, False), (torch.float32, True)):
        wrapper.adopt({"linear": module}, dtype, sharded)
        assert wrapper.pool is None
        assert module.lora_a_stacked[0].stride(0) > 0


def test_torch_compile_sees_one_operator_and_later_steps_and_loads_count(
    kernels: None, on_gpu: Callable[[], GraftworkPunicaWrapperGPU]
):
    case, wrapper = Case([0, 9, 0, 5, 5, 0, 9]), on_gpu()
    module = case.adopt(wrapper)

    def linear(y: Tensor, x: Tensor) -> Tensor:
        y = 2 * y
        a, b = module.lora_a_stacked, module.lora_b_stacked
        wrapper.add_lora_linear(y, x, a, b, 1.0, SLICES)
        return y + 1

    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    for ids in ([0] * 7, case.ids, [7, 7, 0, 5, 9, 9, 9]):
        case.ids = ids
        case.activate(wrapper, module, 1)
        case.begin(wrapper)
        expected = case.expected() + case.y + 1
        torch.testing.assert_close(compiled(case.y, case.x), expected)
        case.b[0][1] *= 2


@CPU_KINDS
def test_vllms_own_wrapper_gives_a_base_row_the_adapter_of_the_last_slot(is_prefill: bool):
    """When this fails, vLLM has mended it."""
    case = Case([0, 9, 0, 5])
    wrapper = PunicaWrapperCPU(16, max_batches=16, device="cpu")
    module = SimpleNamespace(lora_a_stacked=case.a, lora_b_stacked=case.b)

    def run(ids: list[int]) -> Tensor:
        case.ids = ids
        case.begin(wrapper, is_prefill)
        return case.run(wrapper, module)

    found = run([0, 9, 0, 5])
    wrong = (found - case.expected()).abs().amax(1) > 1e-3
    assert wrong.tolist() == [True, False, True, False]
    torch.testing.assert_close(found[0], run([9, 9, 9, 9])[0])


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the hook logs; vLLM's loggers do not propagate."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    punica.logger.addHandler(handler)
    yield lines
    punica.logger.removeHandler(handler)


class Gpu:
    """A platform like vLLM's for CUDA."""

    @staticmethod
    def is_cpu() -> bool:
        return False

    @staticmethod
    def is_cuda() -> bool:
        return True

    @classmethod
    def get_punica_wrapper(cls) -> str:
        return "theirs"


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_this_vllm_calls_its_wrapper_in_the_way_that_ours_expects(kind: str):
    assert punica.fits(kind)


@pytest.mark.parametrize("method", list(punica.SIGNATURES))
def test_a_vllm_that_calls_it_otherwise_is_left_alone_with_one_line(
    monkeypatch: pytest.MonkeyPatch, said: list[str], method: str
):
    before = current_platform.get_punica_wrapper()
    monkeypatch.setitem(punica.SIGNATURES, method, ["self", "something", "else"])
    punica.install()
    assert current_platform.get_punica_wrapper() == before
    assert ["unknown to us" in line for line in said] == [True]


@pytest.mark.parametrize("cls", list(punica.PHRASES))
def test_a_vllm_whose_slots_or_linears_work_otherwise_is_unknown(
    monkeypatch: pytest.MonkeyPatch, cls: type
):
    monkeypatch.setitem(punica.PHRASES, cls, ("something else",))
    assert not punica.fits("cpu")
    assert not punica.fits("gpu")


@pytest.mark.parametrize("built", [False, True])
def test_a_gpu_gets_our_wrapper_where_its_kernels_were_built(
    monkeypatch: pytest.MonkeyPatch, said: list[str], built: bool
):
    platform = Gpu()
    monkeypatch.setattr(Gpu, "get_punica_wrapper", Gpu.get_punica_wrapper)  # put back afterwards
    monkeypatch.setattr(punica, "current_platform", platform)
    monkeypatch.setattr(native, "available", lambda device: built)
    manager = punica.LRUCacheWorkerLoRAManager
    monkeypatch.setattr(manager, "_manager_cls", manager._manager_cls)
    punica.install()
    if built:
        assert resolve_obj_by_qualname(platform.get_punica_wrapper()) is GraftworkPunicaWrapperGPU
        assert said == []
    else:
        assert platform.get_punica_wrapper() == "theirs"
        assert ["build --cuda" in line for line in said] == [True]
