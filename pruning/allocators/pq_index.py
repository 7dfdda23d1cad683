"""PQ index: layers whose scores are concentrated in few units give up more.

Diao et al., "Pruning Deep Neural Networks from a Sparsity Perspective", ICLR 2023,
https://arxiv.org/abs/2302.05601.  There SAP prunes weights by the proposed ratio and trains, again
and again; here the index is taken of the scores of units, and the ratios proposed for the layers
are scaled together to the target.
"""

from collections.abc import Mapping

from torch import Tensor

from pruning.allocation.budget import Counts
from pruning.allocation.spread import fill, widths
from pruning.methods.allocators import PqIndexParams
from pruning.plan import Widths
from pruning.registry import Problem


def allocate(problem: Problem, params: PqIndexParams) -> Widths:
    """Remove of each layer in proportion to the ratio proposed for it, down to its floor."""
    space, scores = problem.space, problem.scores
    totals = space.split()
    groups = {i: proposed(scores[i].kv_group, params) for i in space.kv_groups}
    channels = {i: proposed(scores[i].ffn_channel, params) for i in space.ffn_channels}
    return widths(
        space,
        _scaled(space.kv_groups, totals.kv_groups, groups),
        _scaled(space.ffn_channels, totals.ffn_channels, channels),
    )


def proposed(scores_U: Tensor, params: PqIndexParams) -> float:
    """The fraction of units that SAP would remove: min(γ · (1 − m / d), β).

    m = d · (1 + η)^(−q/(q−p)) · (1 − I)^(pq/(q−p)) with q = 1, and the index
    I = 1 − d^(1/q − 1/p) · ‖s‖_p / ‖s‖_q, 0 for equal scores.
    """
    if not scores_U.sum() > 0:
        return 0.0
    evenness = float(scores_U.pow(params.p).mean().pow(1 / params.p) / scores_U.mean())  # 1 − I
    power = 1 / (1 - params.p)
    kept: float = (1 + params.eta) ** -power * evenness ** (params.p * power)
    return min(params.gamma * (1 - min(kept, 1.0)), params.beta)


def _scaled(counts: Counts, total: float, ratios: Mapping[int, float]) -> dict[int, int]:
    largest = max(ratios.values())
    shares = {i: max(ratios[i] / largest, 1e-9) if largest > 0 else 1.0 for i in counts}
    most = max((kept[0] - kept[-1]) / (shares[i] * kept[0]) for i, kept in counts.items())
    return fill(counts, total, lambda i, level: counts[i][0] * (1 + level * shares[i]), (-most, 0))
