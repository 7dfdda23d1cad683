"""What jobs made, entered under the names that their recipes give."""

import json
from dataclasses import replace
from pathlib import Path

import sqlalchemy as sa

from pruning.adapters.generate.recipes import TrainGeneratorSpec
from pruning.adapters.jobs import AdapterSpec, AnyAdapterSpec, CompareRecipe, ProfileRecipe
from pruning.adapters.peft_format import read_adapter
from pruning.digest import tree_digest
from pruning.errors import InvalidInput
from pruning.recipe import PruneSpec
from pruning.sweeps.recipe import SweepSpec
from service import content, schema
from service.catalog.bases import Bases, new_base
from service.catalog.tables import equal, find, insert, now, row_of
from service.errors import NotFound
from service.records import Adapter, Base, Generator, Profile, base_id


class Publication(Bases):
    """Registers finished artifacts; may be repeated, and what is registered already stays."""

    def publish(
        self, spec: PruneSpec | AnyAdapterSpec | SweepSpec, artifact_dir: Path, digest: str
    ) -> None:
        """Register a finished artifact, whatever the kind of its job; of a sweep nothing is served.

        InvalidInput, which the job reports, when a name belongs to something else.
        """
        if isinstance(spec, SweepSpec):
            return
        own = self.of(spec.tenant)
        if isinstance(spec, PruneSpec):
            own.publish_artifact(spec, artifact_dir, digest)
        elif isinstance(spec, TrainGeneratorSpec):
            own._publish_generator(spec, artifact_dir, digest)
        elif isinstance(spec, AdapterSpec) and isinstance(spec.recipe, ProfileRecipe):
            own._publish_profile(spec, artifact_dir)
        elif not isinstance(spec.recipe, CompareRecipe):  # a comparison has no name of its own
            own._publish_adapters(spec.recipe.base, artifact_dir)

    def publish_artifact(self, spec: PruneSpec, artifact_dir: Path, digest: str) -> None:
        """Register a slim base and the adapters that were carried; InvalidInput as above."""
        name, model = spec.recipe.name, artifact_dir / "model"
        made = new_base(name, model, tree_digest(model), artifact=digest, serve=True)
        base = replace(
            made,
            id=base_id(name, self._tenant, shared=False),
            parent=self._parent(spec.recipe.base),
            tenant=self._tenant,
            shared=False,
            bytes=content.size(model),
        )
        adapters = [
            _carried(base, directory) for directory in sorted((artifact_dir / "adapters").glob("*"))
        ]
        with self._write() as connection:
            row = find(connection, schema.bases, tenant=self._tenant, name=name)
            if row is None:
                if find(connection, schema.aliases, tenant=self._tenant, name=name):
                    raise _taken(f"alias {name!r}")  # made since the job was
                insert(connection, schema.bases, row_of(base, schema.bases), f"base {name!r}")
                self._note(connection, "base.make", name)
            elif row["artifact"] != digest:
                raise _taken(f"base {name!r}")
            for adapter in adapters:
                key = self._key(row["id"] if row else base.id, adapter.name)
                if find(connection, schema.compositions, **key):
                    raise _taken(adapter.model)
                if find(connection, schema.adapters, **key) is None:
                    self._enter(connection, replace(adapter, base=key["base"]))

    def _parent(self, name: str) -> str | None:
        """The id of the base that was cut, if it is still there."""
        try:
            return self.base(name).id
        except NotFound:
            return None

    def _publish_generator(self, spec: TrainGeneratorSpec, artifact_dir: Path, digest: str) -> None:
        home, name = self.base(spec.recipe.base).id, spec.recipe.name
        path, size = artifact_dir.absolute(), content.size(artifact_dir)
        made = Generator(home, name, digest, path, now(), self._tenant, size)
        with self._write() as connection:
            row = find(connection, schema.generators, **self._key(home, name))
            if row is None:
                insert(connection, schema.generators, row_of(made, schema.generators), made.id)
                self._note(connection, "generator.make", made.id)
            elif row["digest"] != digest:
                raise _taken(f"generator {made.id}")

    def _publish_adapters(self, base_name: str, artifact_dir: Path) -> None:
        base = self.base(base_name)
        made = [
            replace(_carried(base, path), tenant=self._tenant)
            for path in sorted((artifact_dir / "adapters").iterdir())
        ]
        with self._write() as connection:
            for adapter in made:
                key = self._key(base.id, adapter.name)
                row = find(connection, schema.adapters, **key)
                other = row is not None and row["digest"] != adapter.digest
                if other or find(connection, schema.compositions, **key):
                    raise _taken(adapter.model)
                if row is None:
                    self._enter(connection, adapter)

    def _publish_profile(self, spec: AdapterSpec, artifact_dir: Path) -> None:
        """Register the profile of the content that the job read; a later one replaces it."""
        base = self.base(spec.recipe.base)
        (source,) = spec.sources.values()
        path = artifact_dir.absolute() / "profile.json"
        summary = json.loads(path.read_text(encoding="utf-8"))
        del summary["linears"]
        digest = read_adapter(source.path, base.geometry, field="source").digest
        profile = Profile(digest, base.digest, path, summary, now())
        key = {"adapter": profile.adapter, "base": profile.base}
        with self._write() as connection:
            connection.execute(sa.delete(schema.profiles).where(equal(schema.profiles, key)))
            insert(connection, schema.profiles, row_of(profile, schema.profiles), "the profile")
            self._note(connection, "profile.make", digest)

    def _enter(self, connection: sa.Connection, adapter: Adapter) -> None:
        insert(connection, schema.adapters, row_of(adapter, schema.adapters), adapter.model)
        self._note(connection, "adapter.make", adapter.model)


def _taken(what: str) -> InvalidInput:
    message = f"{what} exists already; choose another name"
    return InvalidInput("name", message, code="conflict", status=409)


def _carried(base: Base, directory: Path) -> Adapter:
    info = read_adapter(directory, base.geometry, field=f"adapters.{directory.name}")
    name, path = directory.name, directory.absolute()
    adapter = Adapter(base.id, name, info.digest, path, info.rank, now(), base.tenant)
    return replace(adapter, bytes=content.size(path))
