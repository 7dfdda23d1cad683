"""Bases have ids beside names, which are unique within a tenant; compositions can be shared."""

import hashlib
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

revision = "0003"
down_revision = "0002"

metadata = MetaData()

Table(
    "bases",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("name", String(63), nullable=False, index=True),
    Column("path", String, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("config", JSON, nullable=False),
    Column("parent", String(80), nullable=True, index=True),
    Column("artifact", String(64), nullable=True),
    Column("serve", Boolean, nullable=False),
    Column("tenant", String(63), nullable=False, index=True),
    Column("shared", Boolean, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created", BigInteger, nullable=False),
)

Table(
    "adapters",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("base", ForeignKey("bases.id"), primary_key=True),
    Column("name", String(63), primary_key=True),
    Column("shared", Boolean, nullable=False),
    Column("digest", String(64), nullable=False, index=True),
    Column("path", String, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created", BigInteger, nullable=False),
)

Table(
    "generators",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("base", ForeignKey("bases.id"), primary_key=True),
    Column("name", String(63), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("path", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created", BigInteger, nullable=False),
)

Table(
    "compositions",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("base", ForeignKey("bases.id"), primary_key=True),
    Column("name", String(63), primary_key=True),
    Column("parts", JSON, nullable=False),  # by adapter, its weight
    Column("strategy", JSON, nullable=False),
    Column("pinned", Boolean, nullable=False),
    Column("shared", Boolean, nullable=False),
    Column("created", BigInteger, nullable=False),
)


def upgrade() -> None:
    """Give every base its id, also where it is referred to."""
    bases = Table("bases", MetaData(), autoload_with=op.get_bind())
    rows = op.get_bind().execute(bases.select()).mappings()
    ids = {row["name"]: _id(row["name"], row["tenant"], row["shared"]) for row in rows}

    def change(table: str, row: dict[str, Any]) -> dict[str, Any]:
        if table == "bases":
            return row | {"id": ids[row["name"]], "parent": ids.get(row["parent"], row["parent"])}
        shared = {"shared": False} if table == "compositions" else {}
        return row | {"base": ids[row["base"]]} | shared

    rebuild(op.get_bind(), metadata, change)


def _id(name: str, tenant: str, shared: bool) -> str:
    if shared or tenant == "local":
        return name
    own = hashlib.blake2b(f"{tenant}\0{name}".encode(), digest_size=16).hexdigest()
    return f"{name}~{own[:16]}"
