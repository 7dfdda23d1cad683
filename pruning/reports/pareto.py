"""The Pareto front: points to which no other is preferable in every respect (torch-free)."""

from collections.abc import Sequence

Point = tuple[float, ...]  # less is better in each coordinate; all points have as many


def dominates(one: Point, other: Point) -> bool:
    """Whether `one` is nowhere worse, and somewhere better."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def front(points: Sequence[Point]) -> tuple[int, ...]:
    """Which points nothing dominates, in ascending order of the points; equals stand together."""
    best = [i for i, one in enumerate(points) if not any(dominates(p, one) for p in points)]
    return tuple(sorted(best, key=lambda i: (points[i], i)))


def dominators(points: Sequence[Point]) -> tuple[int | None, ...]:
    """For each point a member of the front that dominates it, the best in the last coordinate.

    None for the members.
    """
    members = front(points)
    return tuple(
        min(
            (i for i in members if dominates(points[i], point)),
            key=lambda i: points[i][::-1],
            default=None,
        )
        for point in points
    )
