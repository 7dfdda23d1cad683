"""Forms and hooks, against numbers that can be checked by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pruning.adapters import algebra
from pruning.adapters.form import nested, nola
from pruning.adapters.form.gated import Gate, Shrinking
from pruning.adapters.form.randlora import Bases
from pruning.adapters.hooks.allora import Stretching
from pruning.adapters.hooks.group_lasso import shrink
from pruning.adapters.train.loop import Lesson, fit
from pruning.adapters.train.recipes import Hyperparameters
from pruning.adapters.train.tuned import Around, Tuned, factor, side_a, side_b
from pruning.errors import InvalidInput
from pruning.evaluation import Example

Begun = Callable[..., tuple[Tuned, list[Around]]]


def test_gates_go_down_by_the_threshold_and_stay_closed():
    gate = Gate(torch.tensor([1.0, 0.2, -0.2, -1.0]))
    Shrinking([gate], 0.25).after(0.1)
    assert gate.gate_R.tolist() == [0.75, 0.0, 0.0, -0.75]
    assert gate(torch.ones(1, 4)).tolist() == [[0.75, 0.0, 0.0, -0.75]]


def test_atoms_with_closed_gates_are_not_served(begun: Begun):
    tuned, _ = begun(form={"name": "gated"})
    gates = [side_b(layer).parametrizations.weight[0].gate_R for layer in tuned.layers.values()]
    for layer in tuned.layers.values():
        factor(side_b(layer)).data.fill_(1.0)
    gates[0].data[1:] = 0
    gates[1].data.zero_()
    bags = tuned.bake()
    keys = list(tuned.layers)
    assert bags[keys[0]].rank == 1
    assert keys[1] not in bags
    assert bags[keys[2]].rank == 4


def test_a_prefix_of_the_atoms_has_the_scale_of_its_length():
    drawn = nested.Drawn(share=0.5)
    columns = nested.Columns(drawn)
    assert columns(torch.ones(1, 4)).tolist() == [[2.0, 2.0, 0.0, 0.0]]
    drawn.share = 1.0
    assert columns(torch.ones(1, 4)).tolist() == [[1.0] * 4]


@pytest.mark.parametrize(("frozen", "moved"), [(False, [1, 1, 1, 0]), (True, [0, 0, 1, 0])])
def test_a_drawn_rank_trains_its_prefix_or_the_last_of_it(frozen: bool, moved: list[int]):
    drawn = nested.Drawn(share=0.75, frozen=frozen)
    a_RI, b_OR = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(2, 4))
    (nested.Columns(drawn)(b_OR) @ nested.Rows(drawn)(a_RI)).sum().backward()
    assert a_RI.grad.any(dim=1).int().tolist() == moved
    assert b_OR.grad.any(dim=0).int().tolist() == moved


def test_all_ranks_are_drawn_and_the_same_ones_again():
    drawn = nested.Drawn()
    drawing = nested.Drawing(drawn, 4, nested.NestedParams(), seed=3)

    def ranks() -> list[int]:
        found = []
        for step in range(40):
            drawing.before(step)
            found.append(drawn.count(4))
        return found

    first = ranks()
    assert set(first) == {1, 2, 3, 4}
    assert ranks() == first
    drawing.after(0.1)
    assert drawn.count(4) == 4


def test_bases_that_are_drawn_anew_combine_as_those_that_are_kept(monkeypatch: pytest.MonkeyPatch):
    weight = torch.zeros(3, 5)
    kept = nola.Combination(7, 4, weight)
    monkeypatch.setattr(nola, "KEPT", 0)
    drawn = nola.Combination(7, 4, weight)
    target = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    for one in (kept, drawn):
        one.numbers_K.data = torch.tensor([1.0, -2.0, 0.5, 3.0])
        (one(weight) * target).sum().backward()
    assert torch.allclose(kept(weight), drawn(weight), atol=1e-6)
    assert torch.allclose(kept.numbers_K.grad, drawn.numbers_K.grad, atol=1e-6)


def test_a_compact_file_becomes_the_adapter_that_was_baked(begun: Begun, tmp_path: Path):
    tuned, _ = begun(form={"name": "nola", "params": {"bases": 5}}, linears=["q_proj", "down_proj"])
    generator = torch.Generator().manual_seed(1)
    for parameter in tuned.parameters.values():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    path = tmp_path / "compact.safetensors"
    nola.write_compact(tuned, 0, path)
    baked, expanded = tuned.bake(), nola.expand(path)
    assert set(expanded) == set(baked)
    for key, bag in baked.items():
        assert torch.equal(expanded[key].a_RI, bag.a_RI)
        assert torch.equal(expanded[key].b_OR, bag.b_OR)


def test_randlora_has_full_rank_from_small_diagonals():
    bases = Bases(rank=2, smaller=6, larger=8, gain=2.0, seed=0)
    assert (bases.lambda_NR.shape, bases.gamma_NM.shape) == ((3, 2), (3, 6))
    assert not bases.inner().any()  # λ is zero
    bases.lambda_NR.data.fill_(1.0)
    pairs = zip(bases.a_KM.split(2), bases.b_LK.split(2, dim=1), strict=True)
    expected = sum(b @ a / 6 for a, b in pairs) * 2  # γ is 1 / max(pairs, inputs)
    delta = bases.b_LK @ bases.inner()
    assert torch.allclose(delta, expected, atol=1e-6)
    assert torch.linalg.matrix_rank(delta) == 6


def test_slots_open_where_the_score_is_highest_until_the_total(
    begun: Begun, examples: list[Example], tmp_path: Path
):
    tuned, around = begun(form={"name": "growable", "params": {"every": 1, "mean": 2}})
    params = Hyperparameters(steps=8, checks=1, learning_rate=0.01)
    fit(tuned, around, Lesson(examples, examples[:4]), params, 0, tmp_path, quiet)
    ranks = [bag.rank for bag in tuned.bake().values()]
    assert sum(ranks) <= 2 * len(tuned.layers) + len(tuned.layers)  # and the reserves
    opened = [int(t) for name, t in around[0].state.items() if name.endswith("open")]
    assert sum(opened) == 2 * len(tuned.layers)
    assert len(set(opened)) > 1


def test_allora_stretches_the_step_of_a_short_row():
    factor = nn.Parameter(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    hook = Stretching([factor], eta=2.0)
    hook.before(0)
    factor.data += 1.0
    hook.after(0.1)
    stretch = 1 / (5 + 0.25) ** 0.5  # of the row that is 5 long; of the other one, eta
    expected = [[2.0, 2.0], [3 + stretch, 4 + stretch]]
    assert torch.allclose(factor.data, torch.tensor(expected))


def test_noise_has_the_deviation_of_rows_and_gradients_and_ends_with_the_step(begun: Begun):
    params = {"sigma": 0.5, "beta": 2.0}
    tuned, (hook,) = begun(hooks=[{"name": "ggpo", "params": params}], linears=["q_proj"])
    layer = tuned.layers[0, "q_proj"]
    hook.state["0.q_proj"].fill_(3.0)
    x = torch.ones(1, 4000, 32)
    with torch.no_grad():
        still = layer(x)
        hook.before(0)
        noise = layer(x) - still
        hook.before(0)
        assert torch.equal(layer(x) - still, noise)
        length = layer.base_layer.weight.norm(dim=1)
        deviation = (0.5 * length + 2.0 * 9.0) / 32**0.5 * 32**0.5  # outputs, ‖x‖
        assert torch.allclose(noise[0].std(dim=0), deviation, rtol=0.06)
        for parameter in tuned.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        b_grad = torch.zeros(32, 4)
        b_grad[5, 0] = 2.0
        factor(side_b(layer)).grad = b_grad
        hook.after(0.1)
        assert torch.equal(layer(x), still)
        row = 4.0 * 2.0 * factor(side_a(layer))[0].norm()  # scale 16 / 4, times ∂B A
        assert torch.allclose(hook.state["0.q_proj"][5], row)
        assert not hook.state["0.q_proj"][:5].any()


def test_the_length_of_the_change_is_in_the_loss(begun: Begun):
    tuned, (hook,) = begun(hooks=[{"name": "darex_l2", "params": {"decay": 0.5}}])
    for layer in tuned.layers.values():
        factor(side_b(layer)).data.normal_()
    length = sum(float(bag.delta.square().sum()) for bag in tuned.bake().values())
    assert hook.penalty().item() == pytest.approx(0.5 * length, rel=1e-4)


def test_a_group_becomes_shorter_and_then_nothing():
    group = [torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])]  # 5 long
    shrink(group, 1.0)
    assert torch.allclose(group[0], torch.tensor([2.4]))
    assert torch.allclose(group[1], torch.tensor([[0.0, 3.2]]))
    shrink(group, 5.0)
    assert not group[0].any()
    assert not group[1].any()


@pytest.mark.parametrize("hook", ["allora", "ggpo", "group_lasso"])
def test_hooks_refuse_forms_that_do_not_train_the_factors(begun: Begun, hook: str):
    with pytest.raises(InvalidInput, match="train both factors") as refused:
        begun(init={"name": "pissa"}, form={"name": "core"}, hooks=[{"name": hook}])
    assert refused.value.field == "hooks"


def test_a_diagonal_refuses_a_whole_square(begun: Begun):
    with pytest.raises(InvalidInput, match="whole square"):
        begun(init={"name": "nystrom"}, form={"name": "diagonal"})


def quiet(fraction: float, message: str) -> None:
    """No progress."""


def test_nested_ranks_can_be_taken_apart(begun: Begun):
    tuned, _ = begun(form={"name": "nested"}, linears=["q_proj"])
    layer: Any = tuned.layers[0, "q_proj"]
    factor(side_b(layer)).data.normal_()
    bag = tuned.bake()[0, "q_proj"]
    expected = 4.0 * factor(side_b(layer)) @ side_a(layer).weight
    assert torch.allclose(algebra.truncate(bag, 4).delta, expected, atol=1e-4)
