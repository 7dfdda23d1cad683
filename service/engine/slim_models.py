"""The slim model inside vLLM: stock layers, each as wide as the geometry of its layer says.

One class serves all families.  They differ in biases, which the geometry knows, and in the
normalisation of queries and keys, for which vLLM has its own attention class.
"""

from functools import partial
from typing import Any

from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import RowParallelLinear
from vllm.model_executor.models.llama import LlamaAttention, LlamaForCausalLM, LlamaModel
from vllm.model_executor.models.mistral import MistralMLP
from vllm.model_executor.models.qwen3 import Qwen3Attention
from vllm.model_executor.models.utils import extract_layer_index

from pruning.geometry import Geometry, Layer


class SlimDecoderLayer(nn.Module):
    """A decoder layer that may lack attention or MLP."""

    def __init__(self, vllm_config: VllmConfig, prefix: str, geometry: Geometry):
        super().__init__()
        config = vllm_config.model_config.hf_config
        layer = geometry.layers[extract_layer_index(prefix)]
        self.has_attention = layer.num_heads > 0
        self.has_mlp = layer.intermediate_size > 0
        if self.has_attention:
            self.input_layernorm = RMSNorm(geometry.hidden_size, eps=config.rms_norm_eps)
            build = _normed_attention if geometry.architecture.attention.head_norms else _attention
            self.self_attn = build(vllm_config, layer, geometry, f"{prefix}.self_attn")
        if self.has_mlp:
            self.post_attention_layernorm = RMSNorm(geometry.hidden_size, eps=config.rms_norm_eps)
            self.mlp = MistralMLP(
                hidden_size=geometry.hidden_size,
                intermediate_size=layer.intermediate_size,
                hidden_act=config.hidden_act,
                quant_config=vllm_config.quant_config,
                bias=layer.down_bias,
                gate_up_proj_bias=layer.gate_up_bias,
                prefix=f"{prefix}.mlp",
            )

    def forward(
        self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens (T,), hidden states (T, hidden) and what is still to be added to them."""
        if self.has_attention:
            hidden_states, residual = _norm(self.input_layernorm, hidden_states, residual)
            hidden_states = self.self_attn(positions=positions, hidden_states=hidden_states)
        if self.has_mlp:
            hidden_states, residual = _norm(self.post_attention_layernorm, hidden_states, residual)
            hidden_states = self.mlp(hidden_states)
        return hidden_states, residual


def _norm(norm: nn.Module, hidden_states: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    # Whichever block comes first in the model finds no residual, not only an attention block.
    if residual is None:
        return norm(hidden_states), hidden_states
    normed, residual = norm(hidden_states, residual)
    return normed, residual


def _attention(
    vllm_config: VllmConfig, layer: Layer, geometry: Geometry, prefix: str
) -> LlamaAttention:
    config = vllm_config.model_config.hf_config
    return LlamaAttention(
        config=config.per_layer_config[extract_layer_index(prefix)],
        hidden_size=geometry.hidden_size,
        num_heads=layer.num_heads,
        num_kv_heads=layer.num_kv_heads,
        max_position_embeddings=config.max_position_embeddings,
        quant_config=vllm_config.quant_config,
        bias=layer.qkv_bias,
        bias_o_proj=layer.o_bias,
        cache_config=vllm_config.cache_config,
        prefix=prefix,
    )


def _normed_attention(
    vllm_config: VllmConfig, layer: Layer, geometry: Geometry, prefix: str
) -> Qwen3Attention:
    config = vllm_config.model_config.hf_config
    attention = Qwen3Attention(
        hidden_size=geometry.hidden_size,
        num_heads=layer.num_heads,
        num_kv_heads=layer.num_kv_heads,
        max_position=config.max_position_embeddings,
        head_dim=geometry.head_dim,
        rms_norm_eps=config.rms_norm_eps,
        qkv_bias=layer.qkv_bias,
        rope_parameters=config.rope_parameters,
        cache_config=vllm_config.cache_config,
        quant_config=vllm_config.quant_config,
        prefix=prefix,
    )
    if layer.o_bias:
        attention.o_proj = RowParallelLinear(
            layer.num_heads * geometry.head_dim,
            geometry.hidden_size,
            bias=True,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.o_proj",
        )
    return attention


class SlimForCausalLM(LlamaForCausalLM):
    """A slim model of any supported family; its config tells which."""

    def _init_model(self, vllm_config: VllmConfig, prefix: str = "", **_: Any) -> LlamaModel:
        geometry = Geometry.from_config(vllm_config.model_config.hf_config.to_dict())
        return LlamaModel(
            vllm_config=vllm_config,
            prefix=prefix,
            layer_type=partial(SlimDecoderLayer, geometry=geometry),
        )
