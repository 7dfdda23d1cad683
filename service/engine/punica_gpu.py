"""vLLM's wrapper on a GPU: our kernels behind one operator that torch.compile does not look into.

What a captured graph holds are the addresses of tables, plan and room for adapters, none of which
ever moves: a step fills the plan by one copy that nothing waits for, a load fills room and tables.
Embeddings, logits and experts stay with vLLM, and so does a model that `adopt` has no kernels for.
"""

from typing import Any

from torch import Tensor, ops
from vllm.lora.punica_wrapper.punica_gpu import PunicaWrapperGPU
from vllm.utils.torch_utils import direct_register_custom_op

from multilora import apply_
from service.engine.punica import PackedLinears, _name

_of_linear: dict[str, PackedLinears] = {}  # which wrapper has the pool of a linear, by its buffers


class GraftworkPunicaWrapperGPU(PackedLinears, PunicaWrapperGPU):
    """Works on the pool where there is one, else as vLLM's own."""

    def adopt(self, modules: Any, *args: Any, **kwargs: Any) -> None:
        """Make the pool for a model's modules, before anything is loaded or captured."""
        super().adopt(modules, *args, **kwargs)
        if self.pool is not None:
            _of_linear.update(dict.fromkeys(self.pool.linears, self))

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """y[:, slice] += scale * x A^T B^T for each slice, in place, rows of the base untouched.

        With two streams vLLM passes zeros as y and add_inputs=False, which is the same.
        """
        if self.pool is None:
            super().add_lora_linear(
                y, x, lora_a_stacked, lora_b_stacked, scale, output_slices, **kwargs
            )
            return
        assert scale == 1.0, "vLLM has folded alpha / r into B"
        ops.vllm.graftwork_add_lora(y, x, lora_a_stacked[0])


def _add_lora(y: Tensor, x: Tensor, buffer: Tensor) -> None:
    name = _name((buffer,))
    wrapper = _of_linear[name]
    assert wrapper.pool is not None
    y_TO, x_TI = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
    apply_(y_TO, x_TI, wrapper.pool, name, wrapper.batch)


def _add_lora_fake(y: Tensor, x: Tensor, buffer: Tensor) -> None:
    return


direct_register_custom_op(
    "graftwork_add_lora", _add_lora, mutates_args=["y"], fake_impl=_add_lora_fake
)
