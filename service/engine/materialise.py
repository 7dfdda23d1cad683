"""Build the one plain adapter of a composition: once, whole or not at all."""

import json
import os
import shutil
import tempfile
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from pruning import registry
from pruning.adapters import algebra, atoms
from pruning.adapters.merging import merge_all
from pruning.adapters.source import open_source
from pruning.geometry import Geometry
from pruning.recipe import Method
from service.composition import EXACT

SEED = 0  # a composition is its digest: nothing about it is left to chance


def materialised(manifest: Path) -> Path:
    """What an engine loads for a manifest: the manifest itself, or the adapter built from it.

    Raises InvalidInput for an adapter that does not fit its base.
    """
    content: dict[str, Any] = json.loads(manifest.read_text())
    if "destination" not in content:
        return manifest
    destination = Path(content["destination"])
    if destination.is_dir():
        os.utime(destination)  # the oldest leave first
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=destination.parent))
    try:
        _build(content, draft)
        draft.rename(destination)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return destination


def _build(content: dict[str, Any], directory: Path) -> None:
    config = json.loads((Path(content["base"]) / "config.json").read_text())
    geometry = Geometry.from_config(config)
    parts = content["parts"]
    sources = [open_source(part["name"], Path(part["path"]), geometry) for part in parts]
    weights = {part["name"]: part["weight"] for part in parts}
    strategy = Method.model_validate(content["strategy"])
    method, _, params = registry.merge(strategy)
    merged = merge_all(sources, weights, method, params, SEED)
    dtype = reduce(torch.promote_types, (source.dtype for source in sources))
    if strategy == EXACT:
        dtype = torch.float32  # B times its weight is not rounded
    adapter = algebra.adapter_of({key: found.bag for key, found, _ in merged}, dtype)
    atoms.write(adapter, directory, geometry, content["base"])
