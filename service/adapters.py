"""Take adapters in, and let them go: catalog, disk and engine in step."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import anyio.to_thread

from pruning.adapters.peft_format import FILES, AdapterInfo, check_files, check_names, read_adapter
from pruning.errors import InvalidInput
from service import content
from service.catalog import Catalog
from service.composer import Composer
from service.engines import Engines
from service.errors import EngineUnavailable, NotFound
from service.records import Adapter
from service.settings import Settings


@dataclass(frozen=True)
class Submission:
    """An adapter as it arrives: its files come from a directory or out of an upload."""

    name: str
    base: str
    path: Path | None = None
    files: Mapping[str, BinaryIO] | None = None


class Adapters:
    """Registers and deletes adapters; after any failure nothing half-made remains."""

    def __init__(self, settings: Settings, catalog: Catalog, engines: Engines, composer: Composer):
        self._settings = settings
        self._catalog = catalog
        self._engines = engines
        self._composer = composer

    def of(self, catalog: Catalog) -> Self:
        """The same, for the tenant whose catalog it is."""
        view = copy.copy(self)
        view._catalog = catalog
        return view

    def register(self, submission: Submission) -> Adapter:
        """Check the adapter against its base and copy it in under its digest.

        Raises NotFound for an unknown base, InvalidInput for an adapter that does not fit, and
        Conflict when the base has a model of this name.
        """
        with self._staged(submission) as (staged, final, info):
            return self._catalog.add_adapter(
                submission.base,
                submission.name,
                final,
                info.digest,
                info.rank,
                place=lambda: content.place(staged, final),
            )

    async def replace(self, base: str, name: str, submission: Submission) -> Adapter:
        """Give a registered adapter other content; no request that comes later sees the old one.

        Raises NotFound for an unknown adapter, InvalidInput for content that does not fit, or that
        names another adapter.
        """
        if (submission.base, submission.name) != (base, name):
            raise InvalidInput("name", f"{submission.base}+{submission.name} is not {base}+{name}")
        before = await anyio.to_thread.run_sync(self._swap, submission)
        if before.digest != (after := self._catalog.adapter(base, name)).digest:
            await self._drop(before)
        return after

    async def delete(self, base: str, name: str) -> Adapter:
        """Forget an adapter, unload it from the engine, remove content that nobody else uses."""
        adapter = await anyio.to_thread.run_sync(self._catalog.delete_adapter, base, name)
        await self._drop(adapter)
        return adapter

    def _swap(self, submission: Submission) -> Adapter:
        with self._staged(submission) as (staged, final, info):
            return self._catalog.replace_adapter(
                submission.base,
                submission.name,
                final,
                info.digest,
                info.rank,
                place=lambda: content.place(staged, final),
            )

    @contextmanager
    def _staged(self, submission: Submission) -> Iterator[tuple[Path, Path, AdapterInfo]]:
        """A checked copy, and where it goes; after an error nothing of it is left."""
        base = self._catalog.base(submission.base)
        with content.staging(self._settings.adapters) as staged:
            with ExitStack() as open_files:
                for name, stream in _files(submission, open_files).items():
                    content.copy(stream, staged / name)
            info = read_adapter(staged, base.geometry, self._settings.engine_max_lora_rank)
            final = self._settings.adapters.absolute() / info.digest
            try:
                yield staged, final, info
            except BaseException:
                self._catalog.release(final, content.remove)
                raise

    async def _drop(self, adapter: Adapter) -> None:
        """Unload what a name no longer stands for; remove it unless something else refers to it."""
        await self._composer.forget(adapter)
        try:
            await self._engines.get(adapter.base).unload_adapter(adapter.engine_name)
        except (NotFound, EngineUnavailable):
            pass  # an engine that does not run holds no adapter
        if adapter.path.parent == self._settings.adapters.absolute():
            await anyio.to_thread.run_sync(self._catalog.release, adapter.path, content.remove)


def _files(submission: Submission, stack: ExitStack) -> Mapping[str, BinaryIO]:
    """The files of the adapter by name, open until `stack` closes."""
    if submission.files is not None:
        check_names(submission.files, "files")
        return submission.files
    assert submission.path is not None
    try:
        check_files(submission.path, "path")
        paths = [submission.path / name for name in FILES]
        return {p.name: stack.enter_context(p.open("rb")) for p in paths if p.is_file()}
    except OSError as error:
        raise InvalidInput("path", f"cannot be read: {error}") from error
