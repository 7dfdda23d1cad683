"""Build the demo corpus: a 4096-token byte-level BPE and one uint16 token file per source.

Usage: python corpus.py DATA WORK     (half a minute; the result depends on DATA alone)

DATA holds wikitext-2/, novels/, tasks/NAME/{train,eval}.jsonl and mbpp/mbpp.jsonl; the Python
standard library of the running interpreter is the source of code.
"""

import json
import random
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SEED = 1234
VOCAB_SIZE = 4096
SPECIAL_TOKENS = ["<s>", "</s>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>"]
HELD_OUT_NOVELS = {"Doyle_Hound_1902", "Stevenson_Treasure_1883", "Burnett_Garden_1911"}
NOVEL_CHARACTERS = 220_000  # of each novel, so that no author dominates
CODE_CHARACTERS = 3_000_000
CHAT_ROWS = 1_000  # of each task, so that the base knows the chat format but not the tasks
TOKENIZER_CHARACTERS = 400_000  # of each task, so that task text is not cut into single bytes

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def wikitext_articles(path: Path) -> list[str]:
    """The articles of a WikiText split; an article opens with a ` = Title = ` line."""
    parts = re.split(r"(?m)^(?= = [^=\n]+ = $)", path.read_text(encoding="utf8"))
    return [part for part in parts if part.strip()]


def novel_text(path: Path) -> str:
    """A novel with its hard line breaks removed and its paragraphs kept."""
    text = path.read_text(encoding="utf8", errors="replace").replace("\r", "")
    return re.sub(r"[ \t]+", " ", re.sub(r"(?<!\n)\n(?!\n)", " ", text))


def novels(folder: Path, rng: random.Random) -> Iterator[str]:
    for path in sorted(folder.glob("*.txt")):
        if path.stem not in HELD_OUT_NOVELS:
            text = novel_text(path)
            start = rng.randrange(max(1, len(text) - NOVEL_CHARACTERS))
            yield text[start : start + NOVEL_CHARACTERS]


def standard_library(rng: random.Random) -> Iterator[str]:
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    rng.shuffle(paths)
    total = 0
    for path in paths:
        if total < CODE_CHARACTERS:
            text = path.read_text(encoding="utf8", errors="replace")[:60_000]
            total += len(text)
            yield text


def rows(path: Path, limit: int | None = None) -> list[dict[str, str]]:
    lines = path.read_text(encoding="utf8").strip().split("\n")
    return [json.loads(line) for line in lines[:limit]]


def chat(prompt: str, completion: str) -> str:
    """One exchange in the words of CHAT_TEMPLATE, without the leading bos."""
    return f"<|user|>{prompt.strip()}</s><|assistant|>{completion.strip()}</s>"


def chats(data: Path) -> Iterator[str]:
    for path in sorted(data.glob("tasks/*/train.jsonl")):
        for row in rows(path, CHAT_ROWS):
            yield chat(row["prompt"] or "Write a scene.", row["completion"])
    for row in rows(data / "mbpp" / "mbpp.jsonl"):
        yield chat(row["text"], row["code"].replace("\r", ""))


def train_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=SPECIAL_TOKENS,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def write_tokens(tokenizer: PreTrainedTokenizerFast, texts: list[str], path: Path) -> int:
    """Write the texts as one uint16 stream, each opened by bos; return the number of tokens."""
    bos = tokenizer.bos_token_id
    ids: list[int] = []
    for encoding in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False):
        ids += [bos, *encoding.ids]
    np.array(ids, dtype=np.uint16).tofile(path)
    return len(ids)


def main(data: Path, work: Path) -> None:
    rng = random.Random(SEED)
    work.mkdir(parents=True, exist_ok=True)
    sources = {
        "wikitext2": wikitext_articles(data / "wikitext-2" / "train.txt"),
        "novels": list(novels(data / "novels", rng)),
        "python": list(standard_library(rng)),
        "chat": list(chats(data)),
    }
    rng.shuffle(sources["chat"])
    task_text = [
        path.read_text(encoding="utf8")[:TOKENIZER_CHARACTERS]
        for path in sorted(data.glob("tasks/*/train.jsonl"))
    ]
    tokenizer = train_tokenizer(text for texts in (*sources.values(), task_text) for text in texts)
    tokenizer.save_pretrained(work / "tokenizer")
    valid = (data / "wikitext-2" / "valid.txt").read_text(encoding="utf8")
    counts = {
        name: {
            "tokens": write_tokens(tokenizer, texts, work / f"{name}.bin"),
            "bytes": sum(len(text.encode()) for text in texts),
        }
        for name, texts in (sources | {"wikitext2_valid": [valid]}).items()
    }
    (work / "corpus.json").write_text(json.dumps(counts, indent=1))
    print(json.dumps(counts, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
