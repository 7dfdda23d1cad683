"""adapter_config.json of PEFT: is it a plain LoRA, and which rank has each module?  Torch-free."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pruning.errors import InvalidInput

CONFIG = "adapter_config.json"
CONFIG_LIMIT = 1 << 20  # bytes
_PLAIN_PATTERN = re.compile(r"\^?(?:\w|\\?\.)+")  # a quantifier could make matching take forever

_UNSERVABLE = {
    "use_dora": "DoRA scales whole weights; retrain with use_dora=false",
    "lora_bias": "LoRA biases are not served; retrain with lora_bias=false",
    "modules_to_save": "fully trained modules are not served; retrain with LoRA on them instead",
    "trainable_token_indices": "trained tokens are not served; retrain without them",
    "target_parameters": "LoRA on bare parameters is not served; target linears instead",
    "layer_replication": "replicated layers are not served; train on a base that has them",
    "alora_invocation_tokens": "Activated LoRA is not served; retrain without invocation tokens",
    "use_qalora": "QALoRA is not served; retrain with use_qalora=false",
    "use_bdlora": "block-diagonal LoRA is not served; retrain without it",
    "arrow_config": "Arrow routing is not served; retrain without it",
    "kasa_config": "KaSA is not served; retrain without it",
    "monteclora_config": "MonteCLoRA is not served; retrain without it",
}
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq")


def read_config(path: Path, field: str) -> dict[str, Any]:
    """An adapter_config.json that describes a plain LoRA.

    Raises InvalidInput, naming the entry and the fix, for everything else.
    """
    if path.stat().st_size > CONFIG_LIMIT:
        raise InvalidInput(field, f"{CONFIG} is larger than {CONFIG_LIMIT} bytes")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidInput(field, f"{CONFIG} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise InvalidInput(field, f"{CONFIG} must hold an object")
    _check_features(config, field)
    _check_numbers(config, field)
    return config


def _check_features(config: Mapping[str, Any], field: str) -> None:
    if (kind := config.get("peft_type")) != "LORA":
        raise InvalidInput(
            f"{field}.peft_type",
            f"{kind!r} is not served, only 'LORA'; convert it (peft.convert_to_lora) or retrain",
            code="unsupported_adapter",
        )
    for name, reason in _UNSERVABLE.items():
        if config.get(name):
            raise InvalidInput(f"{field}.{name}", reason, code="unsupported_adapter")
    if config.get("bias", "none") != "none":
        raise InvalidInput(
            f"{field}.bias",
            f"{config['bias']!r}: trained biases are not served; retrain with bias='none'",
            code="unsupported_adapter",
        )
    if str(config.get("init_lora_weights", "")).lower().startswith(_BASE_CHANGING_INITS):
        raise InvalidInput(
            f"{field}.init_lora_weights",
            f"{config['init_lora_weights']!r} changes the base's own weights; save the adapter "
            "with path_initial_model_for_weight_conversion to make it a plain LoRA",
            code="unsupported_adapter",
        )


def _check_numbers(config: Mapping[str, Any], field: str) -> None:
    checks = {"r": _is_rank, "lora_alpha": _is_alpha}
    for name, valid in checks.items():
        if not valid(config.get(name)):
            raise InvalidInput(f"{field}.{name}", f"{config.get(name)!r} is not a positive number")
    for name, valid in (("rank_pattern", _is_rank), ("alpha_pattern", _is_alpha)):
        pattern = config.get(name) or {}
        if not isinstance(pattern, dict) or not all(map(valid, pattern.values())):
            raise InvalidInput(f"{field}.{name}", "must map module names to positive numbers")
        for key in pattern:
            if not _PLAIN_PATTERN.fullmatch(key):
                raise InvalidInput(
                    f"{field}.{name}",
                    f"{key!r} is a regular expression; name the modules one by one",
                )


def _is_rank(value: object) -> bool:
    return type(value) is int and value > 0


def _is_alpha(value: object) -> bool:
    return type(value) in (int, float) and 0 < value < 1e6  # type: ignore[operator]


def rank_of(config: Mapping[str, Any], module: str) -> int:
    """The rank that PEFT gives a module: the first pattern that ends its name, or `r`."""
    for key, rank in (config.get("rank_pattern") or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return int(rank)
    return int(config["r"])
