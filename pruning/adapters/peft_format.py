"""PEFT adapter directories: is this a plain LoRA that fits this base?  Torch-free, nothing loaded.

Everything is decided from adapter_config.json and the safetensors header; the values are only
looked at to refuse NaN and infinity.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pruning.adapters.peft_config import CONFIG, rank_of, read_config
from pruning.digest import tree_digest
from pruning.errors import InvalidInput
from pruning.geometry import Geometry
from pruning.weights.header import FLOATS, TensorInfo, all_finite, read_header

WEIGHTS = "adapter_model.safetensors"
EVALUATION, CALIBRATION = "eval.jsonl", "calibration.jsonl"  # rows of its task, held out and not
FILES = (CONFIG, WEIGHTS, EVALUATION, CALIBRATION)
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})

_PREFIX = "base_model.model."
_TENSOR = re.compile(
    r"base_model\.model\.(?P<module>model\.layers\.(?P<layer>0|[1-9]\d{0,4})"
    r"\.(?P<block>self_attn|mlp)\.(?P<linear>[a-z_]+))\.lora_(?P<side>[AB])\.weight"
)


@dataclass(frozen=True)
class AdapterInfo:
    """What is known of a checked adapter; `rank` is the largest of its modules."""

    rank: int
    modules: tuple[str, ...]
    dtype: str
    bytes: int
    digest: str


def read_adapter(
    directory: Path, geometry: Geometry, max_rank: int | None = None, field: str = "adapter"
) -> AdapterInfo:
    """Check a PEFT directory against the base that it is for.

    Raises InvalidInput, naming the entry or tensor and the fix, unless it is a plain LoRA on
    linears that the base has, with exactly their widths, of finite values.
    """
    check_files(directory, field)
    config = read_config(directory / CONFIG, field)
    tensors = read_header(directory / WEIGHTS, field)
    modules = _modules(tensors, geometry, field)
    for module, sides in modules.items():
        _check_shapes(module, sides, rank_of(config, module), geometry, field)
    rank = max(sides["A"][1].shape[0] for sides in modules.values())
    if max_rank is not None and rank > max_rank:
        raise InvalidInput(
            f"{field}.r",
            f"rank {rank} exceeds this server's limit of {max_rank}; raise "
            "GRAFTWORK_ENGINE_MAX_LORA_RANK or train with a smaller rank",
        )
    _check_values(directory / WEIGHTS, tensors, field)
    return AdapterInfo(
        rank=rank,
        modules=tuple(sorted(modules)),
        dtype="+".join(sorted({tensor.dtype for tensor in tensors.values()})),
        bytes=sum(tensor.bytes for tensor in tensors.values()),
        digest=adapter_digest(directory),
    )


def adapter_digest(directory: Path) -> str:
    """The digest of what an adapter's directory holds, unchecked."""
    return tree_digest(directory, [name for name in FILES if (directory / name).is_file()])


def check_files(directory: Path, field: str) -> None:
    """Raise InvalidInput unless the directory has an adapter's configuration and weights."""
    if not directory.is_dir():
        raise InvalidInput(field, f"there is no directory {directory} on the server")
    if not (directory / WEIGHTS).is_file():
        check_names((p.name for p in directory.iterdir() if p.suffix in PICKLES), field)
    missing = [name for name in (CONFIG, WEIGHTS) if not (directory / name).is_file()]
    if missing:
        raise InvalidInput(
            field,
            f"{' and '.join(missing)} missing; give what PEFT's save_pretrained wrote",
            code="missing_file",
        )


def check_names(names: Iterable[str], field: str) -> None:
    """Raise InvalidInput for a file that is no part of an adapter."""
    for name in sorted(names):
        if Path(name).suffix in PICKLES:
            raise InvalidInput(
                field,
                f"{name}: pickled weights can run code and are never read; save the adapter as "
                "safetensors, with save_pretrained(safe_serialization=True)",
                code="pickle_refused",
            )
        if name not in FILES:
            raise InvalidInput(
                field, f"{name!r} is no file of an adapter; those are {', '.join(FILES)}"
            )


_Sides = dict[str, tuple[str, TensorInfo]]  # "A" and "B": tensor name and what is declared


def _modules(
    tensors: Mapping[str, TensorInfo], geometry: Geometry, field: str
) -> dict[str, _Sides]:
    """The tensors by module, each with both of its sides."""
    modules: dict[str, _Sides] = {}
    for name, tensor in tensors.items():
        module, side = _place(name, geometry, field)
        modules.setdefault(module, {})[side] = (name, tensor)
    for module, sides in modules.items():
        if missing := {"A", "B"} - set(sides):
            raise InvalidInput(
                field,
                f"tensor {_PREFIX}{module}.lora_{missing.pop()}.weight is missing although its "
                "counterpart is there; the file is incomplete, save the adapter again",
            )
    if not modules:
        raise InvalidInput(field, f"{WEIGHTS} holds no tensors")
    return modules


def _place(name: str, geometry: Geometry, field: str) -> tuple[str, str]:
    match = _TENSOR.fullmatch(name)
    places = {(b.name, linear) for b in geometry.architecture.blocks for linear in b.linears}
    if match is None or (match["block"], match["linear"]) not in places:
        raise InvalidInput(
            field,
            f"tensor {name} belongs to no module that can carry LoRA here; adapters go on "
            f"{', '.join(geometry.architecture.linears)} of the decoder layers only",
            code="unsupported_adapter",
        )
    layer = int(match["layer"])
    if layer >= len(geometry.layers):
        raise InvalidInput(
            field,
            f"tensor {name} is for layer {layer}, and the base has {len(geometry.layers)} layers"
            f"{_OTHER_BASE}",
            code="adapter_mismatch",
        )
    if geometry.linear_shape(layer, match["linear"]) is None:
        raise InvalidInput(
            field,
            f"tensor {name} is for a {match['block']} block that layer {layer} of the base does "
            f"not have{_OTHER_BASE}",
            code="adapter_mismatch",
        )
    return match["module"], match["side"]


_OTHER_BASE = (
    "; the adapter was probably trained for another base (a pruning job carries the adapters of "
    "a base over to its slim base)"
)


def _check_shapes(module: str, sides: _Sides, rank: int, geometry: Geometry, field: str) -> None:
    layer, linear = int(module.split(".")[2]), module.rsplit(".", 1)[1]
    shape = geometry.linear_shape(layer, linear)
    assert shape is not None  # _place has seen to it
    outputs, inputs = shape
    for side, needed in (("A", (rank, inputs)), ("B", (outputs, rank))):
        name, tensor = sides[side]
        if tensor.dtype not in FLOATS:
            raise InvalidInput(
                field, f"tensor {name} is {tensor.dtype}; save it as {', '.join(FLOATS)}"
            )
        if tensor.shape == needed:
            continue
        width = 1 if side == "A" else 0  # the axis that the base decides
        wrong_rank = len(tensor.shape) == 2 and tensor.shape[width] == needed[width]
        cause = (
            f"; {CONFIG} gives this module rank {rank}, one of the two files is of another adapter"
            if wrong_rank
            else _OTHER_BASE
        )
        raise InvalidInput(
            field,
            f"tensor {name} is {tensor.shape}, {linear} of layer {layer} with rank {rank} needs "
            f"{needed}{cause}",
            code="adapter_mismatch",
        )


def _check_values(path: Path, tensors: Mapping[str, TensorInfo], field: str) -> None:
    for name, tensor in tensors.items():
        if not all_finite(path, tensor):
            raise InvalidInput(
                field,
                f"tensor {name} holds NaN or infinity; the training diverged, use an earlier "
                "checkpoint",
                code="adapter_not_finite",
            )
