"""A family of adapters per task: late checkpoints of one LoRA, all families begun with one A₀.

Shao et al., "In-Context Meta LoRA Generation", IJCAI 2025, https://arxiv.org/abs/2501.17635, train
a generator on such families.  That all begin with the same factors A, and that checkpoints are
stored in their frame, is ours: factors of adapters that began apart have no common coordinates.
"""

# Shape suffixes:  B = rows,  T = tokens,  V = vocabulary.

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from pruning.adapters.algebra import Bag, Bags
from pruning.adapters.atoms import Key, key_of
from pruning.adapters.generate.gauge import in_frame
from pruning.adapters.generate.recipes import Families
from pruning.evaluation import Example, padded
from pruning.progress import Progress
from pruning.text import IGNORED
from pruning.training.course import Course, Parameters
from pruning.training.data import drawn
from pruning.training.lora import with_lora
from pruning.training.trainer import rate_factor

WARMUP, CLIP = 0.1, 1.0


def checkpoint_steps(params: Families) -> list[int]:
    """After which steps a checkpoint is taken: spread evenly over the last third."""
    last = max(1, params.steps // 3)
    return [params.steps - last * i // params.checkpoints for i in range(params.checkpoints)][::-1]


def train_family(
    model: Any,
    rows: Sequence[Example],
    params: Families,
    seed: int,
    out: Path,
    state: Path,
    progress: Progress,
) -> None:
    """Write OUT/STEP.safetensors for each checkpoint of an adapter of `model`, trained on `rows`.

    The same seed gives the same A₀ whatever the rows.  The course is saved in `state` with every
    checkpoint, and taken up from there: killed and run again, the same bytes.  The model is as
    before at the end.
    """
    adapted = with_lora(model, params, seed, params.linears)
    factors = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    begin = bags_of(factors, params)
    course = Course.resume(state, factors, 0.0) or Course.begin(factors, 0.0, float("inf"))
    taken = checkpoint_steps(params)
    saved = {*taken, *range(0, params.steps, max(1, params.steps // 8))}
    order = drawn(len(rows), params.steps * params.batch, seed)
    try:
        while course.step < params.steps:
            batch = [rows[i] for i in order[course.step * params.batch :][: params.batch]]
            rate = params.learning_rate * rate_factor(course.step, params.steps, WARMUP)
            loss = _step(adapted, course, batch, rate)
            course.step += 1
            if course.step in taken:
                bags = bags_of(factors, params)
                write({k: in_frame(b, begin[k].a_RI) for k, b in bags.items()}, out, course.step)
            if course.step in saved:
                course.save(state)
            progress(course.step / params.steps, f"step {course.step}: loss {loss:.3f}")
    finally:
        adapted.unload()


def _step(model: Any, course: Course, batch: Sequence[Example], rate: float) -> float:
    """One step of the optimizer on the completions of some rows; the loss before it."""
    ids_BT, labels_BT = padded(batch)
    course.optimizer.zero_grad()
    loss = completion_loss(model, ids_BT, labels_BT)
    torch.autograd.backward(loss)
    clip_grad_norm_(course.parameters.values(), CLIP)
    for group in course.optimizer.param_groups:
        group["lr"] = rate
    course.optimizer.step()
    return float(loss.detach())


def completion_loss(model: Any, ids_BT: Tensor, labels_BT: Tensor) -> Tensor:
    """Mean negative log likelihood of the labelled tokens, in nats."""
    logits_BTV = model(input_ids=ids_BT.to(model.device), use_cache=False).logits[:, :-1]
    targets = labels_BT[:, 1:].flatten().to(model.device)
    return cross_entropy(logits_BTV.flatten(0, 1), targets, ignore_index=IGNORED)


def bags_of(factors: Parameters, params: Families) -> dict[Key, Bag]:
    """What is being trained, its scale folded into b."""
    sides: dict[Key, dict[str, Tensor]] = {}
    for name, parameter in factors.items():
        key, side = key_of(name.replace(".default", ""), "adapter")
        sides.setdefault(key, {})[side] = parameter.detach().cpu().clone()
    scale = params.alpha / params.rank
    return {key: Bag(side["A"], scale * side["B"]) for key, side in sorted(sides.items())}


def write(bags: Bags, folder: Path, step: int) -> None:
    """Write a checkpoint, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    for (layer, linear), bag in bags.items():
        tensors[f"{layer}.{linear}.a"] = bag.a_RI.contiguous()
        tensors[f"{layer}.{linear}.b"] = bag.b_OR.contiguous()
    draft = folder / f"{step}.draft"
    save_file(tensors, draft)
    os.replace(draft, folder / f"{step:06}.safetensors")


def read_family(folder: Path) -> list[Bags]:
    """The checkpoints of a family, the last one last."""
    return [_read(path) for path in sorted(folder.glob("*.safetensors"))]


def _read(path: Path) -> dict[Key, Bag]:
    tensors = load_file(path)
    places = sorted({name.rpartition(".")[0] for name in tensors})
    keys = {place: (int(place.partition(".")[0]), place.partition(".")[2]) for place in places}
    return {key: Bag(tensors[f"{p}.a"], tensors[f"{p}.b"]) for p, key in sorted(keys.items())}
