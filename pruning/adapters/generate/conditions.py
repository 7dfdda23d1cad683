"""Task vectors: the mean last-token hidden state of the base over demonstrations of a task.

Shao et al., "In-Context Meta LoRA Generation", IJCAI 2025, https://arxiv.org/abs/2501.17635.  The
last token is the one that closes a demonstration.  Ours: the base without any adapter reads, so
that a task never seen has a vector, too; a description stands for a task by the mean over its own
tokens; and the vectors of many small sets of the demonstrations tell how far from its task's
vector a request may lie.
"""

# Shape suffixes:  N = demonstrations or tokens,  h = hidden size,  T = tasks,  D = sets drawn.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pruning.adapters.generate.recipes import LEAST_EXAMPLES
from pruning.adapters.generate.vectors import rms
from pruning.errors import InvalidInput
from pruning.evaluation import Example
from pruning.text import Tokenizer

SETS, LARGEST_SET = 256, 32  # sets drawn of each task, and how many demonstrations one has at most


@dataclass(frozen=True)
class Conditions:
    """What a kind of condition, examples or descriptions, looked like in training.

    `vectors_Th` are standardised by the mean and deviation of single states, pooled over tasks;
    `radius` is the largest distance of a set from its own task.
    """

    mean_h: Tensor
    deviation_h: Tensor
    vectors_Th: Tensor
    radius: float

    @classmethod
    def learn(cls, states: Sequence[Tensor], seed: int) -> tuple["Conditions", Tensor]:
        """From the states of each task, (N, h); and the vectors of all sets, (T, D, h)."""
        every_Nh = torch.cat(list(states))
        mean_h, deviation_h = every_Nh.mean(dim=0), every_Nh.std(dim=0).clamp(min=1e-6)
        normal = [(own_Nh - mean_h) / deviation_h for own_Nh in states]
        vectors_Th = torch.stack([own_Nh.mean(dim=0) for own_Nh in normal])
        generator = torch.Generator().manual_seed(seed)
        sets_TDh = torch.stack([_sets(own_Nh, generator) for own_Nh in normal])
        away_TDh = sets_TDh - vectors_Th[:, None]
        radius = float(away_TDh.square().mean(dim=2).sqrt().max())
        return cls(mean_h, deviation_h, vectors_Th, radius), sets_TDh

    def vector(self, states_Nh: Tensor) -> Tensor:
        """The standardised vector of demonstrations, or of the tokens of a description; (h,)."""
        return (states_Nh.mean(dim=0) - self.mean_h) / self.deviation_h

    def nearest(self, vector_h: Tensor) -> tuple[int, float]:
        """The nearest task, and its distance: the root mean square over the entries."""
        distances = [rms(vector_h - own_h) for own_h in self.vectors_Th]
        task = min(range(len(distances)), key=distances.__getitem__)
        return task, distances[task]


def _sets(states_Nh: Tensor, generator: torch.Generator) -> Tensor:
    """Means of sets of LEAST_EXAMPLES or more states, drawn without repetition; (D, h)."""
    most = min(LARGEST_SET, len(states_Nh))
    least = min(LEAST_EXAMPLES, most)
    means = []
    for _ in range(SETS):
        size = int(torch.randint(least, most + 1, (), generator=generator))
        chosen = torch.randperm(len(states_Nh), generator=generator)[:size]
        means.append(states_Nh[chosen].mean(dim=0))
    return torch.stack(means)


@torch.inference_mode()
def states_of_rows(model: Any, tokenizer: Tokenizer, rows: Sequence[Example]) -> Tensor:
    """The last hidden state where each row ends, with eos or what a cut left; (N, h)."""
    eos = tokenizer.eos_token_id
    found = []
    for ids, _ in rows:
        closed = ids if eos is None or ids[-1] == eos else [*ids[:-1], eos]
        found.append(_states(model, closed)[-1])
    return torch.stack(found)


@torch.inference_mode()
def states_of_text(model: Any, tokenizer: Tokenizer, text: str, field: str) -> Tensor:
    """The last hidden states of the tokens of a text; (N, h).  InvalidInput where it has none."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if not ids:
        raise InvalidInput(field, "has no tokens; describe the task in words")
    before = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    longest = getattr(model.config, "max_position_embeddings", None) or len(ids) + 1
    return _states(model, [*before, *ids][:longest])[len(before) :]


def _states(model: Any, ids: list[int]) -> Tensor:
    output = model.model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    states: Tensor = output.last_hidden_state[0].float().cpu()
    return states.clone()  # out of inference mode it could not take part in training
