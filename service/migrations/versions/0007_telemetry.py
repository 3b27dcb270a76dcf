"""telemetry: what drift is measured by; roll-ups and their retention; a device's state in fewer bytes.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

from modelfleet.service.migrations import device_rows

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

PARTITIONS = "modelfleet_partitions"
"""A schema of its own: what compares the tables with the code's looks at the default one only."""


def upgrade() -> None:
    postgresql = op.get_bind().dialect.name == "postgresql"
    if postgresql:
        op.execute(f"CREATE SCHEMA IF NOT EXISTS {PARTITIONS}")
    op.create_table(
        "telemetry_hours",
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=256), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("profile", sa.String(length=64), nullable=False),
        sa.Column("group_name", sa.String(length=64), nullable=False),
        sa.Column("hour", sa.DateTime(timezone=True), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.Column("slow", sa.BigInteger(), nullable=False),
        sa.Column("devices", sa.Integer(), nullable=False),
        sa.Column("latency", sa.JSON(), nullable=False),
        sa.Column("classes", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint(
            "tenant", "model", "version", "profile", "group_name", "hour", name=op.f("pk_telemetry_hours")
        ),
        postgresql_partition_by="RANGE (hour)",
    )
    with op.batch_alter_table("rollout_profiles") as table:
        table.add_column(sa.Column("answers", sa.JSON(none_as_null=True), nullable=True))
    with op.batch_alter_table("health_samples") as table:
        table.add_column(sa.Column("slow", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_table(
        "answer_baselines",
        sa.Column("rollout", sa.String(length=36), nullable=False),
        sa.Column("profile", sa.String(length=64), nullable=False),
        sa.Column("device", sa.String(length=36), nullable=False),
        sa.Column("activation", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("classes", sa.JSON(), nullable=False),
        sa.Column("confidence", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("latency", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["rollout"], ["rollouts.id"], name=op.f("fk_answer_baselines_rollout_rollouts")),
        sa.PrimaryKeyConstraint("rollout", "profile", "device", "activation", name=op.f("pk_answer_baselines")),
    )
    device_rows.compact()
    if postgresql:  # rows that change often: room on their page keeps an update off the indexes
        for name in ("device_slots", "device_counters", "device_trials"):
            op.execute(f"ALTER TABLE {name} SET (fillfactor = 70)")


def downgrade() -> None:
    device_rows.restore()
    op.drop_table("answer_baselines")
    with op.batch_alter_table("health_samples") as table:
        table.drop_column("slow")
    with op.batch_alter_table("rollout_profiles") as table:
        table.drop_column("answers")
    op.drop_table("telemetry_hours")
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"DROP SCHEMA IF EXISTS {PARTITIONS}")
