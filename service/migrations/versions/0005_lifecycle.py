"""lifecycle: approvals, emergencies, changes of a rollout.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("rollouts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("supersede", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch_op.add_column(sa.Column("emergency", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch_op.add_column(sa.Column("emergency_reason", sa.String(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("ending", sa.String(length=24), nullable=True))
        batch_op.add_column(sa.Column("superseded_by", sa.String(length=36), nullable=True))
    with op.batch_alter_table("device_trials", schema=None) as batch_op:
        batch_op.add_column(sa.Column("retries", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("retried_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("device_trials", schema=None) as batch_op:
        batch_op.drop_column("retried_at")
        batch_op.drop_column("retries")
    with op.batch_alter_table("rollouts", schema=None) as batch_op:
        for name in ("superseded_by", "ending", "emergency_reason", "emergency", "supersede"):
            batch_op.drop_column(name)
