"""Calibration at several sites: sums travel, texts stay, and merged they are those of all texts.

After the server's aggregation in Huang et al., "Distributed Pruning Towards Tiny Neural Networks in
Federated Learning", ICDCS 2023, https://arxiv.org/abs/2212.01977 (FedTiny), which averages batch
statistics; the sums that a calibration pass leaves are the counterpart here.  Who sees them learns
means, variances and Gram matrices of activations: less than text, but not nothing.
"""

from collections.abc import Sequence
from functools import reduce
from pathlib import Path

from pruning.errors import InvalidInput
from pruning.statistics.grams import StoredGrams
from pruning.stats import GRAMS, Statistics


def merge_into(destination: Path, sites: Sequence[Path]) -> None:
    """Merge files that `stats.collect_into` wrote, Grams beside them, into one of the same kind.

    One Gram is in memory at a time.  Raises InvalidInput on `sites` when they differ in what they
    collected, or collected what is no sum.
    """
    if not sites:
        raise InvalidInput("sites", "give the statistics of at least one site")
    merged = reduce(Statistics.merge, map(Statistics.load, sites))
    destination.parent.mkdir(parents=True, exist_ok=True)
    merged.save(destination)
    stored = StoredGrams(destination.with_suffix(GRAMS))
    for key in merged.grams:
        stored.put(key, merged.grams[key])
