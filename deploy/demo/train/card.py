"""Measure the demo model and write its card.

Usage: python card.py DATA DEMO WORK     (after corpus.py, base.py and adapters.py)
"""

import json
import sys
from pathlib import Path

from pruning.evaluation import completion_loss, load, perplexity, rows, windows, with_adapter
from pruning.recipe import Text
from pruning.text import load_tokenizer
from pruning.weights.checkpoint import Checkpoint

EVERY_WINDOW = Text(file="wikitext-2", sequences=65536, length=256)
LONGEST = 256
MEBIBYTE = 1 << 20

SOURCES = {
    "WikiText-2 (train)": ("Wikipedia articles", "CC BY-SA 3.0"),
    "100 English novels, 1843-1926": ("97 of them; three are held out", "public domain"),
    "Python standard library": ("source code", "PSF-2.0"),
    "MBPP": ("chat examples", "CC BY 4.0"),
    "the five tasks below": ("chat examples, 1,000 rows each", "as below"),
}
TASKS = {
    "clinc150": ("query to intent", "CLINC150", "CC BY 3.0"),
    "e2e_nlg": ("record to restaurant sentence", "E2E NLG", "CC BY-SA 4.0"),
    "gsm8k": ("arithmetic word problem to solution", "GSM8K", "MIT"),
    "shakespeare": ("style: lines of plays", "Tiny Shakespeare", "public domain"),
    "wikisql": ("question to SQL", "WikiSQL", "BSD-3-Clause"),
}


def quiet(fraction: float, message: str) -> None:
    """Progress that nobody watches."""


def table(header: list[str], body: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def perplexities(data: Path, base: Path) -> str:
    tokenizer, model = load_tokenizer(base), load(base)
    body = []
    for split in ("valid", "test"):
        text = windows(tokenizer, data / "wikitext-2" / f"{split}.txt", EVERY_WINDOW)
        measured = perplexity(model, text, quiet)
        values = [f"{measured.token:.2f}", f"{measured.word:.1f}"]
        body.append([split, f"{text.num_tokens:,}", *values])
        print(body[-1], flush=True)
    return table(["split", "tokens scored", "per token", "per word"], body)


def adapter_losses(data: Path, base: Path, adapters: Path) -> str:
    tokenizer, model = load_tokenizer(base), load(base)
    body = []
    for path in sorted(adapters.iterdir()):
        what, source, licence = TASKS[path.name]
        held_out = data / "tasks" / path.name / "eval.jsonl"
        examples = rows(tokenizer, held_out, LONGEST, "adapters")
        before = completion_loss(model, examples, quiet)
        adapted = with_adapter(model, path)
        after = completion_loss(adapted, examples, quiet)
        model = adapted.unload()
        size = (path / "adapter_model.safetensors").stat().st_size / MEBIBYTE
        losses = [f"{before:.3f}", f"{after:.3f}", f"{size:.2f} MiB"]
        body.append([path.name, what, f"{source}, {licence}", str(len(examples)), *losses])
        print(body[-1], flush=True)
    header = ["adapter", "task", "data, licence", "held-out rows", "base", "with adapter", "size"]
    return table(header, body)


def training(work: Path) -> str:
    corpus = json.loads((work / "corpus.json").read_text())
    last = json.loads((work / "train_log.jsonl").read_text().strip().split("\n")[-1])
    passes = ", ".join(f"{name} {c['tokens']:,}" for name, c in corpus.items() if "_" not in name)
    return (
        f"{last['step']:,} steps of 8,192 tokens, {last['tokens']:,} tokens in all, drawn from "
        f"sources of this many tokens: {passes}."
    )


def card(data: Path, demo: Path, work: Path) -> str:
    geometry = Checkpoint(demo / "base").geometry
    layer = geometry.layers[0]
    size = (demo / "base" / "model.safetensors").stat().st_size / MEBIBYTE
    sources = [[name, what, licence] for name, (what, licence) in SOURCES.items()]
    return f"""# The demo model

A small real Llama and {len(TASKS)} real LoRA adapters, so that everything can be tried without a
GPU and without a hub. It writes English that looks like English; it knows nothing.

## Base

{geometry.parameters:,} parameters ({geometry.body_parameters:,} without the tied embedding),
{len(geometry.layers)} layers, hidden size {geometry.hidden_size}, {layer.num_heads} heads of
{geometry.head_dim} over {layer.num_kv_heads} KV heads, FFN width {layer.intermediate_size},
{geometry.vocab_size:,} byte-level BPE tokens, context 512, float16, {size:.1f} MiB.

{table(["data", "what of it", "licence"], sources)}

Trained with `train/corpus.py` and `train/base.py` (seeded): {training(work)}

WikiText-2 perplexity: the official text, `<unk>` kept, is one token stream without bos; windows of
256 tokens start every 128 and score what no earlier window scored (a tail shorter than that is
left out). Per word, words and line ends are counted.

{perplexities(data, demo / "base")}

## Adapters

Plain LoRA, r=8, alpha=16, on all seven linears, trained with `train/adapters.py` on the training
rows of each task, half as plain prompts and half as chat. Loss is the mean negative log likelihood
per completion token on all held-out rows, in nats; `eval.jsonl` holds 50 of these rows, and
`calibration.jsonl` 16 kB of training rows, spread evenly, under the licence of the task's data.

{adapter_losses(data, demo / "base", demo / "adapters")}

Weights, tokenizer and texts derived from CC BY-SA sources are offered under CC BY-SA 4.0.
`text/calibration.txt` is from WikiText-2's training split, `text/evaluation.txt` from its test
split.

## Recipes

`recipe.yaml` cuts by gradients on WikiText alone. `mixed.yaml` cuts and refits in closed form on a
mixture, half of it WikiText and half what the five adapters were trained on:
`graftwork prune mixed.yaml --wait` in this folder makes it beside the first.
"""


if __name__ == "__main__":
    DATA, DEMO, WORK = map(Path, sys.argv[1:4])
    (DEMO / "README.md").write_text(card(DATA, DEMO, WORK), encoding="utf-8")
