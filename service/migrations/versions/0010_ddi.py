"""ddi: devices, tokens, actions and deliveries of hawkBit clients.

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

UNFINISHED = sa.text("state IN ('OPEN', 'CANCELLING')")
ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "ddi_devices",
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("controller_id", sa.String(length=128), nullable=False),
        sa.Column("artifacts", sa.String(length=8), nullable=False),
        sa.Column("attributes", sa.JSON(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("attributes_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("polled_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["device"], ["devices.id"], name=op.f("fk_ddi_devices_device_devices")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name=op.f("fk_ddi_devices_tenant_tenants")),
        sa.PrimaryKeyConstraint("device", name=op.f("pk_ddi_devices")),
        sa.UniqueConstraint("tenant", "controller_id", name=op.f("uq_ddi_devices_tenant")),
    )
    op.create_table(
        "ddi_tokens",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=True),
        sa.Column("group_name", sa.String(length=64), nullable=True),
        sa.Column("created_by", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["device"], ["devices.id"], name=op.f("fk_ddi_tokens_device_devices")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name=op.f("fk_ddi_tokens_tenant_tenants")),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_ddi_tokens")),
    )
    op.create_index(op.f("ix_ddi_tokens_tenant"), "ddi_tokens", ["tenant"])
    op.create_index(op.f("ix_ddi_tokens_device"), "ddi_tokens", ["device"])
    op.create_table(
        "ddi_modules",
        sa.Column("id", ROW_NUMBER, nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("slot", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("artifacts", sa.JSON(), nullable=False),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name=op.f("fk_ddi_modules_tenant_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ddi_modules")),
        sa.UniqueConstraint("tenant", "slot", "digest", "kind", name=op.f("uq_ddi_modules_tenant")),
    )
    op.create_table(
        "ddi_actions",
        sa.Column("id", ROW_NUMBER, nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("slot", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=256), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("counter", sa.BigInteger(), nullable=False),
        sa.Column("rollout", sa.String(length=64), nullable=False),
        sa.Column("module", ROW_NUMBER, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("counts", sa.Boolean(), nullable=False),
        sa.Column("keeps", sa.Boolean(), nullable=False),
        sa.Column("forgiven", sa.Boolean(), nullable=False),
        sa.Column("reports", sa.Integer(), nullable=False),
        sa.Column("installs", sa.Integer(), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("fetched_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["device"], ["ddi_devices.device"], name=op.f("fk_ddi_actions_device_ddi_devices")),
        sa.ForeignKeyConstraint(["module"], ["ddi_modules.id"], name=op.f("fk_ddi_actions_module_ddi_modules")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name=op.f("fk_ddi_actions_tenant_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ddi_actions")),
    )
    op.create_index("ix_ddi_actions_device_slot", "ddi_actions", ["device", "slot"])
    op.create_index(
        "uq_ddi_actions_unfinished",
        "ddi_actions",
        ["device"],
        unique=True,
        sqlite_where=UNFINISHED,
        postgresql_where=UNFINISHED,
    )


def downgrade() -> None:
    op.drop_table("ddi_actions")
    op.drop_table("ddi_modules")
    op.drop_table("ddi_tokens")
    op.drop_table("ddi_devices")
