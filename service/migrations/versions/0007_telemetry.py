"""telemetry: what drift is measured by; roll-ups and their retention.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("device_counters", schema=None) as batch_op:
        batch_op.add_column(sa.Column("confidence", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("device_counters", schema=None) as batch_op:
        batch_op.drop_column("confidence")
