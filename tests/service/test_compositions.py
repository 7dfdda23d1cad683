"""Compositions over HTTP: asked for in three ways, named, loaded once, let go, never stale."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.numpy import load_file, save_file

from service.settings import Settings

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def make_adapter(adapter_directory: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Make an adapter like the first, with other numbers in it."""

    def make(name: str) -> Path:
        directory = tmp_path / "made" / name
        directory.mkdir(parents=True)
        for path in adapter_directory.iterdir():
            (directory / path.name).write_bytes(path.read_bytes())
        tensors = load_file(directory / WEIGHTS)
        changed = {key: value + len(name) for key, value in tensors.items()}
        save_file(changed, directory / WEIGHTS)
        return directory

    return make


@pytest.fixture
def three(demo: httpx.Client, make_adapter: Callable[[str], Path]) -> httpx.Client:
    """The base "demo" with the adapters sql, style and news, of rank 2 each."""
    for name in ("style", "news"):
        adapter = {"name": name, "base": "demo", "path": str(make_adapter(name))}
        assert demo.post("/v1/adapters", json=adapter).status_code == 201
    return demo


def complete(gateway: httpx.Client, model: str, **body: Any) -> httpx.Response:
    return gateway.post("/v1/completions", json={"model": model, "prompt": "hello", **body})


def error(response: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = response.json()["error"]
    return found


def figures(gateway: httpx.Client) -> dict[str, float]:
    lines = gateway.get("/metrics").text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("graftwork_composition"))
    return {name: float(value) for name, value in pairs}


def test_all_spellings_reach_the_engine_as_one_model_and_nothing_else_changes(
    three: httpx.Client, upstream: Any, engines: Any
):
    llama_cpp = [{"id": "sql", "scale": 0.75}, {"id": "style", "scale": 0.25}]
    lorax = {"ids": ["sql", "style"], "weights": [0.75, 0.25]}
    answers = [
        complete(three, "demo+style:0.25+sql:0.75", seed=3),
        complete(three, "demo", seed=3, lora=llama_cpp),
        complete(three, "demo", seed=3, adapter_parameters=lorax),
    ]
    echoes = [answer.json()["echo"] for answer in answers]
    assert echoes[0] == echoes[1] == echoes[2]
    assert set(echoes[0]) == {"model", "prompt", "seed"}
    assert engines.running["demo"].loads == [echoes[0]["model"]]
    parts = json.loads(engines.running["demo"].contents[echoes[0]["model"]])["parts"]
    assert [(part["name"], part["weight"]) for part in parts] == [("sql", 0.75), ("style", 0.25)]
    assert all((Path(part["path"]) / WEIGHTS).is_file() for part in parts)


def test_a_named_composition_is_a_model_until_it_is_deleted(three: httpx.Client, upstream: Any):
    new = {"name": "mix", "base": "demo", "adapters": {"sql": 0.5, "demo+style": -1}}
    made = three.post("/v1/compositions", json=new)
    assert made.status_code == 201, made.text
    assert made.json()["id"] == "demo+mix"
    assert made.json()["spelled"] == "demo+sql:0.5+style:-1"
    assert three.get("/v1/compositions").json()["data"] == [made.json()]
    assert three.get("/v1/compositions", params={"base": "x"}).json()["data"] == []
    model = three.get("/v1/models/demo+mix").json()
    assert model["parent"] == "demo"
    assert model in three.get("/v1/models").json()["data"]
    spelled = complete(three, "demo+sql:0.5+style:-1").json()["echo"]["model"]
    assert complete(three, "demo+mix").json()["echo"]["model"] == spelled
    assert three.delete("/v1/compositions/demo+mix").json()["deleted"]
    assert complete(three, "demo+mix").status_code == 404


def test_a_name_belongs_to_one_thing(three: httpx.Client, make_adapter: Callable[[str], Path]):
    new = {"name": "mix", "base": "demo", "adapters": {"sql": 1, "style": 1}}
    assert three.post("/v1/compositions", json=new).status_code == 201
    assert three.post("/v1/compositions", json=new).status_code == 409
    assert three.post("/v1/compositions", json={**new, "name": "sql"}).status_code == 409
    adapter = {"name": "mix", "base": "demo", "path": str(make_adapter("mixed"))}
    assert three.post("/v1/adapters", json=adapter).status_code == 409
    refused = three.delete("/v1/adapters/demo+sql")
    assert refused.status_code == 409
    assert "demo+mix" in error(refused)["message"]


@pytest.mark.parametrize(
    ("model", "status", "param", "words"),
    [
        ("demo+sql:0.5+nobody:1", 404, "model", "demo+nobody"),
        ("nowhere+sql:0.5", 404, "model", "nowhere"),
        ("demo+sql:1+sql:2", 400, "model", "twice"),
        ("demo+sql:inf", 400, "model", "must be a number"),
        ("demo+sql:99", 400, "model", "from -10 to 10"),
        ("demo+sql:1+style:1@mush", 400, "merge.name", "choose one of"),
    ],
)
def test_what_cannot_be_composed_is_a_clear_error(
    three: httpx.Client, model: str, status: int, param: str, words: str
):
    response = complete(three, model)
    assert response.status_code == status
    assert error(response)["param"] == param
    assert words in error(response)["message"]


def test_more_rank_than_the_engine_takes_is_refused_but_not_for_a_strategy_that_keeps_to_one(
    three: httpx.Client, upstream: Any, make_adapter: Callable[[str], Path]
):
    for name in ("fourth", "fifth.."):
        adapter = {"name": name, "base": "demo", "path": str(make_adapter(name))}
        assert three.post("/v1/adapters", json=adapter).status_code == 201
    ids = "demo+sql+style+news+fourth+fifth.."
    refused = complete(three, ids)
    assert refused.status_code == 400
    assert "rank 10" in error(refused)["message"]
    assert complete(three, f"{ids}@svd:8").status_code == 200


def test_a_hundred_equal_cold_requests_load_it_once(
    three: httpx.Client, upstream: Any, engines: Any
):
    engines.running["demo"].load_seconds = 0.2
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda _: complete(three, "demo+sql:2+style:1"), range(100)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(engines.running["demo"].loads) == 1
    tiers = figures(three)
    assert tiers['graftwork_composition_requests_total{tier="disk"}'] == 1
    assert sum(v for k, v in tiers.items() if "requests_total" in k) == 100


def test_the_least_recently_used_are_let_go_with_their_files(
    three: httpx.Client, upstream: Any, engines: Any, settings: Settings
):
    models = [f"demo+sql:{weight}+style:1" for weight in range(1, 9)]
    names = [complete(three, model).json()["echo"]["model"] for model in models]
    engine = engines.running["demo"]
    deadline = time.monotonic() + 30
    manifests = settings.run / "compositions"  # each goes just after its adapter
    while len(list(manifests.iterdir())) > settings.composition_limit:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert set(engine.adapters) == set(names[-settings.composition_limit :])
    assert len(list(manifests.iterdir())) == settings.composition_limit
    evicted = figures(three)['graftwork_composition_evictions_total{tier="engine"}']
    assert evicted == len(models) - settings.composition_limit


def test_no_more_are_let_go_than_needed_while_some_are_still_leaving(
    three: httpx.Client, upstream: Any, engines: Any, settings: Settings
):
    engines.running["demo"].unload_seconds = 0.5
    limit = settings.composition_limit
    for weight in range(1, limit + 3):
        complete(three, f"demo+sql:{weight}+style:1")
    complete(three, f"demo+sql:{limit + 2}+style:1")
    assert figures(three)['graftwork_composition_evictions_total{tier="engine"}'] == 2


def test_a_pinned_one_that_cannot_be_loaded_does_not_keep_others_from_it(
    three: httpx.Client, upstream: Any, engines: Any, make_adapter: Callable[[str], Path]
):
    names = ["sql", "style", "news", "fourth", "fifth.."]
    for name in names[3:]:
        adapter = {"name": name, "base": "demo", "path": str(make_adapter(name))}
        assert three.post("/v1/adapters", json=adapter).status_code == 201
    for name, adapters in (("a-huge", names), ("b-small", names[:2])):
        new = {"name": name, "base": "demo", "adapters": dict.fromkeys(adapters, 1), "pinned": True}
        assert three.post("/v1/compositions", json=new).status_code == 201
    deadline = time.monotonic() + 60
    while not engines.running["demo"].adapters:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert complete(three, "demo+a-huge").status_code == 400


def test_one_that_is_in_use_stays(three: httpx.Client, upstream: Any, engines: Any):
    body = {"model": "demo+sql:5+style:1", "prompt": "forever", "stream": True}
    with three.stream("POST", "/v1/completions", json=body) as response:
        events = response.iter_raw()  # let go, it would close the stream
        next(events)
        for weight in range(6, 12):
            complete(three, f"demo+sql:{weight - 5}+style:2")
        name = upstream.requests[0]["model"]
        assert name in engines.running["demo"].adapters


def test_a_pinned_one_is_loaded_before_anybody_asks_and_survives_all_others(
    three: httpx.Client, upstream: Any, engines: Any
):
    new = {"name": "vip", "base": "demo", "adapters": {"sql": 3, "style": 1}, "pinned": True}
    assert three.post("/v1/compositions", json=new).status_code == 201
    engine = engines.running["demo"]
    deadline = time.monotonic() + 30
    while not engine.adapters:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (name,) = engine.adapters
    for weight in range(1, 9):
        complete(three, f"demo+sql:{weight}+style:2")
    assert name in engine.adapters
    assert complete(three, "demo+vip").json()["echo"]["model"] == name


def test_an_adapter_that_is_trained_again_changes_the_next_answer_at_every_tier(
    three: httpx.Client, upstream: Any, engines: Any, make_adapter: Callable[[str], Path]
):
    ids = ("demo+sql", "demo+sql:0.5+style:0.5", "demo+sql:0.5+style:0.5@svd:2")
    before = [complete(three, id).json()["echo"]["model"] for id in ids]
    new = {"name": "sql", "base": "demo", "path": str(make_adapter("sql again"))}
    replaced = three.put("/v1/adapters/demo+sql", json=new)
    assert replaced.status_code == 200, replaced.text
    after = [complete(three, id).json()["echo"]["model"] for id in ids]
    assert not set(before) & set(after)
    assert not set(before) & set(engines.running["demo"].adapters)
    paths = json.loads(engines.running["demo"].contents[after[1]])["parts"]
    assert all(Path(part["path"]).is_dir() for part in paths)


def test_an_adapter_is_replaced_whole_or_not_at_all(
    three: httpx.Client, make_adapter: Callable[[str], Path]
):
    before = three.get("/v1/adapters/demo+sql").json()
    other = {"name": "style", "base": "demo", "path": str(make_adapter("x"))}
    assert three.put("/v1/adapters/demo+sql", json=other).status_code == 400
    broken = make_adapter("broken")
    (broken / WEIGHTS).write_bytes(b"not a tensor")
    new = {"name": "sql", "base": "demo", "path": str(broken)}
    assert three.put("/v1/adapters/demo+sql", json=new).status_code == 400
    assert three.put("/v1/adapters/demo+none", json={**new, "name": "none"}).status_code in (
        400,
        404,
    )
    assert three.get("/v1/adapters/demo+sql").json() == before


def test_what_an_engine_refuses_leaves_nothing_behind(
    three: httpx.Client, engines: Any, settings: Settings
):
    engines.running["demo"].rejects = True
    refused = complete(three, "demo+sql:1+style:1")
    assert refused.status_code == 400
    assert list((settings.run / "compositions").iterdir()) == []
    assert figures(three)["graftwork_compositions_loaded"] == 0


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def hits(gateway: httpx.Client, tier: str) -> float:
    return figures(gateway).get(f'graftwork_composition_requests_total{{tier="{tier}"}}', 0)


def test_what_an_engine_let_go_is_loaded_again_from_memory(
    three: httpx.Client, upstream: Any, engines: Any, settings: Settings
):
    name = complete(three, "demo+sql:1+style:1").json()["echo"]["model"]
    assert (hits(three, "disk"), hits(three, "memory")) == (1, 0)
    sizes = 'graftwork_composition_bytes{tier="memory"}'
    wait_until(lambda: figures(three)[sizes] > 0)
    for weight in range(2, 2 + settings.composition_limit):
        complete(three, f"demo+sql:{weight}+style:1")
    wait_until(lambda: name not in engines.running["demo"].adapters)
    complete(three, "demo+sql:1+style:1")
    assert hits(three, "memory") >= 1
    parts = json.loads(engines.running["demo"].contents[name])["parts"]
    for part in parts:
        assert Path(part["path"]).parent.parent == settings.composition_memory
        assert (Path(part["path"]) / WEIGHTS).is_file()


def test_a_deleted_adapter_leaves_memory_too(
    three: httpx.Client, upstream: Any, settings: Settings
):
    digest = three.get("/v1/adapters/demo+news").json()["digest"]
    complete(three, "demo+sql:1+news:1")
    kept = settings.composition_memory
    wait_until(lambda: any(kept.glob(f"*/{digest}")))
    assert three.delete("/v1/adapters/demo+news").is_success
    assert not any(kept.glob(f"*/{digest}"))


def merges(gateway: httpx.Client, outcome: str) -> float:
    name = f'graftwork_composition_merges_total{{outcome="{outcome}"}}'
    return figures(gateway).get(name, 0)


class TestSumsThatRepeat:
    """With a limit of three requests."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"composition_repeats": 3})

    def ask(self, gateway: httpx.Client, model: str = "demo+sql:0.5+style:0.5") -> str:
        name: str = complete(gateway, model).json()["echo"]["model"]
        return name

    def test_the_third_request_has_it_merged_and_later_ones_get_that(
        self, three: httpx.Client, upstream: Any, engines: Any
    ):
        live = [self.ask(three) for _ in range(3)]
        wait_until(lambda: merges(three, "done") == 1)
        merged = self.ask(three)
        assert len(set(live)) == 1
        assert merged != live[0]
        manifest = json.loads(engines.running["demo"].contents[merged])
        assert manifest["strategy"]["name"] == "cat"
        assert [part["weight"] for part in manifest["parts"]] == [0.5, 0.5]
        wait_until(lambda: set(engines.running["demo"].adapters) == {merged})

    def test_the_sum_stays_while_a_request_uses_it(
        self, three: httpx.Client, upstream: Any, engines: Any
    ):
        engine = engines.running["demo"]
        model = "demo+sql:0.5+style:0.5"
        body = {"model": model, "prompt": "forever", "stream": True}
        with three.stream("POST", "/v1/completions", json=body) as response:
            next(events := response.iter_raw())
            (live,) = engine.adapters
            for _ in range(2):
                self.ask(three)
            wait_until(lambda: merges(three, "done") == 1)
            assert self.ask(three) != live
            assert live in engine.adapters
            next(events)
        wait_until(lambda: live not in engine.adapters)

    def test_one_that_is_seldom_asked_for_or_is_built_anyway_is_not_merged(
        self, three: httpx.Client, upstream: Any, engines: Any
    ):
        seldom = [self.ask(three, "demo+sql:2+style:1") for _ in range(2)]
        built = [self.ask(three, "demo+sql:2+style:1@svd:2") for _ in range(5)]
        repeated = [self.ask(three, "demo+sql:3+style:1") for _ in range(3)]
        wait_until(lambda: merges(three, "done") == 1)
        loads = engines.running["demo"].loads
        assert loads[:3] == [seldom[0], built[0], repeated[0]]
        assert len(loads) == 4

    def test_one_that_the_engine_refuses_is_answered_as_a_sum_and_not_tried_again(
        self, three: httpx.Client, upstream: Any, engines: Any
    ):
        engine, live = engines.running["demo"], [self.ask(three) for _ in range(2)]
        engine.rejects_new = True
        live += [self.ask(three) for _ in range(3)]
        wait_until(lambda: merges(three, "failed") == 1)
        live += [self.ask(three) for _ in range(4)]
        assert len(set(live)) == 1
        assert merges(three, "failed") == 1

    def test_a_server_that_stops_does_not_wait_for_a_merge(
        self, three: httpx.Client, upstream: Any, engines: Any
    ):
        """The gateway of the fixture must stop within ten seconds."""
        engine, live = engines.running["demo"], {self.ask(three) for _ in range(2)}
        engine.load_seconds = 60
        self.ask(three)
        wait_until(lambda: set(engine.loading) > live)

    def test_what_is_refused_is_not_merged_however_often_it_is_asked_for(
        self, three: httpx.Client, upstream: Any, make_adapter: Callable[[str], Path]
    ):
        for name in ("fourth", "fifth.."):
            adapter = {"name": name, "base": "demo", "path": str(make_adapter(name))}
            assert three.post("/v1/adapters", json=adapter).status_code == 201
        for _ in range(5):
            assert complete(three, "demo+sql+style+news+fourth+fifth..").status_code == 400
        assert merges(three, "failed") == 0

    def test_a_pinned_one_is_held_in_its_merged_form(
        self, three: httpx.Client, upstream: Any, engines: Any
    ):
        new = {"name": "vip", "base": "demo", "adapters": {"sql": 3, "style": 1}, "pinned": True}
        assert three.post("/v1/compositions", json=new).status_code == 201
        live = self.ask(three, "demo+vip")
        for _ in range(2):
            self.ask(three, "demo+vip")
        wait_until(lambda: merges(three, "done") == 1)
        engine = engines.running["demo"]
        wait_until(lambda: live not in engine.adapters)
        time.sleep(1.5)  # longer than between two looks for pinned ones
        assert set(engine.adapters) == {self.ask(three, "demo+vip")}


def test_adapters_that_take_turns_reach_the_engine_as_parts_with_a_period(
    three: httpx.Client, upstream: Any, engines: Any
):
    name = complete(three, "demo+style:2+sql@switch:3").json()["echo"]["model"]
    manifest = json.loads(engines.running["demo"].contents[name])
    assert manifest["period"] == 3
    assert "destination" not in manifest  # nothing is built
    assert [(p["name"], p["weight"]) for p in manifest["parts"]] == [("sql", 1.0), ("style", 2.0)]


def test_a_composition_that_is_held_between_tokens_is_refused_with_the_reason(
    three: httpx.Client,
):
    refused = complete(three, "demo+sql+style@cmlora")
    assert refused.status_code == 400
    assert "is not served" in error(refused)["message"]
    new = {"name": "mix", "base": "demo", "adapters": {"sql": 1}, "strategy": {"name": "cmlora"}}
    assert three.post("/v1/compositions", json=new).status_code == 400
