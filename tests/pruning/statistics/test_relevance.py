"""Relevance: the rules one by one, and the streamed sums against a whole model under them."""

import pytest
import torch
from torch import Tensor, nn

from pruning.statistics.relevance import Relevance, rules


class RMSNorm(nn.Module):
    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * x.square().mean(-1, keepdim=True).rsqrt()


def under_rules(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output and input gradient of its sum; x is (S, T, C)."""
    x = x.clone().requires_grad_()
    with rules(module):
        output = module(x)
        output.sum().backward()
    return output.detach(), x.grad


def test_a_norm_has_a_constant_root():
    x = torch.tensor([[[3.0, 1.0], [0.5, -2.0]]])
    norm = RMSNorm(torch.tensor([2.0, 4.0]))
    output, gradient = under_rules(norm, x)
    assert torch.equal(output, norm(x).detach())
    torch.testing.assert_close(gradient[0, 0], torch.tensor([2.0, 4.0]) / 5**0.5)


def test_an_activation_passes_half_of_its_relevance():
    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            self.act_fn = nn.SiLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act_fn(x)

    x = torch.tensor([[[1.5, -2.0, 0.0]]])
    output, gradient = under_rules(Mlp(), x)
    assert torch.equal(output, nn.functional.silu(x))
    torch.testing.assert_close(gradient * x, output / 2)
    assert gradient[0, 0, 2] == 0.25


def test_the_rules_are_gone_afterwards(whole, ids: Tensor):
    model = whole("llama")
    model(ids, labels=ids).loss.backward()
    before = model.model.layers[0].mlp.up_proj.weight.grad.clone()
    model.zero_grad()
    with rules(model.model):
        model(ids, labels=ids).loss.backward()
    assert not torch.allclose(before, model.model.layers[0].mlp.up_proj.weight.grad)
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    assert torch.equal(before, model.model.layers[0].mlp.up_proj.weight.grad)


def relevances(model, ids: Tensor, paths: list[str]) -> dict[str, Tensor]:
    """Activation times gradient under the rules, of outputs (path) or inputs (path:in)."""
    kept: dict[str, Tensor] = {}

    def keep(name: str, tensor: Tensor) -> None:
        tensor.retain_grad()
        kept[name] = tensor

    for path in paths:
        module = model.get_submodule(path.removesuffix(":in"))
        if path.endswith(":in"):
            module.register_forward_pre_hook(lambda _, x, path=path: keep(path, x[0]))
        else:
            module.register_forward_hook(lambda _, x, y, path=path: keep(path, y))
    with rules(model.model):
        logits = model(ids).logits[:, :-1]
        logits.gather(2, ids[:, 1:, None]).sum().backward()
    return {path: (tensor * tensor.grad).detach() for path, tensor in kept.items()}


def test_relevance_is_conserved_through_norms_products_and_activations(whole, ids: Tensor):
    layer = "model.layers.3"
    paths = ["lm_head:in", "model.norm:in", f"{layer}.mlp", f"{layer}.mlp.down_proj:in"]
    paths += [f"{layer}.mlp.act_fn:in", f"{layer}.mlp.gate_proj:in"]
    model = whole("llama")
    found = {path: r.sum().item() for path, r in relevances(model, ids, paths).items()}
    targets = model(ids).logits[:, :-1].gather(2, ids[:, 1:, None]).sum().item()
    assert found["lm_head:in"] == pytest.approx(targets, rel=1e-3)
    assert found["model.norm:in"] == pytest.approx(targets, rel=1e-3)
    unit = found[f"{layer}.mlp.down_proj:in"]
    assert found[f"{layer}.mlp"] == pytest.approx(unit, rel=1e-3)
    assert found[f"{layer}.mlp.act_fn:in"] == pytest.approx(unit / 2, rel=1e-3)
    assert found[f"{layer}.mlp.gate_proj:in"] == pytest.approx(unit, rel=1e-3)


def test_values_get_half_and_queries_and_keys_a_quarter_of_the_plain_gradient(whole, ids: Tensor):
    """Of the plain gradient of the last layer's attention, nothing above it being a product."""
    model = whole("llama")
    layer = model.model.layers[3]
    layer.mlp.down_proj.weight.data.zero_()  # what is above is then linear but for the norm
    weights = {n: layer.self_attn.get_submodule(n).weight for n in ("q_proj", "k_proj", "v_proj")}

    def gradients(*ruled: nn.Module) -> dict[str, Tensor]:
        model.zero_grad()
        with rules(*ruled):
            model(ids, labels=ids).loss.backward()
        return {name: weight.grad.clone() for name, weight in weights.items()}

    plain, ruled = gradients(), gradients(layer)
    for name, factor in (("q_proj", 0.25), ("k_proj", 0.25), ("v_proj", 0.5)):
        torch.testing.assert_close(ruled[name], plain[name] * factor, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gemma2", "phi3"])
def test_streamed_relevance_is_that_of_the_whole_model(name: str, whole, streamed, ids: Tensor):
    statistics = streamed(name, "relevance").relevance
    paths = {
        (index, linear): f"model.layers.{index}.{block}.{linear}:in"
        for index in range(4)
        for block, linear in (("self_attn", "o_proj"), ("mlp", "down_proj"))
    }
    found = relevances(whole(name), ids, list(paths.values()))
    assert statistics.keys() == paths.keys()
    for key, path in paths.items():
        expected = found[path].double().abs().sum(dim=(0, 1))
        assert statistics[key].targets == ids[:, 1:].numel()
        torch.testing.assert_close(statistics[key].total_C, expected, rtol=1e-3, atol=1e-4)


def test_relevances_of_two_sites_add_up():
    one, other = (Relevance(n, torch.tensor([1.0 * n, 2.0])) for n in (2, 3))
    merged = one.merge(other)
    assert (merged.targets, merged.total_C.tolist()) == (5, [5.0, 4.0])
