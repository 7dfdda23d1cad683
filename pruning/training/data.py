"""What is trained on: sequences of the recipe's training text, and some held out to judge by."""

# Shape suffixes:  S = sequences,  T = tokens,  B = sequences of a batch.

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.errors import InvalidInput
from pruning.recipe import MOST_SEQUENCES, PruneSpec
from pruning.text import calibration_ids, load_tokenizer

MICRO_TOKENS = 2048  # run through the model at a time: logits are the widest thing there is


@dataclass(frozen=True)
class Split:
    """Sequences to learn from, and others to judge by; int64."""

    training_ST: Tensor
    held_out_ST: Tensor


def training_split(spec: PruneSpec, held_out: float) -> Split:
    """The recipe's training text, or else all of its calibration text, with a part held out.

    Never the evaluation text.  Raises InvalidInput when there are not two sequences.
    """
    recipe, field = spec.recipe, "training" if spec.training else "calibration"
    text = recipe.training or recipe.calibration.model_copy(update={"sequences": MOST_SEQUENCES})
    path = spec.training or spec.calibration
    ids_ST = calibration_ids(load_tokenizer(spec.base), path, text, recipe.seed, field)
    if len(ids_ST) < 2:
        raise InvalidInput(f"{field}.length", "training needs two sequences; give more text")
    return split(ids_ST, held_out, recipe.seed)


def split(ids_ST: Tensor, held_out: float, seed: int) -> Split:
    """Hold out a fraction of the sequences, at least one and not all; drawn by the seed."""
    count = min(max(1, round(held_out * len(ids_ST))), len(ids_ST) - 1)
    is_held_out_S = torch.zeros(len(ids_ST), dtype=torch.bool)
    is_held_out_S[random.Random(seed).sample(range(len(ids_ST)), count)] = True
    return Split(ids_ST[~is_held_out_S], ids_ST[is_held_out_S])


def drawn(num_sequences: int, count: int, seed: int) -> list[int]:
    """`count` sequences to train on: whole passes, each shuffled anew; the last one is cut."""
    generator, order = random.Random(seed), list[int]()
    while len(order) < count:
        order += generator.sample(range(num_sequences), num_sequences)
    return order[:count]


def micro_batches(ids_BT: Tensor) -> Iterator[tuple[Tensor, float]]:
    """A batch in pieces of at most MICRO_TOKENS, or a sequence, and the share of each."""
    for piece_BT in torch.split(ids_BT, max(1, MICRO_TOKENS // ids_BT.shape[1])):
        yield piece_BT, len(piece_BT) / len(ids_BT)
