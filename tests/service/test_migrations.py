"""Tables in versions: every database that ever was becomes today's, with all that it held."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from pruning.errors import InvalidInput
from service import database, schema
from service.catalog import Catalog, migrations
from service.catalog.migrations.versions import r0001_catalog
from service.records import base_id
from service.tenants import LOCAL

DIGEST = "0123456789ab" + "0" * 52
FIRST = """
CREATE TABLE bases (name VARCHAR(63) NOT NULL PRIMARY KEY, path VARCHAR NOT NULL,
    digest VARCHAR(64) NOT NULL, config JSON NOT NULL, parent VARCHAR(63), artifact VARCHAR(64),
    serve BOOLEAN NOT NULL, created BIGINT NOT NULL);
CREATE INDEX ix_bases_parent ON bases (parent);
CREATE TABLE adapters (base VARCHAR(63) NOT NULL REFERENCES bases (name),
    name VARCHAR(63) NOT NULL, digest VARCHAR(64) NOT NULL, path VARCHAR NOT NULL,
    rank INTEGER NOT NULL, created BIGINT NOT NULL, PRIMARY KEY (base, name));
CREATE INDEX ix_adapters_digest ON adapters (digest);
CREATE TABLE files (id VARCHAR(29) NOT NULL PRIMARY KEY, digest VARCHAR(64) NOT NULL,
    path VARCHAR NOT NULL, filename VARCHAR(255) NOT NULL, purpose VARCHAR(63) NOT NULL,
    bytes BIGINT NOT NULL, created BIGINT NOT NULL);
INSERT INTO bases VALUES ('demo', '/bases/demo', '{digest}', '{config}', NULL, NULL, {true}, 1);
INSERT INTO bases VALUES ('slim', '/s/model', '{digest}', '{config}', 'demo', 'a1', {false}, 2);
INSERT INTO adapters VALUES ('demo', 'sql', '{digest}', '/adapters/sql', 8, 3);
INSERT INTO adapters VALUES ('slim', 'sql', '{digest}', '/s/adapters/sql', 8, 4);
INSERT INTO files VALUES ('file-1', '{digest}', '/files/1', 't.txt', 'calibration', 5000000000, 5)
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'catalog.db'}"
    server: str = request.getfixturevalue("postgres")
    return server.replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    engine = database.connect(url)
    yield engine
    engine.dispose()


def fill_first(engine: sa.Engine) -> None:
    """A database as the first release made it."""
    values = {"true": "1", "false": "0"} if engine.dialect.name == "sqlite" else {}
    values = {"true": "true", "false": "false", "digest": DIGEST} | values
    text = FIRST.replace("{config}", json.dumps({"model_type": "llama"}))
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    with database.writing(engine) as connection:
        for statement in text.split(";\n"):
            connection.exec_driver_sql(statement)


def differences(engine: sa.Engine) -> list[Any]:
    options = {
        "version_table": migrations.VERSION_TABLE,
        "compare_type": True,
        "compare_server_default": True,
    }
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, schema.metadata))


def test_the_migrations_make_the_tables_that_the_code_describes(engine: sa.Engine):
    migrations.upgrade(engine)
    assert differences(engine) == []


def test_a_lacking_column_would_be_noticed(engine: sa.Engine):
    migrations.upgrade(engine)
    with database.migrating(engine) as connection:
        connection.exec_driver_sql("ALTER TABLE adapters DROP COLUMN rank")
    assert differences(engine) != []


def test_a_database_of_the_first_release_keeps_all_that_it_held(url: str, engine: sa.Engine):
    fill_first(engine)
    catalog = Catalog(url)
    assert differences(engine) == []
    demo, slim = catalog.bases()
    assert (demo.name, demo.path, demo.config) == (
        "demo",
        Path("/bases/demo"),
        {"model_type": "llama"},
    )
    assert (demo.serve, slim.serve, slim.parent, slim.artifact) == (True, False, "demo", "a1")
    assert demo.tenant == LOCAL
    assert demo.shared
    assert [(a.model, a.rank, a.tenant, a.shared) for a in catalog.adapters()] == [
        ("demo+sql", 8, LOCAL, False),
        ("slim+sql", 8, LOCAL, False),
    ]
    (file,) = catalog.files()
    assert (file.id, file.bytes, file.created) == ("file-1", 5_000_000_000, 5)
    catalog.add_adapter("demo", "new", Path("/adapters/new"), DIGEST, rank=2)
    catalog.close()


def test_a_database_from_before_there_were_versions_is_taken_over(url: str, engine: sa.Engine):
    with database.writing(engine) as connection:
        r0001_catalog.metadata.create_all(connection)
        tables = r0001_catalog.metadata.tables
        base = {"name": "demo", "path": "/b", "digest": DIGEST, "config": {}, "serve": True}
        base |= {"tenant": "acme", "shared": False, "created": 1}
        connection.execute(tables["bases"].insert(), [base])
        adapter = {"tenant": "acme", "base": "demo", "name": "sql", "shared": False, "rank": 2}
        adapter |= {"digest": DIGEST, "path": "/a", "created": 1}
        connection.execute(tables["adapters"].insert(), [adapter])
        mix = {"tenant": "acme", "base": "demo", "name": "mix", "parts": {"sql": 0.5}}
        mix |= {"strategy": {"name": "cat"}, "pinned": True, "created": 1}
        connection.execute(tables["compositions"].insert(), [mix])
        key = {"id": "0" * 12, "tenant": "acme", "name": "", "digest": DIGEST, "created": 1}
        connection.execute(tables["keys"].insert(), [key | {"scopes": ["infer"], "revoked": 7}])
    catalog = Catalog(url)
    assert differences(engine) == []
    (found,) = catalog.of("acme").bases()
    assert (found.name, found.tenant, found.shared) == ("demo", "acme", False)
    assert found.id == base_id("demo", "acme", shared=False) != "demo"
    assert [a.base for a in catalog.of("acme").adapters("demo")] == [found.id]
    assert catalog.of("acme").composition("demo", "mix").composition.base == "demo"
    assert catalog.bases() == ()
    assert [(key.tenant, key.scopes, key.revoked) for key in catalog.keys()] == [
        ("acme", ("infer",), 7)
    ]
    catalog.close()


def test_of_many_that_start_at_once_one_migrates(url: str, engine: sa.Engine):
    fill_first(engine)
    with ThreadPoolExecutor(8) as pool:
        catalogs = list(pool.map(lambda _: Catalog(url), range(8)))
    assert differences(engine) == []
    assert {len(catalog.bases()) for catalog in catalogs} == {2}
    for catalog in catalogs:
        catalog.close()


def test_a_migration_that_fails_changes_nothing(engine: sa.Engine):
    fill_first(engine)
    with database.writing(engine) as connection:  # a table's name, which the migration needs
        connection.exec_driver_sql("CREATE VIEW keys AS SELECT name FROM bases")
    before = sa.inspect(engine).get_table_names()
    with pytest.raises(sa.exc.DBAPIError):
        migrations.upgrade(engine)
    assert sa.inspect(engine).get_table_names() == before
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM adapters").scalar() == 2


def test_what_a_newer_release_made_is_left_alone(url: str, engine: sa.Engine):
    Catalog(url).close()
    with database.writing(engine) as connection:
        connection.exec_driver_sql(f"UPDATE {migrations.VERSION_TABLE} SET version_num = '9999'")
    with pytest.raises(InvalidInput, match="9999.*newer Graftwork"):
        Catalog(url)


def test_what_lies_on_disk_is_measured(url: str, engine: sa.Engine, adapter_directory: Path):
    with database.migrating(engine) as connection:
        migrations.to(connection, "0001")
        tables = r0001_catalog.metadata.tables
        base = {"name": "demo", "path": str(adapter_directory), "digest": DIGEST, "config": {}}
        base |= {"serve": True, "tenant": LOCAL, "shared": True, "created": 1}
        connection.execute(tables["bases"].insert(), [base])
        adapter = {"base": "demo", "name": "sql", "path": str(adapter_directory), "rank": 2}
        adapter |= {"tenant": LOCAL, "shared": False, "digest": DIGEST, "created": 1}
        connection.execute(tables["adapters"].insert(), [adapter])
    catalog = Catalog(url)
    size = sum(file.stat().st_size for file in adapter_directory.iterdir())
    assert (catalog.adapter("demo", "sql").bytes, catalog.stored_bytes()) == (size, size)
    catalog.close()
