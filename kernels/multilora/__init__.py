"""Many LoRA adapters, and weighted sums of them, applied to the rows of one batch."""

from multilora.batch import Batch, Compositions
from multilora.ops import apply_
from multilora.pool import Linear, Pool

__all__ = ["Batch", "Compositions", "Linear", "Pool", "apply_"]
