"""Many adapters in one batch: vLLM's linears get the kernels of multilora, on a CPU and on a GPU.

vLLM finds its wrapper by name, so the plugin names ours; the wrapper overrides what vLLM calls once
per step (`update_metadata`) and once per linear (`add_lora_linear`), and the manager of slots tells
it what it has put into one.  Adapters live packed, each with its own rank, in a pool; what remains
of vLLM's buffers is one slot through which all adapters pass on their way there.  On a CPU the
parts of compositions lie in the pool too, once each, whoever uses them.  Where vLLM is not as we
know it, where there are no kernels, or for what they cannot do, it works as it always does.
"""

# Shape suffixes: T = tokens in the batch, I = inputs of the linear, O = outputs of all its slices,
# S = slots, R = the largest rank that the engine takes.

import inspect
import logging
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from vllm.lora.layers import LoRAMapping
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LoRAModelManager, LRUCacheLoRAModelManager
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.platforms import current_platform

from multilora import Batch, Compositions, Linear, Pool, native
from service.engine.composites import Composite, matrices
from service.engine.turns import Turns

logger = logging.getLogger("vllm.graftwork.punica")

THEIRS = "vllm.lora.punica_wrapper.punica_{}:PunicaWrapper{}"
OURS = "service.engine.punica_{}.GraftworkPunicaWrapper{}"
SIGNATURES = {  # of a wrapper, as far as we rely on them
    "__init__": ["self", "max_num_batched_tokens", "max_batches", "device"],
    "update_metadata": ["self", "mapping", "lora_index_to_id", "max_loras", "vocab_size"],
    "add_lora_linear": ["self", "y", "x", "lora_a_stacked", "lora_b_stacked", "scale"]
    + ["output_slices"],
}
PHRASES: dict[type, tuple[str, ...]] = {  # in the source of a class, as far as we rely on them
    LoRAModelManager: (
        "self.modules",
        "self.packed_modules",
        "self.punica_wrapper_mapping",
        "self.lora_index_to_id",
        "new_module.set_mapping(punica_wrapper)",
        "self._create_merged_loras_inplace(",
    ),
    BaseLinearLayerWithLoRA: (
        "self.lora_a_stacked = tuple(",
        "self.lora_b_stacked = tuple(",
        "self.punica_wrapper.add_lora_linear(",
        "self.lora_a_stacked, self.lora_b_stacked, 1.0, self.output_slices",
    ),
}


class PackedLinears:
    """What our wrappers share: a pool that follows vLLM's slots, and the batch of the step.

    Goes before vLLM's own wrapper among the bases of a class.
    """

    most_parts = 0  # of a composition that may come as its parts
    pool: Pool | None = None
    batch: Batch
    places: "Places"
    all_ours = False  # then nothing needs what vLLM prepares for its own operators

    def __init__(self, max_num_batched_tokens: int, *args: Any, **kwargs: Any) -> None:
        theirs: Any = super()
        theirs.__init__(max_num_batched_tokens, *args, **kwargs)
        self._max_rows = max_num_batched_tokens

    def adopt(self, modules: Mapping[str, Any], dtype: torch.dtype, sharded: bool) -> None:
        """Make the pool for a model's modules, before anything is loaded or captured.

        `dtype` is that of the activations; `sharded` adapters go another way through vLLM.
        """
        linears = list(_linears(modules).values())
        if sharded or not linears or linears[0].lora_a_stacked[0].dtype != dtype:
            return
        first = linears[0].lora_a_stacked[0]  # (S, 1, R, I)
        device, slots = str(first.device), len(first)
        buffers = [(_one_slot(m.lora_a_stacked), _one_slot(m.lora_b_stacked)) for m in linears]
        shapes = {
            _name(a): Linear(a[0].shape[-1], tuple(module.output_slices))
            for module, (a, _) in zip(linears, buffers, strict=True)
        }
        places = Places(slots, self.most_parts)
        room = 0 if first.is_cpu else first.shape[2]
        pool = Pool(shapes, places.total, dtype, device, max_rank=room)
        if not pool.packed:
            return
        self.pool, self.places = pool, places
        self.turns = Turns(slots, self.most_parts)
        compositions = Compositions(self.turns.total, max(1, self.most_parts), device)
        self.batch = Batch(compositions, max_rows=self._max_rows)
        self.all_ours = len(linears) == len(modules)
        for module, stacked in zip(linears, buffers, strict=True):
            module.lora_a_stacked, module.lora_b_stacked = stacked

    def load(self, slot: int, modules: Mapping[str, Any]) -> None:
        """Pack what vLLM has just written into a slot of its modules."""
        if self.pool is None:
            return
        stacked = [(m.lora_a_stacked, m.lora_b_stacked) for m in _linears(modules).values()]
        pairs = [(x[slot, 0], y[slot, 0]) for a, b in stacked for x, y in zip(a, b, strict=True)]
        ranks = torch.stack([_rank(*pair) for pair in pairs]).tolist()  # waits for the device once
        cut = iter([(a[:r], b[:, :r]) for (a, b), r in zip(pairs, ranks, strict=True)])
        self.places.release(slot)
        self.turns.end(slot)
        self.pool.load(slot, {_name(a): [next(cut) for _ in a] for a, _ in stacked})
        self.batch.compositions.set(slot, [(slot, 1.0)])

    def compose(
        self,
        slot: int,
        composite: Composite,
        modules: Mapping[str, Any],
        packed: Mapping[str, Sequence[str]],
    ) -> None:
        """Let a slot stand for several parts; those that no other slot uses yet are packed."""
        assert self.pool is not None
        self.places.release(slot)
        self.turns.end(slot)
        self.pool.unload(slot)
        composition = []
        for part in composite.parts:
            place, new = self.places.take(part.content, slot)
            if new:
                weights = {
                    _name(module.lora_a_stacked): matrices(part.model, packed, name)
                    for name, module in _linears(modules).items()
                }
                self.pool.load(place, weights)
            composition.append((place, part.weight))
        if composite.period is None:
            self.batch.compositions.set(slot, composition)
            return
        turns = self.turns.begin(slot, len(composition), composite.period)
        for index, own in zip(turns, composition, strict=True):
            self.batch.compositions.set(index, [own])

    def update_metadata(
        self,
        mapping: LoRAMapping,
        lora_index_to_id: list[int | None],
        max_loras: int,
        vocab_size: int,
        **kwargs: Any,
    ) -> None:
        """Sort, once per step, the rows by slot; nothing waits for the device."""
        if not self.all_ours:
            theirs: Any = super()
            theirs.update_metadata(mapping, lora_index_to_id, max_loras, vocab_size, **kwargs)
        if self.pool is not None:
            slots = slots_of(mapping, lora_index_to_id)
            if self.turns.wait(slots):
                self.batch.adapted = True  # whose turn it is the first linear finds out
            else:
                self.batch.update(slots)

    def take_turns(self) -> None:
        """Before a linear: once per step, let every row have the part whose turn it is."""
        if self.turns.waiting and (rows_T := self.turns.rows()) is not None:
            self.batch.update(rows_T)


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
    """vLLM's manager of slots, which tells our wrappers what it has put into one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        dtype = kwargs["vllm_config"].model_config.dtype
        for wrapper, modules in self._by_wrapper():
            wrapper.adopt(modules, dtype, self.lora_config.fully_sharded_loras)
            if wrapper.pool is None:
                logger.warning("no multi-adapter kernels for this model: vLLM's own serve it")

    @property
    def takes_parts(self) -> bool:
        """Whether a composition may come as its parts; if not, as one plain adapter."""
        whole = not any(getattr(module, "tp_size", 1) > 1 for module in self.modules.values())
        return whole and all(w.pool is not None and w.most_parts for w, _ in self._by_wrapper())

    def _create_merged_loras_inplace(self, lora_model: LoRAModel) -> None:
        if not isinstance(lora_model, Composite):
            super()._create_merged_loras_inplace(lora_model)

    def activate_adapter(self, lora_id: int) -> bool:
        activated = bool(super().activate_adapter(lora_id))
        if activated:
            slot, model = self.lora_index_to_id.index(lora_id), self.get_adapter(lora_id)
            for wrapper, modules in self._by_wrapper():
                if isinstance(model, Composite):
                    wrapper.compose(slot, model, modules, self.packed_modules)
                else:
                    wrapper.load(slot, modules)
        return activated

    def _by_wrapper(self) -> list[tuple[Any, dict[str, Any]]]:
        wrappers = {id(w): w for w in self.punica_wrapper_mapping.values()}.values()
        return [
            (wrapper, {n: m for n, m in self.modules.items() if m.punica_wrapper is wrapper})
            for wrapper in wrappers
        ]


def slots_of(mapping: LoRAMapping, lora_index_to_id: Sequence[int | None]) -> list[int]:
    """The slot of each token's adapter, -1 for the base."""
    slot_of: dict[int | None, int] = {id_: slot for slot, id_ in enumerate(lora_index_to_id)}
    slot_of[0] = -1
    return [slot_of[id_] for id_ in mapping.index_mapping]


def _linears(modules: Mapping[str, Any]) -> dict[str, Any]:
    """The modules with LoRA on a linear, by name."""
    stacked = {name: getattr(m, "lora_a_stacked", None) for name, m in modules.items()}
    return {name: modules[name] for name, found in stacked.items() if isinstance(found, tuple)}


def _name(lora_a_stacked: tuple[Tensor, ...]) -> str:
    return str(lora_a_stacked[0].data_ptr())


def _one_slot(stacked: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """As many slots as before, which are all the same one."""
    return tuple(torch.zeros_like(tensor[:1]).expand_as(tensor) for tensor in stacked)


def _rank(a_RI: Tensor, b_OR: Tensor) -> Tensor:
    """The rank without the zeros behind the adapter's own."""
    used = a_RI.any(dim=1) & b_OR.any(dim=0)
    return (used * torch.arange(1, len(used) + 1, device=used.device)).max()


def install() -> None:
    """Point vLLM's platform at our wrapper; may be called again.

    On a CPU that also holds where there are no kernels: vLLM's own wrapper gives rows of the base
    the adapter of the last slot.
    """
    if not (current_platform.is_cpu() or current_platform.is_cuda()):
        return
    kind = "cpu" if current_platform.is_cpu() else "gpu"
    if not fits(kind):
        logger.warning("this vLLM's multi-adapter code is unknown to us and stays as it is")
        return
    if kind == "gpu" and not native.available("cuda"):
        logger.warning("no multi-adapter kernels for the GPU (python -m multilora.build --cuda)")
        return
    LRUCacheWorkerLoRAManager._manager_cls = PackingLoRAManager
    name = OURS.format(kind, kind.upper())
    type(current_platform).get_punica_wrapper = classmethod(lambda cls: name)


def fits(kind: str) -> bool:
    """Whether vLLM calls its wrapper for "cpu" or "gpu", and fills its slots, as ours expects."""
    module, _, name = THEIRS.format(kind, kind.upper()).partition(":")
    try:
        theirs = getattr(import_module(module), name)
    except (ImportError, AttributeError):
        return False

    def begins(function: Any, parameters: list[str]) -> bool:
        return list(inspect.signature(function).parameters)[: len(parameters)] == parameters

    manager = LRUCacheLoRAModelManager
    return (
        all(begins(getattr(theirs, method), names) for method, names in SIGNATURES.items())
        and begins(manager.activate_adapter, ["self", "lora_id"])
        and "vllm_config" in inspect.signature(manager.__init__).parameters
        and all(
            phrase in inspect.getsource(cls) for cls, found in PHRASES.items() for phrase in found
        )
        and LRUCacheWorkerLoRAManager._manager_cls in (manager, PackingLoRAManager)
    )
