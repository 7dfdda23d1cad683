"""EVA: A along the directions in which a linear's inputs vary most; ranks follow the variance.

Paischer et al., "Parameter Efficient Fine-tuning via Explained Variance Adaptation", NeurIPS 2025,
https://arxiv.org/abs/2410.07170, algorithm 1: incremental singular value decompositions of the
inputs until the components stand still; the explained ratios of all linears are sorted together,
and the first of them share the rank out, at most rho times the rank to a linear.  B is zero.
PEFT's code.
"""

import torch
from peft import initialize_lora_eva_weights
from peft.tuners.lora.config import EvaConfig

from pruning.adapters.train.starts import Start, Starts
from pruning.adapters.train.through_peft import attached, config
from pruning.adapters.train.tuned import Site, module_of, side_a
from pruning.errors import InvalidInput
from pruning.methods.training import EvaParams
from pruning.text import IGNORED


def begin(site: Site, params: EvaParams) -> Starts:
    """Forward passes over the rows, several times if need be; linears may end with no rank."""
    batches = [
        {"input_ids": ids_BT, "attention_mask": (labels_BT != IGNORED).long()}
        for ids_BT, labels_BT in site.batches
    ]
    needed = round(params.rho * site.rank)
    enough = [one for one in batches if int(one["attention_mask"].sum()) >= needed]
    if not enough:
        raise InvalidInput(
            "init.params.rho", f"no batch has {needed} tokens to look at; lower rho or the rank"
        )
    chosen = config(site, "eva", eva_config=EvaConfig(rho=params.rho, tau=params.tau))
    with attached(site, chosen) as adapted, torch.no_grad():
        initialize_lora_eva_weights(adapted, enough, forward_fn=_forward, show_progress_bar=False)
        linears = {}
        for key in site.ranks:
            layer = adapted.get_submodule(f"base_model.model.{module_of(key)}")
            if not hasattr(layer, "lora_A"):  # it explains too little to get a rank
                continue
            a_RI = side_a(layer).weight.detach().float().cpu().clone()
            linears[key] = Start(a_RI, torch.zeros(layer.out_features, len(a_RI)))
    return Starts(linears, site.scale)


def _forward(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> None:
    model(input_ids=batch["input_ids"], use_cache=False, logits_to_keep=1)
