"""Streamed gradient statistics are those that autograd finds through the whole model."""

import pytest
import torch
from torch import Tensor

MEMBERS = {  # linear → the dimension that is summed away
    "self_attn.q_proj": 1,
    "self_attn.o_proj": 0,
    "mlp.up_proj": 1,
    "mlp.down_proj": 0,
}


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2"])
def test_sequence_gradients_are_those_of_one_backward_per_sequence(
    name: str, whole, streamed, ids: Tensor
):
    model = whole(name)
    statistics = streamed(name, "sequence_gradients").sequence_gradients
    layer = model.model.layers[1]
    gradients: dict[str, list[Tensor]] = {path: [] for path in MEMBERS}
    for sequence in ids:
        model.zero_grad()
        model(sequence[None], labels=sequence[None]).loss.backward()
        for path, found in gradients.items():
            found.append(layer.get_submodule(path).weight.grad.double())
    for path, axis in MEMBERS.items():
        weight = layer.get_submodule(path).weight.detach().double()
        g = torch.stack(gradients[path])
        fisher = g.square().mean(dim=0)
        found = statistics[1, path.split(".")[1]]
        expected = {
            "second_C": weight**2 * fisher,
            "mix_C": (weight * g.mean(dim=0) - weight**2 * fisher / 2).abs(),
            "l1_C": weight.abs() * g.abs().mean(dim=0),
            "l2_C": weight.abs() * fisher.sqrt(),
        }
        for field, matrix in expected.items():
            torch.testing.assert_close(
                getattr(found, field), matrix.sum(dim=axis), rtol=1e-3, atol=1e-7
            )


def test_entropy_saliency_is_weight_times_gradient_of_the_entropy(whole, streamed, ids: Tensor):
    model = whole("llama")
    logits = model(ids).logits[:, :-1]
    torch.distributions.Categorical(logits=logits).entropy().mean().backward()
    statistics = streamed("llama", "entropy_saliency").entropy_saliency
    for path, axis in MEMBERS.items():
        weight = model.model.layers[1].get_submodule(path).weight
        found = statistics[1, path.split(".")[1]]
        product = (weight * weight.grad).detach().double()
        torch.testing.assert_close(found.vector_C, product.sum(axis), rtol=1e-3, atol=1e-7)
        torch.testing.assert_close(found.element_C, product.abs().sum(axis), rtol=1e-3, atol=1e-7)


def test_several_walks_go_over_the_same_states(streamed):
    both = streamed("llama", "saliency", "sequence_gradients", "lora_saliency", "relevance")
    for alone in ("saliency", "sequence_gradients", "lora_saliency", "relevance"):
        records = getattr(streamed("llama", alone), alone)
        for key, record in getattr(both, alone).items():
            for name, value in vars(record).items():
                torch.testing.assert_close(value, getattr(records[key], name))
