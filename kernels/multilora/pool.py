"""The adapters that are resident: each packed once, at load, into one block of memory.

A kernel finds them through tables that stay where they are: for each linear, slot and slice the
addresses of A and B and their rank.  Ranks are padded to a multiple of 8, not to the largest.
"""

# Shape suffixes: R = rank, I = inputs, O = outputs of one slice.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from multilora import native
from multilora.reference import Matrices

RANKS, PANEL = 8, 32  # the packed layout; csrc/kernels.h describes it
ALIGNMENT = 64  # elements

Weights = Mapping[str, Sequence[Matrices | None]]  # by linear, a pair for each slice


@dataclass(frozen=True)
class Linear:
    """The shape of a linear whose outputs are one or several slices (q, k and v; gate and up)."""

    inputs: int
    widths: tuple[int, ...]


class Pool:
    """The adapters of one model, by slot.

    `packed` says that the kernels read them; without kernels for dtype and device torch does.
    With `max_rank` there is room for that rank in every slot from the start: nothing is allocated
    later, and a GPU graph holds whatever is loaded after its capture.  Without, each load allocates
    what it needs.
    """

    def __init__(
        self,
        linears: Mapping[str, Linear],
        slots: int,
        dtype: torch.dtype,
        device: str = "cpu",
        packed: bool = True,
        max_rank: int = 0,
    ) -> None:
        self.linears = dict(linears)
        self.dtype = dtype
        self.device = torch.device(device)
        self.packed = packed and dtype in native.DTYPES and native.available(self.device.type)
        self.tables = {
            name: torch.zeros(slots, len(linear.widths), 3, dtype=torch.int64, device=device)
            for name, linear in self.linears.items()
        }
        self.columns = {
            name: torch.tensor((0, *linear.widths)).cumsum(0).to(device)
            for name, linear in self.linears.items()
        }
        self.max_rank = max_rank + -max_rank % RANKS  # of any adapter ever loaded, as it is padded
        self._room = self._reserve(slots) if max_rank and self.packed else None
        self._blocks: list[Tensor | None] = [None] * slots
        self._plain: list[Weights] = [{} for _ in range(slots)]

    def load(self, slot: int, weights: Weights) -> None:
        """Put an adapter into a slot, in place of what was there.

        A is (R, I) and B is (O, R) with any R; alpha / r belongs into B.  A linear that is not
        named, or a slice that is None, has none.  Raises ValueError for a wrong shape or name, and
        for a rank that there is no room for.
        """
        for name, slices in weights.items():
            self._check(name, slices)
        self.unload(slot)
        if not self.packed:
            self._plain[slot] = {
                name: [m and self._cast(m) for m in slices] for name, slices in weights.items()
            }
            return
        on_gpu = self.device.type == "cuda"
        packed = {
            name: [_pack(*m, self.dtype, on_gpu) if m and len(m[0]) else None for m in slices]
            for name, slices in weights.items()
        }
        pairs = [pair for slices in packed.values() for pair in slices if pair]
        block = self._block(slot, sum(_aligned(t.numel()) for pair in pairs for t in pair))
        for name, slices in packed.items():
            rows = []
            for pair in slices:
                row = [0, 0, len(pair[0]) * RANKS if pair else 0]
                for i, tensor in enumerate(pair or ()):
                    place, block = block[: tensor.numel()], block[_aligned(tensor.numel()) :]
                    place.copy_(tensor.flatten())
                    row[i] = place.data_ptr()
                self.max_rank = max(self.max_rank, row[2])
                rows.append(row)
            self.tables[name][slot] = torch.tensor(rows)

    def unload(self, slot: int) -> None:
        """Forget an adapter; its slot contributes nothing from here on."""
        for table in self.tables.values():
            table[slot] = 0
        self._blocks[slot] = None
        self._plain[slot] = {}

    def plain(self, name: str, slot: int, number: int) -> Matrices | None:
        """A and B of a slice, in a pool that is not packed."""
        slices = self._plain[slot].get(name)
        return slices[number] if slices else None

    @property
    def nbytes(self) -> int:
        """What the packed adapters occupy."""
        return sum(block.nbytes for block in self._blocks if block is not None)

    def _reserve(self, slots: int) -> Tensor:
        elements = sum(
            _aligned(self.max_rank * (size + -size % PANEL))
            for linear in self.linears.values()
            for width in linear.widths
            for size in (linear.inputs, width)
        )
        return torch.empty(slots, elements, dtype=self.dtype, device=self.device)

    def _block(self, slot: int, elements: int) -> Tensor:
        if self._room is None:
            block = torch.empty(elements, dtype=self.dtype, device=self.device)
        else:
            block = self._room[slot, :elements]
        self._blocks[slot] = block
        return block

    def _cast(self, matrices: Matrices) -> Matrices:
        a_RI, b_OR = matrices
        return a_RI.to(self.device, self.dtype), b_OR.to(self.device, self.dtype)

    def _check(self, name: str, slices: Sequence[Matrices | None]) -> None:
        linear = self.linears.get(name)
        if linear is None:
            raise ValueError(f"the pool has no linear {name}")
        if len(slices) != len(linear.widths):
            raise ValueError(f"{name} has {len(linear.widths)} slices, not {len(slices)}")
        for matrices, width in zip(slices, linear.widths, strict=True):
            if matrices is None:
                continue
            a_RI, b_OR = matrices
            expected = (a_RI.shape[0], linear.inputs), (width, a_RI.shape[0])
            if (a_RI.shape, b_OR.shape) != expected:
                found = tuple(a_RI.shape), tuple(b_OR.shape)
                raise ValueError(f"{name}: A and B have shapes {found}, not {expected}")
            if self._room is not None and a_RI.shape[0] > self.max_rank:
                raise ValueError(f"{name}: there is room for rank {self.max_rank}, not {len(a_RI)}")


def _pack(a_RI: Tensor, b_OR: Tensor, dtype: torch.dtype, on_gpu: bool) -> Matrices:
    """A as (R / 8, I / 32, 8, 32) and B as (O / 32, R, 32), filled up with zeros.

    A GPU reads B by pairs of ranks: (O / 32, R / 2, 32, 2).
    """
    (rank, inputs), outputs = a_RI.shape, b_OR.shape[0]
    more_ranks, more_inputs, more_outputs = -rank % RANKS, -inputs % PANEL, -outputs % PANEL
    a_RI = pad(a_RI.to(dtype), (0, more_inputs, 0, more_ranks))
    b_OR = pad(b_OR.to(dtype), (0, more_ranks, 0, more_outputs))
    a = a_RI.view(-1, RANKS, a_RI.shape[1] // PANEL, PANEL).transpose(1, 2)
    if on_gpu:
        return a, b_OR.view(-1, PANEL, b_OR.shape[1] // 2, 2).transpose(1, 2)
    return a, b_OR.view(-1, PANEL, b_OR.shape[1]).transpose(1, 2)


def _aligned(elements: int) -> int:
    return elements + -elements % ALIGNMENT
