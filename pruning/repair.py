"""Repairs a slim base with the methods of a recipe, one after the other.

A kill costs little: what a method finished, and the state it kept of what it had begun, are found
again by the digest of all that they depend on.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pruning.digest import tree_digest
from pruning.jobs.resuming import kept_in
from pruning.methods.entry import Params
from pruning.progress import Progress, part
from pruning.registry import Recovery, RecoveryContext

Step = tuple[Recovery, Params]


def repair(steps: Sequence[Step], whole: RecoveryContext, progress: Progress) -> None:
    """Run `steps` from `whole.source` to `whole.destination`."""
    kept = kept_in(
        whole.state, spec=whole.spec.model_dump_json(), slim_base=tree_digest(whole.source)
    )
    source = whole.source
    for i, step in enumerate(steps):
        share = part(progress, i / len(steps), (i + 1) / len(steps))
        source = _run(step, replace(whole, source=source, state=kept / str(i)), share)
    shutil.copytree(source, whole.destination, copy_function=os.link)


def _run(step: Step, context: RecoveryContext, progress: Progress) -> Path:
    """The base that a step makes; made only once."""
    recover, params = step
    model, draft, state = (context.state / name for name in ("model", "draft", "state"))
    if not model.exists():
        shutil.rmtree(draft, ignore_errors=True)
        state.mkdir(parents=True, exist_ok=True)
        recover(replace(context, destination=draft, state=state), params, progress)
        draft.rename(model)
    return model
