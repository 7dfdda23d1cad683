"""One streamed calibration pass: what the methods of a recipe need to know of a base."""

# Shape suffixes:  S = sequences,  T = tokens.

import os
import shutil
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from pruning.methods.entry import Statistic
from pruning.progress import Progress, part
from pruning.statistics.guided import guided_grams
from pruning.statistics.streaming import Stream
from pruning.statistics.walk import Passage, counted, dense_grams
from pruning.statistics.walks import WALKS
from pruning.statistics.watches import watched
from pruning.stats import GRAMS, GUIDED, Statistics
from pruning.weights.checkpoint import Checkpoint


def collect_into(
    path: Path,
    checkpoint: Checkpoint,
    ids_ST: Tensor,
    needs: Collection[Statistic],
    sink_tokens: int,
    state: Path,
    progress: Progress,
) -> None:
    """Collect what `needs` names for `Statistics.load(path)`; Grams get a directory beside it.

    `state` survives a kill, which costs the walk over one layer for the Grams of inputs, and for
    all else the walk over all layers.
    """
    state.mkdir(parents=True, exist_ok=True)
    grams = {"input_grams", "guided_grams"}.intersection(needs)
    share = part(progress, 0, 0.4) if grams else progress
    collected, draft = state / path.name, state / "draft"
    if not collected.exists():
        collect(checkpoint, ids_ST, set(needs) - grams, state, share).save(draft)
        draft.rename(collected)
    os.link(collected, path)
    if "input_grams" in needs:
        tokens_ST = counted(ids_ST, sink_tokens)
        passage = Passage(checkpoint, ids_ST, tokens_ST, state / "states")
        dense_grams(passage, checkpoint, state / "grams", part(progress, 0.4, 0.6))
        shutil.copytree(state / "grams", path.with_suffix(GRAMS), copy_function=os.link)
    if "guided_grams" in needs:
        _guided(checkpoint, ids_ST, state, part(progress, 0.6, 1))
        shutil.copytree(state / "guided", path.with_suffix(GUIDED), copy_function=os.link)


def _guided(checkpoint: Checkpoint, ids_ST: Tensor, state: Path, progress: Progress) -> None:
    finished, draft = state / "guided", state / "guided.draft"
    if finished.exists():
        return
    shutil.rmtree(draft, ignore_errors=True)
    with TemporaryDirectory(dir=state) as states:
        guided_grams(Stream(checkpoint, ids_ST, Path(states)), draft, progress)
    draft.rename(finished)


def collect(
    checkpoint: Checkpoint,
    ids_ST: Tensor,
    needs: Collection[Statistic],
    work: Path,
    progress: Progress,
) -> Statistics:
    """Run the calibration sequences through the base once and keep what `needs` names.

    Needs room in `work` for the hidden states of all sequences: two layers' worth, or every
    layer's when more than activations is needed.  Nothing is run when nothing is needed.
    """
    if not needs:
        return Statistics()
    with TemporaryDirectory(dir=work) as states:
        stream = Stream(checkpoint, ids_ST, Path(states))
        walks = {name: walk for name, walk in WALKS.items() if name in needs}
        start = 0.25 if walks else 1.0
        found: dict[str, Any] = watched(stream, needs, bool(walks), part(progress, 0, start))
        for number, (name, walk) in enumerate(walks.items()):
            here, there = (start + (1 - start) * n / len(walks) for n in (number, number + 1))
            found[name] = walk(stream, part(progress, here, there))
        return Statistics(**found)
