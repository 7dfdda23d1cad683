"""The tables of the catalog."""

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

metadata = MetaData()

bases = Table(
    "bases",
    metadata,
    Column("id", String(80), primary_key=True),  # see service.records.base_id
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

adapters = Table(
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

generators = Table(
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

compositions = Table(
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

aliases = Table(  # each row a promotion; the last one is in force
    "aliases",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("name", String(63), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("base", ForeignKey("bases.id"), nullable=False, index=True),
    Column("created", BigInteger, nullable=False),
)

profiles = Table(
    "profiles",
    metadata,
    Column("adapter", String(64), primary_key=True),  # digest of its content
    Column("base", String(64), primary_key=True),  # digest of its content
    Column("path", String, nullable=False),
    Column("summary", JSON, nullable=False),
    Column("created", BigInteger, nullable=False),
)

keys = Table(
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

files = Table(
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

quotas = Table(
    "quotas",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("quota", JSON, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("created", BigInteger, nullable=False),
    Column("tenant", String(63), nullable=False, index=True),
    Column("action", String(63), nullable=False),
    Column("object", String(255), nullable=False),
    Column("by", String(63), nullable=False),
    Column("key", String(12), nullable=True),
    Column("request_id", String(128), nullable=True),
)
