"""Children that end with their parent, however it went: the parent holds their standard input."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import IO


def spawn(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    log: IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `graftwork COMMAND` on a lifeline, out of reach of this terminal's Ctrl-C."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "service.cli", *command, "--lifeline"],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        env=None if environment is None else {**os.environ, **environment},
        start_new_session=True,
    )


def stop(child: subprocess.Popen[bytes], seconds: float) -> None:
    """End a child gently, and after so many seconds by force."""
    child.terminate()
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    assert child.stdin is not None
    child.stdin.close()


def hold_on() -> None:
    """Terminate this process when its standard input ends."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
