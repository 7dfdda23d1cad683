"""Measured times of blocks by their width, and what they make of a decoding step (torch-free).

As in Bercovich et al., "Puzzle: Distillation-Based NAS for Inference-Optimized LLMs", ICML 2025,
https://arxiv.org/abs/2411.19146, a block's time is measured once for each width and a model's is
their sum.  A line through the widths of a block is what a budget counts with; it evens out noise.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import linear_regression

from pydantic import BaseModel, ConfigDict, Field

from pruning.plan import Widths


class LatencyTable(BaseModel):
    """Milliseconds of one decoding step: of a layer's blocks, by width, and of all else."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attention: dict[int, float] = Field(min_length=2, description="by the KV groups that it has")
    mlp: dict[int, float] = Field(min_length=2, description="by the FFN channels that it has")
    rest: float = Field(ge=0, description="of embedding, norms and output head")
    machine: str = Field("", description="where it was measured")

    def predicted(self, widths: Widths) -> float:
        """Milliseconds of a step when layers have these widths, between two by a straight line."""
        blocks = [(self.attention, width) for width in widths.kv_groups]
        blocks += [(self.mlp, width) for width in widths.ffn_channels]
        return self.rest + sum(_between(times, width) for times, width in blocks if width)


def line(times: Mapping[int, float]) -> tuple[float, float]:
    """Start and slope of the line through measured times, in ms; neither is below zero.

    A slope of nothing (noise, or a machine that does not care) is a hundredth of the largest time
    over the largest width: narrower is never slower.
    """
    slope, start = linear_regression(list(times), list(times.values()))
    widest = max(times)
    slope = max(slope, max(times.values()) / widest / 100)
    if start < 0:
        slope, start = sum(times.values()) / sum(times), 0.0
    return start, slope


def levels(widths: Sequence[int], count: int) -> list[int]:
    """At most `count` of the widths, both ends and evenly spaced ones between, ascending."""
    ordered = sorted(widths)
    if len(ordered) <= count:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (count - 1))] for i in range(count)]


def _between(times: Mapping[int, float], width: int) -> float:
    known = sorted(times)
    if len(known) == 1 or width in times:
        return times[width]
    low, high = next(
        ((a, b) for a, b in pairwise(known) if width <= b),
        (known[-2], known[-1]),
    )
    part = (width - low) / (high - low)
    return times[low] + part * (times[high] - times[low])
