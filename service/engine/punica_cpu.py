"""vLLM's wrapper on a CPU: every row sees its own adapter, a row of the base sees none.

vLLM's own looks up the adapter of a base row with index -1, which is the last slot, so in a mixed
batch the base answers with somebody's adapter.  It also copies the weights of the adapter for every
row.
"""

# Shape suffixes: T = tokens in the batch, I = inputs of the linear, O = outputs of all its slices,
# S = slots, R = the largest rank that the engine takes.

from typing import Any

import torch
from torch import Tensor
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from multilora import apply_, reference
from multilora.reference import Matrices
from service.composition import MOST_PARTS
from service.engine.punica import PackedLinears, _name, slots_of


class GraftworkPunicaWrapperCPU(PackedLinears, PunicaWrapperCPU):
    """Works on the pool where there is one, else in torch on vLLM's buffers."""

    most_parts = MOST_PARTS

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
        if self.pool is None:
            self.slots_T = torch.tensor(slots_of(mapping, lora_index_to_id))

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
        if self.pool is not None:
            assert scale == 1.0, "vLLM has folded alpha / r into B"
            self.take_turns()
            apply_(y_TO, x_TI, self.pool, _name(lora_a_stacked), self.batch)
            return

        def adapter(slot: int, number: int) -> Matrices:
            return lora_a_stacked[number][slot, 0], lora_b_stacked[number][slot, 0]

        slots = [[(slot, scale)] for slot in range(len(lora_a_stacked[0]))]
        reference.apply_(y_TO, x_TI, self.slots_T, slots, adapter, output_slices)
