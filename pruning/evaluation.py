"""What a saved base is worth: perplexity on text, and the loss of adapters on their own rows."""

# Shape suffixes:  W = windows or rows of a batch,  T = tokens,  S = tokens with a logit that is
# asked for,  V = vocabulary.

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from torch.nn.functional import cross_entropy

from pruning.errors import InvalidInput
from pruning.geometry import Geometry
from pruning.progress import Progress
from pruning.recipe import Text
from pruning.text import IGNORED, Tokenizer, token_stream

BATCH_TOKENS = 2048
MOST_CHARACTERS = 16  # of a token, on average over a text

Example = tuple[list[int], int]  # token ids, and how many of them are prompt


@dataclass(frozen=True)
class Windows:
    """A text cut for perplexity; each token but the first is scored in exactly one window."""

    ids_WT: Tensor
    labels_WT: Tensor  # IGNORED where the token is context, or scored in an earlier window
    num_words: int  # words and line ends of what is scored

    @property
    def num_tokens(self) -> int:
        return int((self.labels_WT[:, 1:] != IGNORED).sum())


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log likelihood, per token and per word (line ends count)."""

    token: float
    word: float


def windows(tokenizer: Tokenizer, path: Path, text: Text) -> Windows:
    """At most `text.sequences` windows of `text.length` tokens, each half over the last one.

    One token stream without bos.  Raises InvalidInput when the text does not fill one window.
    """
    stream = token_stream(tokenizer, path, text, "evaluation")
    length, stride = text.length, text.length // 2
    if len(stream) < length:
        raise InvalidInput(
            "evaluation.length", f"the text has only {len(stream)} tokens; give more or less"
        )
    count = min(text.sequences, (len(stream) - length) // stride + 1)
    ids_WT = torch.tensor([stream[i * stride : i * stride + length] for i in range(count)])
    labels_WT = ids_WT.clone()
    labels_WT[1:, : length - stride] = IGNORED
    scored = tokenizer.decode(stream[1 : (count - 1) * stride + length])
    return Windows(ids_WT, labels_WT, len(scored.split()) + scored.count("\n"))


def load(directory: Path) -> Any:
    """A saved base, dense or slim, in float32 on the device that there is."""
    from transformers import AutoModelForCausalLM  # seconds, for stages that load no model

    from pruning.models.modeling import register

    register()
    model = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        attn_implementation=Geometry.of(directory).architecture.attn_implementation,
    ).eval()
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def perplexity(model: Any, text: Windows, progress: Progress) -> Perplexity:
    """Perplexity over all scored tokens."""
    rows = max(1, BATCH_TOKENS // text.ids_WT.shape[1])
    nll = 0.0
    for start in range(0, len(text.ids_WT), rows):
        progress(start / len(text.ids_WT), "perplexity")
        chosen = slice(start, start + rows)
        nll += float(_nll(model, text.ids_WT[chosen], text.labels_WT[chosen]).sum())
    return Perplexity(math.exp(nll / text.num_tokens), math.exp(nll / text.num_words))


def rows(
    tokenizer: Tokenizer, path: Path, longest: int, field: str, enough: int | None = None
) -> list[Example]:
    """The rows of an eval.jsonl, {"prompt", "completion"}: bos, prompt, completion, eos.

    Or of chat, {"messages"}: for each turn of the assistant the chat so far, and that turn.  What
    exceeds `longest` tokens leaves at the head of the prompt, then at the completion's end.
    Where so many tokens are `enough`, that many and more, of rows spread evenly over the file.
    Raises InvalidInput on `field` for a line that is no such row, or when there is none.
    """
    found: list[tuple[int, dict[str, Any]]] = []
    length = 0
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            with _blamed(field, path, number):
                row = json.loads(line)
                length += sum(map(len, _texts(row)))
                found.append((number, row))
    if not found:
        raise InvalidInput(field, f"{path.name} has no rows; fill it or leave it out")
    share = 1 if enough is None else MOST_CHARACTERS * enough / max(1, length)
    examples: list[Example] = []
    for place in spread(len(found), max(1, int(share * len(found)))):
        number, row = found[place]
        with _blamed(field, path, number):
            examples += _examples(tokenizer, row, longest)
    return examples


def spread(length: int, count: int) -> list[int]:
    """`count` places spread evenly over so many, or all."""
    return [i * length // count for i in range(count)] if count < length else list(range(length))


@contextmanager
def _blamed(field: str, path: Path, number: int) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, TemplateError) as error:
        raise InvalidInput(
            field,
            f'{path.name}, line {number}: no {{"prompt", "completion"}} or {{"messages"}} '
            f"({error})",
        ) from error


def _texts(row: Any) -> list[str]:
    if "messages" in row:
        texts = [message["content"] for message in row["messages"]]
    else:
        texts = [row["prompt"], row["completion"]]
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{text!r} is no text")
    return texts


def _examples(tokenizer: Tokenizer, row: dict[str, Any], longest: int) -> list[Example]:
    if "messages" in row:
        return list(_turns(tokenizer, row["messages"], longest))
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    question, answer = (
        tokenizer.encode(row[part], add_special_tokens=False) for part in ("prompt", "completion")
    )
    return [_cut(bos, question, answer + eos, longest)]


def _turns(tokenizer: Tokenizer, messages: Any, longest: int) -> Iterator[Example]:
    """What the assistant says in a chat, turn by turn; one of weight 0 is context alone."""
    spoken = [
        i
        for i, message in enumerate(messages)
        if message["role"] == "assistant" and message.get("weight", 1) != 0
    ]
    if not spoken:
        raise ValueError("the assistant says nothing")
    for i in spoken:
        said = [{"role": m["role"], "content": m["content"]} for m in messages[: i + 1]]
        before = _chat(tokenizer, said[:-1], add_generation_prompt=True)
        after = _chat(tokenizer, said, add_generation_prompt=False)
        if after[: len(before)] != before:
            raise ValueError("the chat template does not open a turn as it shows it later")
        yield _cut(before[:1], before[1:], after[len(before) :], longest)


def _chat(tokenizer: Tokenizer, messages: Any, add_generation_prompt: bool) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(
        messages, add_generation_prompt=add_generation_prompt, return_dict=False
    )
    return ids


def _cut(first: list[int], question: list[int], answer: list[int], longest: int) -> Example:
    """The first tokens, as much of the end of the question as there is room for, the answer."""
    if not answer:
        raise ValueError("the completion is empty")
    answer = answer[: longest - len(first)]
    room = longest - len(first) - len(answer)
    opening = first + (question[-room:] if room else [])
    return opening + answer, len(opening)


def completion_loss(model: Any, data: Sequence[Example], progress: Progress) -> float:
    """Mean negative log likelihood per completion token, eos included, in nats."""
    return completion_losses(model, [data], progress)[0]


def completion_losses(
    model: Any,
    data: Sequence[Sequence[Example]],
    progress: Progress,
    choose: Callable[[Tensor], None] = lambda numbers_W: None,
) -> list[float]:
    """The completion loss of each of several sets of rows, which pass the model together.

    `choose` is told before every batch which of the sets each of its rows belongs to.
    """
    numbered = [(number, example) for number, rows in enumerate(data) for example in rows]
    numbered.sort(key=lambda pair: len(pair[1][0]))
    lengths = [len(ids) for _, (ids, _) in numbered]
    nll, count = torch.zeros(len(data), dtype=torch.float64), torch.zeros(len(data))
    for batch in _batches(lengths):
        progress(batch.start / len(numbered), "adapter loss")
        ids_WT, labels_WT = padded([example for _, example in numbered[batch]])
        numbers_W = torch.tensor([number for number, _ in numbered[batch]])
        choose(numbers_W.to(model.device))
        nll.index_add_(0, numbers_W, _nll(model, ids_WT, labels_WT))
        count.index_add_(0, numbers_W, (labels_WT[:, 1:] != IGNORED).sum(dim=1).float())
    return (nll / count).tolist()


def with_adapter(model: Any, adapter: Path) -> Any:
    """The model with a PEFT adapter; `.unload()` gives the model back."""
    from peft import PeftModel  # a second that bases without adapters do without

    return PeftModel.from_pretrained(model, adapter, low_cpu_mem_usage=True).eval()


def _nll(model: Any, ids_WT: Tensor, labels_WT: Tensor) -> Tensor:
    """Negative log likelihood of the labelled tokens, summed over each row; (W,) float64.

    Padding stands right of all tokens, where a causal model never looks.
    """
    targets_WT = labels_WT[:, 1:]
    wanted_S = (targets_WT != IGNORED).any(dim=0).nonzero().flatten()  # of the rest, no logits
    with torch.inference_mode():
        ids_WT, wanted_S = ids_WT.to(model.device), wanted_S.to(model.device)
        logits_WSV = model(input_ids=ids_WT, use_cache=False, logits_to_keep=wanted_S).logits
        targets_WS = targets_WT.to(model.device)[:, wanted_S]
        losses = cross_entropy(
            logits_WSV.flatten(0, 1), targets_WS.flatten(), ignore_index=IGNORED, reduction="none"
        )
    return losses.double().view(targets_WS.shape).sum(dim=1).cpu()


def _batches(lengths: Sequence[int]) -> Iterator[slice]:
    """Of rows sorted by length, as many at a time as come to BATCH_TOKENS with their padding."""
    start = 0
    while start < len(lengths):
        end = start + 1
        while end < len(lengths) and (end + 1 - start) * lengths[end] <= BATCH_TOKENS:
            end += 1
        yield slice(start, end)
        start = end


def padded(batch: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Token ids and labels, padded on the right; prompt and padding are IGNORED.  (W, T) each."""
    longest = max(len(ids) for ids, _ in batch)
    ids_WT = torch.zeros(len(batch), longest, dtype=torch.long)
    labels_WT = torch.full_like(ids_WT, IGNORED)
    for row, (ids, num_prompt) in enumerate(batch):
        ids_WT[row, : len(ids)] = torch.tensor(ids)
        labels_WT[row, num_prompt : len(ids)] = torch.tensor(ids[num_prompt:])
    return ids_WT, labels_WT
