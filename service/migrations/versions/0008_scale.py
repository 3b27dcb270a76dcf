"""scale: what planning a million devices needs.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_INDEXES: list[tuple[str, str, list[str], str | None]] = [
    ("ix_devices_place", "devices", ["tenant", "group_name", "profile", "id"], "revoked_at IS NULL"),
    ("ix_desired_documents_pending", "desired_documents", ["tenant", "rank", "seq"], "published_seq < seq"),
    ("ix_desired_documents_renew", "desired_documents", ["tenant", "epoch", "renew_at"], None),
    ("ix_desired_documents_batch", "desired_documents", ["tenant", "batch"], None),
    ("ix_device_trials_open", "device_trials", ["rollout"], "outcome IS NULL"),
]


def upgrade() -> None:
    op.create_table(
        "leadership_terms",
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.String(length=128), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant", name=op.f("pk_leadership_terms")),
    )
    with op.batch_alter_table("rollout_profiles", schema=None) as batch_op:
        batch_op.add_column(sa.Column("cohort", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("control_until", sa.String(length=36), nullable=True))
    with op.batch_alter_table("desired_documents", schema=None) as batch_op:
        batch_op.add_column(sa.Column("renew_at", sa.DateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column("rank", sa.SmallInteger(), nullable=True))
        batch_op.add_column(sa.Column("batch", sa.BigInteger(), nullable=False, server_default="0"))
        batch_op.drop_index(op.f("ix_desired_documents_issued_at"))
    op.execute("UPDATE desired_documents SET renew_at = issued_at, rank = CASE WHEN scope LIKE 'g/%' THEN 0 ELSE 1 END")
    with op.batch_alter_table("desired_documents", schema=None) as batch_op:
        batch_op.alter_column("renew_at", existing_type=sa.DateTime(timezone=True), nullable=False)
        batch_op.alter_column("rank", existing_type=sa.SmallInteger(), nullable=False)
        batch_op.alter_column("batch", existing_type=sa.BigInteger(), server_default=None)
    for name, table, columns, condition in _INDEXES:
        where = None if condition is None else sa.text(condition)
        op.create_index(name, table, columns, postgresql_where=where, sqlite_where=where)
    op.create_table(
        "publications",
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("generation", sa.String(length=32), nullable=False),
        sa.Column("batch", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", name=op.f("pk_publications")),
    )
    op.create_table(
        "profile_readings",
        sa.Column("rollout", sa.String(length=36), nullable=False),
        sa.Column("profile", sa.String(length=64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("waits", sa.JSON(), nullable=False),
        sa.Column("errors", sa.JSON(), nullable=False),
        sa.Column("median_seconds", sa.Double(), nullable=True),
        sa.Column("waiting_for", sa.String(), nullable=True),
        sa.Column("evidence", sa.JSON(none_as_null=True), nullable=True),
        sa.ForeignKeyConstraint(["rollout"], ["rollouts.id"], name=op.f("fk_profile_readings_rollout_rollouts")),
        sa.PrimaryKeyConstraint("rollout", "profile", name=op.f("pk_profile_readings")),
    )


def downgrade() -> None:
    op.drop_table("profile_readings")
    op.drop_table("publications")
    for name, table, _columns, _condition in reversed(_INDEXES):
        op.drop_index(name, table)
    with op.batch_alter_table("desired_documents", schema=None) as batch_op:
        batch_op.drop_column("batch")
        batch_op.drop_column("rank")
        batch_op.drop_column("renew_at")
        batch_op.create_index(op.f("ix_desired_documents_issued_at"), ["issued_at"])
    with op.batch_alter_table("rollout_profiles", schema=None) as batch_op:
        batch_op.drop_column("control_until")
        batch_op.drop_column("cohort")
    op.drop_table("leadership_terms")
