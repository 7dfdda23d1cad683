"""The catalogue names what the code does, and refuses what it does not know."""

import subprocess
import sys
from pathlib import Path

import pytest

from pruning import allocators, criteria, methods, recovery, registry, schedules
from pruning.adapters import compress, form, hooks, init, merge, ranks
from pruning.errors import InvalidInput
from pruning.methods.entry import Kind, MethodEntry
from pruning.recipe import Method

PACKAGES = {
    "criterion": criteria,
    "allocator": allocators,
    "recovery": recovery,
    "schedule": schedules,
    "merge": merge,
    "compress": compress,
    "ranks": ranks,
    "init": init,
    "form": form,
    "hook": hooks,
}
BIND = {
    "criterion": registry.criterion,
    "allocator": registry.allocator,
    "recovery": registry.recovery,
    "schedule": registry.schedule,
    "merge": registry.merge,
    "compress": registry.compress,
    "ranks": registry.ranks,
    "init": registry.init,
    "form": registry.form,
    "hook": registry.hook,
}


@pytest.mark.parametrize("kind", list(PACKAGES))
def test_every_file_of_a_method_is_in_the_catalogue_and_the_other_way_round(kind: Kind):
    (folder,) = PACKAGES[kind].__path__
    files = {path.stem for path in Path(folder).glob("*.py")} - {"__init__"}
    assert files == set(methods.names(kind))


@pytest.mark.parametrize("entry", methods.ENTRIES, ids=lambda entry: entry.name)
def test_a_method_has_code_and_a_paper_that_its_file_cites(entry: MethodEntry):
    function, bound, params = BIND[entry.kind](Method(name=entry.name))
    module = sys.modules[function.__module__]
    assert bound is entry
    assert params == entry.params()
    assert entry.paper.url in str(module.__doc__)
    assert entry.paper.venue in str(module.__doc__)


@pytest.mark.parametrize(
    ("kind", "method", "field", "hint"),
    [
        ("criterion", Method(name="tailor"), "criterion.name", "taylor"),
        ("allocator", Method(name="taylor"), "allocator.name", "erk, global"),
        ("criterion", Method(name="taylor", params={"n": 1}), "criterion.params.n", "variant"),
        (
            "criterion",
            Method(name="taylor", params={"variant": "third"}),
            "criterion.params.variant",
            "'element', 'vector', 'second' or 'mix'",
        ),
        ("allocator", Method(name="uniform", params={"x": 1}), "allocator.params.x", "none"),
        ("schedule", Method(name="often"), "schedule.name", "cubic, interleaved, one_shot"),
        ("recovery", Method(name="rest"), "recovery.name", "there is no recovery 'rest'"),
    ],
)
def test_unknown_methods_and_parameters_are_refused_with_the_choices(
    kind: Kind, method: Method, field: str, hint: str
):
    with pytest.raises(InvalidInput) as refused:
        methods.resolve(kind, method)
    assert refused.value.field == field
    assert hint in refused.value.message


@pytest.mark.parametrize(
    ("kind", "name", "params", "needs"),
    [
        ("criterion", "obs", {}, {"input_grams"}),
        ("criterion", "obs", {"tokens": "guided"}, {"guided_grams"}),
        ("allocator", "search", {}, set()),
        ("allocator", "search", {"refit": True}, {"input_grams"}),
    ],
)
def test_only_the_grams_that_parameters_ask_for_are_collected(
    kind: Kind, name: str, params: dict[str, object], needs: set[str]
):
    entry, chosen = methods.resolve(kind, Method(name=name, params=params))
    assert entry.needs | chosen.needs == needs


def test_what_the_gateway_checks_recipes_with_loads_no_torch():
    script = "import sys, pruning.allocation.budget, pruning.methods; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
