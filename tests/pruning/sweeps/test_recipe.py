"""What a grid stands for, and how it is refused."""

import pytest

from pruning.errors import InvalidInput
from pruning.recipe import Method
from pruning.sweeps.recipe import MOST_CELLS, SweepRecipe, brief


def test_every_combination_is_a_recipe_with_a_name_of_its_own(recipe):
    grid = {
        "target": [0.2, 0.4],
        "criterion": [{"name": "taylor"}, {"name": "obs"}],
        "recovery": [[], [{"name": "closed_form"}]],
    }
    cells = recipe(grid=grid, target=None).cells()
    assert [cell.name for cell in cells] == [f"sweep-{n}" for n in range(8)]
    assert {(c.criterion.name, c.target, len(c.recovery)) for c in cells} == {
        (criterion, target, repairs)
        for criterion in ("taylor", "obs")
        for target in (0.2, 0.4)
        for repairs in (0, 1)
    }
    assert [cell.target for cell in cells[:4]] == [0.2, 0.4, 0.2, 0.4]
    assert {cell.ffn_multiple for cell in cells} == {4}


def test_cells_have_the_same_numbers_in_whatever_order_the_fields_are_named(recipe):
    grid = {"target": [0.2, 0.4], "carry": ["project", "refit"]}
    one, other = (
        recipe(grid=dict(items), target=None) for items in (grid.items(), reversed(grid.items()))
    )
    assert one.cells() == other.cells()


def test_entries_of_a_field_are_named_by_a_dot(recipe):
    grid = {"calibration.sequences": [4, 8], "size.bytes": [1000, 2000]}
    cells = recipe(grid=grid, target=None).cells()
    assert [(c.calibration.sequences, c.size.bytes) for c in cells] == [
        (4, 1000),
        (4, 2000),
        (8, 1000),
        (8, 2000),
    ]
    assert {cell.calibration.length for cell in cells} == {32}


def test_a_value_beside_the_grid_gives_way_to_the_grid(recipe):
    cells = recipe(seed=7, grid={"seed": [1, 2]}).cells()
    assert [cell.seed for cell in cells] == [1, 2]


def test_a_sweep_survives_json(recipe):
    sweep = recipe(grid={"recovery": [[], [{"name": "norms"}]]})
    assert SweepRecipe.model_validate_json(sweep.model_dump_json()) == sweep
    assert sweep.cells()[1].recovery == (Method(name="norms"),)


@pytest.mark.parametrize(
    ("changes", "field", "hint"),
    [
        ({"grid": {"target": [0.2, 1.5]}}, "grid.target.1", "cell 1: target 1.5"),
        ({"grid": {"critrion": [{"name": "taylor"}]}}, "grid.critrion.0", "not permitted"),
        ({"grid": {"criterion": [{"name": "obs"}, {}]}}, "grid.criterion.1.name", "required"),
        ({"grid": {"ffn_multiple.x": [1]}}, "grid.ffn_multiple.x", "no entries"),
        ({"grid": {"base": ["a", "b"]}}, "grid.base", "beside the grid"),
        ({"grid": {"evaluation": [{"file": "a"}]}}, "grid.evaluation", "beside the grid"),
        ({"grid": {"target": [0.1, 0.1]}}, "grid.target", "twice"),
        ({"grid": {"seed": list(range(MOST_CELLS + 1))}}, "grid", str(MOST_CELLS)),
        ({"grid": {"size.bytes": [1000]}}, "grid", "either target or size"),
        ({"speed": "fast"}, "speed", "not permitted"),
        ({"ffn_multiple": 0}, "ffn_multiple", "greater"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named_where_it_stands(recipe, changes, field, hint):
    with pytest.raises(InvalidInput) as refused:
        recipe(**changes).cells()
    assert refused.value.field == field
    assert hint in refused.value.message


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.3, "0.3"),
        (None, "none"),
        ([], "none"),
        ({"name": "taylor"}, "taylor"),
        ({"name": "taylor", "params": {"variant": "mix"}}, "taylor (variant=mix)"),
        ([{"name": "closed_form"}, {"name": "norms"}], "closed_form + norms"),
        ({"file": "file-1", "sequences": 8}, "(file=file-1, sequences=8)"),
    ],
)
def test_values_are_told_in_a_few_words(value, words):
    assert brief(value) == words
