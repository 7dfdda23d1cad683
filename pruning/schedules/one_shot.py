"""One cut, straight to the target.

The name is that of Frantar and Alistarh, "SparseGPT: Massive Language Models Can be Accurately
Pruned in One-Shot", ICML 2023, https://arxiv.org/abs/2301.00774.
"""

from pruning.methods.entry import Params


def targets(target: float, params: Params) -> list[float]:
    """The target alone."""
    return [target]
