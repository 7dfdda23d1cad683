"""Finds the groups of coupled channels of a model by tracing it once.

Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023,
https://arxiv.org/abs/2301.12900; Wang et al., "Structurally Prune Anything", 2024,
https://arxiv.org/abs/2403.18955.  Here every axis of every parameter begins with a label per
channel; each operation of the exported graph joins the labels of channels that face each other.
What is joined in the end leaves together: an FFN channel, an attention head with its KV head, a
feature map with its batch norm.
"""

import operator
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruning.tracing.labels import Labels, Shaped
from pruning.tracing.rules import propagate

Place = tuple[str, int]  # a parameter or buffer by name, and its axis


@dataclass(frozen=True)
class Group:
    """Channels that can only leave together."""

    channels: Mapping[Place, tuple[int, ...]]
    exact: bool  # removed, they are as good as masked: nothing is averaged over them


def find_groups(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Group]:
    """All groups that can leave, by tracing `model` on example `inputs`.

    What reaches the model's inputs or outputs stays.  Raises ValueError for an operation that
    there is no rule for, and what torch.export raises for a model that cannot be exported.
    """
    program = torch.export.export(model, inputs, strict=False)
    labels, seen = Labels(), dict[str, Any]()
    tensors = _stored(program, labels)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            value = node.meta.get("val")
            unlabelled = Shaped(_sizes(value), [None] * len(_sizes(value)))
            seen[node.name] = tensors.get(node.name, unlabelled)
        elif node.op == "call_function":
            seen[node.name] = _called(labels, node, seen)
        elif node.op == "output":
            for result in torch.fx.node.map_arg(node.args, lambda n: seen[n.name])[0]:
                labels.fix(*(result.axes if isinstance(result, Shaped) else ()))
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return _groups(labels, {names[node]: tensor for node, tensor in tensors.items()})


def _stored(program: torch.export.ExportedProgram, labels: Labels) -> dict[str, Shaped]:
    """Parameters with a label per channel, and buffers, by their node in the graph.

    Tied parameters share their labels.
    """
    signature, found = program.graph_signature, dict[str, Shaped]()
    state = {**program.state_dict, **program.constants}
    tied: dict[tuple[int, tuple[int, ...]], Shaped] = {}
    for node, name in signature.inputs_to_parameters.items():
        sizes = tuple(state[name].shape)
        fresh = Shaped(sizes, [labels.fresh(n) if n > 1 else None for n in sizes])
        found[node] = tied.setdefault((state[name].data_ptr(), sizes), fresh)
    for node, name in signature.inputs_to_buffers.items():
        sizes = tuple(state[name].shape)
        found[node] = Shaped(sizes, [None] * len(sizes))
    return found


def _called(labels: Labels, node: torch.fx.Node, seen: Mapping[str, Any]) -> Any:
    arguments: Any = torch.fx.node.map_arg(node.args, lambda n: seen.get(n.name))
    if node.target is operator.getitem:
        whole, index = arguments
        return whole[index]
    out = node.meta.get("val")
    axes: Any = propagate(labels, node.target, out, arguments)
    if isinstance(out, (list, tuple)):
        return [Shaped(_sizes(part), a) for part, a in zip(out, axes, strict=True)]
    return Shaped(_sizes(out), axes)


def _sizes(value: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in getattr(value, "shape", ()))


def _groups(labels: Labels, tensors: Mapping[str, Shaped]) -> list[Group]:
    places: dict[int, dict[Place, list[int]]] = defaultdict(lambda: defaultdict(list))
    for name, tensor in tensors.items():
        for position, axis in enumerate(tensor.axes):
            for channel, label in enumerate(axis or ()):
                places[labels.root(label)][name, position].append(channel)
    fixed, reduced = labels.fixed, labels.reduced
    return [
        Group({place: tuple(channels) for place, channels in found.items()}, root not in reduced)
        for root, found in places.items()
        if root not in fixed
    ]
