"""Slim models for transformers: the stock classes, built layer by layer from each layer's config.

One mechanism serves all families.  A stock decoder layer is built from the config of that layer,
loses the blocks that the config skips, and gains the biases that a cut left behind.
"""

import copy
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    LlamaModel,
    MistralForCausalLM,
    MistralModel,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen3ForCausalLM,
    Qwen3Model,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3DecoderLayer

from pruning.models.configuration import (
    SlimConfig,
    SlimLlamaConfig,
    SlimMistralConfig,
    SlimQwen2Config,
    SlimQwen3Config,
    register_configs,
)


class SlimDecoderLayer(GradientCheckpointingLayer):
    """A stock decoder layer without the blocks it skips and with the biases it needs."""

    self_attn: Any
    mlp: Any

    def __init__(self, stock: Any, config: SlimConfig):
        super().__init__()
        skip = getattr(config, "skip", ())
        self.self_attn = self.mlp = None
        if "self_attn" not in skip:
            self.self_attn, self.input_layernorm = stock.self_attn, stock.input_layernorm
            self.self_attn.o_proj = _with_bias(stock.self_attn.o_proj, config.o_proj_bias)
        if "mlp" not in skip:
            self.mlp, self.post_attention_layernorm = stock.mlp, stock.post_attention_layernorm
            self.mlp.down_proj = _with_bias(stock.mlp.down_proj, config.down_proj_bias)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Hidden states in, hidden states out, both (batch, tokens, hidden)."""
        if self.self_attn is not None:
            attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
            hidden_states = hidden_states + attended
        if self.mlp is not None:
            hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states


def _with_bias(linear: nn.Linear, wanted: bool) -> nn.Linear:
    if not wanted or linear.bias is not None:
        return linear
    return nn.Linear(linear.in_features, linear.out_features, bias=True)


class SlimModel(PreTrainedModel):
    """Mixed into a stock model: replaces its decoder layers."""

    stock_layer: ClassVar[type[nn.Module]]
    _no_split_modules = ("SlimDecoderLayer",)

    def __init__(self, config: SlimConfig):
        bare = copy.copy(config)
        bare.per_layer_config = None
        bare.num_hidden_layers = 0
        super().__init__(bare)
        config._attn_implementation = bare._attn_implementation
        self.config = config
        self.layers = nn.ModuleList(self._build_layers(config))
        self.post_init()

    def _build_layers(self, config: SlimConfig) -> list[SlimDecoderLayer]:
        layers: list[SlimDecoderLayer] = []
        num_attentions = 0
        for i, layer_config in enumerate(config.per_layer_config):
            layer = SlimDecoderLayer(self.stock_layer(layer_config, i), layer_config)
            if layer.self_attn is not None:
                # The cache counts attention blocks, not layers: it reads its length from entry 0.
                layer.self_attn.layer_idx = num_attentions
                # The layer's config is a copy, and would not see a change of _attn_implementation.
                layer.self_attn.config = config
                num_attentions += 1
            layers.append(layer)
        return layers


def _recorded(attention: type[nn.Module]) -> dict[str, type[nn.Module]]:
    return {"hidden_states": SlimDecoderLayer, "attentions": attention}


class SlimForCausalLM(PreTrainedModel):
    """Mixed into a stock causal LM: replaces its body."""

    body: ClassVar[type[PreTrainedModel]]

    def __init__(self, config: SlimConfig):
        PreTrainedModel.__init__(self, config)
        self.model = self.body(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


class SlimLlamaModel(SlimModel, LlamaModel):
    config_class = SlimLlamaConfig
    stock_layer = LlamaDecoderLayer
    _can_record_outputs = _recorded(LlamaAttention)


class SlimLlamaForCausalLM(SlimForCausalLM, LlamaForCausalLM):
    config_class = SlimLlamaConfig
    body = SlimLlamaModel


class SlimMistralModel(SlimModel, MistralModel):
    config_class = SlimMistralConfig
    stock_layer = MistralDecoderLayer
    _can_record_outputs = _recorded(MistralAttention)


class SlimMistralForCausalLM(SlimForCausalLM, MistralForCausalLM):
    config_class = SlimMistralConfig
    body = SlimMistralModel


class SlimQwen2Model(SlimModel, Qwen2Model):
    config_class = SlimQwen2Config
    stock_layer = Qwen2DecoderLayer
    _can_record_outputs = _recorded(Qwen2Attention)


class SlimQwen2ForCausalLM(SlimForCausalLM, Qwen2ForCausalLM):
    config_class = SlimQwen2Config
    body = SlimQwen2Model


class SlimQwen3Model(SlimModel, Qwen3Model):
    config_class = SlimQwen3Config
    stock_layer = Qwen3DecoderLayer
    _can_record_outputs = _recorded(Qwen3Attention)


class SlimQwen3ForCausalLM(SlimForCausalLM, Qwen3ForCausalLM):
    config_class = SlimQwen3Config
    body = SlimQwen3Model


CAUSAL_LMS: tuple[type[SlimForCausalLM], ...] = (
    SlimLlamaForCausalLM,
    SlimMistralForCausalLM,
    SlimQwen2ForCausalLM,
    SlimQwen3ForCausalLM,
)


def register() -> None:
    """Let AutoConfig and AutoModelForCausalLM build slim models; may be called again."""
    register_configs()
    for model in CAUSAL_LMS:
        AutoModelForCausalLM.register(model.config_class, model, exist_ok=True)
