"""The tables of devices that speak hawkBit's DDI: who they are, their tokens, the actions they were given, what they download.

Where their slots stand and what they did in rollouts lies in `DeviceSlot` and `DeviceTrial`, as of every other device.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, String, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from modelfleet.registry.tables import Base

_UNFINISHED = text("state IN ('OPEN', 'CANCELLING')")
_ROW_NUMBER = BigInteger().with_variant(Integer, "sqlite")
"""64 bits; SQLite's own row numbers have as many, by this name only."""


class DdiDevice(Base):
    """A device that polls. `controller_id` is what it calls itself; `seq` orders what it was heard to say."""

    __tablename__ = "ddi_devices"
    __table_args__ = (UniqueConstraint("tenant", "controller_id"),)

    device: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"))
    controller_id: Mapped[str] = mapped_column(String(128))
    artifacts: Mapped[str] = mapped_column(String(8))
    """`swu`: one container; `files`: the variant's files as they are."""
    attributes: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    """What it last sent as configData."""
    seq: Mapped[int] = mapped_column(BigInteger, default=0)
    attributes_at: Mapped[datetime | None]
    polled_at: Mapped[datetime | None]
    """When it was last heard of, to some seconds."""


class DdiToken(Base):
    """A target token (of one device) or a gateway token (of a group's devices), stored hashed."""

    __tablename__ = "ddi_tokens"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"), index=True)
    device: Mapped[str | None] = mapped_column(ForeignKey("devices.id"), index=True)
    group: Mapped[str | None] = mapped_column("group_name", String(64))
    created_by: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class DdiModule(Base):
    """What a manifest is delivered as into a slot: hawkBit's software module. Made once, never changed."""

    __tablename__ = "ddi_modules"
    __table_args__ = (UniqueConstraint("tenant", "slot", "digest", "kind"),)

    id: Mapped[int] = mapped_column(_ROW_NUMBER, primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"))
    slot: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(8))
    artifacts: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    """filename, size, sha256, sha1, md5 of each; the bytes are blobs."""
    made_at: Mapped[datetime]


class DdiAction(Base):
    """One release that one device was asked to install into a slot; the id is hawkBit's action id.

    state: OPEN → SUCCEEDED | FAILED | ABANDONED (the device gave it up by itself) | CANCELLED, also by way of CANCELLING.
    At most one action of a device is unfinished.
    """

    __tablename__ = "ddi_actions"
    __table_args__ = (
        Index("ix_ddi_actions_device_slot", "device", "slot"),
        Index(
            "uq_ddi_actions_unfinished", "device", unique=True, sqlite_where=_UNFINISHED, postgresql_where=_UNFINISHED
        ),
    )

    id: Mapped[int] = mapped_column(_ROW_NUMBER, primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"))
    device: Mapped[str] = mapped_column(ForeignKey("ddi_devices.device"))
    slot: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(64))
    """The manifest's."""
    model: Mapped[str] = mapped_column(String(256))
    version: Mapped[str] = mapped_column(String(64))
    counter: Mapped[int] = mapped_column(BigInteger)
    rollout: Mapped[str] = mapped_column(String(64))
    """Empty for a stable release and a pin."""
    module: Mapped[int] = mapped_column(ForeignKey("ddi_modules.id"))
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(default="")
    counts: Mapped[bool]
    """Whether what the device reports of it decides anything: its plan accepts unsigned reports."""
    keeps: Mapped[bool] = mapped_column(default=False)
    """The device has refused to cancel it."""
    forgiven: Mapped[bool] = mapped_column(default=False)
    """Somebody asked for a retry: its failure is no rejection any more."""
    reports: Mapped[int] = mapped_column(default=0)
    installs: Mapped[int] = mapped_column(default=0)
    """How often the device said that all was installed, without closing the action."""
    opened_at: Mapped[datetime]
    seen_at: Mapped[datetime | None]
    fetched_at: Mapped[datetime | None]
    """When the device first asked for the bytes: without that no success is believed."""
    closed_at: Mapped[datetime | None]
