"""Alembic's environment: it runs on the connection that `service.database.migrate` hands it."""

from alembic import context

from modelfleet.registry.tables import Base
from modelfleet.rollout import tables as rollout_tables
from modelfleet.rollout.ddi import tables as ddi_tables

connection = context.config.attributes["connection"]
assert rollout_tables.Base is ddi_tables.Base is Base  # its tables are registered with the registry's
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True, compare_type=True)
with context.begin_transaction():
    context.run_migrations()
