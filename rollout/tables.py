"""The rollout's tables, beside the registry's on the same `Base`.

They hold the truth; retained MQTT messages are a cache of it. `DesiredDocument` is the outbox: it is written in the transaction
that changes the state, and published afterwards. Times are the server's, aware UTC. `group` is `group_name` in SQL.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    Index,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from modelfleet.registry.tables import Base
from modelfleet.rollout.ingest.compact import Counts, Digest, Measured

Json = dict[str, Any]


class Rollout(Base):
    """Moving a slot of some groups to a version. `revision` grows with every change: writers compare and set it."""

    __tablename__ = "rollouts"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"), index=True)
    model: Mapped[str] = mapped_column(String(256))
    version: Mapped[str] = mapped_column(String(64))
    slot: Mapped[str] = mapped_column(String(64))
    groups: Mapped[list[str]]
    plan: Mapped[Json] = mapped_column(JSON)
    plan_sha256: Mapped[str] = mapped_column(String(64))
    author: Mapped[str] = mapped_column(String(128))
    salt: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(24), index=True)
    reason: Mapped[str] = mapped_column(default="")
    """Why it is in this state, where a person or a guardrail gave a reason."""
    skipped_profiles: Mapped[Json] = mapped_column(JSON)
    """Profiles of the groups' devices that have no variant of this version, and why."""
    supersede: Mapped[bool] = mapped_column(default=False)
    """Whether it may end what runs in its slot when it starts."""
    emergency: Mapped[bool] = mapped_column(default=False)
    """Whether it skips waits (never guardrails); two persons must have approved, `emergency_reason` is what they signed."""
    emergency_reason: Mapped[str] = mapped_column(default="")
    ending: Mapped[str | None] = mapped_column(String(24))
    """CANCELLED or SUPERSEDED, where that is why its devices go back; its end is called so."""
    superseded_by: Mapped[str | None] = mapped_column(String(36))
    """The rollout that took over its slot."""
    revision: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]
    approve_by: Mapped[datetime]
    """When it expires, unless it has started."""
    approved_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class RolloutProfile(Base):
    """One hardware profile of a rollout: its own stage and verdict.

    `release` is the candidate as group documents name it, `previous` the stable release of each group before (null: none).
    `below` is the cohort's end, `stage` the stage's number; one past the last is the soak. `baselines` hold both arms' totals
    at the start of each stage; `trial_started_at` is when the first began, `hold_started_at` when the current wait for
    evidence did.
    """

    __tablename__ = "rollout_profiles"

    rollout: Mapped[str] = mapped_column(ForeignKey("rollouts.id"), primary_key=True)
    profile: Mapped[str] = mapped_column(String(64), primary_key=True)
    verdict: Mapped[str] = mapped_column(String(24))
    reason: Mapped[str] = mapped_column(default="")
    evidence: Mapped[Json] = mapped_column(JSON, default=dict)
    """What the last decision rested on."""
    release: Mapped[Json] = mapped_column(JSON)
    previous: Mapped[Json] = mapped_column(JSON)
    below: Mapped[int] = mapped_column(BigInteger, default=0)
    cohort: Mapped[int | None] = mapped_column(BigInteger)
    """How many devices that took when the stage began."""
    control_until: Mapped[str | None] = mapped_column(String(36))
    """The id up to which the profile's devices are the control arm; null: all of them are."""
    stage: Mapped[int] = mapped_column(default=0)
    baselines: Mapped[list[Json]] = mapped_column(JSON, default=list)
    trial_started_at: Mapped[datetime | None]
    stage_started_at: Mapped[datetime | None]
    hold_started_at: Mapped[datetime | None]
    rollback_started_at: Mapped[datetime | None]
    unproven: Mapped[list[str]] = mapped_column(JSON, default=list)
    """Devices that had not proved to be back when the rollback's time was over."""
    answers: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    """The stage's look at how the answers differ from stable's, and the differences that a person has let pass; see `answers`."""
    ended_at: Mapped[datetime | None]


class RolloutApproval(Base):
    """One person's verified approval; the envelope itself is a blob, which devices fetch by its digest."""

    __tablename__ = "rollout_approvals"

    rollout: Mapped[str] = mapped_column(ForeignKey("rollouts.id"), primary_key=True)
    person: Mapped[str] = mapped_column(String(128), primary_key=True)
    envelope_sha256: Mapped[str] = mapped_column(String(64))
    keyid: Mapped[str] = mapped_column(String(64))
    approval: Mapped[Json] = mapped_column(JSON)
    approved_at: Mapped[datetime]


class SlotStable(Base):
    """The release that a group's slot runs on one profile; `rollout` is the one that made it so."""

    __tablename__ = "slot_stables"

    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)
    group: Mapped[str] = mapped_column("group_name", String(64), primary_key=True)
    profile: Mapped[str] = mapped_column(String(64), primary_key=True)
    slot: Mapped[str] = mapped_column(String(64), primary_key=True)
    release: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    rollout: Mapped[str] = mapped_column(String(36))
    updated_at: Mapped[datetime]


class DesiredDocument(Base):
    """The last signed document of a scope, and the outbox: published once `published_seq` is `seq`."""

    __tablename__ = "desired_documents"
    __table_args__ = (
        Index(
            "ix_desired_documents_pending",
            "tenant",
            "rank",
            "seq",
            postgresql_where=text("published_seq < seq"),
            sqlite_where=text("published_seq < seq"),
        ),
        Index("ix_desired_documents_renew", "tenant", "epoch", "renew_at"),
        Index("ix_desired_documents_batch", "tenant", "batch"),
    )

    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)
    scope: Mapped[str] = mapped_column(String(160), primary_key=True)
    epoch: Mapped[int] = mapped_column(BigInteger)
    seq: Mapped[int] = mapped_column(BigInteger)
    payload: Mapped[bytes] = mapped_column(LargeBinary)
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
    topic: Mapped[str] = mapped_column(String(256))
    issued_at: Mapped[datetime]
    renew_at: Mapped[datetime]
    """When it is signed again: some time within the day after it was issued, so that a fleet's are spread over the day."""
    rank: Mapped[int] = mapped_column(SmallInteger)
    """What goes out first: 0 for group documents, 1 for assignments."""
    published_seq: Mapped[int] = mapped_column(BigInteger, default=0)
    batch: Mapped[int] = mapped_column(BigInteger, default=0)
    """The number of the batch in which the broker acknowledged it; see `Publication`."""


class DeviceSlot(Base):
    """A device's last word on one of its slots, by (boot, seq).

    Columns of fixed width come first, here and in the two tables below: PostgreSQL would fill gaps before them.
    """

    __tablename__ = "device_slots"
    __table_args__ = (Index("ix_device_slots_active", "active"),)

    boot: Mapped[int] = mapped_column(BigInteger)
    seq: Mapped[int] = mapped_column(BigInteger)
    proven_boot: Mapped[int] = mapped_column(BigInteger, default=-1)
    proven_seq: Mapped[int] = mapped_column(BigInteger, default=-1)
    """(boot, seq) of the last *signed* report, which said what is `proven`."""
    received_at: Mapped[datetime]
    device: Mapped[str] = mapped_column(String(36), primary_key=True)
    slot: Mapped[str] = mapped_column(String(64), primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str | None] = mapped_column(Digest)
    active: Mapped[str | None] = mapped_column(Digest)
    proven: Mapped[str | None] = mapped_column(Digest)
    """What the last *signed* report said to be active."""
    error: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))


class DeviceTrial(Base):
    """What one device did in one rollout.

    `state` is its last report on it; `outcome` the last *signed* one (COMMITTED, ROLLED_BACK, REJECTED), which an unsigned
    report cannot undo. A row exists from the device's first report on: that device has started.
    """

    __tablename__ = "device_trials"
    __table_args__ = (
        Index(
            "ix_device_trials_open",
            "rollout",
            postgresql_where=text("outcome IS NULL"),
            sqlite_where=text("outcome IS NULL"),
        ),
    )

    boot: Mapped[int] = mapped_column(BigInteger)
    seq: Mapped[int] = mapped_column(BigInteger)
    outcome_boot: Mapped[int] = mapped_column(BigInteger, default=-1)
    outcome_seq: Mapped[int] = mapped_column(BigInteger, default=-1)
    bench_boot: Mapped[int] = mapped_column(BigInteger, default=-1, server_default="-1")
    bench_seq: Mapped[int] = mapped_column(BigInteger, default=-1, server_default="-1")
    """(boot, seq) of the report that brought `bench`: it stays where a newer report brings none."""
    seconds: Mapped[float]
    started_at: Mapped[datetime]
    received_at: Mapped[datetime]
    outcome_at: Mapped[datetime | None]
    retried_at: Mapped[datetime | None]
    retries: Mapped[int] = mapped_column(default=0, server_default="0")
    """How often people asked the device to try again, and when they last did."""
    rollout: Mapped[str] = mapped_column(String(64), primary_key=True)
    device: Mapped[str] = mapped_column(String(36), primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    outcome: Mapped[str | None] = mapped_column(String(16))
    error: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    bench: Mapped[Json | None] = mapped_column(Measured)


class DeviceCounters(Base):
    """The cumulative counters of one activation of a device's slot."""

    __tablename__ = "device_counters"
    __table_args__ = (PrimaryKeyConstraint("device", "slot", "activation"),)

    activation: Mapped[int] = mapped_column(BigInteger, autoincrement=False)
    boot: Mapped[int] = mapped_column(BigInteger)
    seq: Mapped[int] = mapped_column(BigInteger)
    n: Mapped[int] = mapped_column(BigInteger)
    errors: Mapped[int] = mapped_column(BigInteger)
    slow: Mapped[int] = mapped_column(BigInteger)
    received_at: Mapped[datetime]
    device: Mapped[str] = mapped_column(String(36))
    slot: Mapped[str] = mapped_column(String(64))
    sha256: Mapped[str] = mapped_column(Digest, index=True)
    latency: Mapped[list[int]] = mapped_column(Counts)
    classes: Mapped[list[int]] = mapped_column(Counts)
    confidence: Mapped[list[int] | None] = mapped_column(Counts)
    """Null from agents that do not count it."""


class TelemetryHour(Base):
    """What the devices of one group and profile counted on one version in one hour (UTC, of receipt); see `telemetry`.

    `latency` counts per bucket of the protocol, `classes` per class, trailing zeros cut; `devices` counts devices heard.
    On PostgreSQL it is partitioned by month of `hour`.
    """

    __tablename__ = "telemetry_hours"
    __table_args__ = ({"postgresql_partition_by": "RANGE (hour)"},)

    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)
    model: Mapped[str] = mapped_column(String(256), primary_key=True)
    version: Mapped[str] = mapped_column(String(64), primary_key=True)
    profile: Mapped[str] = mapped_column(String(64), primary_key=True)
    group: Mapped[str] = mapped_column("group_name", String(64), primary_key=True)
    hour: Mapped[datetime] = mapped_column(primary_key=True)
    n: Mapped[int] = mapped_column(BigInteger)
    errors: Mapped[int] = mapped_column(BigInteger)
    slow: Mapped[int] = mapped_column(BigInteger)
    devices: Mapped[int]
    latency: Mapped[list[int]] = mapped_column(JSON)
    classes: Mapped[list[int]] = mapped_column(JSON)


class HealthSample(Base):
    """Both arms' totals at one moment of a profile's trial: what windows and the relative alarm are cut from."""

    __tablename__ = "health_samples"

    rollout: Mapped[str] = mapped_column(ForeignKey("rollouts.id"), primary_key=True)
    profile: Mapped[str] = mapped_column(String(64), primary_key=True)
    arm: Mapped[str] = mapped_column(String(16), primary_key=True)
    at: Mapped[datetime] = mapped_column(primary_key=True)
    n: Mapped[int] = mapped_column(BigInteger)
    errors: Mapped[int] = mapped_column(BigInteger)
    slow: Mapped[int] = mapped_column(BigInteger)


class AnswerBaseline(Base):
    """What one activation of a device on stable had answered when a profile's trial began; see `answers`."""

    __tablename__ = "answer_baselines"

    rollout: Mapped[str] = mapped_column(ForeignKey("rollouts.id"), primary_key=True)
    profile: Mapped[str] = mapped_column(String(64), primary_key=True)
    device: Mapped[str] = mapped_column(String(36), primary_key=True)
    activation: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    classes: Mapped[list[int]] = mapped_column(JSON)
    confidence: Mapped[list[int] | None] = mapped_column(JSON(none_as_null=True))
    latency: Mapped[list[int]] = mapped_column(JSON)


class LeadershipTerm(Base):
    """Who of several controllers leads, and for the how many-th time somebody does; see `leadership`."""

    __tablename__ = "leadership_terms"

    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)
    term: Mapped[int] = mapped_column(BigInteger)
    holder: Mapped[str] = mapped_column(String(128))
    since: Mapped[datetime]


class WebhookEndpoint(Base):
    """Who is told of events: a URL, and patterns of event types. Its secret is derived (`webhooks.signature`), not stored."""

    __tablename__ = "webhook_endpoints"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"), index=True)
    url: Mapped[str] = mapped_column(String(1024))
    events: Mapped[list[str]]
    generation: Mapped[int]
    """Of its secret: grows when that is rotated."""
    created_by: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[datetime]
    removed_at: Mapped[datetime | None]


class WebhookDelivery(Base):
    """One event on its way to one endpoint. `state`: PENDING -> DELIVERED | FAILED; `next_at` is when to try (again)."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (Index("ix_webhook_deliveries_due", "tenant", "state", "next_at"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64))
    endpoint: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id"), index=True)
    event: Mapped[str] = mapped_column(String(64))
    body: Mapped[str]
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int]
    error: Mapped[str | None]
    created_at: Mapped[datetime]
    next_at: Mapped[datetime]
    delivered_at: Mapped[datetime | None]


class Publication(Base):
    """How many batches of documents brokers were given, of the database that `generation` names; see `dispatch`."""

    __tablename__ = "publications"

    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)
    generation: Mapped[str] = mapped_column(String(32))
    batch: Mapped[int] = mapped_column(BigInteger)


class ProfileReading(Base):
    """How a large profile's devices stood when the leader last counted them; see `readings`."""

    __tablename__ = "profile_readings"

    rollout: Mapped[str] = mapped_column(ForeignKey("rollouts.id"), primary_key=True)
    profile: Mapped[str] = mapped_column(String(64), primary_key=True)
    at: Mapped[datetime]
    counts: Mapped[Json] = mapped_column(JSON)
    waits: Mapped[Json] = mapped_column(JSON)
    errors: Mapped[Json] = mapped_column(JSON)
    median_seconds: Mapped[float | None]
    waiting_for: Mapped[str | None]
    evidence: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
