"""The tables of the catalog in versions: from whatever a database has to what this code expects."""

from functools import cache
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from pruning.errors import InvalidInput
from service.database import migrating

VERSION_TABLE = "graftwork_version"


def upgrade(engine: sa.Engine) -> None:
    """Bring a database to the newest version; of many processes that start at once, one does it.

    InvalidInput when a newer Graftwork has been there already.
    """
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        found = context.get_current_revision()
    if found == _scripts().get_current_head():
        return
    if found not in (None, *(script.revision for script in _scripts().walk_revisions())):
        raise InvalidInput(
            "database_url",
            f"the database has version {found} of the tables, of a newer Graftwork; "
            "run that one, or restore a backup from before it ran",
        )
    with migrating(engine) as connection:
        to(connection, "head")


def to(connection: sa.Connection, version: str) -> None:
    """Run the migrations up to a version in the open transaction of `connection`."""
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, version)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


@cache
def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())
