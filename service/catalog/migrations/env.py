"""What alembic runs to reach the database: the transaction that the caller has opened."""

from alembic import context

from service.catalog.migrations import VERSION_TABLE
from service.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
)
context.run_migrations()
