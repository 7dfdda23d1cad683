"""Many adapters in one batch on CPU: every row sees its own adapter, a row of the base sees none.

vLLM's CPU wrapper looks up the adapter of a base row with index -1, which is the last slot, so in
a mixed batch the base answers with somebody's adapter.  It also copies the weights of the adapter
for every row.  Here the kernels of multilora do the work, on a copy of the slots packed for them
with each adapter's own rank; where they cannot, torch does it on vLLM's buffers.
"""

# Shape suffixes: T = tokens in the batch, I = inputs of the linear, O = outputs of all its slices,
# S = slots, R = the largest rank that the engine takes.

import inspect
import logging
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from vllm.lora.layers import LoRAMapping
from vllm.lora.model_manager import LRUCacheLoRAModelManager
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.platforms import current_platform

from multilora import Batch, Compositions, Linear, Pool, apply_, reference
from multilora.reference import Matrices

logger = logging.getLogger("vllm.graftwork.punica")

UPDATE = ["self", "mapping", "lora_index_to_id", "max_loras", "vocab_size", "kwargs"]
LINEAR = ["self", "y", "x", "lora_a_stacked", "lora_b_stacked", "scale", "output_slices"]
ACTIVATE = ["self", "lora_id"]


class GraftworkPunicaWrapperCPU(PunicaWrapperCPU):
    """vLLM's CPU wrapper with a linear of our own."""

    batch: Batch
    pool: Pool | None = None

    def __init__(self, max_num_batched_tokens: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(max_num_batched_tokens, *args, **kwargs)
        self._max_rows = max_num_batched_tokens

    def update_metadata(
        self,
        mapping: LoRAMapping,
        lora_index_to_id: list[int | None],
        max_loras: int,
        vocab_size: int,
        **kwargs: Any,
    ) -> None:
        """Sort, once per step, the rows by slot."""
        super().update_metadata(mapping, lora_index_to_id, max_loras, vocab_size, **kwargs)
        if not hasattr(self, "batch"):
            self.batch = Batch(Compositions.of_slots(len(lora_index_to_id)), self._max_rows)
        self.batch.update(self.token_lora_indices)

    def load(self, slot: int, modules: Iterable[Any]) -> None:
        """Pack what vLLM has just written into a slot of its modules."""
        linears = [m for m in modules if isinstance(getattr(m, "lora_a_stacked", None), tuple)]
        if self.pool is None:
            shapes = {_name(m.lora_a_stacked): _shape(m.lora_a_stacked, m) for m in linears}
            first = linears[0].lora_a_stacked[0]
            self.pool = Pool(shapes, len(first), first.dtype)
        if self.pool.packed:
            weights = {
                _name(m.lora_a_stacked): [
                    _matrices(a[slot, 0], b[slot, 0])
                    for a, b in zip(m.lora_a_stacked, m.lora_b_stacked, strict=True)
                ]
                for m in linears
            }
            self.pool.load(slot, weights)

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_: Any,
    ) -> None:
        """y[:, slice] += scale * x A^T B^T for each slice, in place, rows of the base untouched.

        A is stacked as (S, 1, R, I), B as (S, 1, slice, R).
        """
        y_TO, x_TI = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        pool = self.pool
        if pool is not None and pool.packed and pool.dtype == x.dtype and scale == 1.0:
            apply_(y_TO, x_TI, pool, _name(lora_a_stacked), self.batch)
            return

        def adapter(slot: int, number: int) -> Matrices:
            return lora_a_stacked[number][slot, 0], lora_b_stacked[number][slot, 0]

        slots = [[(slot, scale)] for slot in range(len(lora_a_stacked[0]))]
        reference.apply_(y_TO, x_TI, self.batch.rows, slots, adapter, output_slices)


class PackingLoRAManager(LRUCacheLoRAModelManager):
    """vLLM's manager of slots, which tells our wrapper what it has put into one."""

    def activate_adapter(self, lora_id: int) -> bool:
        activated = bool(super().activate_adapter(lora_id))
        if activated:
            slot = self.lora_index_to_id.index(lora_id)
            for wrapper in self.punica_wrapper_mapping.values():
                wrapper.load(slot, self.modules.values())
        return activated


def _name(lora_a_stacked: tuple[Tensor, ...]) -> str:
    return str(lora_a_stacked[0].data_ptr())


def _shape(lora_a_stacked: tuple[Tensor, ...], module: Any) -> Linear:
    return Linear(lora_a_stacked[0].shape[-1], tuple(module.output_slices))


def _matrices(a_RI: Tensor, b_OR: Tensor) -> Matrices:
    """A and B without the zeros behind the adapter's own rank."""
    used = (a_RI.any(dim=1) & b_OR.any(dim=0)).nonzero()
    rank = int(used[-1]) + 1 if len(used) else 0
    return a_RI[:rank], b_OR[:, :rank]


def install() -> None:
    """Point vLLM's CPU platform at our wrapper; may be called again."""
    if not current_platform.is_cpu():
        return
    if not fits():
        logger.warning("this vLLM's CPU wrapper is unknown to us: base rows may see adapters")
        return
    LRUCacheWorkerLoRAManager._manager_cls = PackingLoRAManager
    name = f"{__name__}.{GraftworkPunicaWrapperCPU.__name__}"
    type(current_platform).get_punica_wrapper = classmethod(lambda cls: name)


def fits() -> bool:
    """Whether vLLM calls its wrapper, and fills its slots, in the way that ours expects."""

    def parameters(function: Any, count: int) -> list[str]:
        return list(inspect.signature(function).parameters)[:count]

    return (
        parameters(PunicaWrapperCPU.update_metadata, len(UPDATE)) == UPDATE
        and parameters(PunicaWrapperCPU.add_lora_linear, len(LINEAR)) == LINEAR
        and parameters(LRUCacheLoRAModelManager.activate_adapter, len(ACTIVATE)) == ACTIVATE
        and isinstance(getattr(PunicaWrapperCPU, "token_lora_indices", None), property)
        and LRUCacheWorkerLoRAManager._manager_cls in (LRUCacheLoRAModelManager, PackingLoRAManager)
    )
