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
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from vllm.lora.layers import LoRAMapping
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LRUCacheLoRAModelManager
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.platforms import current_platform

from multilora import Batch, Compositions, Linear, Pool, apply_, native, reference
from multilora.reference import Matrices
from service.composition import MOST_PARTS
from service.engine.composites import Composite, Part, matrices

logger = logging.getLogger("vllm.graftwork.punica")

UPDATE = ["self", "mapping", "lora_index_to_id", "max_loras", "vocab_size", "kwargs"]
LINEAR = ["self", "y", "x", "lora_a_stacked", "lora_b_stacked", "scale", "output_slices"]
ACTIVATE = ["self", "lora_id"]


class GraftworkPunicaWrapperCPU(PunicaWrapperCPU):
    """vLLM's CPU wrapper with a linear of our own."""

    pool: Pool | None = None

    def __init__(self, max_num_batched_tokens: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(max_num_batched_tokens, *args, **kwargs)
        self.slots = kwargs["lora_config"].max_loras
        self.places = Places(self.slots, MOST_PARTS)
        compositions = Compositions(self.slots, MOST_PARTS)
        self.batch = Batch(compositions, max_num_batched_tokens)

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
        self.batch.update(self.token_lora_indices)

    def load(self, slot: int, modules: Mapping[str, Any]) -> None:
        """Pack what vLLM has just written into a slot of its modules."""
        linears = _linears(modules)
        pool = self._prepared(linears)
        self.places.release(slot)
        self.batch.compositions.set(slot, [(slot, 1.0)])
        if pool.packed:
            weights = {
                _name(m.lora_a_stacked): [
                    _matrices(a[slot, 0], b[slot, 0])
                    for a, b in zip(m.lora_a_stacked, m.lora_b_stacked, strict=True)
                ]
                for m in linears.values()
            }
            pool.load(slot, weights)

    def compose(
        self,
        slot: int,
        parts: Sequence[Part],
        modules: Mapping[str, Any],
        packed: Mapping[str, Sequence[str]],
    ) -> None:
        """Let a slot stand for a sum of parts; those that no other slot uses yet are packed."""
        linears = _linears(modules)
        pool = self._prepared(linears)
        self.places.release(slot)
        pool.unload(slot)
        composition = []
        for part in parts:
            place, new = self.places.take(part.path, slot)
            if new:
                weights = {
                    _name(module.lora_a_stacked): matrices(part.model, packed, name)
                    for name, module in linears.items()
                }
                pool.load(place, weights)
            composition.append((place, part.weight))
        self.batch.compositions.set(slot, composition)

    def _prepared(self, linears: Mapping[str, Any]) -> Pool:
        if self.pool is None:
            stacked = [m.lora_a_stacked for m in linears.values()]
            shapes = {
                _name(m.lora_a_stacked): _shape(m.lora_a_stacked, m) for m in linears.values()
            }
            self.pool = Pool(shapes, self.places.total, stacked[0][0].dtype)
        return self.pool

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


class Places:
    """Places of a pool: one for each slot, and more for the parts that compositions share."""

    def __init__(self, slots: int, most_parts: int) -> None:
        self.total = slots * (1 + most_parts)
        self._free = list(range(slots, self.total))
        self._place: dict[str, int] = {}  # of a part
        self._users: dict[str, set[int]] = {}  # slots

    def take(self, part: str, slot: int) -> tuple[int, bool]:
        """The place of a part that a slot uses from now on, and whether it is still empty."""
        new = part not in self._place
        if new:
            self._place[part] = self._free.pop()
        self._users.setdefault(part, set()).add(slot)
        return self._place[part], new

    def release(self, slot: int) -> None:
        """A slot uses nothing any more; parts without another user give up their places."""
        for part, users in list(self._users.items()):
            users.discard(slot)
            if not users:
                del self._users[part]
                self._free.append(self._place.pop(part))


class PackingLoRAManager(LRUCacheLoRAModelManager):
    """vLLM's manager of slots, which tells our wrapper what it has put into one."""

    @property
    def takes_parts(self) -> bool:
        """Whether a composition may come as its parts; if not, as one plain adapter."""
        dtype = self.lora_config.lora_dtype
        whole = not any(getattr(module, "tp_size", 1) > 1 for module in self.modules.values())
        return whole and dtype in native.DTYPES and native.available("cpu")

    def _create_merged_loras_inplace(self, lora_model: LoRAModel) -> None:
        if not isinstance(lora_model, Composite):
            super()._create_merged_loras_inplace(lora_model)

    def activate_adapter(self, lora_id: int) -> bool:
        activated = bool(super().activate_adapter(lora_id))
        if activated:
            slot, model = self.lora_index_to_id.index(lora_id), self.get_adapter(lora_id)
            for wrapper in self.punica_wrapper_mapping.values():
                if isinstance(model, Composite):
                    wrapper.compose(slot, model.parts, self.modules, self.packed_modules)
                else:
                    wrapper.load(slot, self.modules)
        return activated


def _linears(modules: Mapping[str, Any]) -> dict[str, Any]:
    """The modules with LoRA on a linear, by name."""
    stacked = {name: getattr(m, "lora_a_stacked", None) for name, m in modules.items()}
    return {name: modules[name] for name, found in stacked.items() if isinstance(found, tuple)}


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
