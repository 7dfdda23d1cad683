"""Where a slim base departs from its dense one: its logits, its states by layer, what it writes."""

# Shape suffixes:  W = windows,  T = tokens,  H = hidden,  V = vocabulary.

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from pruning.statistics.streaming import mapped
from pruning.text import Tokenizer

PROBE_TOKENS = 1024  # on which both bases are compared
NUM_SAMPLES, PROMPT_TOKENS, NEW_TOKENS = 3, 16, 24


def probes(ids_WT: Tensor) -> Tensor:
    """The windows on which both bases are compared, spread over all of them."""
    num_windows, length = ids_WT.shape
    count = min(num_windows, max(1, PROBE_TOKENS // length))
    return ids_WT[[i * num_windows // count for i in range(count)]]


def record(model: Any, ids_WT: Tensor, directory: Path) -> None:
    """Write what the dense base makes of the probes to files below `directory`, float32."""
    directory.mkdir(parents=True, exist_ok=True)
    for window in range(len(ids_WT)):
        logits_TV, states = _watched(model, ids_WT[window : window + 1])
        _file(directory, f"logits-{window}", logits_TV.shape).copy_(logits_TV)
        for layer, state_TH in enumerate(states):
            _file(directory, f"states-{window}-{layer}", state_TH.shape).copy_(state_TH)


def divergence(
    model: Any,
    ids_WT: Tensor,
    directory: Path,
    kept_layers: Sequence[int],
    num_layers: int,
    widen: Callable[[Tensor], Tensor] = lambda states: states,
) -> tuple[float, list[float]]:
    """How far the slim base is from what `record` wrote: at the logits, and after each layer.

    The mean over tokens of KL(dense ‖ slim) in nats, and by layer of the dense base that of
    ‖slim − dense‖ / ‖dense‖ of the hidden states after it; where a layer has left, those that pass
    its place.  `widen` makes hidden states of the slim base as wide as those of the dense one.
    """
    divergence, errors = 0.0, torch.zeros(num_layers, dtype=torch.float64)
    for window in range(len(ids_WT)):
        logits_TV, states = _watched(model, ids_WT[window : window + 1])
        wanted_TV = _file(directory, f"logits-{window}", logits_TV.shape)
        log_q, log_p = logits_TV.log_softmax(dim=-1), wanted_TV.log_softmax(dim=-1)
        divergence += float(kl_div(log_q, log_p, reduction="batchmean", log_target=True))
        for layer in range(num_layers):
            before = [number for number, kept in enumerate(kept_layers) if kept <= layer]
            if before:
                state_TH = widen(states[before[-1]])
                wanted_TH = _file(directory, f"states-{window}-{layer}", state_TH.shape)
                ratio_T = (state_TH - wanted_TH).norm(dim=1) / wanted_TH.norm(dim=1)
                errors[layer] += ratio_T.double().mean()
    return divergence / len(ids_WT), (errors / len(ids_WT)).tolist()


def continuations(model: Any, tokenizer: Tokenizer, ids_WT: Tensor) -> list[tuple[str, str]]:
    """The opening of some windows, and how the base goes on from there, greedily."""
    count = min(NUM_SAMPLES, len(ids_WT))
    prompts = ids_WT[[i * len(ids_WT) // count for i in range(count)], :PROMPT_TOKENS]
    with torch.inference_mode():
        whole = model.generate(
            prompts.to(model.device),
            attention_mask=torch.ones_like(prompts).to(model.device),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=tokenizer.eos_token_id or 0,
        )
    written = whole[:, prompts.shape[1] :]
    decode = [tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (prompts, written)]
    return list(zip(*decode, strict=True))


@torch.inference_mode()
def _watched(model: Any, ids_1T: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits (T, V) and the hidden states after every layer, each (T, H); on the CPU."""
    states: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        state = output if isinstance(output, Tensor) else output[0]
        states.append(state[0].float().cpu())

    hooks = [layer.register_forward_hook(keep) for layer in model.model.layers]
    try:
        logits = model(input_ids=ids_1T.to(model.device), use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    return logits[0].float().cpu(), states


def _file(directory: Path, name: str, shape: tuple[int, ...]) -> Tensor:
    return mapped(directory / f"{name}.f32", tuple(shape))
