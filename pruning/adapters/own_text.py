"""An adapter's own text: rows of its task, and how much each of their tokens counts."""

# Shape suffixes:  S = sequences,  T = tokens.

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning import evaluation
from pruning.adapters.peft_format import CALIBRATION
from pruning.evaluation import Example, spread
from pruning.recipe import PruneSpec
from pruning.statistics.walk import counted
from pruning.text import load_tokenizer

PROMPT = 0.2  # what a token of a prompt counts where one that says the completion counts 1
LEAST_TOKENS = 512  # of an adapter, however many share the budget of a job


@dataclass(frozen=True)
class OwnText:
    """Sequences padded on the right, and the weights of their tokens: 0 for padding and sinks."""

    ids_ST: Tensor
    weights_ST: Tensor

    @classmethod
    def of_rows(cls, rows: Sequence[Example], sink_tokens: int) -> "OwnText":
        """Rows of different lengths; a token counts for what is to be said after it."""
        shape = len(rows), max(len(ids) for ids, _ in rows)
        ids_ST, weights_ST = torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
        for number, (ids, num_prompt) in enumerate(rows):
            ids_ST[number, : len(ids)] = torch.tensor(ids)
            weights_ST[number, : len(ids)] = PROMPT
            weights_ST[number, max(0, num_prompt - 1) : len(ids)] = 1
            weights_ST[number, :sink_tokens] = 0
        return cls(ids_ST, weights_ST)

    @classmethod
    def of_sequences(cls, ids_ST: Tensor, sink_tokens: int) -> "OwnText":
        """Sequences of equal length, all tokens alike."""
        return cls(ids_ST, counted(ids_ST, sink_tokens).float())

    @property
    def num_tokens(self) -> int:
        """How many tokens count."""
        return int((self.weights_ST > 0).sum())

    def select(self, numbers: Sequence[int]) -> "OwnText":
        """Some of the sequences, as long as the longest of them."""
        chosen = torch.tensor(numbers)
        ids_ST, weights_ST = self.ids_ST[chosen], self.weights_ST[chosen]
        length = int((weights_ST > 0).any(dim=0).nonzero().max()) + 1
        return OwnText(ids_ST[:, :length], weights_ST[:, :length])

    def by_length(self) -> "OwnText":
        """The same sequences, short ones first: neighbours need little padding."""
        positions_T = torch.arange(self.ids_ST.shape[1])
        lengths_S = ((self.weights_ST > 0) * positions_T).amax(dim=1)
        return self.select(lengths_S.argsort(stable=True).tolist())

    def at_most(self, num_tokens: int) -> "OwnText":
        """The same, or sequences spread evenly over it of about so many tokens, at least one."""
        share = num_tokens / max(1, self.num_tokens)
        count = max(1, int(share * len(self.ids_ST)))
        if count >= len(self.ids_ST):
            return self
        return self.select(spread(len(self.ids_ST), count))


def own_texts(spec: PruneSpec, ids_ST: Tensor, enough: int | None = None) -> dict[str, OwnText]:
    """The text of every adapter of a job, all of it or at least `enough` tokens.

    That is the rows of its calibration.jsonl, cut to the length of the recipe's calibration
    sequences, or those sequences, `ids_ST`, where it has none.  Raises InvalidInput.
    """
    tokenizer, recipe = load_tokenizer(spec.base), spec.recipe
    common = OwnText.of_sequences(ids_ST, recipe.sink_tokens)
    texts = dict.fromkeys(sorted(spec.adapters), common)
    for name in texts:
        path = spec.adapters[name] / CALIBRATION
        if path.is_file():
            length, field = recipe.calibration.length, f"adapters.{name}"
            rows = evaluation.rows(tokenizer, path, length, field, enough)
            texts[name] = OwnText.of_rows(rows, recipe.sink_tokens)
    return texts


def share_of_budget(spec: PruneSpec) -> int:
    """The tokens that each adapter of a job is refit on at most.

    Together half as many as the base is calibrated on: each passes two bases.
    """
    calibration = spec.recipe.calibration
    budget = calibration.sequences * calibration.length // 2
    return max(LEAST_TOKENS, budget // max(1, len(spec.adapters)))
