"""Labels of channels: two channels with one label can only leave together.

Every axis of every tensor in a graph either has a label per channel, or none at all: then nothing
that is coupled to it can leave.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

Axis = list[int] | None  # a label per channel, or channels that stay
Axes = list[Axis]  # of a tensor


@dataclass(frozen=True)
class Shaped:
    """A tensor in the graph: its sizes, and the labels of its axes."""

    sizes: tuple[int, ...]
    axes: Axes

    @property
    def labelled(self) -> bool:
        return any(axis is not None for axis in self.axes)


class Labels:
    """A union-find over labels, with what is known of the sets."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._fixed: set[int] = set()
        self._reduced: set[int] = set()

    def fresh(self, count: int) -> list[int]:
        """Labels that nothing else has."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return list(range(start, start + count))

    def root(self, label: int) -> int:
        """The label that stands for all that are joined with it."""
        while self._parent[label] != label:
            self._parent[label] = self._parent[self._parent[label]]
            label = self._parent[label]
        return label

    def join(self, *axes: Axis) -> Axis:
        """Couple axes channel by channel; one without labels fixes all others."""
        known = [axis for axis in axes if axis is not None]
        if len(known) < len(axes):
            self.fix(*known)
            return None
        for channel in zip(*known, strict=True):
            for one, other in pairwise(channel):
                self._parent[self.root(other)] = self.root(one)
        return known[0]

    def fix(self, *axes: Axis) -> None:
        """None of these channels can leave."""
        self._fixed.update(label for axis in axes for label in axis or ())

    def reduce(self, *axes: Axis) -> None:
        """A mean or a normalisation runs over these channels: it counts those that are masked."""
        self._reduced.update(label for axis in axes for label in axis or ())

    @property
    def fixed(self) -> set[int]:
        """Roots of the sets that stay."""
        return {self.root(label) for label in self._fixed}

    @property
    def reduced(self) -> set[int]:
        """Roots of the sets over which something is averaged."""
        return {self.root(label) for label in self._reduced}

    def reshaped(self, tensor: Shaped, sizes: Sequence[int]) -> Axes:
        """Labels behind a view: a split axis leaves by its outer part, as heads of attention do."""
        axes: Axes = []
        for before, after in _matched(tensor.sizes, sizes):
            flat = self._merged([tensor.sizes[i] for i in before], [tensor.axes[i] for i in before])
            axes += self._split(flat, [sizes[i] for i in after])
        return axes

    def _merged(self, sizes: Sequence[int], axes: Axes) -> Axis:
        known = [i for i, axis in enumerate(axes) if axis is not None]
        if len(known) != 1:
            self.fix(*axes)
            return None
        (position,) = known
        inner, outer = prod(sizes[position + 1 :]), prod(sizes[:position])
        return [label for label in axes[position] or () for _ in range(inner)] * outer

    def _split(self, flat: Axis, sizes: Sequence[int]) -> Axes:
        axes: Axes = [None] * len(sizes)
        if flat is None or len(sizes) == 1:
            return [flat] if len(sizes) == 1 else axes
        outermost = next((i for i, size in enumerate(sizes) if size > 1), None)
        if outermost is None:
            self.fix(flat)
            return axes
        width = len(flat) // sizes[outermost]
        blocks = [flat[start : start + width] for start in range(0, len(flat), width)]
        for channels in zip(*blocks, strict=True):
            for block, channel in zip(blocks, channels, strict=True):
                self.join([block[0]], [channel])
        axes[outermost] = [block[0] for block in blocks]
        return axes


def _matched(before: Sequence[int], after: Sequence[int]) -> Iterable[tuple[list[int], list[int]]]:
    """Runs of axes of two shapes that hold the same elements, as short as can be."""
    i = j = 0
    while i < len(before) or j < len(after):
        left: list[int] = []
        right: list[int] = []
        size_left = size_right = 1
        while not left or not right or size_left != size_right:
            if i < len(before) and (size_left <= size_right or j == len(after)):
                left.append(i)
                size_left *= before[i]
                i += 1
            elif j < len(after):
                right.append(j)
                size_right *= after[j]
                j += 1
            else:
                break
        yield left, right
