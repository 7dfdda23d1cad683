"""Train the demo base: a small Llama, on CPU or GPU, resumable to the step.

Usage: python base.py WORK OUT [--steps N] [--decay N]     (after corpus.py)

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) for the matrices, AdamW for
embeddings and norms; warm-up, constant, then linear decay over the last --decay steps, which see
windows of 512 tokens in place of 256.  Learning rate and batch are functions of the step alone,
so a run may be stopped in its constant phase and resumed with another --steps: the result is
that of an undisturbed run.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

SEED = 1234
MIX = {"wikitext2": 0.62, "novels": 0.24, "python": 0.08, "chat": 0.06}
BATCH_TOKENS = 8192
LENGTH, DECAY_LENGTH = 256, 512
WARM_UP_STEPS = 100
CHECKPOINT_STEPS = 100
MUON_LR, ADAMW_LR, WEIGHT_DECAY = 0.02, 4e-3, 0.05


def config(tokenizer: AutoTokenizer) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def windows(path: Path, length: int, seed: list[int]) -> Iterator[np.ndarray]:
    """Shuffled windows of a token file without end; each epoch has its own offset and order."""
    tokens = np.fromfile(path, dtype=np.uint16)
    rng = np.random.default_rng(seed)
    while True:
        offset = int(rng.integers(0, length))
        for index in rng.permutation((len(tokens) - offset) // length):
            start = offset + index * length
            yield tokens[start : start + length]


def batches(work: Path, length: int) -> Iterator[torch.Tensor]:
    """Batches (BATCH_TOKENS / length, length) of the mix; the same sequence in every run."""
    rows = BATCH_TOKENS // length
    rng = np.random.default_rng([SEED, length])
    names = enumerate(MIX)
    sources = [windows(work / f"{name}.bin", length, [SEED, length, i]) for i, name in names]
    while True:
        chosen = rng.choice(len(sources), size=rows, p=list(MIX.values()))
        yield torch.from_numpy(np.stack([next(sources[i]) for i in chosen]).astype(np.int64))


def learning_rate(step: int, steps: int, decay: int) -> float:
    """The fraction of the peak rate at a step: warm-up, constant, linear decay."""
    return min(1.0, (step + 1) / WARM_UP_STEPS, max(0.0, (steps - step) / decay))


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=WEIGHT_DECAY, momentum=0.95),
        torch.optim.AdamW(others, lr=ADAMW_LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


@torch.no_grad()
def validation_loss(model: LlamaForCausalLM, path: Path, length: int, rows: int = 16) -> float:
    """Mean loss per token on every eighth window; quick, not the perplexity of the model card."""
    tokens = torch.from_numpy(np.fromfile(path, dtype=np.uint16).astype(np.int64))
    table = tokens[: len(tokens) // length * length].view(-1, length)[::8].to(model.device)
    losses = [model(input_ids=x, labels=x).loss.item() * len(x) for x in table.split(rows)]
    return sum(losses) / len(table)


def save_checkpoint(path: Path, model: LlamaForCausalLM, opts: list, step: int) -> None:
    state = {"model": model.state_dict(), "opts": [o.state_dict() for o in opts], "step": step}
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


def load_checkpoint(path: Path, model: LlamaForCausalLM, opts: list) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for opt, saved in zip(opts, state["opts"], strict=True):
        opt.load_state_dict(saved)
    return state["step"]


def main(a: argparse.Namespace) -> None:
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(a.work / "tokenizer")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = LlamaForCausalLM(config(tokenizer)).to(device)
    opts = optimizers(model)
    first = load_checkpoint(a.work / "checkpoint.pt", model, opts)
    constant, decaying = batches(a.work, LENGTH), batches(a.work, DECAY_LENGTH)
    data = [constant] * (a.steps - a.decay) + [decaying] * a.decay
    for source in data[:first]:
        next(source)
    forward = torch.compile(model)
    log = (a.work / "train_log.jsonl").open("a", encoding="utf8")
    started, losses = time.time(), []
    for step in range(first, a.steps):
        rate = learning_rate(step, a.steps, a.decay)
        for opt, peak in zip(opts, (MUON_LR, ADAMW_LR), strict=True):
            opt.param_groups[0]["lr"] = peak * rate
        batch = next(data[step]).to(device)
        with torch.autocast(device, torch.bfloat16):
            loss = forward(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if (step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == a.steps:
            save_checkpoint(a.work / "checkpoint.pt", model, opts, step + 1)
            valid = validation_loss(model, a.work / "wikitext2_valid.bin", 256)
            row = {
                "step": step + 1,
                "tokens": (step + 1) * BATCH_TOKENS,
                "loss": round(float(np.mean(losses[-CHECKPOINT_STEPS:])), 4),
                "wikitext2_valid_ppl": round(math.exp(valid), 2),
                "rate": rate,
                "seconds": round(time.time() - started),
            }
            log.write(json.dumps(row) + "\n")
            log.flush()
            print(row, flush=True)
    model.half().save_pretrained(a.out)
    tokenizer.save_pretrained(a.out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--decay", type=int, default=900)
    main(parser.parse_args())
