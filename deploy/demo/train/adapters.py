"""Train the demo adapters: one plain LoRA (r=8, all seven linears) per task, resumable by task.

Usage: python adapters.py DATA BASE OUT [--tasks NAME …] [--steps N] [--rank R]

Half of the examples are shown as plain prompt and completion, half as one chat exchange; only the
completion and the closing eos carry loss.  OUT/NAME receives the adapter, eval.jsonl, the first
held-out rows of the task, and calibration.jsonl, a few of the rows that it was trained on.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

SEED = 0
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EVAL_ROWS = 50
CALIBRATION_BYTES = 16_384
WARM_UP_STEPS = 10


def read_rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf8").split("\n") if line]


def excerpt(rows: list[dict[str, str]]) -> list[str]:
    """Lines of JSON, about CALIBRATION_BYTES of them, spread evenly over the rows."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    count = CALIBRATION_BYTES * len(lines) // sum(len(line.encode()) + 1 for line in lines)
    return [lines[i * len(lines) // count] for i in range(count)]


def write_lines(lines: list[str], path: Path) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf8")


def encode(
    tokenizer: PreTrainedTokenizerBase, row: dict[str, str], as_chat: bool, max_length: int
) -> tuple[list[int], int]:
    """The token ids of an example and how many of them are prompt; long prompts lose their head."""
    prompt, completion = row["prompt"], row["completion"]
    if as_chat:
        content = prompt.strip() or "Write a scene."
        messages = [{"role": "user", "content": content}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt, completion = prompt.removeprefix(tokenizer.bos_token), completion.strip()
    answer = tokenizer.encode(completion, add_special_tokens=False) + [tokenizer.eos_token_id]
    answer = answer[: max_length - 1]
    room = max_length - 1 - len(answer)
    ids = tokenizer.encode(prompt, add_special_tokens=False)[-room:] if room else []
    return [tokenizer.bos_token_id, *ids, *answer], 1 + len(ids)


def collate(examples: list[tuple[list[int], int]], pad: int) -> dict[str, torch.Tensor]:
    """Right-padded batch: input_ids, attention_mask and labels, each (rows, longest)."""
    shape = (len(examples), max(len(ids) for ids, _ in examples))
    batch = {
        "input_ids": torch.full(shape, pad),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, -100),
    }
    for i, (ids, prompt_length) in enumerate(examples):
        batch["input_ids"][i, : len(ids)] = torch.tensor(ids)
        batch["attention_mask"][i, : len(ids)] = 1
        batch["labels"][i, prompt_length : len(ids)] = torch.tensor(ids[prompt_length:])
    return batch


def rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARM_UP_STEPS, 1.25 * (1 - step / steps))


def train(a: argparse.Namespace, task: str) -> None:
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    tokenizer = AutoTokenizer.from_pretrained(a.base)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = LlamaForCausalLM.from_pretrained(a.base, dtype=torch.float32).to(device)
    lora = LoraConfig(
        r=a.rank, lora_alpha=2 * a.rank, target_modules=LINEARS, task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, lora).train()
    opt = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=a.lr, weight_decay=0.0, fused=True
    )
    rows = read_rows(a.data / "tasks" / task / "train.jsonl")
    calibration = excerpt(rows)
    started, losses = time.time(), []
    for step in range(a.steps):
        if step % max(1, len(rows) // a.rows) == 0:
            rng.shuffle(rows)
        start = step * a.rows % (len(rows) - a.rows + 1)
        examples = [
            encode(tokenizer, row, rng.random() < 0.5, a.length)
            for row in rows[start : start + a.rows]
        ]
        batch = {k: v.to(device) for k, v in collate(examples, tokenizer.pad_token_id).items()}
        for group in opt.param_groups:
            group["lr"] = a.lr * rate(step, a.steps)
        # without AMX a CPU only emulates bfloat16, many times slower than float32
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == a.steps:
            mean = sum(losses[-50:]) / len(losses[-50:])
            print(f"{task} {step + 1} loss {mean:.3f} {time.time() - started:.0f} s", flush=True)
    save(model.half(), a.out / task)
    held_out = read_rows(a.data / "tasks" / task / "eval.jsonl")
    stride = max(1, len(held_out) // EVAL_ROWS)
    lines = [json.dumps(row, ensure_ascii=False) for row in held_out[::stride][:EVAL_ROWS]]
    write_lines(lines, a.out / task / "eval.jsonl")
    write_lines(calibration, a.out / task / "calibration.jsonl")


def save(model: torch.nn.Module, path: Path) -> None:
    """Write the adapter without the base's location and peft's template card."""
    model.save_pretrained(path)
    config = json.loads((path / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "demo"
    config["target_modules"] = LINEARS
    (path / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (path / "README.md").unlink(missing_ok=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--tasks", nargs="+", default=["clinc150", "e2e_nlg", "gsm8k", "shakespeare", "wikisql"]
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--lr", type=float, default=3e-3)
    arguments = parser.parse_args()
    for name in arguments.tasks:
        train(arguments, name)
