"""Text as token sequences: what calibrates a model, and the windows that measure it."""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruning.errors import InvalidInput
from pruning.mixture import interleaved, shares
from pruning.recipe import Text
from pruning.sources import Origin

IGNORED = -100  # label of a token that is not scored
Tokenizer = Any  # transformers' tokenizers carry no types
NEW_NAME, OLD_NAME = "TokenizersBackend", "PreTrainedTokenizerFast"  # older transformers know it


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a base.  Raises InvalidInput when there is none."""
    from transformers import AutoTokenizer  # seconds that scoring and cutting do without

    try:
        return AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput("base", f"its tokenizer cannot be loaded: {error}") from error


def name_tokenizer(directory: Path, name: str) -> None:
    """Let a slim base's tokenizer be loaded as the class that its base's was loaded as.

    transformers goes by the family of the model first: of a qwen2 it ignores the class that
    tokenizer_config.json names, but not of the llama that is cut from it.
    """
    path = directory / "tokenizer_config.json"
    entries = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    named = str(entries.get("tokenizer_class")).replace(OLD_NAME, NEW_NAME).removesuffix("Fast")
    if named != name:
        entries["tokenizer_class"] = name.replace(NEW_NAME, OLD_NAME)
        text = json.dumps(entries, indent=2, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")


def token_stream(tokenizer: Tokenizer, path: Path, origin: Origin, field: str) -> list[int]:
    """A whole file as one stream of tokens; `field` is the place of its origin in the recipe.

    Plain text as it is, nothing added.  Of lines of JSON the fields that the origin names, each
    line between bos and eos where the tokenizer has them, as an adapter's rows are.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{field}.{origin.place}", "the text is not UTF-8; give plain text or lines of JSON"
        ) from error
    if not origin.fields:
        return _encode(tokenizer, text)
    before, after = (_one(id) for id in (tokenizer.bos_token_id, tokenizer.eos_token_id))
    stream: list[int] = []
    for values in _rows(text, origin.fields, field):
        stream += before
        for value in values:
            stream += _encode(tokenizer, value)
        stream += after
    return stream


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    return ids


def _one(id: int | None) -> list[int]:
    return [] if id is None else [id]


def _rows(text: str, names: Sequence[str], field: str) -> Iterator[list[str]]:
    """The named fields of each line; InvalidInput tells the first line that lacks one."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            values = [row[name] for name in names]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise InvalidInput(
                f"{field}.field", f"line {number} is no JSON object with {', '.join(names)}"
            ) from error
        if not all(isinstance(value, str) for value in values):
            raise InvalidInput(f"{field}.field", f"line {number} has a value that is no text")
        yield values


def calibration_ids(
    tokenizer: Tokenizer,
    paths: Path | Sequence[Path],
    text: Text,
    seed: int,
    field: str = "calibration",
) -> Tensor:
    """At most `text.sequences` sequences, drawn without overlap and in order; (S, length) int64.

    `paths` are those of the text's origins.  Of several origins each gives its share, and the
    shares are spread evenly over all rows, so that the first rows are a mixture too.  Each
    sequence opens with the bos token where the tokenizer has one, as in use.
    """
    paths = (paths,) if isinstance(paths, Path) else paths
    sources = [
        _sequences(tokenizer, path, origin, text.length, place)
        for (place, origin), path in zip(text.origins(field), paths, strict=True)
    ]
    counts = shares([len(source) for source in sources], text.weights, text.sequences)
    drawn = [
        [source[i] for i in sorted(random.Random(seed).sample(range(len(source)), count))]
        for source, count in zip(sources, counts, strict=True)
    ]
    return torch.tensor(interleaved(drawn))


def _sequences(
    tokenizer: Tokenizer, path: Path, origin: Origin, length: int, field: str
) -> list[list[int]]:
    """All sequences of a file, each opened by bos; InvalidInput when it does not fill one."""
    stream = token_stream(tokenizer, path, origin, field)
    bos = _one(tokenizer.bos_token_id)
    body = length - len(bos)
    if len(stream) < body:
        of_the_text = field.partition(".sources.")[0]
        raise InvalidInput(
            f"{of_the_text}.length", f"the text has only {len(stream)} tokens; give more or less"
        )
    starts = range(0, len(stream) - body + 1, body)
    return [bos + stream[start : start + body] for start in starts]


def check_length(config: dict[str, Any], text: Text, field: str) -> None:
    """Raise InvalidInput for sequences longer than the positions that the base was trained on."""
    longest = config.get("max_position_embeddings")
    if longest and text.length > longest:
        raise InvalidInput(f"{field}.length", f"at most {longest}, the positions of the base")
