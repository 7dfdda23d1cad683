"""What each operation of a traced graph does to the labels of channels.

The rules of DepGraph (Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023,
https://arxiv.org/abs/2301.12900) and SPA (Wang et al., "Structurally Prune Anything", 2024,
https://arxiv.org/abs/2403.18955), on the operations of torch.export.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pruning.tracing.labels import Axes, Axis, Labels, Shaped

Result = Axes | list[Axes]  # of one tensor, or of several
Rule = Callable[..., Result]  # labels, sizes of the output, arguments of the operation

SAME = frozenset(
    "alias clone contiguous detach dropout feature_dropout lift_fresh_copy to type_as".split()
)
VIEWS = frozenset("flatten reshape unflatten view".split())
POOLS = frozenset("adaptive_avg_pool2d avg_pool2d max_pool2d".split())


def propagate(labels: Labels, target: Any, out: Any, arguments: Sequence[Any]) -> Result:
    """The labels of an operation's output; `out` is its example value.

    Raises ValueError for an operation on labelled channels that has no rule.
    """
    tensors = [a for a in _flat(arguments) if isinstance(a, Shaped)]
    if out is None or not any(tensor.labelled for tensor in tensors):  # None: an assertion
        return _unlabelled(out)
    name = target.__name__.partition(".")[0] if hasattr(target, "__name__") else str(target)
    if name in _RULES:
        return _RULES[name](labels, out, *arguments)
    if name in SAME:
        return tensors[0].axes
    if name in VIEWS:
        return labels.reshaped(tensors[0], out.shape)
    if name in POOLS:
        return [*tensors[0].axes[:-2], None, None]
    if torch.Tag.pointwise in getattr(target, "tags", ()):
        return _elementwise(labels, out, tensors)
    raise ValueError(f"there is no rule for the operation {name}: add one to pruning.tracing.rules")


def _flat(arguments: Any) -> list[Any]:
    if isinstance(arguments, (list, tuple)):
        return [found for argument in arguments for found in _flat(argument)]
    return [arguments]


def _unlabelled(out: Any) -> Result:
    if isinstance(out, (list, tuple)):
        return [_without_labels(part) for part in out]
    return _without_labels(out)


def _without_labels(out: Any) -> Axes:
    return [None] * getattr(out, "ndim", 0)


def _elementwise(labels: Labels, out: Any, tensors: Sequence[Shaped]) -> Axes:
    axes: Axes = []
    for back in range(out.ndim, 0, -1):
        size = out.shape[-back]
        facing = [t.axes[-back] for t in tensors if len(t.sizes) >= back and t.sizes[-back] == size]
        axes.append(labels.join(*facing))
    return axes


def _linear(
    labels: Labels, out: Any, x: Shaped, weight: Shaped, bias: Shaped | None = None
) -> Axes:
    labels.join(x.axes[-1], weight.axes[1])
    outputs = labels.join(weight.axes[0], *(bias.axes if bias else ()))
    return [*x.axes[:-1], outputs]


def _conv(
    labels: Labels,
    out: Any,
    x: Shaped,
    weight: Shaped,
    bias: Shaped | None = None,
    *settings: Any,
) -> Axes:
    groups = settings[3] if len(settings) > 3 else 1
    outputs = labels.join(weight.axes[0], *(bias.axes if bias else ()))
    labels.fix(*weight.axes[2:])
    if groups == 1:
        labels.join(x.axes[1], weight.axes[1])
    elif groups == weight.sizes[0] == x.sizes[1]:
        outputs = labels.join(x.axes[1], outputs)  # depthwise
    else:
        raise ValueError(f"a convolution in {groups} groups has no rule; depthwise ones have")
    return [x.axes[0], outputs, *[None] * (out.ndim - 2)]


def _batch_norm(labels: Labels, out: Any, x: Shaped, *rest: Any) -> Axes:
    for tensor in rest[:4]:  # weight, bias, running mean and variance
        if isinstance(tensor, Shaped):
            if tensor.axes == [None]:
                tensor.axes[0] = labels.fresh(tensor.sizes[0])
            labels.join(x.axes[1], tensor.axes[0])
    return x.axes


def _layer_norm(labels: Labels, out: Any, x: Shaped, shape: Sequence[int], *rest: Any) -> Axes:
    if len(shape) != 1:
        raise ValueError("a norm over several axes has no rule")
    labels.reduce(x.axes[-1])
    for tensor in rest[:2]:
        if isinstance(tensor, Shaped):
            labels.join(x.axes[-1], tensor.axes[0])
    return x.axes


def _embedding(labels: Labels, out: Any, weight: Shaped, ids: Shaped, *rest: Any) -> Axes:
    labels.fix(weight.axes[0])
    return [*ids.axes, weight.axes[1]]


def _matmul(labels: Labels, out: Any, left: Shaped, right: Shaped) -> Axes:
    labels.join(left.axes[-1], right.axes[-2])
    outer = [Shaped(t.sizes[:-2], t.axes[:-2]) for t in (left, right)]
    batch = torch.empty(out.shape[:-2], device="meta")
    return [*_elementwise(labels, batch, outer), left.axes[-2], right.axes[-1]]


def _attention(
    labels: Labels, out: Any, query: Shaped, key: Shaped, value: Shaped, *settings: Any
) -> Axes:
    labels.join(query.axes[-1], key.axes[-1])
    share = query.sizes[-3] // key.sizes[-3]  # query heads of a KV head
    heads = [_repeated(t.axes[-3], share) for t in (key, value)]
    joined = labels.join(query.axes[-3], *heads)
    return [*query.axes[:-3], joined, query.axes[-2], value.axes[-1]]


def _repeated(axis: Axis, times: int) -> Axis:
    return None if axis is None else [label for label in axis for _ in range(times)]


def _reduction(labels: Labels, out: Any, x: Shaped, dims: Any, *rest: Any) -> Axes:
    reduced = {d % len(x.sizes) for d in (dims if isinstance(dims, (list, tuple)) else [dims])}
    labels.reduce(*(x.axes[d] for d in reduced))
    if out.ndim == len(x.sizes):
        return [None if d in reduced else axis for d, axis in enumerate(x.axes)]
    return [axis for d, axis in enumerate(x.axes) if d not in reduced]


def _softmax(labels: Labels, out: Any, x: Shaped, dim: int, *rest: Any) -> Axes:
    labels.reduce(x.axes[dim])
    return x.axes


def _transpose(labels: Labels, out: Any, x: Shaped, one: int, other: int) -> Axes:
    axes = list(x.axes)
    axes[one], axes[other] = axes[other], axes[one]
    return axes


def _permute(labels: Labels, out: Any, x: Shaped, order: Sequence[int]) -> Axes:
    return [x.axes[d] for d in order]


def _unsqueeze(labels: Labels, out: Any, x: Shaped, dim: int) -> Axes:
    position = dim % out.ndim
    return [*x.axes[:position], None, *x.axes[position:]]


def _squeeze(labels: Labels, out: Any, x: Shaped, dim: int) -> Axes:
    return [axis for d, axis in enumerate(x.axes) if d != dim % len(x.sizes)]


def _expand(labels: Labels, out: Any, x: Shaped, *rest: Any) -> Axes:
    new = out.ndim - len(x.sizes)
    grown = [
        axis * size if axis and len(axis) < size else axis
        for axis, size in zip(x.axes, out.shape[new:], strict=True)
    ]
    return [*[None] * new, *grown]


def _slice(
    labels: Labels,
    out: Any,
    x: Shaped,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Axes:
    axes = list(x.axes)
    axis = axes[dim]
    axes[dim] = None if axis is None else axis[start:end:step]
    return axes


def _select(labels: Labels, out: Any, x: Shaped, dim: int, index: int) -> Axes:
    labels.fix(x.axes[dim])
    return [axis for d, axis in enumerate(x.axes) if d != dim % len(x.sizes)]


def _parts(labels: Labels, out: Any, x: Shaped, size: Any, dim: int = 0) -> list[Axes]:
    found, start = [], 0
    for part in out:
        end = start + part.shape[dim]
        found.append(_slice(labels, part, x, dim, start, end))
        start = end
    return found


def _cat(labels: Labels, out: Any, tensors: Sequence[Shaped], dim: int = 0) -> Axes:
    position = dim % out.ndim
    joined = [t.axes[position] for t in tensors]
    if any(axis is None for axis in joined):
        labels.fix(*joined)
        along: Axis = None
    else:
        along = [label for axis in joined for label in axis or ()]
    rest = zip(*(_without(t, position) for t in tensors), strict=True)
    others = [labels.join(*facing) for facing in rest]
    return [*others[:position], along, *others[position:]]


def _without(tensor: Shaped, position: int) -> Axes:
    return [axis for d, axis in enumerate(tensor.axes) if d != position]


_RULES: dict[str, Rule] = {
    "linear": _linear,
    "conv2d": _conv,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "embedding": _embedding,
    "matmul": _matmul,
    "bmm": _matmul,
    "scaled_dot_product_attention": _attention,
    "mean": _reduction,
    "softmax": _softmax,
    "transpose": _transpose,
    "permute": _permute,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "expand": _expand,
    "slice": _slice,
    "select": _select,
    "chunk": _parts,
    "split": _parts,
    "split_with_sizes": _parts,
    "cat": _cat,
}
