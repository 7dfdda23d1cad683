"""Tiny random models of every supported family, with a byte tokenizer, real on disk."""

import multiprocessing
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from pydantic import BaseModel
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from pruning import registry
from pruning.allocation import budget
from pruning.allocation.blocks import remaining
from pruning.geometry import Geometry
from pruning.jobs import stage
from pruning.jobs.kinds import Kind
from pruning.plan import LayerPlan, Plan, Widths
from pruning.recipe import Recipe
from pruning.registry import LayerScores, Problem
from pruning.statistics.gradients import Saliency
from pruning.statistics.influence import WHOLE, Influence
from pruning.statistics.moments import Moments
from pruning.stats import Statistics
from pruning.units import KINDS, READERS, members

SHAPE: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 256,
    "eos_token_id": 257,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "mistral": MistralConfig(**SHAPE, sliding_window=6, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=False),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8, tie_word_embeddings=True),
    "gemma2": Gemma2Config(
        **SHAPE,
        head_dim=8,
        sliding_window=6,
        query_pre_attn_scalar=24,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
    "phi3": Phi3Config(**SHAPE, pad_token_id=258),
    "llama with biases": LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
    "mistral without window": MistralConfig(**SHAPE, sliding_window=None),
}


def _tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: i for i, symbol in enumerate([*alphabet, "<s>", "</s>", "<pad>", "<unk>"])}
    tokenizer = Tokenizer(BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture(scope="session")
def dense_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a dense base, made on first use; its weights are far from their init."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            torch.manual_seed(len(name))
            model = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32)
            for parameter in model.parameters():
                noise = torch.randn_like(parameter.data)
                parameter.data += (0.3 if parameter.dim() == 1 else 0.15) * noise
            made[name] = tmp_path_factory.mktemp("base") / name.replace(" ", "-")
            model.save_pretrained(made[name])
            _tokenizer().save_pretrained(made[name])
        return made[name]

    return make


@pytest.fixture(scope="session")
def ids() -> torch.Tensor:
    """Token sequences longer than the sliding window; (5, 12)."""
    return torch.randint(0, 256, (5, 12), generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="session")
def even_plan() -> Plan:
    """Every layer keeps two of four KV groups and 32 of 48 channels, but not the same ones."""
    layers = [
        LayerPlan(
            kv_groups=tuple(sorted({i % 4, (i + 2) % 4})),
            ffn_channels=tuple(c for c in range(48) if (c + i) % 3),
        )
        for i in range(4)
    ]
    return Plan(layers=tuple(layers))


@pytest.fixture(scope="session")
def uneven_plan() -> Plan:
    """A layer without MLP, one that is gone, one without attention, and one that is narrower."""
    return Plan(
        layers=(
            LayerPlan(kv_groups=(1, 2, 3), ffn_channels=()),
            LayerPlan(kv_groups=(), ffn_channels=()),
            LayerPlan(kv_groups=(), ffn_channels=tuple(range(0, 48, 2))),
            LayerPlan(kv_groups=(2,), ffn_channels=tuple(range(5, 21))),
        )
    )


@pytest.fixture
def means() -> Callable[[int, int], Statistics]:
    """Statistics with means that are not zero: (inputs of o_proj, inputs of down_proj)."""

    def make(o_inputs: int, down_inputs: int) -> Statistics:
        generator = torch.Generator().manual_seed(3)
        widths = {"o_proj": o_inputs, "down_proj": down_inputs}
        return Statistics(
            {
                (layer, linear): Moments(
                    10,
                    torch.randn(width, dtype=torch.float64, generator=generator),
                    torch.ones(width, dtype=torch.float64),
                )
                for layer in range(4)
                for linear, width in widths.items()
            }
        )

    return make


@dataclass(frozen=True)
class RandomCheckpoint:
    """A base of which only the shape is decided: its weights are drawn when asked for."""

    geometry: Geometry

    def tensor(self, name: str) -> torch.Tensor:
        _, _, layer, _, linear, _ = name.split(".")
        shape = self.geometry.linear_shape(int(layer), linear)
        assert shape is not None
        return torch.randn(shape, generator=torch.Generator().manual_seed(int(layer)))


def _random_statistics(geometry: Geometry, generator: torch.Generator) -> Statistics:
    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(shape, dtype=torch.float64, generator=generator)

    moments, saliency, influence = {}, {}, {}
    for layer in range(len(geometry.layers)):
        influence[layer, WHOLE] = Influence(10, 10 * rand(), 10 * rand())
        for kind in KINDS:
            for member in members(geometry, layer, kind):
                shape = geometry.linear_shape(layer, member.linear)
                assert shape is not None
                score = rand(shape[member.axis])
                saliency[layer, member.linear] = Saliency(score, score)
                if member.linear == READERS[kind]:
                    moments[layer, member.linear] = Moments(10, rand(shape[1]), rand(shape[1]))
    return Statistics(moments, saliency, influence=influence)


@pytest.fixture(scope="session")
def make_problem() -> Callable[..., Problem]:
    """An allocator's problem on a base of random scores, statistics and weights."""

    def make(
        geometry: Geometry,
        recipe: Recipe,
        seed: int = 0,
        scores: list[LayerScores] | None = None,
        comparable: bool = True,
    ) -> Problem:
        budget.check(geometry, recipe)
        generator = torch.Generator().manual_seed(seed)
        drawn = [
            LayerScores(
                torch.rand(layer.num_kv_heads, dtype=torch.float64, generator=generator),
                torch.rand(layer.intermediate_size, dtype=torch.float64, generator=generator),
                torch.rand(layer.num_heads, dtype=torch.float64, generator=generator),
            )
            for layer in geometry.layers
        ]
        scores = scores or drawn
        return Problem(
            checkpoint=cast(Any, RandomCheckpoint(geometry)),
            recipe=recipe,
            space=budget.space(geometry, recipe, *remaining(scores, recipe)),
            scores=scores,
            comparable=comparable,
            statistics=_random_statistics(geometry, generator),
            calibration=lambda: torch.zeros(1, 8, dtype=torch.int64),
            progress=lambda fraction, message: None,
        )

    return make


@pytest.fixture(scope="session")
def allocate() -> Callable[[Problem], Widths]:
    """Run the allocator that a problem's recipe names."""

    def run(problem: Problem) -> Widths:
        function, _, params = registry.allocator(problem.recipe.allocator)
        return function(problem, params)

    return run


@dataclass(frozen=True)
class Mortal:
    """Jobs of one spec whose stages run in forks of this process, which are there at once.

    So most kills hit a stage's work and not the imports before it.
    """

    kind: Kind
    spec: BaseModel
    stages: Sequence[str]
    folder: Path

    def undisturbed(self) -> tuple[Path, dict[str, float]]:
        """A job that nobody kills, and how long its stages take, in seconds."""
        work, durations = self._begun("whole"), {}
        for name in self.stages:
            started = time.monotonic()
            assert self._lives(name, work)
            durations[name] = time.monotonic() - started
        return work, durations

    def killed(self, kills: int, durations: dict[str, float]) -> Iterator[Path]:
        """Jobs to their ends, their stages killed at random instants, so many times in all."""
        instants, left, jobs = random.Random(0), kills, 0
        while left:
            work, jobs = self._begun(f"job-{jobs}"), jobs + 1
            for name in self.stages:
                while left and not self._lives(name, work, instants.uniform(0, durations[name])):
                    left -= 1
                assert self._lives(name, work)
            yield work
        print(f"{kills} kills, {jobs} jobs")

    def _begun(self, name: str) -> Path:
        work = self.folder / name
        work.mkdir()
        (work / "spec.json").write_text(self.spec.model_dump_json())
        return work

    def _lives(self, name: str, work: Path, seconds: float | None = None) -> bool:
        """Run a stage, killed after some seconds; whether it came to its end."""

        def say(fraction: float, message: str) -> None:
            with (work / "said").open("a") as said:
                said.write(f"{name}: {message}\n")

        def life() -> None:
            # tqdm's own lock is shared between forks: one killed within it would hang the rest
            tqdm.set_lock(threading.RLock())
            with (work / "said").open("a") as said:
                said.write("a life begins\n")
            stage.run(name, work, self.kind.workflow, self.kind.pipeline, say)

        process = multiprocessing.get_context("fork").Process(target=life)
        process.start()
        process.join(seconds)
        process.kill()
        process.join()
        return process.exitcode == 0


@pytest.fixture
def mortal(tmp_path: Path) -> Callable[[Kind, BaseModel, Sequence[str]], Mortal]:
    """Jobs of a kind and a spec, in these stages, that are to be killed."""
    return lambda kind, spec, stages: Mortal(kind, spec, stages, tmp_path)
