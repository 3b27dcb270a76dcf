"""Alembic's environment: it runs on the connection that `service.database.migrate` hands it."""

from alembic import context

import modelfleet.rollout.tables  # noqa: F401 - registers its tables with Base
from modelfleet.registry.tables import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True, compare_type=True)
with context.begin_transaction():
    context.run_migrations()
