"""The tables as they were when versions began, with what older ones held."""

from typing import Any

from alembic import op
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
)

from service.catalog.migrations.rebuilding import rebuild

revision = "0001"
down_revision = None

metadata = MetaData()

Table(
    "bases",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("path", String, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("config", JSON, nullable=False),
    Column("parent", String(63), nullable=True, index=True),
    Column("artifact", String(64), nullable=True),
    Column("serve", Boolean, nullable=False),
    Column("tenant", String(63), nullable=False, index=True),
    Column("shared", Boolean, nullable=False),
    Column("created", BigInteger, nullable=False),
)

Table(
    "adapters",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("base", ForeignKey("bases.name"), primary_key=True),
    Column("name", String(63), primary_key=True),
    Column("shared", Boolean, nullable=False),
    Column("digest", String(64), nullable=False, index=True),
    Column("path", String, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("created", BigInteger, nullable=False),
)

Table(
    "generators",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("base", ForeignKey("bases.name"), primary_key=True),
    Column("name", String(63), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("path", String, nullable=False),
    Column("created", BigInteger, nullable=False),
)

Table(
    "compositions",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("base", ForeignKey("bases.name"), primary_key=True),
    Column("name", String(63), primary_key=True),
    Column("parts", JSON, nullable=False),  # by adapter, its weight
    Column("strategy", JSON, nullable=False),
    Column("pinned", Boolean, nullable=False),
    Column("created", BigInteger, nullable=False),
)

Table(
    "profiles",
    metadata,
    Column("adapter", String(64), primary_key=True),  # digest of its content
    Column("base", String(64), primary_key=True),  # digest of its content
    Column("path", String, nullable=False),
    Column("summary", JSON, nullable=False),
    Column("created", BigInteger, nullable=False),
)

Table(
    "keys",
    metadata,
    Column("id", String(12), primary_key=True),
    Column("tenant", String(63), nullable=False, index=True),
    Column("name", String(255), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=True),
    Column("revoked", BigInteger, nullable=True),
    Column("used", BigInteger, nullable=True),
)

Table(
    "files",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("id", String(29), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("path", String, nullable=False),
    Column("filename", String(255), nullable=False),
    Column("purpose", String(63), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created", BigInteger, nullable=False),
)

_LACKING: dict[str, dict[str, Any]] = {  # what a row means that is older than these columns
    "bases": {"tenant": "local", "shared": True},
    "adapters": {"tenant": "local", "shared": False},
    "compositions": {"tenant": "local"},
    "files": {"tenant": "local"},
}


def upgrade() -> None:
    """Make the tables, anew around their rows where there were some without a version."""
    rebuild(op.get_bind(), metadata, lambda table, row: _LACKING.get(table, {}) | row)
