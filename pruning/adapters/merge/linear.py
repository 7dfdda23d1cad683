"""Task arithmetic: the weighted sum of the ΔW, exactly, with as few atoms as it takes.

Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023, https://arxiv.org/abs/2212.04089.
Adding up A's and B's instead would put products of one adapter's b with another's a into the sum;
here there are none, and adapters that share atoms, or cancel, give a smaller rank than `cat`.
"""

from collections.abc import Sequence

from pruning.adapters import algebra
from pruning.adapters.merging import Merged, Part
from pruning.methods.entry import Params


def merge(parts: Sequence[Part], params: Params, seed: int) -> Merged:
    """Concatenate, then drop the directions that rounding alone fills."""
    bag = algebra.cat([part.bag for part in parts], [part.weight for part in parts])
    return Merged(algebra.compact(bag))
