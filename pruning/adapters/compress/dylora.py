"""A ladder of ranks from one adapter, for a server that takes a lower one under load.

Valipour et al., "DyLoRA: Parameter-Efficient Tuning of Pre-trained Models using Dynamic
Search-Free Low-Rank Adaptation", EACL 2023, https://arxiv.org/abs/2210.07558.  Adapters that were
trained that way are cut as they are (`prefix`), with the scale alpha / rank of the paper's code;
any other adapter is sorted by singular values first (`svd`).
"""

from collections.abc import Mapping

from pruning.adapters import algebra
from pruning.adapters.algebra import Bag, Bags
from pruning.adapters.compression import Probe
from pruning.methods.adapters import LadderParams


def compress(
    bags: Bags, params: LadderParams, seed: int, probe: Probe | None
) -> Mapping[str, Bags]:
    """One adapter per rung, named after its rank."""
    cut = {"svd": algebra.truncate, "prefix": _prefix}[params.order]
    return {f"r{rank}": {key: cut(bag, rank) for key, bag in bags.items()} for rank in params.ranks}


def _prefix(bag: Bag, rank: int) -> Bag:
    kept = min(rank, bag.rank)
    return algebra.scale(bag.select(range(kept)), bag.rank / kept)
