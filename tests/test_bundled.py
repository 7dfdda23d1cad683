"""What lies in deploy/demo beside the weights: recipes, and the text that adapters come with."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pruning.adapters.peft_format import CALIBRATION, EVALUATION
from pruning.pipeline import STAGES
from pruning.recipe import PruneSpec, Recipe, Text
from pruning.reports.report import Report
from pruning.text import calibration_ids, load_tokenizer

DEMO = Path(__file__).parent.parent / "deploy" / "demo"
ADAPTERS = sorted((DEMO / "adapters").iterdir())


def texts(text: Text) -> tuple[Path, ...]:
    """The files of a bundled text, as the gateway finds them."""
    origins = (origin for _, origin in text.origins("calibration"))
    return tuple(
        DEMO / "adapters" / origin.adapter / CALIBRATION
        if origin.adapter
        else DEMO / str(origin.file)
        for origin in origins
    )


def mixed(**changes: Any) -> Recipe:
    recipe = yaml.safe_load((DEMO / "mixed.yaml").read_text())
    for name, entries in changes.items():
        recipe[name] |= entries
    return Recipe.model_validate(recipe)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.name)
def test_an_adapter_comes_with_text_of_its_task_that_its_metrics_do_not_see(adapter: Path):
    own, held_out = (
        (adapter / name).read_text(encoding="utf-8").splitlines()
        for name in (CALIBRATION, EVALUATION)
    )
    assert len(own) >= 20
    assert not {*own} & {*held_out}


def test_the_text_of_all_adapters_together_stays_small():
    assert sum((adapter / CALIBRATION).stat().st_size for adapter in ADAPTERS) < 100_000


def test_the_mixed_recipe_calibrates_half_on_plain_text_and_on_every_adapter_alike():
    recipe, tokenizer = mixed(), load_tokenizer(DEMO / "base")
    calibration = recipe.calibration
    ids_ST = calibration_ids(tokenizer, texts(calibration), calibration, recipe.seed)
    assert ids_ST.shape == (128, 256)
    eos = tokenizer.eos_token_id  # closes the rows of adapters, and is nowhere in plain text
    with_rows = (ids_ST == eos).any(dim=1)
    assert 0.45 <= float(with_rows.float().mean()) <= 0.55
    assert 3 <= int(with_rows[:8].sum()) <= 5  # the first rows are a mixture too


def test_the_mixed_recipe_goes_through_and_brings_every_adapter_along(tmp_path: Path):
    short = {"sequences": 12, "length": 64}
    recipe = mixed(calibration=short, evaluation={"sequences": 4, "length": 64})
    spec = PruneSpec(
        recipe=recipe,
        base=DEMO / "base",
        adapters={adapter.name: adapter for adapter in ADAPTERS},
        calibration=texts(recipe.calibration),
        evaluation=DEMO / "text" / "evaluation.txt",
    )
    for stage in STAGES.values():
        stage(spec, tmp_path, lambda fraction, message: None)
    report = Report.model_validate_json((tmp_path / "evaluate" / "report.json").read_bytes())
    assert [adapter.name for adapter in report.adapters] == [path.name for path in ADAPTERS]
    for adapter in report.adapters:
        assert adapter.slim_adapter is not None
        assert adapter.slim_base is not None
        assert adapter.slim_adapter < adapter.slim_base, adapter.name
