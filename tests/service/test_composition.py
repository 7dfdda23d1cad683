"""A composition has one canonical form and one digest, however a request spells it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.errors import InvalidInput
from pruning.recipe import Method
from service.composition import Composition, Part, requested, spelled

NAMES = st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,10}", fullmatch=True)
WEIGHTS = st.floats(-10, 10).filter(lambda weight: abs(weight) > 1e-3)
PARTS = st.dictionaries(NAMES, WEIGHTS, min_size=1, max_size=8)


def parts(weights: dict[str, float]) -> list[Part]:
    return [Part(name, weight) for name, weight in weights.items()]


@given(PARTS, st.randoms())
def test_the_spellings_of_openai_lorax_and_llama_cpp_give_one_digest_in_any_order(weights, random):
    items = list(weights.items())
    random.shuffle(items)
    contents = {name: f"content of {name}" for name in weights}
    expected = Composition.of("base", parts(weights))
    spellings = [
        spelled("base" + "".join(f"+{name}:{weight:.8f}" for name, weight in items)),
        requested(
            "base",
            {
                "adapter_parameters": {
                    "ids": [n for n, _ in items],
                    "weights": [w for _, w in items],
                }
            },
        ),
        requested("base", {"lora": [{"id": f"base+{n}", "scale": w} for n, w in items]}),
        spelled(expected.id),
    ]
    assert spellings == [expected] * 4
    assert {s.digest(contents) for s in spellings if s} == {expected.digest(contents)}


@given(PARTS)
def test_another_weight_another_content_and_another_strategy_are_another_digest(weights):
    contents = {name: f"content of {name}" for name in weights}
    composition = Composition.of("base", parts(weights))
    first = min(weights)
    heavier = {**weights, first: weights[first] / 2}
    others = [
        Composition.of("base", parts(heavier)).digest(contents),
        composition.digest({**contents, first: "retrained"}),
        Composition.of("base", parts(weights), Method(name="ties")).digest(contents),
    ]
    assert len({composition.digest(contents), *others}) == 4


@pytest.mark.parametrize(
    ("id", "weights", "strategy"),
    [
        ("b+x:0.5", {"x": 0.5}, Method(name="cat")),
        ("b+x+y", {"x": 1, "y": 1}, Method(name="cat")),
        ("b+y:-.25+x:1e-1", {"x": 6554 / 65536, "y": -0.25}, Method(name="cat")),
        ("b+x+y@ties:0.2", {"x": 1, "y": 1}, Method(name="ties", params={"density": 0.2})),
        ("b+x+y@svd:8", {"x": 1, "y": 1}, Method(name="svd", params={"rank": 8})),
        ("b+x+y@lego:4", {"x": 1, "y": 1}, Method(name="lego", params={"k": 4})),
    ],
)
def test_a_model_id_spells_weights_and_a_strategy(id, weights, strategy):
    found = spelled(id)
    assert found is not None
    assert found.base == "b"
    assert {part.adapter: part.weight for part in found.parts} == weights
    assert found.strategy == strategy


def test_an_adapter_of_weight_0_is_left_out():
    assert spelled("b+x:0+y:1") == Composition.of("b", [Part("y", 1.0)])


def test_loraxs_linear_is_the_exact_sum():
    body = {"merged_adapters": {"ids": ["x", "y"], "merge_strategy": "linear", "density": 0.5}}
    assert requested("b", body) == Composition.of("b", [Part("x", 1), Part("y", 1)])


def test_a_body_without_any_spelling_asks_for_no_composition():
    assert requested("b", {"prompt": "x", "lora": [], "adapter_parameters": None}) is None


@pytest.mark.parametrize(
    ("ask", "field", "words"),
    [
        (lambda: spelled("b+x:nan+y"), "model", "weight of x must be a number"),
        (lambda: spelled("b+x:11"), "model", "from -10 to 10"),
        (lambda: spelled("b+x:1+x:2"), "model", "names x twice"),
        (lambda: spelled("b+x:0"), "model", "other than 0"),
        (lambda: spelled("b+x+y@blend"), "merge.name", "choose one of"),
        (lambda: spelled("b+x+y@ties:2"), "merge.params.density", "less than or equal to 1"),
        (lambda: spelled("b" + "".join(f"+a{i}" for i in range(9))), "model", "at most 8"),
        (lambda: requested("b", {"lora": [{"id": "c+x"}]}), "lora", "another base"),
        (lambda: requested("b", {"lora": [{"scale": 1}]}), "lora.0.id", "required"),
        (lambda: requested("b", {"lora": [{"id": "x", "scale": float("inf")}]}), "lora", "number"),
        (
            lambda: requested("b", {"adapter_parameters": {"ids": ["x"], "weights": [1, 2]}}),
            "adapter_parameters.weights",
            "2 values for 1 ids",
        ),
        (
            lambda: requested(
                "b", {"adapter_parameters": {"ids": ["x"], "majority_sign_method": "frequency"}}
            ),
            "adapter_parameters.majority_sign_method",
            "total",
        ),
        (
            lambda: requested("b", {"lora": [{"id": "x"}], "merged_adapters": {"ids": ["x"]}}),
            "lora",
            "together with",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_by_field(ask, field, words):
    with pytest.raises(InvalidInput, match=words) as refusal:
        ask()
    assert refusal.value.field == field


def test_adapters_that_take_turns_come_in_the_order_of_their_names():
    composition = spelled("base+style:0.5+sql:2@switch:4")
    assert composition is not None
    assert [part.adapter for part in composition.parts] == ["sql", "style"]
    assert (composition.period, composition.exact) == (4, False)
    assert spelled(composition.id) == composition
    assert spelled("base+sql@switch") == spelled("base+sql@switch:1")


def test_who_comes_first_is_another_digest_though_the_sum_is_the_same():
    contents = {"a": "1", "b": "2"}
    swapped = {"a": "2", "b": "1"}
    for id, same in (("base+a+b", True), ("base+a+b@switch", False)):
        composition = spelled(id)
        assert composition is not None
        assert (composition.digest(contents) == composition.digest(swapped)) is same


@pytest.mark.parametrize("period", ["0", "1.5", "5000"])
def test_a_turn_lasts_a_number_of_positions(period: str):
    with pytest.raises(InvalidInput, match="whole number"):
        spelled(f"base+sql+style@switch:{period}")


def test_what_is_not_served_says_so_and_what_is():
    with pytest.raises(InvalidInput, match="cmlora is not served: engines keep nothing"):
        spelled("base+sql+style@cmlora")
