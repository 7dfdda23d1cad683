"""What the rows of a step get: compositions, and the plan that sorts the rows by them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from multilora import native
from multilora.reference import Composition

HEIGHT = 32  # rows of a unit: enough to use an adapter's weights well while they are in the cache
GPU_HEIGHTS = (16, 64)  # of a decode step and of one with prefill, as csrc/gpu_kernels.cuh knows
GPU_PREFILL = 512  # rows of a step from which the second is taken, here and in csrc/cuda.cu


class Compositions:
    """Weighted sums of adapters, by index, in tables that stay where they are."""

    def __init__(self, count: int, max_parts: int = 1, device: str = "cpu") -> None:
        self.slots = torch.full((count, max_parts), -1, dtype=torch.int32, device=device)
        self.weights = torch.zeros(count, max_parts, device=device)

    @classmethod
    def of_slots(cls, slots: int, device: str = "cpu") -> "Compositions":
        """The composition i is the adapter in slot i, as it is."""
        compositions = cls(slots, device=device)
        compositions.slots[:, 0] = torch.arange(slots)
        compositions.weights.fill_(1.0)
        return compositions

    def set(self, index: int, parts: Composition) -> None:
        """Let an index stand for a sum of slots with weights; raises ValueError for too many."""
        count = len(parts)
        if count > self.slots.shape[1]:
            raise ValueError(f"a composition has at most {self.slots.shape[1]} parts, not {count}")
        self.slots[index] = -1
        for place, (slot, weight) in enumerate(parts):
            self.slots[index, place] = slot
            self.weights[index, place] = weight

    def __len__(self) -> int:
        return self.slots.shape[0]

    def parts(self) -> list[Composition]:
        """All of them, as `set` takes them."""
        pairs = zip(self.slots.tolist(), self.weights.tolist(), strict=True)
        return [
            [(slot, weight) for slot, weight in zip(slots, weights, strict=True) if slot >= 0]
            for slots, weights in pairs
        ]


class Batch:
    """Which composition each row of the current step gets."""

    def __init__(self, compositions: Compositions, max_rows: int) -> None:
        self.compositions = compositions
        self.plan = torch.zeros(
            2 + 4 * max_rows, dtype=torch.int32, device=compositions.slots.device
        )
        self.rows = torch.empty(0, dtype=torch.int64)
        self.adapted = False  # whether any row has a composition

    def update(self, rows: Tensor | Sequence[int]) -> None:
        """Take the composition of each row, -1 for none, as int64 (T,).

        Raises RuntimeError for more rows than fit and for a composition that there is not.
        """
        self.rows = torch.as_tensor(rows, dtype=torch.int64)
        self.adapted = bool((self.rows >= 0).any())
        if not native.available():
            return
        on_gpu = self.plan.is_cuda
        height = GPU_HEIGHTS[len(self.rows) >= GPU_PREFILL] if on_gpu else HEIGHT
        host = torch.empty_like(self.plan, device="cpu", pin_memory=True) if on_gpu else self.plan
        torch.ops.multilora.plan(self.rows, len(self.compositions), height, host)
        if on_gpu:
            self.plan.copy_(host, non_blocking=True)
