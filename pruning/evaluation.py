"""What a saved base is worth: perplexity on text, and the loss of adapters on their own rows."""

# Shape suffixes:  W = windows or rows of a batch,  T = tokens,  S = tokens with a logit that is
# asked for,  V = vocabulary.

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from pruning.errors import InvalidInput
from pruning.geometry import Geometry
from pruning.models.modeling import register
from pruning.progress import Progress
from pruning.recipe import Text
from pruning.text import Tokenizer, token_stream

BATCH_TOKENS = 2048
IGNORED = -100  # label of a token that is not scored

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
        nll += _nll(model, text.ids_WT[chosen], text.labels_WT[chosen])
    return Perplexity(math.exp(nll / text.num_tokens), math.exp(nll / text.num_words))


def rows(tokenizer: Tokenizer, path: Path, longest: int, field: str) -> list[Example]:
    """The rows of an eval.jsonl, {"prompt", "completion"}: bos, prompt, completion, eos.

    Or of chat, {"messages"}: for each turn of the assistant the chat so far, and that turn.  What
    exceeds `longest` tokens leaves at the head of the prompt, then at the completion's end.
    Raises InvalidInput on `field` for a line that is no such row, or when there is none.
    """
    examples: list[Example] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if "messages" in row:
                examples += _turns(tokenizer, row["messages"], longest)
            else:
                examples.append(_example(tokenizer, row["prompt"], row["completion"], longest))
        except (ValueError, KeyError, TypeError, TemplateError) as error:
            raise InvalidInput(
                field,
                f'{path.name}, line {number}: no {{"prompt", "completion"}} or {{"messages"}} '
                f"({error})",
            ) from error
    if not examples:
        raise InvalidInput(field, f"{path.name} has no rows; fill it or leave it out")
    return examples


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


def _example(tokenizer: Tokenizer, prompt: str, completion: str, longest: int) -> Example:
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    answer = tokenizer.encode(completion, add_special_tokens=False) + eos
    return _cut(bos, tokenizer.encode(prompt, add_special_tokens=False), answer, longest)


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
    examples = sorted(data, key=lambda example: len(example[0]))
    nll, count, done = 0.0, 0, 0
    for batch in _batches(examples):
        progress(done / len(examples), "adapter loss")
        ids_WT, labels_WT = padded(batch)
        nll += _nll(model, ids_WT, labels_WT)
        count += int((labels_WT[:, 1:] != IGNORED).sum())
        done += len(batch)
    return nll / count


def with_adapter(model: Any, adapter: Path) -> Any:
    """The model with a PEFT adapter; `.unload()` gives the model back."""
    from peft import PeftModel  # a second that bases without adapters do without

    return PeftModel.from_pretrained(model, adapter, low_cpu_mem_usage=True).eval()


def _nll(model: Any, ids_WT: Tensor, labels_WT: Tensor) -> float:
    """Summed negative log likelihood of the labelled tokens.

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
    return float(losses.double().sum())


def _batches(examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
    start = 0
    while start < len(examples):
        end = start + 1
        while end < len(examples) and (end + 1 - start) * len(examples[end][0]) <= BATCH_TOKENS:
            end += 1
        yield examples[start:end]
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
