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


def downgrade() -> None:
    with op.batch_alter_table("rollout_profiles", schema=None) as batch_op:
        batch_op.drop_column("control_until")
        batch_op.drop_column("cohort")
    op.drop_table("leadership_terms")
