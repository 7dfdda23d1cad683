"""One stage of a job in a process of its own: `python -m pruning.jobs.stage STAGE WORK`.

Reads WORK/spec.json, writes WORK/STAGE/ and reports on stdout, one JSON object a line: progress,
in the end its peak memory, or the error of a bad input (exit status 2).  Whatever else is printed
goes to stderr.
"""

import argparse
import ctypes
import importlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from pruning.artifacts import Parents, seal
from pruning.digest import file_digest, tree_digest
from pruning.errors import InvalidInput
from pruning.jobs.kinds import KINDS, PRUNING
from pruning.jobs.outputs import slim_base
from pruning.progress import Progress, numbers
from pruning.recipe import PruneSpec

INVALID_INPUT = 2

Stage = Callable[[Any, Path, Progress], None]

_PR_SET_PDEATHSIG = 1


def assemble(spec: PruneSpec, work: Path, progress: Progress) -> None:
    """The last stage: link the outputs of the others together and seal them as an artifact."""
    draft = work / "publish"
    draft.mkdir()
    progress(0.0, "collecting files")
    shutil.copytree(slim_base(spec, work), draft / "model", copy_function=os.link)
    if (work / "carry" / "adapters").is_dir():
        shutil.copytree(work / "carry" / "adapters", draft / "adapters", copy_function=os.link)
    for file in ("plan/plan.json", "evaluate/report.json", "evaluate/report.html"):
        os.link(work / file, draft / Path(file).name)
    progress(0.2, "computing digests")
    parents = Parents(
        base=tree_digest(spec.base),
        adapters={name: tree_digest(path) for name, path in spec.adapters.items()},
        texts={place: file_digest(path) for place, path in spec.parts.items()},
    )
    seal(draft, spec.recipe, parents)


def run(stage: str, work: Path, kind: str, pipeline: str, progress: Progress) -> None:
    """Run a stage: what an interrupted attempt left is removed first, but for its state.

    WORK/STAGE.state is where a stage keeps what a kill shall not undo.  It goes when
    WORK/STAGE.done says that the stage is over; what is over is not run again.
    """
    done = work / f"{stage}.done"
    if done.exists():
        return
    (known,) = (one for one in KINDS if one.workflow == kind)
    spec = known.spec.validate_json((work / "spec.json").read_bytes())
    shutil.rmtree(work / stage, ignore_errors=True)
    stages: dict[str, Stage] = {"publish": assemble} if known is PRUNING else {}
    if stage not in stages:
        stages = importlib.import_module(pipeline).STAGES
    stages[stage](spec, work, progress)
    done.touch()
    shutil.rmtree(work / f"{stage}.state", ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pruning.jobs.stage", description=__doc__)
    parser.add_argument("stage")
    parser.add_argument("work", type=Path)
    parser.add_argument("--kind", default=PRUNING.workflow, help="of the job")
    parser.add_argument("--pipeline", default=PRUNING.pipeline, help="module with the STAGES")
    parser.add_argument("--parent", type=int, help="process to die with")
    options = parser.parse_args(arguments)
    if options.parent is not None:
        _die_with(options.parent)
    output = _claim_stdout()

    def say(line: dict[str, Any]) -> None:
        print(json.dumps(line), file=output, flush=True)

    try:
        run(
            options.stage,
            options.work,
            options.kind,
            options.pipeline,
            lambda fraction, message: say(
                {"fraction": fraction, "message": message, "data": numbers(message)}
            ),
        )
    except InvalidInput as error:
        say({"error": {"code": error.code, "message": error.message, "param": error.field}})
        return INVALID_INPUT
    say({"peak_rss_bytes": peak_rss_bytes()})
    return 0


def peak_rss_bytes() -> int:
    """The most memory this process has held; rusage would begin with the peak of its parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        sys.exit("the worker is gone")


def _claim_stdout() -> TextIO:
    # Libraries print to stdout as they please; only this stream reaches the worker.
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return output


if __name__ == "__main__":
    sys.exit(main())
