"""Self-calibration: a base writes on from the text that calibrates it, where that is short.

Williams, Chrysostomou and Aletras, "Self-calibration for Language Model Quantization and Pruning",
NAACL 2025, https://arxiv.org/abs/2410.17170: samples of the model itself calibrate it.  Theirs
begin with nothing; these go on from the ends of given sequences, and stay with what those are
about.  The base is held whole in memory.
"""

# Shape suffixes:  S = given sequences,  N = written ones,  T = tokens of each,
# B = sequences of a batch,  P = tokens they begin with,  V = vocabulary.

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pruning.evaluation import load
from pruning.progress import Progress
from pruning.text import load_tokenizer

TEMPERATURE = 0.8
BATCH = 32  # sequences
_PROMPTS = (1 / 8, 2 / 8, 3 / 8)  # of a sequence, one after the other


def written(
    base: Path, ids_ST: Tensor, count: int, seed: int, state: Path, progress: Progress
) -> Tensor:
    """So many sequences by the base itself, as long as the given ones; (N, T) int64.

    Each begins with the end of a given sequence, after that one's bos token if there is one, and
    has no special token beyond it.  Drawn on the CPU: the same for the same base and seed.  What
    is below `state` survives a kill, which costs one batch.
    """
    tokenizer, generator = load_tokenizer(base), torch.Generator().manual_seed(seed)
    prompts = list(_prompts(ids_ST, 0 if tokenizer.bos_token_id is None else 1, count))
    model, found = None, list[Tensor]()
    for done, prompts_BP in enumerate(prompts):
        path = state / f"written-{done}.safetensors"
        if not path.exists():
            progress(done / len(prompts), f"writing text, batch {done + 1} of {len(prompts)}")
            model = model or load(base)
            barred = [id for id in tokenizer.all_special_ids if id < model.config.vocab_size]
            ids_BT = _continued(model, prompts_BP, ids_ST.shape[1], barred, generator)
            save_file({"ids": ids_BT, "generator": generator.get_state()}, state / "draft")
            (state / "draft").rename(path)
        batch = load_file(path)
        generator.set_state(batch["generator"])
        found.append(batch["ids"])
    return torch.cat(found)


def _prompts(ids_ST: Tensor, opening: int, count: int) -> Iterator[Tensor]:
    """What each batch begins with; every given sequence has a turn before one has a second."""
    num_given, length = ids_ST.shape
    for turn in range(math.ceil(count / num_given)):
        num_tokens = int(length * _PROMPTS[turn % len(_PROMPTS)])
        given_ST = ids_ST[: count - turn * num_given]
        ends = given_ST[:, :opening], given_ST[:, length - num_tokens :]
        prompts = torch.cat(ends, dim=1)
        yield from (prompts[i : i + BATCH] for i in range(0, len(prompts), BATCH))


@torch.inference_mode()
def _continued(
    model: Any, prompts_BP: Tensor, length: int, barred: Sequence[int], generator: torch.Generator
) -> Tensor:
    """Prompts and what the base goes on with, so many tokens together; on the CPU."""
    from transformers import StaticCache  # seconds, for stages that write nothing

    cache = StaticCache(config=model.config, max_cache_len=length)
    ids_BT = unseen_BP = prompts_BP
    while ids_BT.shape[1] < length:
        output = model(
            unseen_BP.to(model.device), past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        logits_BV = output.logits[:, -1].float().cpu()
        logits_BV[:, barred] = -math.inf
        chances_BV = (logits_BV / TEMPERATURE).softmax(dim=-1)
        unseen_BP = torch.multinomial(chances_BV, 1, generator=generator)
        ids_BT = torch.cat([ids_BT, unseen_BP], dim=1)
    return ids_BT
