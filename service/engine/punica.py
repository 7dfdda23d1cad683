"""Many adapters in one batch on CPU: every row sees its own adapter, a row of the base sees none.

vLLM's CPU wrapper looks up the adapter of a base row with index -1, which is the last slot, so in
a mixed batch the base answers with somebody's adapter.  It also copies the weights of the adapter
for every row; here the rows of an adapter share one product, as in S-LoRA (Sheng et al., MLSys
2024, https://arxiv.org/abs/2311.03285).
"""

# Shape suffixes: T = tokens in the batch, I = inputs of the linear, O = outputs of all its slices.

import inspect
import logging
from typing import Any

from torch import Tensor
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform

logger = logging.getLogger("vllm.graftwork.punica")

UPDATE = ["self", "mapping", "lora_index_to_id", "max_loras", "vocab_size", "kwargs"]
LINEAR = ["self", "y", "x", "lora_a_stacked", "lora_b_stacked", "scale", "output_slices"]


class GraftworkPunicaWrapperCPU(PunicaWrapperCPU):
    """vLLM's CPU wrapper with its own linear: one matrix product per adapter present."""

    rows_of_slot: dict[int, Tensor]

    def update_metadata(
        self,
        mapping: LoRAMapping,
        lora_index_to_id: list[int | None],
        max_loras: int,
        vocab_size: int,
        **kwargs: Any,
    ) -> None:
        """Note, once per step, which rows belong to which slot."""
        super().update_metadata(mapping, lora_index_to_id, max_loras, vocab_size, **kwargs)
        slots_T = self.token_lora_indices
        self.rows_of_slot = {
            slot: (slots_T == slot).nonzero().squeeze(1)
            for slot in slots_T.unique().tolist()
            if slot >= 0
        }

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

        A is stacked as (slots, 1, rank, I), B as (slots, 1, slice, rank).
        """
        y_TO, x_TI = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        for slot, rows in self.rows_of_slot.items():
            inputs = x_TI[rows]
            offset = 0
            for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                delta = (inputs @ a[slot, 0].T) @ b[slot, 0].T
                y_TO[:, offset : offset + width].index_add_(0, rows, delta.to(y.dtype), alpha=scale)
                offset += width


def install() -> None:
    """Point vLLM's CPU platform at our wrapper; may be called again."""
    if not current_platform.is_cpu():
        return
    if not fits():
        logger.warning("this vLLM's CPU wrapper is unknown to us: base rows may see adapters")
        return
    name = f"{__name__}.{GraftworkPunicaWrapperCPU.__name__}"
    type(current_platform).get_punica_wrapper = classmethod(lambda cls: name)


def fits() -> bool:
    """Whether vLLM calls its wrapper in the way that ours expects."""

    def parameters(function: Any, count: int) -> list[str]:
        return list(inspect.signature(function).parameters)[:count]

    return (
        parameters(PunicaWrapperCPU.update_metadata, len(UPDATE)) == UPDATE
        and parameters(PunicaWrapperCPU.add_lora_linear, len(LINEAR)) == LINEAR
        and isinstance(getattr(PunicaWrapperCPU, "token_lora_indices", None), property)
    )
