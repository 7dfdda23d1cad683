"""How long a decoding step takes on this machine: of a base, and of blocks of every width.

Measured is transformers' model, not a serving engine: the same matrix products in the same shapes.
What else the machine does only adds to a step, so of several the shortest counts.  Still times
differ from run to run: whoever plans by them keeps the table; given a table, plans are
deterministic.
"""

import platform
import time
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from pruning import evaluation
from pruning.allocation.budget import ffn_widths, kv_counts
from pruning.allocation.latency import LatencyTable, levels
from pruning.export import slim_config
from pruning.geometry import Geometry
from pruning.models.modeling import register
from pruning.plan import LayerPlan, Plan
from pruning.progress import Progress
from pruning.recipe import Recipe, Size
from pruning.weights.checkpoint import Checkpoint

Key = TypeVar("Key", bound=Hashable)
DEPTH = 4  # layers of a model that is timed; its time is divided by them
LEVELS = 6  # widths of a block that are timed
clock = time.perf_counter  # seconds
WARM_UP, STEPS, ROUNDS = 1, 5, 20  # short rounds, so that all models meet the same disturbances


def table(checkpoint: Checkpoint, recipe: Recipe, progress: Progress) -> LatencyTable:
    """Time the blocks of a dense base at the widths that a recipe allows; weights are made up.

    A block's time is that of a model with it less that of one without it.  In memory are DEPTH
    layers, and once the output head.
    """
    assert recipe.size is not None
    size, dense = recipe.size, checkpoint.geometry.layers[0]
    groups = levels(_allowed(checkpoint.geometry, recipe, kv_counts, dense.num_kv_heads), LEVELS)
    widths = levels(
        _allowed(checkpoint.geometry, recipe, ffn_widths, dense.intermediate_size), LEVELS
    )
    shapes = [(0, widths[-1]), (groups[-1], 0)]
    shapes += [(g, widths[-1]) for g in groups] + [(groups[-1], w) for w in widths[:-1]]
    models = {shape: _model(checkpoint, *shape, vocab_size=8) for shape in shapes}
    whole = _model(checkpoint, groups[-1], widths[-1], checkpoint.geometry.vocab_size)
    times = shortest({**models, (-1, -1): whole}, size, progress)
    depth = min(DEPTH, len(checkpoint.geometry.layers))
    attention = {g: (times[g, widths[-1]] - times[0, widths[-1]]) / depth for g in groups}
    mlp = {w: (times[groups[-1], w] - times[groups[-1], 0]) / depth for w in widths}
    attention, mlp = _positive(attention), _positive(mlp)
    layers = depth * (attention[groups[-1]] + mlp[widths[-1]])
    rest = max(times[-1, -1] - layers, 0.0)
    return LatencyTable(attention=attention, mlp=mlp, rest=rest, machine=_machine())


def decode_ms(directory: Path, size: Size) -> float:
    """Milliseconds of a decoding step of a saved base, the shortest of some."""
    return shortest({0: evaluation.load(directory)}, size, lambda fraction, message: None)[0]


def _allowed(geometry: Geometry, recipe: Recipe, counts: Any, dense: int) -> list[int]:
    """The widths of a kind that any layer may have; where it may have only one, half of it too."""
    found = {n for layer in range(len(geometry.layers)) for n in counts(geometry, recipe, layer)}
    return sorted(found | {dense} | ({max(1, dense // 2)} if len(found) == 1 else set()))


def _model(checkpoint: Checkpoint, groups: int, width: int, vocab_size: int) -> Any:
    """A slim model of a few layers, all of the same widths, on the device that there is."""
    register()
    num_layers = len(checkpoint.geometry.layers)
    layer = LayerPlan(kv_groups=tuple(range(groups)), ffn_channels=tuple(range(width)))
    gone = LayerPlan(kv_groups=(), ffn_channels=())
    depth = min(DEPTH, num_layers)
    plan = Plan(layers=(layer,) * depth + (gone,) * (num_layers - depth))
    entries = slim_config(checkpoint.config, plan, "per_layer")
    entries |= {"num_hidden_layers": depth, "vocab_size": vocab_size, "pad_token_id": None}
    config = AutoConfig.for_model(**entries)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval().to(device)


def shortest(models: Mapping[Key, Any], size: Size, progress: Progress) -> dict[Key, float]:
    """Milliseconds of the shortest decoding step of each model, timed by turns."""
    best = dict.fromkeys(models, float("inf"))
    for round_ in range(ROUNDS):
        progress(round_ / ROUNDS, f"timing blocks, round {round_ + 1} of {ROUNDS}")
        for key, model in models.items():
            best[key] = min(best[key], _step_ms(model, size))
    return best


@torch.inference_mode()
def _step_ms(model: Any, size: Size) -> float:
    """The shortest of some steps behind `size.context` tokens, `size.batch` sequences at a time."""
    config, device = model.config, model.device
    ids = torch.zeros(size.batch, 1, dtype=torch.long, device=device)
    cache = DynamicCache()
    for index, layer in enumerate(model.model.layers):
        if size.context and (attention := getattr(layer, "self_attn", None)) is not None:
            shape = size.batch, attention.k_proj.out_features // config.head_dim, size.context
            states = torch.zeros(*shape, config.head_dim, device=device)
            cache.update(states, states.clone(), index)
    times = []
    for _ in range(WARM_UP + STEPS):
        started = clock()
        model(input_ids=ids, past_key_values=cache, use_cache=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - started)
        cache.crop(-1)
    return 1000 * min(times[WARM_UP:])


def _positive(times: dict[int, float]) -> dict[int, float]:
    """What noise made negative is a nanosecond."""
    return {width: round(max(ms, 1e-6), 6) for width, ms in times.items()}


def _machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
