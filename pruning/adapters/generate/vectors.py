"""Adapters as vectors, one to a layer, and what they are normalised by.

The tensors of a layer stand one after the other; shorter layers are padded with zeros.  Each tensor
is centred entry by entry on the mean of all adapters and divided by its standard deviation, pooled
over all: B's entries are much smaller than A's, and B A errs in the first order by what each errs
in proportion to its size.
"""

# Shape suffixes:  S = adapters,  L = layers,  N = numbers of a layer,  P = tensors of an adapter.

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

from pruning.adapters.algebra import Bag, Bags
from pruning.adapters.atoms import Key


@dataclass(frozen=True)
class Place:
    """Where a tensor stands: entries `start` to `end` of the vector of its layer."""

    row: int  # of the layer among those that have tensors
    start: int
    end: int


@dataclass(frozen=True)
class Layout:
    """Which linears an adapter has factors on, (outputs, inputs) by linear, and their rank."""

    rank: int
    shapes: Mapping[Key, tuple[int, int]]

    @classmethod
    def of(cls, bags: Bags) -> "Layout":
        """That of an adapter whose linears have one rank."""
        (rank,) = {bag.rank for bag in bags.values()}
        return cls(rank, {k: (len(b.b_OR), b.a_RI.shape[1]) for k, b in sorted(bags.items())})

    @cached_property
    def num_layers(self) -> int:
        return len({layer for layer, _ in self.shapes})

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Of a and b of each linear."""
        return tuple(self._places())

    @cached_property
    def width(self) -> int:
        """N: as long as the longest layer."""
        return max(place.end for place in self.places)

    @property
    def numbers(self) -> int:
        """Of a whole adapter."""
        return sum(place.end - place.start for place in self.places)

    def _places(self) -> Iterator[Place]:
        for row, (_, keys) in enumerate(groupby(sorted(self.shapes), key=lambda key: key[0])):
            start = 0
            for key in keys:
                outputs, inputs = self.shapes[key]
                for length in (self.rank * inputs, outputs * self.rank):
                    yield Place(row, start, start + length)
                    start += length

    def vectors(self, bags: Bags) -> Tensor:
        """An adapter as vectors; (L, N)."""
        tensors = [side for key in sorted(self.shapes) for side in (bags[key].a_RI, bags[key].b_OR)]
        found_LN = torch.zeros(self.num_layers, self.width)
        for place, tensor in zip(self.places, tensors, strict=True):
            found_LN[place.row, place.start : place.end] = tensor.flatten()
        return found_LN

    def bags(self, vectors_LN: Tensor) -> dict[Key, Bag]:
        """The adapter of some vectors."""
        parts = [vectors_LN[p.row, p.start : p.end] for p in self.places]
        sides = zip(parts[::2], parts[1::2], strict=True)
        return {
            key: Bag(a.view(self.rank, inputs), b.view(outputs, self.rank))
            for (key, (outputs, inputs)), (a, b) in zip(
                sorted(self.shapes.items()), sides, strict=True
            )
        }


@dataclass(frozen=True)
class Normalisation:
    """The mean of all adapters, and the standard deviation of each tensor."""

    layout: Layout
    mean_LN: Tensor
    deviation_P: Tensor

    @classmethod
    def pooled(cls, layout: Layout, vectors_SLN: Tensor) -> "Normalisation":
        """Over some adapters; a tensor without any deviation keeps its size."""
        deviations = [
            float(vectors_SLN[:, p.row, p.start : p.end].std(correction=0)) or 1.0
            for p in layout.places
        ]
        return cls(layout, vectors_SLN.mean(dim=0), torch.tensor(deviations))

    @cached_property
    def _scale_LN(self) -> Tensor:
        scale_LN = torch.ones_like(self.mean_LN)
        for place, deviation in zip(self.layout.places, self.deviation_P, strict=True):
            scale_LN[place.row, place.start : place.end] = deviation
        return scale_LN

    def apply(self, vectors_SLN: Tensor) -> Tensor:
        return (vectors_SLN - self.mean_LN) / self._scale_LN

    def undo(self, normal_LN: Tensor) -> Tensor:
        return normal_LN * self._scale_LN + self.mean_LN


@dataclass(frozen=True)
class Basis:
    """The principal directions of normalised layers: the best linear decoder of so many numbers.

    Directions are rows of unit length, held in int8 with a scale each.
    """

    steps_HN: Tensor
    scale_H: Tensor

    @classmethod
    def of(cls, normal_XN: Tensor, components: int) -> "Basis":
        """From the Gram matrix of the rows, which are fewer than their entries."""
        gram_XX = (normal_XN @ normal_XN.T).double()
        values_X, vectors_XX = torch.linalg.eigh(gram_XX)
        rounding = torch.finfo(torch.float32).eps * len(gram_XX) * float(values_X[-1])
        count = min(components, int((values_X > rounding).sum()))
        if not count:
            raise ValueError("all adapters are alike; there is nothing to learn")
        values_H, vectors_XH = values_X.flip(0)[:count], vectors_XX.flip(1)[:, :count]
        rows_HN = (vectors_XH / values_H.sqrt()).T.float() @ normal_XN
        scale_H = rows_HN.abs().amax(dim=1) / 127
        return cls((rows_HN / scale_H[:, None]).round().to(torch.int8), scale_H)

    @cached_property
    def rows_HN(self) -> Tensor:
        return self.steps_HN.float() * self.scale_H[:, None]

    def coefficients(self, normal_XN: Tensor) -> Tensor:
        """(X, H), by least squares."""
        inverse_NH: Tensor = torch.linalg.pinv(self.rows_HN)
        return normal_XN @ inverse_NH

    def explained(self, normal_XN: Tensor) -> float:
        """The part of the rows' squared length that the directions account for."""
        left_XN = normal_XN - self.coefficients(normal_XN) @ self.rows_HN
        return 1 - float(left_XN.square().sum() / normal_XN.square().sum())


def stacked(layout: Layout, adapters: Sequence[Bags]) -> Tensor:
    """Some adapters of one layout; (S, L, N)."""
    return torch.stack([layout.vectors(bags) for bags in adapters])


def rms(x: Tensor) -> float:
    """The root of the mean square."""
    return math.sqrt(float(x.square().mean()))
