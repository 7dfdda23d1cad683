"""An installation under mixed traffic for minutes, killed now and then: what grows, what is wrong?

Usage: python benchmarks/soak.py [--minutes N] [--seed N] [--quick] [--json FILE]

The gateway is `graftwork serve`, the engines are mock engines, the worker is the real one on the
small pipeline of kills.py.  Two tenants complete and stream, upload adapters and texts, compose,
move aliases, order jobs, and delete it all again, while garbage is collected.  In the first quarter
anything may be killed; from then on the gateway lives, so that what it holds can be compared.
Exits with 1 when something grew, when an answer was wrong, or when catalog and disk disagree.
"""

import argparse
import itertools
import json
import random
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import kills
import leaks
import psutil
import report
from installation import Installation, running

from service import content
from service.catalog import Catalog
from service.collection import Collector
from service.jobs import Jobs
from service.settings import Settings

MIB = 1 << 20
RATE = 400.0  # tokens a second of a sequence
GONE = (404, 409)  # what a request finds that is repeated because its answer got lost
CUT = {"engine_unavailable", "overloaded", "deadline_exceeded"}  # how a stream may end early
ROWS = ("bases", "adapters", "compositions", "aliases", "files")  # of what is deleted again
MOST = {  # that each may have grown by in the end
    "gateway_rss": 16 * MIB,
    "gateway_files": 24,
    "gateway_threads": 8,
    "worker_rss": 16 * MIB,
    "worker_files": 8,
    "worker_threads": 8,
    "stored_bytes": 8 * MIB,
    "catalog_rows": 20,
}


class Tenant:
    """One tenant's traffic; what it is told that is not so goes into `wrong`."""

    def __init__(self, site: Installation, name: str, done: Counter[str], wrong: list[str]):
        scopes = ("infer", "adapters", "jobs", "admin")
        self.name, self.done, self.wrong = name, done, wrong
        self.client = kills.Client(site.port, leaks.headers_of(site, name, *scopes))
        self.source = leaks.SOURCES[name]
        for adapter in ("one", "two"):
            leaks.upload(self.client.http, adapter, self.source)
        self.text = kills.upload_text(self.client, b"a text that calibrates " * 50, {})

    def complete(self, number: int) -> None:
        model = ("demo", "demo+one", "demo+one:0.5+two:0.5", "demo+two")[number % 4]
        num = 1 + number % 7
        body = {"model": model, "prompt": "go", "max_tokens": num}
        if number % 2:
            self.stream(body, num)
        else:
            answer = self.client.ask("POST", "/v1/completions", json=body)
            self.expect(answer.json()["choices"][0]["text"] == " token" * num, answer.text)
        self.done["completions"] += 1

    def stream(self, body: dict[str, Any], num: int) -> None:
        """All tokens and the end, or an error that says how it came."""
        texts: list[str] = []
        with suppress(httpx.TransportError):
            asked = self.client.http.stream("POST", "/v1/completions", json=body | {"stream": True})
            with asked as answer:
                if answer.status_code == 503:
                    return
                for line in answer.iter_lines():
                    if line == "data: [DONE]":
                        self.expect(len(texts) == num, f"{len(texts)} of {num} tokens")
                    elif line:
                        event = json.loads(line.removeprefix("data: "))
                        if "error" in event:
                            self.expect(event["error"]["code"] in CUT, line)
                            return
                        texts.append(event["choices"][0]["text"])

    def change_adapter(self, number: int) -> None:
        name, http = f"own-{number % 3}", self.client.http
        with suppress(httpx.HTTPError):  # a killed gateway, or a repetition of what it had done
            digest = leaks.upload(http, name, self.source)
            listed = self.client.ask("GET", f"/v1/adapters/demo+{name}").json()
            self.expect(listed["digest"] == digest, f"{name} has another digest")
        weights = {"adapters": {"one": 0.5, "two": 0.25}, "strategy": {"name": "ties"}}
        named = {"name": f"sum-{number % 3}", "base": "demo", **weights}
        self.client.ask("POST", "/v1/compositions", GONE, json=named)
        body = {"model": f"demo+{named['name']}", "prompt": "go", "max_tokens": 1}
        answer = self.client.ask("POST", "/v1/completions", json=body)
        self.expect(answer.json()["choices"][0]["text"] == " token", answer.text)
        for path in (f"compositions/demo+{named['name']}", f"adapters/demo+{name}"):
            self.client.ask("DELETE", f"/v1/{path}", GONE)
            self.expect_gone(f"/v1/{path}")
        self.done["adapters"] += 1

    def change_text(self, number: int) -> None:
        content = random.Random(number).randbytes(50_000).hex().encode()
        id = kills.upload_text(self.client, content, {})
        answer = self.client.ask("GET", f"/v1/files/{id}/content")
        self.expect(answer.content == content, f"{id} is another text")
        self.client.ask("DELETE", f"/v1/files/{id}", GONE)
        self.expect_gone(f"/v1/files/{id}")
        self.done["files"] += 1

    def run_job(self, number: int) -> None:
        name, alias = f"{self.name}-{number}", f"current-{self.name}"
        id = kills.order(self.client, name, self.text, number, adapters=[])
        job = kills.until_ended(self.client, id)
        self.expect(job["status"] == "succeeded", f"{name}: {job['error']}")
        self.client.ask("PUT", f"/v1/aliases/{alias}", json={"base": "demo"})
        self.client.ask("PUT", f"/v1/aliases/{alias}", json={"base": name})
        self.client.ask("POST", f"/v1/aliases/{alias}/rollback", GONE)
        known = self.client.ask("GET", f"/v1/aliases/{alias}").json()
        self.expect(known["base"] == "demo", f"{alias} is {known['base']}")
        self.client.ask("DELETE", f"/v1/aliases/{alias}", GONE)
        self.client.ask("DELETE", f"/v1/bases/{name}", GONE)
        self.expect_gone(f"/v1/bases/{name}")
        self.done["jobs"] += 1

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.wrong.append(f"{self.name}: {otherwise[:200]}")

    def expect_gone(self, path: str) -> None:
        status = self.client.ask("GET", path, GONE).status_code
        self.expect(status == 404, f"{path} is still there: {status}")


class Watch:
    """Samples of what should not grow, and what takes room by design."""

    def __init__(self, site: Installation, victims: kills.Victims):
        self._site = site
        self._victims = victims
        self.samples: list[dict[str, float]] = []

    def look(self) -> None:
        assert self._site.process is not None
        found = {"at": time.monotonic()}
        with suppress(psutil.Error):
            found |= _process("gateway", self._site.process.pid)
            found |= _process("worker", self._victims.worker.pid)
            home = self._site.home
            stores = [home / name for name in ("artifacts", "adapters", "files", "compositions")]
            found["stored_bytes"] = sum(map(content.size, stores))
            found |= _rows(home / "graftwork.db")
            self.samples.append(found)

    def growth(self, since: float) -> dict[str, dict[str, float]]:
        """From the first third of the samples to the last, and the slope per hour."""
        samples = [one for one in self.samples if one["at"] >= since]
        third, times = max(1, len(samples) // 3), [one["at"] for one in samples]
        found = {}
        for name in samples[0].keys() - {"at"}:
            values = [one[name] for one in samples]
            grown = statistics.median(values[-third:]) - statistics.median(values[:third])
            slope = statistics.linear_regression(times, values).slope * 3600
            found[name] = {"last": values[-1], "grown": grown, "per_hour": round(slope, 1)}
        return dict(sorted(found.items()))


def _process(name: str, pid: int) -> dict[str, float]:
    process = psutil.Process(pid)
    with process.oneshot():
        return {
            f"{name}_rss": process.memory_info().rss,
            f"{name}_files": process.num_fds(),
            f"{name}_threads": process.num_threads(),
        }


def _rows(database: Path) -> dict[str, float]:
    with closing(sqlite3.connect(database, timeout=30)) as connection:
        names = [
            n for (n,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
        ]
        counts = {n: connection.execute(f'SELECT count(*) FROM "{n}"').fetchone()[0] for n in names}
    catalog = sum(counts[name] for name in ROWS)
    return {"catalog_rows": catalog, "all_rows": sum(counts.values())}


class Gardener:
    """Collects garbage, as `graftwork gc` does."""

    def __init__(self, home: Path):
        self._settings = Settings(home=home, database_url=None)
        self._catalog = Catalog(self._settings.database)
        self._jobs = Jobs(self._settings, self._catalog)

    def collect(self, seconds: float) -> int:
        return len(list(Collector(self._settings, self._catalog, self._jobs).collect(seconds)))

    def close(self) -> None:
        self._jobs.close()
        self._catalog.close()


def play(site: Installation, minutes: float, seed: int) -> dict[str, Any]:
    """Soak; what was done, what grew and what was wrong."""
    over, done, wrong = threading.Event(), Counter[str](), list[str]()
    victims, gardener, chance = kills.Victims(site), Gardener(site.home), random.Random(seed)
    watch, tenants = Watch(site, victims), [Tenant(site, n, done, wrong) for n in leaks.SOURCES]
    steps = ("complete", "complete", "change_adapter", "change_text", "run_job")
    threads = [kills.repeat(getattr(t, step), over) for t in tenants for step in steps]
    started, span = time.monotonic(), 60 * minutes
    kill_at = collect_at = started + span / 20
    order = itertools.cycle(victims.kills)
    while (now := time.monotonic()) < started + span:
        early = now < started + span / 4
        if now > kill_at:
            victims.kill(next(order) if early else "engine")
            kill_at = now + chance.uniform(0.5, 1.5) * span / 25
        if now > collect_at:
            done["garbage"] += gardener.collect(60)
            collect_at = now + span / 20
        watch.look()
        over.wait(span / 200)
    over.set()
    for thread in threads:
        thread.join()
    site.wait("/ready", 300)
    victims.stop()
    done["garbage"] += gardener.collect(0)
    gardener.close()
    grown = watch.growth(started + span * 0.4)
    return {
        "minutes": minutes,
        "done": dict(done),
        "kills": dict(victims.kills),
        "growth": grown,
        "leaks": sorted(name for name, most in MOST.items() if grown[name]["grown"] > most),
        "wrong": wrong + [line for tenant in tenants for line in tenant.client.refused],
        "findings": site.verify(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go")
    asked = parser.parse_args()
    minutes = 1.0 if asked.quick else asked.minutes
    with tempfile.TemporaryDirectory() as home:
        settings = {"composition_limit": 4, "composition_disk_bytes": 8 * MIB}
        with running(Path(home), f"--rate {RATE}", **settings) as site:
            site.populate(0)
            row = play(site, minutes, asked.seed)
    for name, found in row["growth"].items():
        print(f"{name:16} {found['last']:>14,.0f}   grown {found['grown']:>12,.0f}   "
              f"{found['per_hour']:>14,.0f} an hour")  # fmt: skip
    figures = {f"soak_{name}": len(row[name]) for name in ("leaks", "wrong", "findings")}
    print(row["done"], row["kills"], figures, *row["wrong"][:10], *row["findings"][:10], sep="\n")
    report.write("soak", {"minutes": minutes, **row["done"], **figures}, [row], asked.json)
    sys.exit(any(figures.values()))


if __name__ == "__main__":
    main()
