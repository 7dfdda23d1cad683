"""The config.json of a slim model: stock where all layers are alike, else ours (torch-free)."""

from collections.abc import Mapping
from typing import Any, Literal

from pruning.architectures import ARCHITECTURES
from pruning.errors import InvalidInput
from pruning.geometry import SLIM_PREFIX, Geometry
from pruning.plan import Plan

FOREIGN_TO_LLAMA = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")


def stock_family(geometry: Geometry, num_heads: int, biases: bool) -> str | None:
    """The family whose stock class holds a model with `num_heads` in every layer, or None.

    `biases` says whether o_proj and down_proj gain biases.  It is the base's own family or, where
    that cannot hold them or servers would mistake the head size, its descriptor's fallback.
    """
    own = geometry.architecture
    fitting = num_heads * geometry.head_dim == geometry.hidden_size
    for family in (own.family, own.fallback):
        if family is None:
            continue
        holder = ARCHITECTURES[family]
        if (
            (holder.gains_biases or not biases)
            and (fitting or not holder.derives_head_dim)
            and not (holder.heads_divide_hidden and geometry.hidden_size % num_heads)
        ):
            return family
    return None


def slim_config(
    config: Mapping[str, Any], plan: Plan, export: Literal["auto", "uniform", "per_layer"]
) -> dict[str, Any]:
    """The config of a base with `config` after `plan`.

    Raises InvalidInput when `export` is "uniform" and no stock class can hold the result.
    """
    geometry = plan.narrowed(Geometry.from_config(config))
    obstacle = _uniform_obstacle(config, geometry, plan)
    if export == "uniform" and obstacle:
        raise InvalidInput("export", f"no stock class can hold this plan: {obstacle}")
    uniform = export != "per_layer" and obstacle is None
    if not uniform and (reason := geometry.architecture.uniform_only):
        cause = obstacle or "per_layer was asked for"
        raise InvalidInput(
            "export", f"{geometry.family} has stock exports only, as {reason}: {cause}"
        )
    slim = _uniform(config, geometry, plan) if uniform else _per_layer(config, geometry, plan)
    return {**slim, "head_dim": geometry.head_dim, "num_hidden_layers": len(plan.kept_layers)}


def gained_biases(geometry: Geometry, plan: Plan, layer: int) -> tuple[bool, bool]:
    """Whether o_proj and down_proj of a layer carry the folded mean of units that left it."""
    dense, kept = geometry.layers[layer], plan.layers[layer]
    return (
        plan.bias_compensation and 0 < kept.num_heads(dense) < dense.num_heads,
        plan.bias_compensation and 0 < len(kept.ffn_channels) < dense.intermediate_size,
    )


def _uniform_obstacle(config: Mapping[str, Any], geometry: Geometry, plan: Plan) -> str | None:
    kept = [plan.layers[i] for i in plan.kept_layers]
    dense = geometry.layers[0]
    shapes = {
        (layer.num_heads(dense), len(layer.kv_groups), len(layer.ffn_channels)) for layer in kept
    }
    if len(shapes) != 1:
        return "layers differ in width (allocator uniform keeps them alike)"
    num_heads, num_groups, width = next(iter(shapes))
    if not num_groups or not width:
        return "a layer lacks attention or MLP"
    first = plan.kept_layers[0]
    family = stock_family(geometry, num_heads, any(gained_biases(geometry, plan, first)))
    if family is None:
        return f"{geometry.family} with {num_heads} heads and the biases asked for"
    if family != geometry.family and config.get("sliding_window"):
        return "a sliding window and biases at once"
    return None


def _uniform(config: Mapping[str, Any], geometry: Geometry, plan: Plan) -> dict[str, Any]:
    first = plan.kept_layers[0]
    kept = plan.layers[first]
    num_heads = kept.num_heads(geometry.layers[first])
    o_bias, down_bias = gained_biases(geometry, plan, first)
    family = stock_family(geometry, num_heads, o_bias or down_bias)
    assert family is not None  # there is no obstacle
    holder = ARCHITECTURES[family]
    slim = _common(config, plan) | {
        "num_attention_heads": num_heads,
        "num_key_value_heads": len(kept.kv_groups),
        "intermediate_size": len(kept.ffn_channels),
    }
    if family != geometry.family:
        slim = {key: value for key, value in slim.items() if key not in FOREIGN_TO_LLAMA}
        slim |= {"model_type": family, "architectures": [holder.stock_class]}
    if holder.gains_biases:
        slim[str(holder.o_bias)] = o_bias or geometry.layers[first].qkv_bias
        slim[str(holder.down_bias)] = down_bias or geometry.layers[first].down_bias
    return slim


def _per_layer(config: Mapping[str, Any], geometry: Geometry, plan: Plan) -> dict[str, Any]:
    return _common(config, plan) | {
        "model_type": SLIM_PREFIX + geometry.family,
        "architectures": ["Slim" + geometry.architecture.stock_class],
        "per_layer_config": {
            str(new): _layer_entry(geometry, plan, old) for new, old in enumerate(plan.kept_layers)
        },
    }


def _layer_entry(geometry: Geometry, plan: Plan, layer: int) -> dict[str, Any]:
    dense, kept = geometry.layers[layer], plan.layers[layer]
    o_bias, down_bias = gained_biases(geometry, plan, layer)
    # a skipped block keeps its dense widths: they only have to be valid
    num_groups = len(kept.kv_groups) or dense.num_kv_heads
    blocks = {"self_attn": kept.kv_groups, "mlp": kept.ffn_channels}
    skip = [name for name, units in blocks.items() if not units]
    return {
        "num_attention_heads": kept.num_heads(dense) or dense.num_heads,
        "num_key_value_heads": num_groups,
        "intermediate_size": len(kept.ffn_channels) or dense.intermediate_size,
        "o_proj_bias": o_bias,
        "down_proj_bias": down_bias,
    } | ({"skip": skip} if skip else {})


def _common(config: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    slim = {key: value for key, value in config.items() if key != "auto_map"}
    if plan.hidden_channels is not None:
        if "rms_norm_eps" not in config:
            raise InvalidInput(
                "base", "config.json lacks rms_norm_eps, which a hidden_size changes"
            )
        kept = len(plan.hidden_channels)
        slim["rms_norm_eps"] = config["rms_norm_eps"] * config["hidden_size"] / kept
        slim["hidden_size"] = kept
    if slim.get("layer_types"):
        slim["layer_types"] = [slim["layer_types"][i] for i in plan.kept_layers]
    return slim
