"""Initialisations, against numbers that can be checked by hand and against their definitions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pruning.adapters.compression import linear_of
from pruning.adapters.init import loldu, lora_ga, lora_sb, lora_xs, nystrom, pissa
from pruning.adapters.train.starts import Starts
from pruning.adapters.train.tuned import Around, Site, Tuned
from pruning.methods.entry import Params
from pruning.methods.training import LoraGaParams, LoraSbParams, LoraXsParams, NystromParams

KEY = (0, "q_proj")
WEIGHT = torch.tensor([[2.0, 0.0, 2.0], [4.0, 1.0, 4.0], [0.0, 3.0, 6.0]])


class Base(nn.Module):
    """One linear where a base has it."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Module()
        layer.self_attn = nn.Module()
        layer.self_attn.q_proj = nn.Linear(3, 3, bias=False)
        layer.self_attn.q_proj.weight.data = WEIGHT.clone()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList([layer])


@pytest.fixture
def site() -> Callable[..., Site]:
    def make(rank: int, **more: Any) -> Site:
        return Site(Base(), {KEY: rank}, 1.0, (), 0, more.get("first_update", 0.0))

    return make


def test_nystrom_is_exact_where_the_rank_of_the_weight_is_two(site: Callable[..., Site]):
    twice = site(2)
    linear_of(twice.model, KEY).weight.data[2] = WEIGHT[0] + WEIGHT[1]
    starts = nystrom.begin(twice, NystromParams())
    start = starts.linears[KEY]
    # W[:2, :2] = [[2, 0], [4, 1]], whose inverse is [[.5, 0], [-2, 1]]
    assert torch.allclose(start.core_RR, torch.tensor([[0.5, 0.0], [-2.0, 1.0]]), atol=1e-6)
    assert torch.allclose(start.delta, twice.weight(KEY), atol=1e-5)
    assert starts.is_part_of_base


def test_loldu_of_full_rank_is_the_weight(site: Callable[..., Site]):
    start = loldu.begin(site(3), Params()).linears[KEY]
    # pivoting takes the row 4 1 4 first, then 0 3 6: pivots 4, 3 and 2 - 2 - (-.5 / 3) · 6 = 1
    assert torch.allclose(start.core_RR.diagonal(), torch.tensor([4.0, 3.0, 1.0]))
    assert torch.allclose(start.delta, WEIGHT, atol=1e-6)


def test_loldu_leaves_out_pivots_that_are_nothing(site: Callable[..., Site]):
    flat = site(3)
    linear_of(flat.model, KEY).weight.data[2] = WEIGHT[0] + WEIGHT[1]
    assert len(loldu.begin(flat, Params()).linears[KEY].a_RI) == 2


def test_lora_xs_has_the_singular_vectors_of_the_weight(site: Callable[..., Site]):
    start = lora_xs.begin(site(2), LoraXsParams(deviation=0)).linears[KEY]
    assert not start.core_RR.any()
    whole = start.b_OR @ start.a_RI
    values = torch.linalg.svdvals(WEIGHT)
    assert torch.allclose((WEIGHT - whole).norm(), values[2], atol=1e-5)  # the best of rank two


def test_lora_sb_begins_with_a_step_against_the_sign_of_the_gradient(
    site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
):
    gradient = torch.tensor([[3.0, -1.0, 2.0], [6.0, -2.0, 4.0], [-1.0, 5.0, -9.0]])
    monkeypatch.setattr(Site, "gradients", lambda self: {KEY: gradient})
    starts = lora_sb.begin(site(1, first_update=0.1), LoraSbParams(size=2.0))
    start = starts.linears[KEY]
    # the signs are those of (1, 1, -1) (1, -1, 1)ᵀ, so that one atom says all of it
    assert torch.allclose(start.delta, -0.2 * gradient.sign(), atol=1e-6)
    assert torch.allclose(start.core_RR, torch.tensor([[0.2 * 3.0]]))
    assert not starts.is_part_of_base


def test_pissa_takes_the_principal_part_out_of_the_base(site: Callable[..., Site]):
    asked = site(1)
    starts = pissa.begin(asked, Params())
    u, values, v = torch.linalg.svd(WEIGHT)
    assert torch.allclose(starts.linears[KEY].delta, values[0] * u[:, :1] @ v[:1], atol=1e-5)
    assert torch.equal(linear_of(asked.model, KEY).weight, WEIGHT)  # as before


def test_lora_ga_takes_a_along_the_first_and_b_along_the_next_singular_vectors(
    site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
):
    gradient = torch.diag(torch.tensor([5.0, 3.0, 1.0]))
    monkeypatch.setattr(Site, "gradients", lambda self: {KEY: gradient})
    asked = site(1)
    start = lora_ga.begin(asked, LoraGaParams(gamma=9.0)).linears[KEY]
    assert torch.allclose(start.a_RI.abs(), torch.tensor([[1.0, 0.0, 0.0]]), atol=1e-5)
    expected = torch.tensor([[0.0], [3.0 * 3**0.25 / 3.0], [0.0]])  # σ₂ · outputs^¼ / √gamma
    assert torch.allclose(start.b_OR.abs(), expected, atol=1e-5)
    assert torch.equal(linear_of(asked.model, KEY).weight, WEIGHT)


def test_eva_shares_the_same_rank_out_and_looks_where_inputs_vary(
    begun: Callable[..., tuple[Tuned, list[Around]]],
):
    tuned, _ = begun(init={"name": "eva", "params": {"rho": 2}}, linears=["q_proj", "down_proj"])
    ranks = {key: len(start.a_RI) for key, start in tuned.starts.linears.items()}
    assert sum(ranks.values()) == 4 * 8
    assert max(ranks.values()) <= 8
    assert len(set(ranks.values())) > 1
    for start in tuned.starts.linears.values():  # orthonormal, and B zero
        rank = len(start.a_RI)
        assert torch.allclose(start.a_RI @ start.a_RI.T, torch.eye(rank), atol=1e-4)
        assert not start.b_OR.any()


def test_starts_come_back_from_disk(site: Callable[..., Site], tmp_path: Any):
    assert Starts.load(tmp_path) is None
    starts = nystrom.begin(site(2), NystromParams())
    starts.save(tmp_path)
    read = Starts.load(tmp_path)
    assert read is not None
    assert (read.scale, read.is_part_of_base) == (1.0, True)
    assert torch.equal(read.linears[KEY].delta, starts.linears[KEY].delta)
