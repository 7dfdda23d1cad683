"""All atoms of all adapters side by side: the weighted sum of the ΔW, exactly, of rank Σ r.

Prabhakar et al., "LoRA Soups: Merging LoRAs for Practical Skill Composition Tasks", COLING 2025,
https://arxiv.org/abs/2410.13025; here the weights are given, not learned.
"""

from collections.abc import Sequence

from pruning.adapters import algebra
from pruning.adapters.merging import Merged, Origin, Part
from pruning.methods.entry import Params


def merge(parts: Sequence[Part], params: Params, seed: int) -> Merged:
    """Concatenate."""
    bag = algebra.cat([part.bag for part in parts], [part.weight for part in parts])
    origins = (
        (Origin(i, atom, 1.0),) for i, part in enumerate(parts) for atom in range(part.bag.rank)
    )
    return Merged(bag, tuple(origins))
