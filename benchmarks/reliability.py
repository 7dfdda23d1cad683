"""What an operator wants to know: load, overload, kills, fuzzing, and leaks between tenants.

Usage: python benchmarks/reliability.py [--quick] [--only PART ...] [--kills N] [--inputs N]
       [--json FILE]

Parts: load (gateway.py), kills (kills.py), fuzz (fuzz.py), tenants (leaks.py).  What an earlier run
wrote of parts that are not run now stays in the file.  On a machine that does other things, load is
measured with `chrt -f 1` before the command, so that only the three processes measured share the
cores.
"""

import argparse
import asyncio
import json
import resource
import tempfile
from pathlib import Path
from typing import Any

import fuzz
import gateway
import kills
import leaks
import report
import uvloop
from installation import running

PARTS = ("load", "kills", "fuzz", "tenants")
HOUR = 3600.0
Found = tuple[dict[str, Any], list[dict[str, Any]]]


def load(asked: argparse.Namespace, home: Path) -> Found:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(gateway.measure(asked.quick, home))


def killed(asked: argparse.Namespace, home: Path) -> Found:
    num = 5 if asked.quick else asked.kills
    with running(home, "--rate 100") as site:
        site.populate(1)
        row = kills.play(site, num, 20.0 if asked.quick else HOUR)
    return {k: row[k] for k in ("kills", "jobs_lost", "jobs_doubled", "half_visible")}, [row]


def fuzzed(asked: argparse.Namespace, home: Path) -> Found:
    row = fuzz.play(10_000 if asked.quick else asked.inputs, HOUR)
    return {k: row[k] for k in ("fuzzed_inputs", "fuzz_failures")}, [row]


def tenants(asked: argparse.Namespace, home: Path) -> Found:
    with running(home, "--rate 1e6") as site:
        site.populate(0)
        row = leaks.play(site, 300 if asked.quick else 5000)
    return {"tenant_leaks": row["tenant_leaks"]}, [row]


RUN = dict(zip(PARTS, (load, killed, fuzzed, tenants), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts")
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go")
    asked = parser.parse_args()
    path = asked.json or report.RESULTS / "reliability.json"
    before = json.loads(path.read_text()) if path.exists() else {"figures": {}, "rows": []}
    figures = dict(before["figures"])
    rows = [row for row in before["rows"] if row["part"] not in asked.only]
    for part in asked.only:
        with tempfile.TemporaryDirectory() as home:
            found, new = RUN[part](asked, Path(home))
        figures |= found
        rows += [{"part": part, **row} for row in new]
        print(part, found)
        report.write("reliability", figures, rows, path)


if __name__ == "__main__":
    main()
