"""The shape of a supported decoder, layer by layer, read from its config.json (torch-free).

Everything that must be known without loading a weight is here: which families are supported, how
many parameters a unit costs, and what width each linear of each layer has.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pruning.architectures import ARCHITECTURES
from pruning.architectures.layout import Architecture, Bias, Part
from pruning.errors import InvalidInput

SLIM_PREFIX = "slim_"  # model_type of a per-layer export: slim_llama, slim_qwen3, …


@dataclass(frozen=True)
class Layer:
    """The widths of one decoder layer; zero heads or zero channels means the block is absent."""

    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    qkv_bias: bool = False
    o_bias: bool = False
    gate_up_bias: bool = False
    down_bias: bool = False

    @property
    def group_size(self) -> int:
        """Query heads per KV head."""
        return self.num_heads // self.num_kv_heads if self.num_kv_heads else 0


@dataclass(frozen=True)
class Geometry:
    """A decoder: its family, shared widths, and one `Layer` per decoder layer."""

    family: str
    vocab_size: int
    hidden_size: int
    head_dim: int
    tied: bool
    layers: tuple[Layer, ...]

    @classmethod
    def of(cls, directory: Path) -> "Geometry":
        """That of a registered base on disk, dense or slim."""
        return cls.from_config(json.loads((directory / "config.json").read_text(encoding="utf-8")))

    @classmethod
    def from_config(cls, config: Mapping[str, Any], field: str = "base") -> "Geometry":
        """Read a config.json, dense or slim.

        Raises InvalidInput when the family is not supported or a needed entry is missing.
        """
        model_type = str(config.get("model_type", ""))
        family = model_type.removeprefix(SLIM_PREFIX)
        architecture = ARCHITECTURES.get(family)
        if architecture is None:
            raise InvalidInput(
                field,
                f"model family {model_type or 'unknown'!r} is not supported; "
                f"supported families: {', '.join(ARCHITECTURES)}",
                code="unsupported_model_family",
            )
        missing = [
            name
            for name in (
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "intermediate_size",
                "vocab_size",
            )
            if name not in config
        ]
        if missing:
            raise InvalidInput(field, f"config.json lacks {', '.join(missing)}")
        # transformers pads the keys with zeros ("00", "01", …) when there are ten layers or more
        overrides = {int(i): o for i, o in (config.get("per_layer_config") or {}).items()}
        layers = tuple(
            _layer(architecture, {**config, **overrides.get(i, {})})
            for i in range(config["num_hidden_layers"])
        )
        return cls(
            family=family,
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            head_dim=config.get("head_dim")
            or config["hidden_size"] // config["num_attention_heads"],
            tied=bool(config.get("tie_word_embeddings", architecture.tied)),
            layers=layers,
        )

    @property
    def architecture(self) -> Architecture:
        """The descriptor of the family."""
        return ARCHITECTURES[self.family]

    def with_heads(self, per_group: int) -> "Geometry":
        """That of the base with so many query heads in each KV group."""
        layers = (replace(lay, num_heads=lay.num_kv_heads * per_group) for lay in self.layers)
        return replace(self, layers=tuple(layers))

    def with_hidden(self, channels: int | None) -> "Geometry":
        """That of the base with so many channels of the hidden state, or with all of them."""
        return replace(self, hidden_size=channels or self.hidden_size)

    def rows(self, layer: int, part: Part) -> int:
        """How many outputs a part of a writer has; 0 where its block is absent."""
        lay = self.layers[layer]
        if part in ("gate", "up"):
            return lay.intermediate_size
        return (lay.num_heads if part == "query" else lay.num_kv_heads) * self.head_dim

    def linear_shape(self, layer: int, linear: str) -> tuple[int, int] | None:
        """(outputs, inputs) of a linear, or None where its block is absent."""
        block = self.architecture.block_of(linear)
        inputs = self.rows(layer, block.reads)
        if not inputs:
            return None
        if linear == block.reader:
            return self.hidden_size, inputs
        parts = next(writer.parts for writer in block.writers if writer.name == linear)
        return sum(self.rows(layer, part) for part in parts), self.hidden_size

    def kv_group_parameters(self, layer: int) -> int:
        """Parameters that leave with one KV group: its k, v and q rows and its o columns."""
        lay = self.layers[layer]
        rows = (lay.group_size + 2) * self.head_dim
        bias = rows if lay.qkv_bias else 0
        return rows * self.hidden_size + lay.group_size * self.head_dim * self.hidden_size + bias

    def ffn_channel_parameters(self, layer: int) -> int:
        """Parameters that leave with one FFN channel: a gate row, an up row, a down column."""
        return 3 * self.hidden_size + (2 if self.layers[layer].gate_up_bias else 0)

    def attention_parameters(self, layer: int) -> int:
        """Parameters of the attention block, its norms and biases included."""
        lay = self.layers[layer]
        if not lay.num_kv_heads:
            return 0
        block = self.architecture.attention
        total = lay.num_kv_heads * self.kv_group_parameters(layer)
        total += len(block.norms) * self.hidden_size + len(block.head_norms) * self.head_dim
        return total + (self.hidden_size if lay.o_bias else 0)

    def mlp_parameters(self, layer: int) -> int:
        """Parameters of the MLP block, its norms and biases included."""
        lay = self.layers[layer]
        if not lay.intermediate_size:
            return 0
        total = lay.intermediate_size * self.ffn_channel_parameters(layer)
        total += len(self.architecture.mlp.norms) * self.hidden_size
        return total + (self.hidden_size if lay.down_bias else 0)

    def layer_parameters(self, layer: int) -> int:
        """All parameters of one decoder layer."""
        return self.attention_parameters(layer) + self.mlp_parameters(layer)

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embedding and, when it is not tied, of the output head."""
        return self.vocab_size * self.hidden_size * (1 if self.tied else 2)

    @property
    def body_parameters(self) -> int:
        """All parameters but embedding and output head."""
        return sum(map(self.layer_parameters, range(len(self.layers)))) + self.hidden_size

    @property
    def parameters(self) -> int:
        return self.body_parameters + self.embedding_parameters


def _layer(architecture: Architecture, config: Mapping[str, Any]) -> Layer:
    def has(bias: Bias) -> bool:
        return bool(config.get(bias, False)) if isinstance(bias, str) else bias

    skip = set(config.get("skip") or ())
    heads = 0 if "self_attn" in skip else int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or config["num_attention_heads"])
    return Layer(
        num_heads=heads,
        num_kv_heads=kv_heads if heads else 0,
        intermediate_size=0 if "mlp" in skip else int(config["intermediate_size"]),
        qkv_bias=has(architecture.qkv_bias),
        o_bias=has(architecture.o_bias) or has("o_proj_bias"),
        gate_up_bias=has(architecture.gate_up_bias),
        down_bias=has(architecture.down_bias) or has("down_proj_bias"),
    )
