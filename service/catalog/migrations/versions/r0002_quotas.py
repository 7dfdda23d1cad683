"""Quotas of tenants, and how many bytes each thing takes on disk."""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "quotas",
        sa.Column("tenant", sa.String(63), primary_key=True),
        sa.Column("quota", sa.JSON, nullable=False),
    )
    for name in ("bases", "adapters", "generators"):
        op.add_column(name, sa.Column("bytes", sa.BigInteger, nullable=True))
        _measure(op.get_bind(), name)
        with op.batch_alter_table(name) as table:
            table.alter_column("bytes", existing_type=sa.BigInteger, nullable=False)


def _measure(connection: sa.Connection, name: str) -> None:
    table = sa.Table(name, sa.MetaData(), autoload_with=connection)
    for path in set(connection.scalars(sa.select(table.c.path))):
        ours = table.c.path == path
        if name == "bases":  # one that no job made lies where its owner put it
            ours &= table.c.artifact.is_not(None)
        connection.execute(sa.update(table).where(ours).values(bytes=_bytes(Path(path))))
    connection.execute(sa.update(table).where(table.c.bytes.is_(None)).values(bytes=0))


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
