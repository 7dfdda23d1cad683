"""Text as token sequences: what calibrates a model, and the windows that measure it."""

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from pruning.errors import InvalidInput
from pruning.recipe import Text

Tokenizer = Any  # transformers' tokenizers carry no types


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a base.  Raises InvalidInput when there is none."""
    try:
        return AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput("base", f"its tokenizer cannot be loaded: {error}") from error


def token_stream(tokenizer: Tokenizer, path: Path, field: str) -> list[int]:
    """A whole file as one stream of tokens, nothing added."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{field}.file", "the text is not UTF-8") from error
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    return ids


def calibration_ids(
    tokenizer: Tokenizer, path: Path, text: Text, seed: int, field: str = "calibration"
) -> Tensor:
    """At most `text.sequences` sequences, drawn without overlap and in order; (S, length) int64.

    Each opens with the bos token where the tokenizer has one, as in use.
    """
    stream = token_stream(tokenizer, path, field)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    body = text.length - len(bos)
    num_sequences = len(stream) // body
    if not num_sequences:
        raise InvalidInput(
            f"{field}.length", f"the text has only {len(stream)} tokens; give more or less"
        )
    count = min(text.sequences, num_sequences)
    chosen = sorted(random.Random(seed).sample(range(num_sequences), count))
    return torch.tensor([bos + stream[i * body : (i + 1) * body] for i in chosen])


def check_length(config: dict[str, Any], text: Text, field: str) -> None:
    """Raise InvalidInput for sequences longer than the positions that the base was trained on."""
    longest = config.get("max_position_embeddings")
    if longest and text.length > longest:
        raise InvalidInput(f"{field}.length", f"at most {longest}, the positions of the base")
