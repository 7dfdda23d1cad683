"""Initialisations that PEFT has: its factors, read off a base that is afterwards as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from pruning.adapters.compression import linear_of
from pruning.adapters.train.starts import Start, Starts
from pruning.adapters.train.tuned import Site, module_of, side_a, side_b


def config(site: Site, init: str, **more: Any) -> LoraConfig:
    """PEFT's configuration of an initialisation on the linears of a site."""
    lower = {module_of(key): rank for key, rank in site.ranks.items() if rank != site.rank}
    return LoraConfig(
        r=site.rank,
        lora_alpha=site.scale * site.rank,
        rank_pattern=lower,
        alpha_pattern={module: site.scale * rank for module, rank in lower.items()},
        target_modules=[module_of(key) for key in site.ranks],
        init_lora_weights=init,
        **more,
    )


def starts_of(site: Site, chosen: LoraConfig) -> Starts:
    """What PEFT makes of the weights of the base, which it counts as part of the base's."""
    with attached(site, chosen) as adapted:
        return Starts(_factors(site, adapted), site.scale, is_part_of_base=True)


@contextmanager
def attached(site: Site, chosen: LoraConfig) -> Iterator[Any]:
    """The base with PEFT's factors; it needs memory for a copy of the linears."""
    weights = {key: linear_of(site.model, key).weight.detach().clone() for key in site.ranks}
    torch.manual_seed(site.seed)
    is_empty = chosen.init_lora_weights == "eva"  # which makes its factors afterwards
    adapted = get_peft_model(site.model, chosen, low_cpu_mem_usage=is_empty)
    try:
        yield adapted
    finally:
        base = adapted.unload()
        for key, weight in weights.items():
            linear_of(base, key).weight.data.copy_(weight)


def _factors(site: Site, adapted: Any) -> dict[tuple[int, str], Start]:
    found = {}
    for key in site.ranks:
        layer = adapted.get_submodule(f"base_model.model.{module_of(key)}")
        sides = (
            side.weight.detach().float().cpu().clone() for side in (side_a(layer), side_b(layer))
        )
        found[key] = Start(*sides)
    return found
