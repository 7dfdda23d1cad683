"""What a long benchmark has measured so far: it stops at any time, and the next run goes on."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class OutOfTime(Exception):
    """The minutes of this run are over; what was measured is kept."""


class Cells:
    """What was measured so far, by what it is; a line of JSON each in a file, if there is one."""

    def __init__(self, path: Path | None, minutes: float):
        self.path, self.deadline = path, time.monotonic() + 60 * minutes
        lines = path.read_text().splitlines() if path and path.exists() else []
        self.known: dict[str, Any] = dict(map(json.loads, lines))

    def get(self, what: Sequence[Any], measure: Callable[[], Any]) -> Any:
        """The value of a cell, measured now if it is not known; OutOfTime if that is too late."""
        key = json.dumps(what)
        if key not in self.known:
            if time.monotonic() > self.deadline:
                raise OutOfTime
            self.known[key] = measure()
            print(key, file=sys.stderr, flush=True)
            if self.path:
                with self.path.open("a") as file:
                    file.write(json.dumps([key, self.known[key]]) + "\n")
        return self.known[key]
