"""Compositions at request time: what a cached one costs, what a new one, and whether churn is safe.

Usage: python benchmarks/composition.py [--quick] [--json FILE]

The whole product serves the bundled base with its adapters on this machine, for these figures:

  hit_added_ttft_ms     time to the first token of a composition that is loaded, over that of a
                        plain adapter, asked by turns; p50 and p99 of the two differ by this
  cold_build_ms_p50     the same for the first request of a composition, over one that is loaded
  builds_for_100_equal_cold   loads that a hundred equal requests at once cause
  churn_wrong_answers   of many compositions asked for through a small cache by several clients at
                        once, with plain adapters and the base between them: answers whose log
                        probability is not what transformers says with the weighted sum of ΔW in the
                        weights (off by more than 1e-3; the weights are the reference)
  cmlora_kl_over_switch_kl    CMLoRA in transformers, three adapters with random weights on held-out
                        text: KL of the exact composition to the one in which the two that vary less
                        are refreshed at every second token, over that to one adapter at a time (the
                        better of two ways to weigh it); cmlora_chosen_over_equal is the same for
                        intervals chosen from the profiles at the same cost, over equal ones
  leaked_slots          adapters that the engine still holds after the churn and nothing asks for,
                        and files that nothing refers to

--quick: fewer of everything.
"""

import argparse
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import report
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from pruning import evaluation
from pruning.adapters.algebra import bags_of
from pruning.adapters.atoms import read
from pruning.adapters.compose.cached import NEVER, Cached, error, intervals
from pruning.adapters.compose.profile import high, profile
from pruning.adapters.compose.sums import Exact, Switch, decoded
from pruning.recipe import Text
from pruning.text import calibration_ids, load_tokenizer

DEMO = Path(__file__).parent.parent / "deploy" / "demo"
ADAPTERS = sorted(path.name for path in (DEMO / "adapters").iterdir())
CACHE = 20  # compositions that the engine keeps
CLIENTS = 8
TOLERANCE = 1e-3
PROMPT = "The history of the town begins in the year"

Weights = Mapping[str, float]
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    turns, cold, churned = (20, 5, 40) if options.quick else (300, 40, 200)
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        with serving(home) as client:
            rows = [*latencies(client, turns), *first_requests(client, cold), equal_ones(client)]
            rows += churn(client, home, churned)
    rows += [cmlora(seed, 4 if options.quick else 16) for seed in range(1 if options.quick else 3)]
    print(report.write("composition", figures(rows), rows, options.json))


@contextmanager
def serving(home: Path) -> Iterator[httpx.Client]:
    """The gateway with the bundled base and its adapters, ready to answer."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = {"HOME": home, "PORT": port, "COMPOSITION_LIMIT": CACHE, "WORKER": False}
    environment = {f"GRAFTWORK_{name}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "service.cli", "serve"]
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            until(lambda: client.get("/health").is_success)
            checked(client.post("/v1/bases", json={"name": "demo", "path": str(DEMO / "base")}))
            for name in ADAPTERS:
                adapter = {"name": name, "base": "demo", "path": str(DEMO / "adapters" / name)}
                checked(client.post("/v1/adapters", json=adapter))
            until(lambda: client.get("/ready").is_success)
            yield client
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(90)


def until(done: Any, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if done():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise TimeoutError("the gateway is not ready")


def checked(response: httpx.Response) -> Any:
    if response.is_error:
        raise RuntimeError(response.text)
    return response.json()


def first_token(client: httpx.Client, model: str) -> float:
    """Milliseconds until the first event of a stream."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": 1, "stream": True}
    started = time.perf_counter()
    with client.stream("POST", "/v1/completions", json=body) as response:
        events = response.iter_raw()
        next(events)
        elapsed = time.perf_counter() - started
        for _ in events:
            pass
    if response.status_code != 200:
        raise RuntimeError(f"{model}: {response.status_code}")
    return 1000 * elapsed


def latencies(client: httpx.Client, turns: int) -> list[Row]:
    """Base, a plain adapter and compositions of two and four, by turns, all of them loaded."""
    first, second, *_ = ADAPTERS
    models = {
        "base": "demo",
        "adapter": f"demo+{first}",
        "composition of 2": f"demo+{first}:0.5+{second}:0.5",
        "composition of 4": "demo" + "".join(f"+{name}:0.25" for name in ADAPTERS[:4]),
    }
    found: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        first_token(client, model)
    for _ in range(turns):
        for name, model in models.items():
            found[name].append(first_token(client, model))
    return [
        {"what": "hit", "model": name, "requests": turns, **quantiles(times)}
        for name, times in found.items()
    ]


def first_requests(client: httpx.Client, count: int) -> list[Row]:
    """New compositions: the first request of each, and the second."""
    first, second, *_ = ADAPTERS
    models = [f"demo+{first}:{1 + i / 100}+{second}:0.5" for i in range(count)]
    pairs = [(first_token(client, model), first_token(client, model)) for model in models]
    added = [cold - warm for cold, warm in pairs]
    return [{"what": "cold", "requests": count, **quantiles(added)}]


def equal_ones(client: httpx.Client) -> Row:
    """A hundred equal requests at once for a composition that nobody asked for before."""
    before = loads(client)
    model = "demo" + "".join(f"+{name}:0.31" for name in ADAPTERS[:3])
    with ThreadPoolExecutor(100) as pool:
        times = list(pool.map(lambda _: first_token(client, model), range(100)))
    return {"what": "equal", "builds": loads(client) - before, **quantiles(times)}


def loads(client: httpx.Client) -> int:
    """How many loads of compositions the gateway has begun."""
    lines = client.get("/metrics").text.splitlines()
    counts = [line for line in lines if line.startswith("graftwork_composition_load_seconds_count")]
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in counts))


def churn(client: httpx.Client, home: Path, count: int) -> list[Row]:
    """Many compositions through a small cache, several clients at once."""
    generator = random.Random(0)
    sums: dict[str, Weights] = {"demo": {}, **{f"demo+{name}": {name: 1.0} for name in ADAPTERS}}
    while len(sums) < count + 1 + len(ADAPTERS):
        names = generator.sample(ADAPTERS, generator.randint(2, 4))
        weights = {name: round(generator.uniform(-1, 1.5), 2) or 1.0 for name in names}
        sums["demo" + "".join(f"+{name}:{weight}" for name, weight in weights.items())] = weights
    asked = list(sums) * 2
    generator.shuffle(asked)
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(lambda model: answer(client, model), asked))
    reference = Reference()
    expected = {model: reference.logprobs(weights) for model, weights in sums.items()}
    errors = [
        max(abs(value - float(expected[model][token])) for token, value in found.items())
        for model, found in zip(asked, answers, strict=True)
    ]
    return [
        {
            "what": "churn",
            "compositions": count,
            "cache": CACHE,
            "clients": CLIENTS,
            "requests": len(asked),
            "wrong": sum(error > TOLERANCE for error in errors),
            "largest_error": max(errors),
            "leaked": leaked(client, home),
        }
    ]


def answer(client: httpx.Client, model: str) -> dict[int, float]:
    """Log probabilities of the likeliest next tokens."""
    body: dict[str, Any] = {"model": model, "prompt": PROMPT, "max_tokens": 1, "temperature": 0}
    body |= {"logprobs": 5, "return_tokens_as_token_ids": True}
    logprobs = checked(client.post("/v1/completions", json=body))["choices"][0]["logprobs"]
    top = logprobs["top_logprobs"][0]
    return {int(token.removeprefix("token_id:")): value for token, value in top.items()}


class Reference:
    """transformers, with sums of ΔW, as PEFT has them, in the weights of the base."""

    def __init__(self) -> None:
        self.ids = AutoTokenizer.from_pretrained(DEMO / "base")(PROMPT, return_tensors="pt")
        self.model = self._load()
        self.base = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.deltas = {}
        for name in ADAPTERS:
            adapted = PeftModel.from_pretrained(self._load(), DEMO / "adapters" / name)
            merged = adapted.merge_and_unload().state_dict()
            self.deltas[name] = {key: merged[key] - value for key, value in self.base.items()}

    def _load(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(DEMO / "base", dtype=torch.float32)

    def logprobs(self, weights: Weights) -> torch.Tensor:
        """Of all next tokens, (vocabulary,)."""
        self.model.load_state_dict(
            {
                key: value
                + sum(weight * self.deltas[name][key] for name, weight in weights.items())
                for key, value in self.base.items()
            }
        )
        with torch.no_grad():
            logits = self.model(**self.ids).logits[0, -1]
        return logits.log_softmax(dim=-1)


def leaked(client: httpx.Client, home: Path) -> int:
    """What is still there after the last request, beyond what the cache may hold."""
    client.get("/health")
    time.sleep(1.0)  # evictions are done in the background
    socket_path = str(home / "run" / "demo.sock")
    with httpx.Client(transport=httpx.HTTPTransport(uds=socket_path)) as engine:
        state = engine.get("http://engine/graftwork/adapters").json()
    names = [entry["name"] for entry in state["adapters"] if "*" in entry["name"]]
    manifests = len(list((home / "run" / "compositions").iterdir()))
    beyond: int = state["unnamed"] + max(0, len(names) - CACHE) + abs(manifests - len(names))
    return beyond


def cmlora(seed: int, count: int) -> Row:
    """One draw of weights and texts: how far each way to compose is from the exact sum."""
    generator, names = random.Random(seed), ADAPTERS[:3]
    model, tokenizer = evaluation.load(DEMO / "base"), load_tokenizer(DEMO / "base")
    parts = [bags_of(read(DEMO / "adapters" / name, name)) for name in names]
    calibration, held_out = (
        calibration_ids(tokenizer, DEMO / text.file, text, seed)
        for text in (
            Text(file="text/calibration.txt", sequences=16, length=128),
            Text(file="text/evaluation.txt", sequences=count, length=96),
        )
    )
    profiles = [profile(model, bags, calibration) for bags in parts]
    weights = [generator.uniform(0.3, 0.9) for _ in names]
    errors = [error(*pair, NEVER) for pair in zip(profiles, weights, strict=True)]
    equal = [1 if loss == max(errors) else 2 for loss in errors]
    chosen = intervals(profiles, weights, sum(1 / interval for interval in equal))
    exact = decoded(model, Exact(parts, weights), held_out, 32)

    def divergence(added: Exact) -> float:
        other = decoded(model, added, held_out, 32)
        return round(float((exact.exp() * (exact - other)).sum(dim=-1).mean()), 4)

    skipped = 1 - sum(1 / interval for interval in equal) / len(names)
    return {
        "what": "cmlora",
        "seed": seed,
        "weights": [round(weight, 3) for weight in weights],
        "equal": equal,
        "chosen": chosen,
        "switch": divergence(Switch(parts, weights)),
        "switch_whole": divergence(Switch(parts, weights, whole=True)),
        "cached_equal": divergence(Cached(parts, weights, profiles, equal)),
        "cached_chosen": divergence(Cached(parts, weights, profiles, chosen)),
        "work_saved": round(skipped, 3),
        "high_frequencies": [round(high(found), 3) for found in profiles],
    }


def quantiles(times: list[float]) -> dict[str, float]:
    """p50 and p99, in milliseconds."""
    ordered = sorted(times)
    p99 = ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]
    return {"p50_ms": round(statistics.median(ordered), 3), "p99_ms": round(p99, 3)}


def figures(rows: list[Row]) -> dict[str, Any]:
    hits = {row["model"]: row for row in rows if row["what"] == "hit"}
    by = {row["what"]: row for row in rows}
    draws = [row for row in rows if row["what"] == "cmlora"]
    switch, equal, chosen = (
        sum(min(row[name] for name in names) for row in draws)
        for names in (("switch", "switch_whole"), ("cached_equal",), ("cached_chosen",))
    )
    plain, composed = hits["adapter"], hits["composition of 2"]
    return {
        "hit_added_ttft_ms_p50": round(composed["p50_ms"] - plain["p50_ms"], 3),
        "hit_added_ttft_ms_p99": round(composed["p99_ms"] - plain["p99_ms"], 3),
        "cold_build_ms_p50": by["cold"]["p50_ms"],
        "builds_for_100_equal_cold": by["equal"]["builds"],
        "churn_wrong_answers": by["churn"]["wrong"],
        "leaked_slots": by["churn"]["leaked"],
        "cmlora_kl_over_switch_kl": round(equal / switch, 3),
        "cmlora_chosen_over_equal": round(chosen / equal, 3),
    }


if __name__ == "__main__":
    main()
