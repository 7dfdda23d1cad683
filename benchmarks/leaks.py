"""Two tenants with private adapters of one name, asked at once: what of one reaches the other?

Looked for in the engine's names and salts of every request, in completions, in lists of models, in
errors about the other's things, and in metrics.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from installation import DEMO, Installation

NAME = "secret-sql"
SOURCES = {"acme": "wikisql", "umbra": "e2e_nlg"}


def play(site: Installation, num: int) -> dict[str, Any]:
    """Ask `num` times for both; every leak is one line of `leaks`."""
    leaks: list[str] = []
    clients = {tenant: _client(site, tenant) for tenant in SOURCES}
    digests = {tenant: upload(clients[tenant], NAME, source) for tenant, source in SOURCES.items()}
    order = list(SOURCES)

    def ask(number: int) -> None:
        tenant = order[number % 2]
        other = digests[order[1 - number % 2]]
        model = ("demo", f"demo+{NAME}", f"demo+{NAME}:0.5")[number % 3]
        body = {"model": model, "prompt": "go", "max_tokens": 1}
        body |= {"cache_salt": "mine"} if number % 5 == 0 else {}
        answer = clients[tenant].post("/v1/completions", json=body)
        if other[:12] in answer.text or answer.status_code != 200:
            leaks.append(f"completion {number}: {answer.text[:200]}")
        if number % 50 == 0:
            listed = clients[tenant].get("/v1/models").text
            wrong = clients[tenant].get(f"/v1/models/demo+{NAME}@{other[:12]}")
            if other[:12] in listed or wrong.status_code != 404:
                leaks.append(f"models {number}")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(num)))
    state = site.tell_engine()
    salts: dict[str, set[str]] = {}
    for asked in state["asked_for"]:
        model, _, salt = asked.partition(" ")
        salts.setdefault(model, set()).add(salt)
    private = {model: found for model, found in salts.items() if model != "demo"}
    leaks += [
        f"one name in the engine, {len(s)} salts: {m}" for m, s in private.items() if len(s) > 2
    ]
    if len(salts["demo"]) != 4:  # two tenants, each with and without a salt of its own
        leaks.append(f"{len(salts['demo'])} salts for the base")
    inside = json.dumps(state)
    leaks += [f"{tenant} is named in the engine" for tenant in SOURCES if tenant in inside]
    admin = _client(site, "operators", "admin")
    if NAME in admin.get("/metrics").text:
        leaks.append("a private name in the metrics")
    return {"requests": num, "tenant_leaks": len(leaks), "leaks": leaks[:10]}


def _client(site: Installation, tenant: str, *scopes: str) -> httpx.Client:
    headers = headers_of(site, tenant, *scopes)
    return httpx.Client(base_url=site.client.base_url, headers=headers, timeout=60)


def headers_of(site: Installation, tenant: str, *scopes: str) -> dict[str, str]:
    """With a new key of a tenant, without the scope admin unless it is named."""
    asked = {"tenant": tenant, "scopes": scopes or ("infer", "adapters", "jobs")}
    made = _admin(site).post("/v1/keys", json=asked)
    made.raise_for_status()
    return {"authorization": f"Bearer {made.json()['key']}"}


def _admin(site: Installation) -> httpx.Client:
    """The client that makes keys: without one for the first of them, an admin's."""
    if "authorization" not in site.client.headers:
        made = site.client.post("/v1/keys", json={"tenant": "operators", "scopes": ["admin"]})
        made.raise_for_status()
        site.client.headers["authorization"] = f"Bearer {made.json()['key']}"
    return site.client


def upload(client: httpx.Client, name: str, source: str) -> str:
    """Upload one of the bundled adapters under a name; its digest."""
    unneeded = ("eval.jsonl", "calibration.jsonl")
    paths = sorted(p for p in (DEMO / "adapters" / source).iterdir() if p.name not in unneeded)
    files = [("files", (path.name, path.read_bytes())) for path in paths]
    answer = client.post("/v1/adapters", data={"name": name, "base": "demo"}, files=files)
    answer.raise_for_status()
    return str(answer.json()["digest"])
