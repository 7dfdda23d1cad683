"""Parts that take turns along the positions of a sequence: whose turn it is at each row of a step.

vLLM tells a wrapper nothing of positions.  But before every step it leaves the lengths of the
sequences in its forward context, where attention looks for them, and so do we.  What follows from
a position alone is the same however a prompt is cut into chunks, from the prefix cache, and when a
sequence that was preempted is computed again.
"""

# Shape suffixes: T = tokens in the batch, S = slots, Q = sequences in the batch.

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.forward_context import ForwardContext, get_forward_context


class Turns:
    """In what a wrapper calls compositions, part i of slot s comes at S + s · most_parts + i."""

    def __init__(self, slots: int, most_parts: int) -> None:
        self.total = slots * (1 + most_parts)
        self.waiting = False  # for a step with rows that depend on their positions
        self._first_S = slots + most_parts * torch.arange(slots)
        self._period_S = torch.ones(slots, dtype=torch.int64)
        self._parts_S = torch.zeros(slots, dtype=torch.int64)  # 0 where nobody takes turns
        self._slots_T = torch.empty(0, dtype=torch.int64)
        self._step: ForwardContext | None = None

    def begin(self, slot: int, parts: int, period: int) -> range:
        """Let that many parts of a slot take turns; where each of them is a composition."""
        self._period_S[slot], self._parts_S[slot] = period, parts
        first = int(self._first_S[slot])
        return range(first, first + parts)

    def end(self, slot: int) -> None:
        """A slot stands for one thing at all positions."""
        self._parts_S[slot] = 0

    def wait(self, slots: Sequence[int]) -> bool:
        """Take the slots of a batch's rows, -1 for none; whether any depends on its position."""
        self._slots_T, self._step = torch.tensor(slots, dtype=torch.int64), None
        self.waiting = bool(self._takes_turns().any())
        return self.waiting

    def rows(self) -> Tensor | None:
        """The composition of each row, -1 for none, (T,) int64; None after a step's first call."""
        step = get_forward_context()
        if step is self._step:
            return None
        self._step = step
        slots_T = self._slots_T
        parts_T = self._parts_S[slots_T].clamp(min=1)
        turn_T = positions(step.attn_metadata, len(slots_T)) // self._period_S[slots_T] % parts_T
        return torch.where(self._takes_turns(), self._first_S[slots_T] + turn_T, slots_T)

    def _takes_turns(self) -> Tensor:
        return (self._slots_T >= 0) & (self._parts_S[self._slots_T] > 0)


def positions(attn_metadata: Any, num_tokens: int) -> Tensor:
    """The position of each row in its sequence, (T,) int64, from what any layer's attention has."""
    metadata = next(iter(attn_metadata.values()))
    start_Q, end_Q = metadata.query_start_loc[:-1].long(), metadata.query_start_loc[1:].long()
    ahead_Q: Tensor = metadata.seq_lens.long() - end_Q  # position - row
    return torch.arange(num_tokens) + ahead_Q.repeat_interleave(end_Q - start_Q)
