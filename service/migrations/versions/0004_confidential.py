"""confidential.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "data_keys",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("scope", sa.String(length=512), nullable=False),
        sa.Column("wrapped", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name=op.f("fk_data_keys_tenant_tenants")),
        sa.PrimaryKeyConstraint("tenant", "scope", name=op.f("pk_data_keys")),
    )
    with op.batch_alter_table("versions", schema=None) as batch_op:
        batch_op.add_column(sa.Column("source_blob", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("golden_blob", sa.String(length=64), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("versions", schema=None) as batch_op:
        batch_op.drop_column("golden_blob")
        batch_op.drop_column("source_blob")
    op.drop_table("data_keys")
