"""Groups found by tracing: those of the descriptors, and those of a small CNN and a small ViT."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu
from transformers import AutoConfig, AutoModelForCausalLM

from pruning.architectures import ARCHITECTURES
from pruning.geometry import Geometry
from pruning.tracing.groups import Group, Place, find_groups
from pruning.tracing.removal import magnitudes, remove
from pruning.units import KINDS, members, num_units

Channels = frozenset[tuple[Place, tuple[int, ...]]]


class Logits(nn.Module):
    """A causal LM from token ids to logits."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits


def declared(geometry: Geometry, parameters: Mapping[str, Tensor]) -> set[Channels]:
    """The units of all layers as the descriptor has them, biases with their rows."""
    found = set()
    for layer in range(len(geometry.layers)):
        for kind in KINDS:
            for unit in range(num_units(geometry, layer, kind)):
                channels = {}
                for member in members(geometry, layer, kind):
                    block = geometry.architecture.block_of(member.linear).name
                    name = f"model.model.layers.{layer}.{block}.{member.linear}"
                    places = [(f"{name}.weight", member.axis)]
                    if member.axis == 0 and f"{name}.bias" in parameters:
                        places.append((f"{name}.bias", 0))
                    channels |= dict.fromkeys(places, tuple(member.indices([unit])))
                found.add(frozenset(channels.items()))
    return found


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", [*ARCHITECTURES, "llama with biases"])
def test_traced_groups_are_those_of_the_descriptor(
    name: str, attention: str, dense_base: Callable[[str], Path]
):
    config = AutoConfig.from_pretrained(dense_base(name))
    config.num_hidden_layers = 2
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    model = Logits(AutoModelForCausalLM.from_config(config, attn_implementation=attention)).eval()
    groups = find_groups(model, (torch.zeros(1, 5, dtype=torch.long),))
    geometry = Geometry.from_config(config.to_dict())
    exact = {frozenset(group.channels.items()) for group in groups if group.exact}
    assert exact == declared(geometry, dict(model.named_parameters()))
    hidden = [group for group in groups if not group.exact]  # norms average over them
    assert len(hidden) == geometry.hidden_size
    assert ("model.model.embed_tokens.weight", 1) in hidden[0].channels


class Cnn(nn.Module):
    """Convolutions with batch norms, a residual, a depthwise one, a concatenation, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 12, 3, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.outer = nn.Conv2d(12, 8, 1)
        self.branch = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear((8 + 6) * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.stem_norm(self.stem(x)))
        inner = self.depthwise(relu(self.inner_norm(self.inner(x))))
        x = x + self.outer(inner)
        x = torch.cat([x, relu(self.branch(x))], dim=1)
        pooled: Tensor = self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))
        return pooled


class Vit(nn.Module):
    """Patches, a class token, positions, one pre-norm layer of attention and MLP, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.positions = nn.Parameter(torch.randn(1, 5, 16))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(16) for _ in range(3))
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.project = nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), 1, 16), x], dim=1) + self.positions
        normed = self.norm1(x)
        q, k, v = (
            linear(normed).unflatten(-1, (-1, 4)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.project(attended.transpose(1, 2).flatten(2))
        x = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        logits: Tensor = self.head(self.norm3(x)[:, 0])
        return logits


def random_model(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = kind().eval()
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data = torch.rand_like(tensor) + 0.1 if tensor.dim() == 1 else tensor.data
    return model


def mask(model: nn.Module, groups: list[Group]) -> None:
    """Set to zero all that belongs to the groups."""
    for group in groups:
        for (name, axis), channels in group.channels.items():
            path, _, attribute = name.rpartition(".")
            tensor = getattr(model.get_submodule(path), attribute)
            tensor.data.index_fill_(axis, torch.tensor(channels), 0)


@pytest.mark.parametrize(
    ("kind", "size", "sizes"),
    [
        # 8 channels of the residual stream, 12 of the inner convolutions, 6 of the branch
        (Cnn, 8, [8, 12, 6]),
        # 4 heads, 24 channels of the MLP; the hidden ones are averaged over
        (Vit, 8, [4, 24]),
    ],
)
def test_the_smallest_groups_leave_a_model_that_computes_what_the_masked_one_does(
    kind: type[nn.Module], size: int, sizes: list[int]
):
    model, images = random_model(kind), torch.randn(3, 3, size, size)
    groups = [group for group in find_groups(model, (images,)) if group.exact]
    alike: dict[frozenset[Place], list[Group]] = {}
    for group in groups:
        alike.setdefault(frozenset(group.channels), []).append(group)
    assert sorted(map(len, alike.values())) == sorted(sizes)
    leaving = []
    for stack in alike.values():
        scores = magnitudes(model, stack)
        order = sorted(range(len(stack)), key=lambda i: scores[i])
        leaving += [stack[i] for i in order[: len(stack) // 2]]
    before = sum(p.numel() for p in model.parameters())
    mask(model, leaving)
    expected = model(images)
    remove(model, leaving)
    torch.testing.assert_close(model(images), expected)
    assert sum(p.numel() for p in model.parameters()) < 0.7 * before


def test_a_linear_that_would_lose_everything_is_refused():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 3))
    groups = find_groups(model, (torch.zeros(1, 3),))
    assert [dict(group.channels) for group in groups] == [
        {("0.weight", 0): (i,), ("0.bias", 0): (i,), ("2.weight", 1): (i,)} for i in range(2)
    ]
    with pytest.raises(ValueError, match="would lose all of its 2 channels"):
        remove(model, groups)


def test_an_operation_without_a_rule_is_named():
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sort(self.linear(x)).values

    with pytest.raises(ValueError, match="no rule for the operation sort"):
        find_groups(Sorted(), (torch.zeros(2, 3),))
