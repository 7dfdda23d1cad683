"""A tiny base with an adapter, and sweeps over it that the real pipeline can run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from pruning.architectures.llama import LINEARS
from pruning.recipe import PruneSpec
from pruning.sweeps.recipe import SweepRecipe, SweepSpec
from pruning.sweeps.report import Cell, SweepReport, compared

TEXT = "".join(f"Sentence {i} is about the number {i * i}.\n" for i in range(60))
ROWS = '{"prompt": "One and one is", "completion": " two."}\n' * 3


@pytest.fixture(scope="session")
def adapter(dense_base: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(dense_base("llama"), dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=list(LINEARS)))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.2 * torch.randn_like(parameter)
    directory = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(directory)
    (directory / "eval.jsonl").write_text(ROWS)
    return directory


@pytest.fixture(scope="session")
def recipe() -> Callable[..., SweepRecipe]:
    """A recipe with a grid; fields given as None are left out."""

    def make(**changes: Any) -> SweepRecipe:
        asked: dict[str, Any] = {
            "name": "sweep",
            "base": "dense",
            "ffn_multiple": 4,
            "target": 0.3,
            "calibration": {"file": "file-1", "sequences": 6, "length": 32},
            "evaluation": {"file": "file-2", "sequences": 4, "length": 32},
            "grid": {"criterion": [{"name": "taylor"}, {"name": "magnitude"}]},
        }
        asked |= changes
        return SweepRecipe.model_validate({k: v for k, v in asked.items() if v is not None})

    return make


@pytest.fixture(scope="session")
def spec(
    dense_base: Callable[[str], Path],
    adapter: Path,
    recipe: Callable[..., SweepRecipe],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., SweepSpec]:
    """A sweep over the tiny base, its adapter carried, with changes to its recipe."""
    text = tmp_path_factory.mktemp("text") / "text"
    text.write_text(TEXT)

    def make(**changes: Any) -> SweepSpec:
        asked = recipe(**changes)
        cells = [
            PruneSpec(
                recipe=cell,
                base=dense_base("llama"),
                adapters={"counting": adapter},
                calibration=text,
                training=text if cell.training else None,
                evaluation=text,
            )
            for cell in asked.cells()
        ]
        return SweepSpec(recipe=asked, cells=tuple(cells))

    return make


@pytest.fixture(scope="session")
def report(recipe: Callable[..., SweepRecipe]) -> Callable[..., SweepReport]:
    """A report of cells with these (bytes, loss) and, where given, latencies."""

    def make(*points: tuple[float, ...]) -> SweepReport:
        grid = {"target": [(i + 1) / (len(points) + 2) for i in range(len(points))]}
        sweep = recipe(target=None, grid=grid)
        measured: dict[str, Any] = {
            "parameters": 10,
            "weight_bytes": 10,
            "kv_bytes_per_token": 2,
            "bytes": 1000,
            "token_perplexity": 2.0,
            "adapters": {},
            "latency_ms": 9.0 if any(len(point) > 2 for point in points) else None,
        }
        cells = [
            Cell(
                **measured | {"bytes": int(size), "latency_ms": rest[0] if rest else None},
                number=number,
                changes=sweep.changes()[number],
                export="llama",
                removed_fraction=0.1,
                delta_nats=loss,
                divergence=loss,
                seconds=1.0,
            )
            for number, (size, loss, *rest) in enumerate(points)
        ]
        found, best = compared(cells)
        return SweepReport(
            recipe=sweep,
            dense=measured,
            cells=found,
            failed=(),
            front=best,
            shared=(),
            evaluation_tokens=1,
            probe_tokens=1,
            methods=(),
            versions={},
        )

    return make
