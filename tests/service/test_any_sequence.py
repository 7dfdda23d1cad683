"""Any sequence of changes in catalog, stores and caches: after each, all is as dictionaries say.

A longer run: GRAFTWORK_SEQUENCES=300 python -m pytest tests/service/test_any_sequence.py
"""

import asyncio
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from pruning import artifacts
from pruning.adapters.peft_format import adapter_digest
from pruning.digest import tree_digest
from pruning.errors import InvalidInput
from pruning.recipe import PruneSpec, Recipe, Text
from service import content
from service.adapters import Adapters, Submission
from service.catalog import Catalog
from service.collection import Collector
from service.composer import Composer
from service.composition import Composition, spelled
from service.errors import GraftworkError
from service.files import Files
from service.jobs import Jobs
from service.metrics import Metrics
from service.models import Model, lookup
from service.settings import Settings
from service.verification import verify

SEQUENCES = int(os.environ.get("GRAFTWORK_SEQUENCES", "5"))
BUILT = 1000  # bytes of what an engine builds
KEPT = 2  # compositions that an engine keeps idle, and built ones that fit on the disk
MEMORY = 20_000  # bytes: three adapters fit
BASES = st.sampled_from(["dense", "slim", "live"])
ALIASES = st.sampled_from(["live", "next", "slim"])
NAMES = st.sampled_from(["a", "b", "sum"])
SUMS = st.sampled_from(
    ["+a:1+b:0.5", "+a:1+b:0.5@ties", "+a:2+b:1@ties", "+a:1+b:-1@svd:2", "+b:1+sum:0.5"]
)
SEEDS = st.integers(0, 3)


@dataclass(frozen=True)
class Material:
    """What can be put in, and a database that has all tables."""

    base: Path
    adapters: tuple[Path, ...]  # by seed
    database: Path
    fresh_database: Callable[[], AbstractContextManager[str | None]]


@dataclass
class Engine:
    """Reads what it is to load, whole, and builds what a manifest asks for."""

    name: str
    sources: dict[str, Path] = field(default_factory=dict)  # of what is loaded
    built: dict[str, str] = field(default_factory=dict)  # digests of what was, by name
    asked: set[str] = field(default_factory=set)

    def holds(self, name: str) -> bool:
        self.asked.add(name)
        return name in self.sources

    async def ensure_adapter(self, name: str, path: Path) -> bool:
        if name in self.sources:
            return False
        if path.is_file() and (target := json.loads(path.read_text()).get("destination")):
            Path(target).mkdir(parents=True, exist_ok=True)
            (Path(target) / "adapter_model.safetensors").write_bytes(bytes(BUILT))
        self.built[name] = Path(target).name if path.is_file() and target else path.name
        self.sources[name] = path
        self.check()
        return True

    async def unload_adapter(self, name: str) -> None:
        self.sources.pop(name, None)
        self.built.pop(name, None)

    def check(self) -> None:
        """It could read everything again that it has loaded."""
        for path in self.sources.values():
            if path.is_dir():
                assert content.size(path) == BUILT
                continue
            for part in json.loads(path.read_text())["parts"]:
                assert adapter_digest(Path(part["path"])) == part["content"]


class Engines:
    """One of each base that was asked for."""

    def __init__(self) -> None:
        self.running: dict[str, Engine] = {}

    def get(self, base: str) -> Engine:
        return self.running.setdefault(base, Engine(base))


class Service:
    """What a process has open on a home."""

    def __init__(self, settings: Settings):
        self.engines = Engines()
        self.catalog = Catalog(settings.database)
        own: tuple[Any, ...] = (settings, self.catalog, self.engines)
        self.composer = Composer(*own, Metrics())
        self.adapters = Adapters(*own, self.composer)
        self.files = Files(settings, self.catalog)
        self.jobs = Jobs(settings, self.catalog)

    async def close(self) -> None:
        await self.composer.close()
        self.jobs.close()
        self.catalog.close()


@dataclass
class Use:
    """A composition that a request has; `stale` once the content of an adapter has gone."""

    engine: Engine
    model: Model
    held: AsyncExitStack
    stale: bool = False


class Machine(RuleBasedStateMachine):
    """The real thing, and the dictionaries."""

    def __init__(self, material: Material):
        super().__init__()
        self.material = material
        self.resources = ExitStack()
        folder = Path(self.resources.enter_context(tempfile.TemporaryDirectory()))
        url = self.resources.enter_context(material.fresh_database())
        self.runner = self.resources.enter_context(asyncio.Runner())
        for name in ("home", "memory"):
            (folder / name).mkdir()
        if url is None:
            shutil.copy(material.database, folder / "home" / "graftwork.db")
        self.settings = Settings(
            home=folder / "home",
            database_url=url,
            composition_memory=folder / "memory",
            composition_memory_bytes=MEMORY,
            composition_disk_bytes=KEPT * BUILT + BUILT // 2,
            composition_limit=KEPT,
        )
        self.service = Service(self.settings)
        self.bases: dict[str, tuple[Path | None, str | None]] = {}  # artifact, parent
        self.adapters: dict[str, tuple[str, Path]] = {}  # digest, and what holds it, by model
        self.compositions: dict[str, tuple[Composition, bool]] = {}  # by model; whether pinned
        self.aliases: dict[str, list[str]] = {}  # what they named, the last in force
        self.files: dict[str, Path] = {}
        self.jobs: dict[str, set[str]] = {}  # names on disk of what they need
        self.loose: set[Path] = set()  # on disk, whether anything refers to it or not
        self.uses: list[Use] = []
        self.pinned: dict[str, set[str]] = {}  # names in engines, by base

    # the catalog

    @initialize()
    def begin(self) -> None:
        self.add_base("dense", None)
        for seed, name in enumerate(("a", "b", "sum")):
            self.add_adapter("dense", name, seed)

    @rule(name=BASES, parent=st.none() | BASES)
    def add_base(self, name: str, parent: str | None) -> None:
        path, add = self.material.base, self.service.catalog.add_base
        may = name not in {*self.bases, *self.aliases} and parent in {None, *self.bases}
        if self.done(may, lambda: add(name, path, tree_digest(path), parent=parent)):
            self.bases[name] = None, parent

    @rule(name=BASES)
    def delete_base(self, name: str) -> None:
        used = any(model.startswith(f"{name}+") for model in self.adapters)
        used |= any(name in named for named in self.aliases.values())
        used |= any(parent == name for _, parent in self.bases.values())
        may = name in self.bases and not used
        if self.done(may, lambda: self.service.catalog.delete_base(name)):
            del self.bases[name]

    @rule(base=BASES, name=NAMES, seed=SEEDS)
    def add_adapter(self, base: str, name: str, seed: int) -> None:
        model, submission = f"{base}+{name}", self.submission(base, name, seed)
        may = base in self.bases and model not in {*self.adapters, *self.compositions}
        if self.done(may, lambda: self.service.adapters.register(submission)):
            self.adapters[model] = self.stored(seed)

    @rule(base=BASES, name=NAMES, seed=SEEDS)
    def replace_adapter(self, base: str, name: str, seed: int) -> None:
        model, submission = f"{base}+{name}", self.submission(base, name, seed)
        replace = self.service.adapters.replace
        if self.done(model in self.adapters, lambda: self.wait(replace(base, name, submission))):
            before, self.adapters[model] = self.adapters[model], self.stored(seed)
            if before[0] != self.adapters[model][0]:
                self.forget(base, before[0])

    @rule(base=BASES, name=NAMES)
    def delete_adapter(self, base: str, name: str) -> None:
        model = f"{base}+{name}"
        here = [c for other, (c, _) in self.compositions.items() if other.startswith(f"{base}+")]
        may = model in self.adapters and not any(name in names_of(one) for one in here)
        if self.done(may, lambda: self.wait(self.service.adapters.delete(base, name))):
            self.forget(base, self.adapters.pop(model)[0])

    @rule(base=BASES, name=NAMES, sum=SUMS, pinned=st.booleans())
    def add_composition(self, base: str, name: str, sum: str, pinned: bool) -> None:
        model, composition = f"{base}+{name}", spelled(base + sum)
        assert composition is not None
        parts = {f"{base}+{part}" for part in names_of(composition)}
        may = model not in {*self.adapters, *self.compositions} and parts <= {*self.adapters}
        add = self.service.catalog.add_composition
        if self.done(may, lambda: add(name, composition, pinned=pinned)):
            self.compositions[model] = composition, pinned

    @rule(base=BASES, name=NAMES)
    def delete_composition(self, base: str, name: str) -> None:
        may = (model := f"{base}+{name}") in self.compositions
        if self.done(may, lambda: self.service.catalog.delete_composition(base, name)):
            del self.compositions[model]

    @rule(name=ALIASES, base=BASES)
    def promote(self, name: str, base: str) -> None:
        may = base in self.bases and name not in self.bases
        if self.done(may, lambda: self.service.catalog.promote(name, base)):
            if (named := self.aliases.setdefault(name, []))[-1:] != [base]:
                named.append(base)

    @rule(name=ALIASES)
    def roll_back(self, name: str) -> None:
        may = len(self.aliases.get(name, [])) > 1
        if self.done(may, lambda: self.service.catalog.roll_back(name)):
            self.aliases[name].pop()

    @rule(name=ALIASES)
    def delete_alias(self, name: str) -> None:
        if self.done(name in self.aliases, lambda: self.service.catalog.delete_alias(name)):
            del self.aliases[name]

    # the stores

    @rule(seed=SEEDS)
    def upload(self, seed: int) -> None:
        file = self.service.files.add(BytesIO(text_of(seed)), "text.txt", "calibration")
        self.files[file.id] = file.path

    @rule(seed=SEEDS)
    def delete_file(self, seed: int) -> None:
        id = f"file-{hashlib.sha256(text_of(seed)).hexdigest()[:24]}"
        if self.done(id in self.files, lambda: self.service.files.delete(id)):
            del self.files[id]

    @rule(seed=SEEDS)
    def upload_an_adapter_and_be_killed(self, seed: int) -> None:
        """Of two uploads, one had its content in place, and one did not."""
        source, final = self.material.adapters[seed], self.stored(seed)[1]
        with content.staging(final.parent) as staged:
            content.place(shutil.copytree(source, staged / "whole"), final)
        self.loose |= {final} - self.referenced()
        draft = final.with_name(f"{content.STAGING}{seed}")
        shutil.copytree(source, draft, dirs_exist_ok=True)

    @rule(name=BASES, parent=BASES, seed=SEEDS, killed=st.booleans())
    def publish(self, name: str, parent: str, seed: int, killed: bool) -> None:
        """As a worker does; one that is killed has put the artifact into the store."""
        recipe, store = self.recipe(name, parent), self.settings.artifacts.absolute()
        draft = self.draft(seed)
        digest = artifacts.seal(draft, recipe, artifacts.Parents(base="", adapters={})).digest
        artifact, model = store / digest, f"{name}+a"
        unused: Any = {"base": store, "adapters": {}, "calibration": store, "evaluation": store}
        with artifacts.publishing(store):
            artifacts.publish(draft, store, digest)
            content.remove(draft)
            self.loose.add(artifact)
            if killed:
                return
            known = self.bases.get(name)
            free = known[0] == artifact if known else name not in self.aliases
            may = free and (model in self.adapters or model not in self.compositions)
            spec = PruneSpec(recipe=recipe, **unused)
            if self.done(may, lambda: self.service.catalog.publish(spec, artifact, digest)):
                made = artifact, (parent if parent in self.bases else None)
                self.bases.setdefault(name, made)
                self.adapters.setdefault(model, (self.stored(seed)[0], artifact))

    @rule(base=BASES)
    def order_a_job(self, base: str) -> None:
        file = min(self.files, default="file-0")
        recipe = self.recipe(f"ordered-{len(self.jobs)}", base, file)
        made: list[str] = []
        create = self.service.jobs.create
        may = base in self.bases and bool(self.files)
        if self.done(may, lambda: made.append(create(recipe, recipe.name).id)):
            own = [held for model, (_, held) in self.adapters.items() if base_of(model) == base]
            needed = {path for path in (*own, self.files[file], self.bases[base][0]) if path}
            self.jobs[made[0]] = {path.name for path in needed}

    @rule()
    def cancel_jobs(self) -> None:
        for id in [id for id, needed in self.jobs.items() if needed]:
            self.service.jobs.cancel(id)
            self.jobs[id] = set()

    @rule()
    def collect_garbage(self) -> None:
        needed = set().union(*self.jobs.values())
        drafts = set(self.settings.adapters.absolute().glob(f"{content.STAGING}*"))
        garbage = {path for path in self.unreferenced() if path.name not in needed}
        collector = Collector(self.settings, self.service.catalog, self.service.jobs)
        assert {one.path.absolute() for one in collector.collect(0)} == garbage | drafts
        self.loose -= garbage

    # the caches

    @rule(base=BASES | ALIASES, what=SUMS | NAMES.map(lambda name: f"+{name}"))
    def use(self, base: str, what: str) -> None:
        home = self.aliases[base][-1] if base in self.aliases else base
        expected = self.digests(home, what)
        found: list[Model] = []
        catalog, id = self.service.catalog, base + what
        if not self.done(expected is not None, lambda: found.append(lookup(catalog, id))):
            return
        (model,) = found
        if model.composed is None:
            assert model.adapter is not None
            assert [model.adapter.digest] == expected
            return
        assert [adapter.digest for adapter in model.composed.adapters] == expected
        engine, held, on_disk = self.service.engines.get(home), AsyncExitStack(), self.built()
        hold = self.service.composer.hold(engine, model)  # type: ignore[arg-type]
        self.wait(held.enter_async_context(hold))
        self.uses.append(Use(engine, model, held))
        if self.built() - on_disk:
            held_by_engines = {d for e in self.engines() for d in e.built.values()}
            assert len(self.built()) <= KEPT or self.built() <= held_by_engines

    @rule(which=st.integers(0, 9))
    def use_no_more(self, which: int) -> None:
        if not self.uses:
            return
        use = self.uses.pop(which % len(self.uses))
        self.wait(use.held.aclose())
        engine = use.engine
        needed = {one.model.engine_name for one in self.uses if one.engine is engine}
        assert len(engine.sources.keys() - needed - self.pinned.get(engine.name, set())) <= KEPT

    @rule()
    def look_for_pinned_ones(self) -> None:
        if not any(pinned for _, pinned in self.compositions.values()):
            return
        self.pinned = {}
        for id, (composition, pinned) in self.compositions.items():
            if pinned:
                name = lookup(self.service.catalog, id).engine_name
                self.pinned.setdefault(composition.base, set()).add(name)
        self.wait(self.until_warm())

    async def until_warm(self) -> None:
        engines = {base: self.service.engines.get(base) for base in self.pinned}
        for engine in engines.values():
            engine.asked.clear()
        keeper = asyncio.create_task(self.service.composer.keep_warm())
        async with asyncio.timeout(30):
            while any(
                not names <= engines[base].asked & engines[base].sources.keys()
                for base, names in self.pinned.items()
            ):
                await asyncio.sleep(0.001)
        keeper.cancel()

    @rule()
    def restart(self) -> None:
        self.stop()
        for store in (self.settings.adapters, self.settings.files):
            content.sweep(store)
        self.service, self.pinned = Service(self.settings), {}

    # what holds

    @invariant()
    def every_name_is_what_it_was_made(self) -> None:
        catalog, store = self.service.catalog, self.settings.artifacts.absolute()
        bases = {
            base.name: (store / base.artifact if base.artifact else None, base.parent)
            for base in catalog.bases()
        }
        assert bases == self.bases
        adapters = {one.model: one.digest for one in catalog.adapters()}
        assert adapters == {model: digest for model, (digest, _) in self.adapters.items()}
        found = {one.model: (one.composition, one.pinned) for one in catalog.compositions()}
        assert found == self.compositions
        aliases = {one.name: [*one.before, one.base] for one in catalog.aliases()}
        assert aliases == self.aliases
        assert {file.id: file.path for file in catalog.files()} == self.files

    @invariant()
    def the_disk_has_all_of_it_whole_and_nothing_unknown(self) -> None:
        stores = (self.settings.artifacts, self.settings.adapters, self.settings.files)
        on_disk = {path for store in stores for path in store.absolute().glob("[!.]*")}
        assert on_disk == self.referenced() | self.loose
        findings = list(verify(self.settings, self.service.catalog))
        assert {one.path for one in findings} == self.unreferenced()
        assert {one.kind for one in findings} <= {"orphaned"}

    @invariant()
    def what_is_used_or_pinned_is_loaded_and_can_be_loaded_again(self) -> None:
        for engine in self.engines():
            engine.check()
        for use in self.uses:
            assert use.stale or use.model.engine_name in use.engine.sources
        for base, names in self.pinned.items():
            assert names <= self.service.engines.get(base).sources.keys()

    @invariant()
    def memory_is_within_its_budget(self) -> None:
        assert content.size(self.settings.composition_memory) <= MEMORY

    # how

    def done(self, may: bool, act: Callable[[], object]) -> bool:
        """Do it; it must be refused if and only if it may not be."""
        try:
            act()
        except (GraftworkError, InvalidInput):
            assert not may
            return False
        assert may
        return True

    def wait(self, work: Coroutine[Any, Any, Any]) -> None:
        """Let it happen, and all that it set going."""

        async def all_of_it() -> None:
            await work
            while others := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(others)

        self.runner.run(all_of_it())

    def referenced(self) -> set[Path]:
        held = {held for _, held in self.adapters.values()} | set(self.files.values())
        return held | {artifact for artifact, _ in self.bases.values() if artifact}

    def unreferenced(self) -> set[Path]:
        return self.loose - self.referenced()

    def stored(self, seed: int) -> tuple[str, Path]:
        """An adapter's digest, and where it lies when it is uploaded."""
        digest = adapter_digest(self.material.adapters[seed])
        return digest, self.settings.adapters.absolute() / digest

    def submission(self, base: str, name: str, seed: int) -> Submission:
        """An upload, which takes what a killed one left of the same content for its own."""
        if base in self.bases:
            self.loose.discard(self.stored(seed)[1])
        return Submission(name, base, path=self.material.adapters[seed])

    def recipe(self, name: str, base: str, file: str = "file-0") -> Recipe:
        text = Text(file=file, sequences=2, length=8)
        cut: Any = {"target": 0.2, "units": ["ffn_channel"], "ffn_multiple": 4}
        return Recipe(name=name, base=base, calibration=text, evaluation=text, **cut)

    def draft(self, seed: int) -> Path:
        """What a job has made: a slim base, and the adapter `a` carried to it."""
        draft = self.settings.jobs.absolute() / "made"
        shutil.copytree(self.material.base, draft / "model")
        (draft / "model" / "kept").write_text(str(seed))
        shutil.copytree(self.material.adapters[seed], draft / "adapters" / "a")
        return draft

    def digests(self, base: str, what: str) -> list[str] | None:
        """Of the adapters that a model's id stands for; None where there is no such model."""
        model = base + what
        if model in self.adapters:
            return [self.adapters[model][0]]
        named = self.compositions.get(model)
        composition = named[0] if named else spelled(model)
        if composition is None or base not in self.bases:
            return None
        parts = [f"{base}+{name}" for name in names_of(composition)]
        return [self.adapters[p][0] for p in parts] if {*parts} <= {*self.adapters} else None

    def forget(self, base: str, digest: str) -> None:
        """What is made of the content is unloaded."""
        for use in self.uses:
            assert use.model.composed is not None
            contents = {adapter.digest for adapter in use.model.composed.adapters}
            use.stale |= use.engine.name == base and digest in contents
        self.pinned.pop(base, None)

    def engines(self) -> list[Engine]:
        return list(self.service.engines.running.values())

    def built(self) -> set[str]:
        """Digests of what engines built and is on the disk."""
        return {path.name for path in (self.settings.home / "compositions").glob("[!.]*")}

    def stop(self) -> None:
        while self.uses:
            self.wait(self.uses.pop().held.aclose())
        self.wait(self.service.close())

    def teardown(self) -> None:
        self.stop()
        self.resources.close()


def text_of(seed: int) -> bytes:
    return b"a text %d" % seed


def names_of(composition: Composition) -> list[str]:
    return [part.adapter for part in composition.parts]


def base_of(model: str) -> str:
    return model.partition("+")[0]


@pytest.fixture
def material(
    tmp_path: Path,
    migrated: Path,
    base_directory: Path,
    write_adapter: Callable[..., Path],
    fresh_database: Callable[[], AbstractContextManager[str | None]],
) -> Material:
    adapters = tuple(write_adapter(tmp_path / str(seed), seed=seed) for seed in range(4))
    home = tmp_path / "prepared"
    home.mkdir()
    shutil.copy(migrated, home)
    url = f"sqlite:///{home}/graftwork.db"
    catalog = Catalog(url)
    Jobs(Settings(home=home, database_url=url), catalog).close()  # which makes its tables
    catalog.close()
    return Material(base_directory, adapters, home / "graftwork.db", fresh_database)


def test_after_any_sequence_of_changes_all_is_as_it_should_be(material: Material):
    run_state_machine_as_test(
        lambda: Machine(material),
        settings=hypothesis_settings(
            max_examples=SEQUENCES,
            stateful_step_count=30,
            deadline=None,
            database=None,
            derandomize=SEQUENCES < 10,
            phases=[Phase.generate, *([Phase.shrink] if SEQUENCES > 1000 else [])],
            suppress_health_check=list(HealthCheck),
        ),
    )
