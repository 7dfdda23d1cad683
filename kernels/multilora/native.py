"""The compiled library: loaded once, with the best instruction set of this processor."""

import ctypes
import logging
import os
from functools import cache
from pathlib import Path

import torch

logger = logging.getLogger("multilora")

LIBRARY = Path(__file__).parent / "libmultilora.so"
INSTRUCTION_SETS = ("avx512_bf16", "avx512", "avx2")  # best first
DTYPES = (torch.float32, torch.bfloat16)


@cache
def library() -> ctypes.CDLL | None:
    """The library with its operators registered; None, with one line in the log, without it."""
    try:
        torch.ops.load_library(LIBRARY)  # type: ignore[no-untyped-call]
        loaded = ctypes.CDLL(str(LIBRARY))
        loaded.multilora_select.restype = ctypes.c_bool
        wanted = os.environ.get("MULTILORA_ISA")
        for name in [wanted] if wanted else INSTRUCTION_SETS:
            if loaded.multilora_select(name.encode()):
                return loaded
        raise OSError(f"this processor has none of {wanted or ', '.join(INSTRUCTION_SETS)}")
    except (OSError, AttributeError) as problem:
        logger.warning("no multi-adapter kernels, torch does their work: %s", problem)
        return None


def available(device: str = "cpu") -> bool:
    """Whether there are kernels for a type of device."""
    if library() is None:
        return False
    return device == "cpu" or torch._C._dispatch_has_kernel_for_dispatch_key(
        "multilora::apply_", device.upper()
    )


def has(instruction_set: str) -> bool:
    """Whether the library is there and this processor has an instruction set; selects it if so.

    What it selects holds for the whole process.
    """
    loaded = library()
    return loaded is not None and bool(loaded.multilora_select(instruction_set.encode()))
