"""Artifacts: immutable directories named by the digest of what they hold (torch-free).

A directory is filled under another name, sealed (hashed, described by manifest.json, flushed to
disk) and only then renamed into the store, so a half-written artifact is never seen there.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pruning.adapters.generate.recipes import Generated, TrainGeneratorRecipe
from pruning.adapters.jobs import AnyAdapterRecipe, CompareRecipe, ProfileRecipe
from pruning.digest import file_digest, listing_digest
from pruning.recipe import Recipe
from pruning.sweeps.recipe import SweepRecipe

ArtifactKind = Literal["pruned_base", "adapter", "profile", "comparison", "generator", "sweep"]
MANIFEST = "manifest.json"
MEASUREMENTS = "report.*"  # timings differ between two runs of one recipe: not in the digest


class DamagedArtifact(ValueError):
    """An artifact whose files are not what its manifest says; the message names the first one."""


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path:
        raise ValueError(f"{path!r} does not stay inside the artifact")
    return path


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Entry(_Frozen):
    """One file of an artifact."""

    sha256: str
    bytes: int


class Parents(_Frozen):
    """Content digests of what an artifact was made from."""

    base: str
    adapters: dict[str, str]
    # parts of data sets, by their place in the recipe; the ids of uploads are digests already
    texts: dict[str, str] = Field(default_factory=dict)


class Manifest(_Frozen):
    """What an artifact holds and where it comes from; `created_at` is in Unix seconds."""

    kind: ArtifactKind = "pruned_base"
    digest: str
    files: dict[Annotated[str, AfterValidator(_inside)], Entry]
    recipe: Recipe | AnyAdapterRecipe | SweepRecipe
    seed: int
    parents: Parents
    generated: Generated | None = None  # of an adapter that a generator made
    versions: dict[str, str]
    created_at: int


def seal(
    draft: Path,
    recipe: Recipe | AnyAdapterRecipe | SweepRecipe,
    parents: Parents,
    generated: Generated | None = None,
) -> Manifest:
    """Hash every file below `draft`, write its manifest and flush all of it to disk.

    Raises DamagedArtifact when there is anything but regular files and directories.
    """
    (draft / MANIFEST).unlink(missing_ok=True)
    files = {name: _entry(draft / name) for name in _files(draft)}
    manifest = Manifest(
        kind=_kind(recipe),
        digest=_digest(files),
        files=files,
        recipe=recipe,
        seed=recipe.seed,
        parents=parents,
        generated=generated,
        versions={name: version(name) for name in ("graftwork", "torch", "transformers", "peft")},
        created_at=int(time.time()),
    )
    (draft / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    for name in (*files, MANIFEST):
        _flush(draft / name)
    for directory, _, _ in os.walk(draft):
        _flush(Path(directory))
    return manifest


def _kind(recipe: Recipe | AnyAdapterRecipe | SweepRecipe) -> ArtifactKind:
    if isinstance(recipe, Recipe):
        return "pruned_base"
    if isinstance(recipe, SweepRecipe):
        return "sweep"
    if isinstance(recipe, TrainGeneratorRecipe):
        return "generator"
    if isinstance(recipe, CompareRecipe):
        return "comparison"
    return "profile" if isinstance(recipe, ProfileRecipe) else "adapter"


def publish(draft: Path, store: Path, digest: str) -> bool:
    """Rename a sealed directory to `store`/`digest`; whether that made a new artifact.

    The same content may be there already, from this draft or another: then it is verified and
    the draft is left alone.  `draft` and `store` must be on one filesystem.
    """
    store.mkdir(parents=True, exist_ok=True)
    if not (store / digest).exists():
        try:
            draft.rename(store / digest)
        except OSError:
            if not (store / digest).exists():  # else another worker was first
                raise
        else:
            _flush(store)
            return True
    verify(store / digest)
    return False


@contextmanager
def publishing(store: Path) -> Iterator[None]:
    """While this lasts nobody collects: what is placed meanwhile stays until others know of it."""
    with _locked(store, fcntl.LOCK_SH):
        yield


@contextmanager
def collecting(store: Path) -> Iterator[None]:
    """While this lasts nobody publishes: what nothing refers to now can be removed."""
    with _locked(store, fcntl.LOCK_EX):
        yield


@contextmanager
def _locked(store: Path, how: int) -> Iterator[None]:
    store.mkdir(parents=True, exist_ok=True)
    lock = os.open(store / ".lock", os.O_CREAT | os.O_RDWR, 0o644)  # goes with a killed process
    try:
        fcntl.flock(lock, how)
        yield
    finally:
        os.close(lock)


def read(directory: Path) -> Manifest:
    """The manifest of an artifact, its files unchecked; DamagedArtifact when unreadable."""
    try:
        return Manifest.model_validate_json((directory / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        raise DamagedArtifact(f"{directory / MANIFEST} cannot be read: {error}") from error


def stands_alone(directory: Path) -> bool:
    """Whether an artifact is of use though nothing is served of it: it is a report alone."""
    try:
        return read(directory).kind in ("sweep", "comparison")
    except DamagedArtifact:
        return False


def verify(directory: Path) -> Manifest:
    """Hash all files of an artifact again; DamagedArtifact names the first that differs."""
    manifest = read(directory)
    present = set(_files(directory)) - {MANIFEST}
    for name, entry in sorted(manifest.files.items()):
        if name not in present:
            raise DamagedArtifact(f"{directory / name} is missing")
        if _entry(directory / name) != entry:
            raise DamagedArtifact(f"{directory / name} has changed: its SHA-256 is not the sealed")
    if stray := sorted(present - manifest.files.keys()):
        raise DamagedArtifact(f"{directory / stray[0]} does not belong to the artifact")
    if _digest(manifest.files) != manifest.digest:
        raise DamagedArtifact(f"{directory / MANIFEST} has changed: its digest is not its files'")
    return manifest


def _digest(files: dict[str, Entry]) -> str:
    return listing_digest(
        {name: entry.sha256 for name, entry in files.items() if not fnmatch(name, MEASUREMENTS)}
    )


def _entry(path: Path) -> Entry:
    return Entry(sha256=file_digest(path), bytes=path.stat().st_size)


def _files(directory: Path) -> Iterator[str]:
    for folder, names, files in os.walk(directory):
        for path in (Path(folder, name) for name in (*names, *files)):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise DamagedArtifact(f"{path} is neither a regular file nor a directory")
        for name in files:
            yield Path(folder, name).relative_to(directory).as_posix()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
