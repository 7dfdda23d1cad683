"""Aliases of bases, with what they stood for before."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "aliases",
        sa.Column("tenant", sa.String(63), primary_key=True),
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("base", sa.String(80), sa.ForeignKey("bases.id"), nullable=False, index=True),
        sa.Column("created", sa.BigInteger, nullable=False),
    )
