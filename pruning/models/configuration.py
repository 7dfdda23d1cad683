"""Configs of slim models: a stock config whose `per_layer_config` says how each layer differs.

`per_layer_config[i]` may override num_attention_heads, num_key_value_heads, intermediate_size,
o_proj_bias and down_proj_bias, and its `skip` may list "self_attn" and "mlp": the blocks that the
layer does not have.  `head_dim` is shared by all layers and always written down, because after a
cut it no longer follows from the number of heads.
"""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import (
    AutoConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)


@strict
class SlimConfig(PreTrainedConfig):
    """What all slim families add to their stock config."""

    o_proj_bias: bool = False
    down_proj_bias: bool = False
    head_dim: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Raise ValueError for a layer that cannot be built.

        Unlike in a dense model, heads times head_dim need not be the hidden size.
        """
        if len(set(getattr(self, "layer_types", None) or ())) > 1:
            raise ValueError("layer_types: a slim model has one kind of attention in all layers")
        for i, layer in enumerate(self.per_layer_config):
            heads, kv_heads = layer.num_attention_heads, layer.num_key_value_heads
            if heads % kv_heads:
                raise ValueError(
                    f"per_layer_config[{i}]: {heads} heads cannot share {kv_heads} KV heads evenly"
                )
            if unknown := set(getattr(layer, "skip", ())) - {"self_attn", "mlp"}:
                raise ValueError(f"per_layer_config[{i}].skip: unknown block {min(unknown)!r}")


@strict
class SlimLlamaConfig(SlimConfig, LlamaConfig):
    model_type = "slim_llama"


@strict
class SlimMistralConfig(SlimConfig, MistralConfig):
    model_type = "slim_mistral"


@strict
class SlimQwen2Config(SlimConfig, Qwen2Config):
    model_type = "slim_qwen2"


@strict
class SlimQwen3Config(SlimConfig, Qwen3Config):
    model_type = "slim_qwen3"


CONFIGS = (SlimLlamaConfig, SlimMistralConfig, SlimQwen2Config, SlimQwen3Config)


def register_configs() -> None:
    """Let AutoConfig read slim configs; may be called again."""
    for config in CONFIGS:
        AutoConfig.register(config.model_type, config, exist_ok=True)
