"""certificates.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "device_certificates",
        sa.Column("serial", sa.String(length=40), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("device", sa.String(length=36), nullable=False),
        sa.Column("key_sha256", sa.String(length=64), nullable=False),
        sa.Column("public_key", sa.String(), nullable=False),
        sa.Column("certificate", sa.String(), nullable=False),
        sa.Column("issued_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.String(length=32), nullable=True),
        sa.ForeignKeyConstraint(["device"], ["devices.id"], name=op.f("fk_device_certificates_device_devices")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name=op.f("fk_device_certificates_tenant_tenants")),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_device_certificates")),
    )
    with op.batch_alter_table("device_certificates", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_device_certificates_device"), ["device"], unique=False)
        batch_op.create_index(batch_op.f("ix_device_certificates_expires_at"), ["expires_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_device_certificates_tenant"), ["tenant"], unique=False)

    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.add_column(sa.Column("serial", sa.String(length=128), nullable=True))
        batch_op.add_column(sa.Column("encryption_key", sa.String(), nullable=True))
        batch_op.create_unique_constraint(batch_op.f("uq_devices_claim_sha256"), ["claim_sha256", "serial"])

    with op.batch_alter_table("claim_tokens", schema=None) as batch_op:
        batch_op.add_column(sa.Column("created_at", sa.DateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column("serials", sa.JSON(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("claim_tokens", schema=None) as batch_op:
        batch_op.drop_column("serials")
        batch_op.drop_column("revoked_at")
        batch_op.drop_column("created_at")

    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f("uq_devices_claim_sha256"), type_="unique")
        batch_op.drop_column("encryption_key")
        batch_op.drop_column("serial")

    op.drop_table("device_certificates")
