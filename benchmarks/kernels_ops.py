"""One linear with one batch: the kernels and vLLM's own operators, side by side.

Which adapter a row of the batch gets is named as in Punica (Chen et al., MLSys 2024,
https://arxiv.org/abs/2310.18547): identical, distinct, uniform, zipf, skewed.  The adapters of a
case are copied until no cache holds them all, and each call takes the next copy and turns the slots
by one, so that it finds its weights in memory, as the layers of a model would.  Both sides get the
same rows, and work by turns; theirs is `add_lora_linear` of vLLM's wrapper, whose buffers have the
largest rank of the case, as in an engine.  Times are medians.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from multilora import Batch, Compositions, Linear, Pool, apply_, reference

LINEARS = {
    "qkv-2048": Linear(2048, (2048, 512, 512)),
    "gate_up-2048": Linear(2048, (5632, 5632)),
    "down-2048": Linear(5632, (2048,)),
    "qkv-4096": Linear(4096, (4096, 1024, 1024)),
    "gate_up-4096": Linear(4096, (14336, 14336)),
    "down-4096": Linear(14336, (4096,)),
}
RANKS = {"8": (8,), "16": (16,), "64": (64,), "mixed": (8, 16, 32, 64)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TURN, ENOUGH = 0.02, 0.2  # seconds
CALLS = 64  # in one GPU graph


@dataclass(frozen=True)
class Case:
    """One linear with one batch."""

    linear: str
    dtype: str
    ranks: str
    popularity: str
    tokens: int
    prefill: bool


@dataclass(frozen=True)
class Setting:
    """What differs between a CPU and a GPU."""

    device: str
    adapters: int  # resident; a batch of fewer rows cannot use them all
    sequence: int  # rows that share an adapter in prefill
    cache_bytes: int  # more than the last level holds
    dtypes: tuple[str, ...]
    decode: tuple[tuple[str, int], ...]
    few: tuple[tuple[str, int], ...]  # of decode, for most linears and ranks
    prefill: tuple[tuple[str, int], ...]


CPU = Setting(
    device="cpu",
    adapters=16,
    sequence=64,
    cache_bytes=96 << 20,
    dtypes=("float32", "bfloat16"),
    decode=(("identical", 1), ("distinct", 8), ("uniform", 32), ("zipf", 64), ("skewed", 256)),
    few=(("distinct", 8), ("uniform", 32)),
    prefill=(("identical", 128), ("uniform", 512)),
)
GPU = Setting(
    device="cuda",
    adapters=64,
    sequence=512,
    cache_bytes=192 << 20,
    dtypes=("bfloat16",),
    decode=(
        ("identical", 1),
        ("identical", 32),
        ("distinct", 8),
        ("distinct", 64),
        ("uniform", 64),
        ("zipf", 128),
        ("skewed", 256),
    ),
    few=(("identical", 1), ("distinct", 8), ("distinct", 64), ("zipf", 128)),
    prefill=(("identical", 2048), ("uniform", 2048), ("uniform", 8192)),
)


def cases(setting: Setting, quick: bool) -> Iterator[Case]:
    """A cover of linears, dtypes, ranks and popularities, not their product."""
    for dtype in setting.dtypes:
        for popularity, tokens in setting.decode:
            yield Case("qkv-2048", dtype, "16", popularity, tokens, False)
        for popularity, tokens in setting.prefill:
            yield Case("qkv-2048", dtype, "16", popularity, tokens, True)
        if quick:
            continue
        others = [("qkv-2048", ranks) for ranks in RANKS if ranks != "16"]
        others += [(linear, "16") for linear in LINEARS if linear != "qkv-2048"]
        for linear, ranks in others:
            for popularity, tokens in setting.few:
                yield Case(linear, dtype, ranks, popularity, tokens, False)
            if linear == "down-4096" or setting.device == "cuda":
                yield Case(linear, dtype, ranks, *setting.prefill[0], True)


def slots_of(case: Case, setting: Setting) -> list[int]:
    """The slot of each row."""
    rows = setting.sequence if case.prefill else 1
    count, adapters = -(-case.tokens // rows), setting.adapters
    generator = torch.Generator().manual_seed(count)
    weights = {
        "uniform": torch.ones(adapters),
        "zipf": torch.arange(1, adapters + 1, dtype=torch.float) ** -1.5,
        "skewed": torch.tensor([3.0 * (adapters - 1)] + [1.0] * (adapters - 1)),
    }
    if case.popularity == "identical":
        slots = [0] * count
    elif case.popularity == "distinct":
        slots = list(range(count))
    else:
        slots = weights[case.popularity].multinomial(count, True, generator=generator).tolist()
    return [slot for slot in slots for _ in range(rows)][: case.tokens]


class Sides:
    """The same adapters twice: stacked for vLLM and packed for the kernels, in several copies."""

    def __init__(self, setting: Setting, case: Case) -> None:
        self.setting, self.linear = setting, LINEARS[case.linear]
        self.dtype, self.ranks = DTYPES[case.dtype], RANKS[case.ranks]
        self.largest = max(self.ranks)
        adapters, linear = setting.adapters, self.linear
        one = self.largest * (linear.inputs * len(linear.widths) + sum(linear.widths))
        bytes_ = one * self.dtype.itemsize * adapters
        self.copies = max(2, -(-setting.cache_bytes // bytes_))
        names = {str(i): linear for i in range(self.copies)}
        self.pool = Pool(names, adapters, self.dtype, setting.device, max_rank=self.largest)
        assert self.pool.packed, "python -m multilora.build (on a GPU with --cuda)"
        self.stacked = [self._stack() for _ in range(self.copies)]
        if setting.device == "cuda":
            forget_addresses()
        for slot in range(adapters):
            self.pool.load(slot, self._adapter(slot, self.rank(slot)))

    def rank(self, slot: int) -> int:
        return self.ranks[slot % len(self.ranks)]

    def weight_bytes(self, slots: list[int]) -> int:
        """What has to be read of the adapters of a batch, each with its own rank."""
        width = self.linear.inputs * len(self.linear.widths) + sum(self.linear.widths)
        return sum(self.rank(slot) for slot in set(slots)) * width * self.dtype.itemsize

    def _stack(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        adapters, like = self.setting.adapters, {"dtype": self.dtype, "device": self.setting.device}
        widths, inputs = self.linear.widths, self.linear.inputs
        a = tuple(torch.zeros(adapters, 1, self.largest, inputs, **like) for _ in widths)
        b = tuple(torch.zeros(adapters, 1, width, self.largest, **like) for width in widths)
        return a, b

    def _adapter(self, slot: int, rank: int) -> dict[str, Any]:
        for a, b in self.stacked:
            for s in range(len(a)):
                a[s][slot, 0, :rank].normal_().div_(self.linear.inputs**0.5)
                b[s][slot, 0, :, :rank].normal_().div_(rank**0.5)
        return {
            str(i): [(x[slot, 0, :rank], y[slot, 0, :, :rank]) for x, y in zip(a, b, strict=True)]
            for i, (a, b) in enumerate(self.stacked)
        }


def forget_addresses() -> None:
    """vLLM keeps strides by address, which are wrong once another tensor lies there."""
    from vllm.lora.ops.triton_ops import utils

    utils._LORA_A_PTR_DICT.clear()
    utils._LORA_B_PTR_DICT.clear()


Wrap = Callable[[list[int], Sides, bool], Any]  # rows' slots -> one of vLLM's wrappers


def measure(
    case: Case, sides: Sides, rivals: Mapping[str, Wrap], bandwidth: float, turns: int
) -> dict[str, Any]:
    """Median milliseconds of all, the share of the byte floor, and the error against float64."""
    setting, linear, slots = sides.setting, sides.linear, slots_of(case, sides.setting)
    like = {"dtype": sides.dtype, "device": setting.device}
    x = torch.randn(case.tokens, linear.inputs).to(**like)
    y = torch.randn(case.tokens, sum(linear.widths)).to(**like)
    turned = [[(slot + turn) % setting.adapters for slot in slots] for turn in range(16)]
    calls = [(c, t) for t in range(len(turned)) for c in range(sides.copies)]
    batches = [batch_of(slots, setting) for slots in turned]

    def ours(copy: int, turn: int) -> None:
        apply_(y, x, sides.pool, str(copy), batches[turn])

    def with_wrappers(wrap: Wrap) -> Callable[[int, int], None]:
        wrappers = [wrap(slots, sides, case.prefill) for slots in turned]

        def theirs(copy: int, turn: int) -> None:
            wrappers[turn].add_lora_linear(y, x, *sides.stacked[copy], 1.0, linear.widths)

        return theirs

    error = relative_error(sides, x, batches[0])
    functions = [ours, *(with_wrappers(wrap) for wrap in rivals.values())]
    cycled = [_cycled(function, calls) for function in functions]
    if setting.device == "cuda":
        times = timed_on_gpu(cycled, turns, warm_up=sides.copies)
    else:
        times = timed_on_cpu(cycled, turns)
    floor = sides.weight_bytes(slots) / bandwidth
    return {
        **asdict(case),
        "adapters": len(set(slots)),
        "ours_ms": round(times[0] * 1e3, 4),
        **{f"{name}_ms": round(t * 1e3, 4) for name, t in zip(rivals, times[1:], strict=True)},
        "speedup": round(min(times[1:]) / times[0], 2),
        "floor_ms": round(floor * 1e3, 4),
        "byte_floor_share": round(floor / times[0], 3),
        "relative_error": float(f"{error:.2g}"),
    }


def _cycled(function: Callable[[int, int], None], calls: Iterable[Any]) -> Callable[[], None]:
    order = itertools.cycle(calls)
    return lambda: function(*next(order))


def batch_of(slots: list[int], setting: Setting) -> Batch:
    batch = Batch(Compositions.of_slots(setting.adapters, setting.device), len(slots))
    batch.update(slots)
    return batch


def torch_ops(slots: list[int], sides: Sides, is_prefill: bool) -> Any:
    """vLLM's wrapper on a CPU."""
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    wrapper = PunicaWrapperCPU(len(slots), max_batches=len(slots), device="cpu")
    return _told(wrapper, LoRAMapping, slots, sides.setting.adapters, is_prefill)


def triton(max_loras: int | None, specialize: bool) -> Wrap:
    """vLLM's wrapper on a GPU; max_loras None: as many as the batch has adapters."""

    def wrap(slots: list[int], sides: Sides, is_prefill: bool) -> Any:
        from vllm.config.lora import LoRAConfig
        from vllm.lora.layers import LoRAMapping
        from vllm.lora.punica_wrapper.punica_gpu import PunicaWrapperGPU

        config = LoRAConfig(
            max_lora_rank=sides.largest,
            max_loras=max_loras or len(set(slots)),
            specialize_active_lora=specialize,
        )
        wrapper = PunicaWrapperGPU(
            len(slots), max_batches=len(slots), device="cuda", lora_config=config
        )
        return _told(wrapper, LoRAMapping, slots, sides.setting.adapters, is_prefill)

    return wrap


RIVALS: dict[str, dict[str, Wrap]] = {
    "cpu": {"torch_ops": torch_ops},
    "cuda": {
        "triton_default64": triton(64, specialize=False),
        "triton_specialized64": triton(64, specialize=True),
        "triton_specialized_tight": triton(None, specialize=True),
    },
}


def _told(wrapper: Any, mapping: Any, slots: list[int], adapters: int, is_prefill: bool) -> Any:
    ids = tuple(slot + 1 for slot in slots)
    rows = mapping(ids, ids, is_prefill=is_prefill)
    wrapper.update_metadata(rows, list(range(1, adapters + 1)), adapters + 1, 100)
    return wrapper


def relative_error(sides: Sides, x: Tensor, batch: Batch) -> float:
    """The largest error of a row of one call, relative to the row's largest value."""
    y = torch.zeros(len(x), sum(sides.linear.widths), dtype=sides.dtype, device=x.device)
    exact = y.double()
    apply_(y, x, sides.pool, "0", batch)
    a, b = sides.stacked[0]
    reference.apply_(
        exact,
        x.double(),
        batch.rows.to(x.device),
        batch.compositions.parts(),
        lambda slot, s: (a[s][slot, 0].double(), b[s][slot, 0].double()),
        sides.linear.widths,
    )
    return float(((y.double() - exact).abs().amax(1) / exact.abs().amax(1)).max())


def clock_of(device: str) -> Callable[[], float]:
    """CPU seconds for one thread, which other work on the machine does not lengthen."""
    alone = device == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def timed_on_cpu(functions: list[Callable[[], None]], turns: int) -> list[float]:
    """Median seconds of each; they take turns of at least TURN seconds, not longer than ENOUGH."""
    clock = clock_of("cpu")
    seconds: list[list[float]] = [[] for _ in functions]
    for turn in range(turns):
        for function, found in zip(functions, seconds, strict=True):
            if turn >= 3 and sum(found) > ENOUGH:
                continue
            until = clock() + TURN
            while (started := clock()) < until:
                function()
                found.append(clock() - started)
    return [statistics.median(found) for found in seconds]


def timed_on_gpu(functions: list[Callable[[], None]], turns: int, warm_up: int) -> list[float]:
    """Median seconds of a call of each, of CALLS calls in one graph, as an engine decodes.

    Before its capture each is called `warm_up` times, which compiles what Triton compiles and lets
    vLLM find the addresses of each copy.
    """
    graphs = []
    for function in functions:
        for _ in range(warm_up):
            function()
        torch.cuda.synchronize()
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[-1]):
            for _ in range(CALLS):
                function()
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(4 * turns):
        for graph, found in zip(graphs, seconds, strict=True):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            stop.record()
            torch.cuda.synchronize()
            found.append(start.elapsed_time(stop) / 1e3 / CALLS)
    return [statistics.median(found) for found in seconds]


def bandwidth_of(device: str) -> float:
    """Bytes per second at which memory is read: the best of ten sums over more than any cache."""
    memory = torch.ones((256 << 20) // 4 * (8 if device == "cuda" else 1), device=device)
    clock, best = clock_of(device), float("inf")
    for _ in range(10):
        started = clock()
        memory.sum().item()
        best = min(best, clock() - started)
    return memory.nbytes / best
