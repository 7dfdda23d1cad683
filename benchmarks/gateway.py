"""What the gateway costs, against a direct connection to the same engine in the same run.

The generator, the gateway (`graftwork serve`) and a mock engine are three processes on this
machine's cores.  Requests and streams go in turn directly to the engine's socket and through the
gateway; added milliseconds are differences of the quantiles of both.
"""

import asyncio
import random
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

from installation import Installation, running
from load import Answer, Target, closed_loop, open_loop, quantile

PATH = "/v1/completions"
PROMPT = "word " * 200
CAPACITY, SERVICE_TOKENS, SERVICE_RATE = 32, 10, 20.0  # of the engine that is asked too much
STREAM_RATE = 20.0  # chunks a second of a stream


async def requests(site: Installation, model: str, rate: float, seconds: float) -> dict[str, Any]:
    """Whole answers of an engine that does not think, at `rate` a second each way."""
    site.tell_engine(rate=1e9)
    body = {"model": model, "prompt": PROMPT, "max_tokens": 1}
    return await _compare(site, body, rate, seconds, lambda answer: [answer.seconds])


async def chunks(site: Installation, model: str, streams: int, seconds: float) -> dict[str, Any]:
    """Ages of chunks when they arrive, with so many streams open each way."""
    site.tell_engine(rate=STREAM_RATE)
    num = 40
    body = {"model": model, "prompt": PROMPT, "max_tokens": num, "stream": True}
    rate = streams / (num / STREAM_RATE)
    return await _compare(site, body, rate, seconds, lambda answer: answer.ages)


async def _compare(
    site: Installation, body: dict[str, Any], rate: float, seconds: float, times: Any
) -> dict[str, Any]:
    direct, gateway = Target(site.engine_socket), Target(("127.0.0.1", site.port))
    inside = {**body, "model": "demo"}
    seen: dict[str, list[float]] = {"direct": [], "gateway": []}
    failed = 0

    def asks(name: str, target: Target, asked: dict[str, Any]) -> Any:
        request = target.request(PATH, asked)

        async def ask() -> None:
            nonlocal failed
            answer: Answer = await target.ask(request)
            failed += answer.status != 200
            seen[name] += times(answer)

        return ask

    both = [asks("direct", direct, inside), asks("gateway", gateway, body)]
    await open_loop(4 * rate, 1.0, both)  # connections, caches
    seen["direct"], seen["gateway"] = [], []
    before = site.cpu()
    await open_loop(2 * rate, seconds, both, seed=1)
    cpu = site.cpu() - before
    direct.close()
    gateway.close()
    found: dict[str, Any] = {"model": body["model"], "failed": failed}
    for share in (50, 99):
        q = {name: quantile(values, share / 100) * 1e3 for name, values in seen.items()}
        found |= {f"{name}_ms_p{share}": round(value, 3) for name, value in q.items()}
        found[f"added_ms_p{share}"] = round(q["gateway"] - q["direct"], 3)
    found["num"] = len(seen["gateway"])
    found["gateway_cpu_us_each"] = round(cpu / len(seen["gateway"]) * 1e6, 1)
    return found


async def throughput(site: Installation, model: str, seconds: float) -> dict[str, Any]:
    """Whole answers a second that 32 clients get, who wait for each."""
    site.tell_engine(rate=1e9)
    target = Target(("127.0.0.1", site.port))
    request = target.request(PATH, {"model": model, "prompt": PROMPT, "max_tokens": 1})
    before = site.cpu()
    count, took = await closed_loop(32, seconds, lambda: target.ask(request))
    cpu = site.cpu() - before
    target.close()
    return {
        "model": model,
        "requests_per_second": round(count / took, 1),
        "gateway_cpu_us_each": round(cpu / count * 1e6, 1),
    }


async def hold(site: Installation, num: int) -> dict[str, Any]:
    """Keep so many streams open at once, a chunk a second each, and read them to their ends."""
    site.tell_engine(rate=1.0)
    target = Target(("127.0.0.1", site.port))
    request = target.request(
        PATH, {"model": "demo", "prompt": PROMPT, "max_tokens": 20, "stream": True}
    )
    before, most = site.rss(), 0
    asked = []
    for _ in range(num):
        asked.append(asyncio.create_task(target.ask(request)))
        await asyncio.sleep(0.002)
    running = 0
    while not all(task.done() for task in asked):
        most = max(most, site.rss())
        running = max(running, _in_flight(site))
        await asyncio.sleep(1)
    answers = [task.result() for task in asked]
    target.close()
    return {
        "streams": num,
        "held_at_once": running,
        "complete": sum(a.complete and a.status == 200 and len(a.ages) == 20 for a in answers),
        "rss_mib_before": round(before / 2**20, 1),
        "rss_mib_most": round(most / 2**20, 1),
        "kib_each": round((most - before) / num / 1024, 1),
    }


class Asked:
    """Requests for one adapter: how many are open, and what became of those that were answered."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.open = 0
        self.waits: list[tuple[float, int]] = []  # seconds, and how many were open, itself included
        self.ended: list[float] = []
        self.others: Counter[int] = Counter()  # answers that are no completion, by status

    async def ask(self, target: Target, service: float) -> None:
        self.open += 1
        ahead = self.open
        body = {"model": self.model, "prompt": "word", "max_tokens": SERVICE_TOKENS}
        answer = await target.ask(target.request(PATH, body))
        self.open -= 1
        if answer.status == 200:
            self.waits.append((max(0.0, answer.seconds - service), ahead))
            self.ended.append(answer.ended)
        else:
            self.others[answer.status] += 1


async def overload(
    site: Installation, models: list[str], popularity: str, seconds: float
) -> dict[str, Any]:
    """Ask three times what the engine can do, of adapters asked for alike or by Zipf's law.

    The fair wait of a request is what it takes to serve every adapter as many requests as the
    request's own adapter had open, itself included, at the rate at which the engine was seen to
    serve.
    """
    service = SERVICE_TOKENS / SERVICE_RATE
    site.tell_engine(rate=SERVICE_RATE)
    weights = [1 / (i + 1) if popularity == "zipf" else 1.0 for i in range(len(models))]
    asked, choice = [Asked(model) for model in models], random.Random(0)
    target = Target(("127.0.0.1", site.port))

    def one() -> Any:
        return choice.choices(asked, weights)[0].ask(target, service)

    started = time.monotonic()
    await open_loop(3 * CAPACITY / service, seconds, [one])
    target.close()
    window = started + seconds / 4, started + seconds  # while all that there is to do is asked
    served = sum(window[0] < end < window[1] for adapter in asked for end in adapter.ended)
    rate = served / (window[1] - window[0])
    others = sum((adapter.others for adapter in asked), Counter[int]())
    fair = len(models) / rate
    ratios = {
        adapter.model: statistics.mean(wait for wait, _ in adapter.waits)
        / statistics.mean(ahead * fair for _, ahead in adapter.waits)
        for adapter in asked
        if adapter.waits
    }
    return {
        "popularity": popularity,
        "served_per_second": round(rate, 1),
        "capacity_per_second": CAPACITY / service,
        "shed": {str(status): num for status, num in sorted(others.items())},
        "other_errors": sum(num for status, num in others.items() if status not in (429, 503)),
        "adapters_served": len(ratios),
        "least_served": min(len(adapter.waits) for adapter in asked),
        "most_served": max(len(adapter.waits) for adapter in asked),
        "worst_wait_seconds": round(max(w for a in asked for w, _ in a.waits), 2),
        "worst_wait_over_fair": round(max(ratios.values()), 2),
        "worst_request_over_fair": round(max(w / (n * fair) for a in asked for w, n in a.waits), 2),
    }


def _in_flight(site: Installation) -> int:
    text = site.client.get("/metrics").text
    (line,) = [x for x in text.splitlines() if x.startswith("graftwork_requests_in_flight ")]
    return int(float(line.split()[1])) - 1  # less the one that asks


async def measure(quick: bool, home: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    seconds, num = (3.0, 200) if quick else (20.0, 2000)
    with running(home, "--capacity 4096", engine_concurrent_requests=4096) as site:
        adapter = site.populate(1)[0]
        rows = []
        for model in ("demo", adapter):
            rows.append({"what": "request", **await requests(site, model, 100, seconds)})
            rows.append({"what": "chunk", **await chunks(site, model, 32, seconds)})
        rows.append({"what": "throughput", **await throughput(site, adapter, seconds)})
        rows.append({"what": "streams", **await hold(site, num)})
    engine = f"--capacity {CAPACITY} --max-loras 8 --load-seconds 0.02"
    settings = {"engine_concurrent_requests": CAPACITY, "engine_queue_requests": 400}
    folder = home / "overload"
    folder.mkdir()
    with running(folder, engine, **settings) as site:
        models = site.populate(50)
        for popularity in ("uniform", "zipf"):
            row = await overload(site, models, popularity, seconds * 1.5)
            rows.append({"what": "overload", **row})
    return figures(rows), rows


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    (request,) = [r for r in rows if r["what"] == "request" and "+" in r["model"]]
    (chunk,) = [r for r in rows if r["what"] == "chunk" and "+" in r["model"]]
    (throughput,) = [r for r in rows if r["what"] == "throughput"]
    (held,) = [r for r in rows if r["what"] == "streams"]
    overloads = [r for r in rows if r["what"] == "overload"]
    return {
        "gateway_added_ms_p50": request["added_ms_p50"],
        "gateway_added_ms_p99": request["added_ms_p99"],
        "gateway_added_chunk_ms_p50": chunk["added_ms_p50"],
        "gateway_added_chunk_ms_p99": chunk["added_ms_p99"],
        "gateway_requests_per_second": throughput["requests_per_second"],
        "streams_held": held["complete"],
        "streams_rss_mib": held["rss_mib_most"],
        "overload_other_errors": sum(row["other_errors"] for row in overloads),
        "worst_wait_over_fair": max(row["worst_wait_over_fair"] for row in overloads),
    }
