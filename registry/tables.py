"""The registry's tables: one set of SQLAlchemy models for SQLite and PostgreSQL.

The database is the truth; blobs lie beside it by digest, signed metadata in the tenant's TUF folder. Times are aware
UTC.
`rollout.tables` adds its own tables to the same `Base`.
"""

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    ForeignKey,
    Index,
    MetaData,
    String,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC moment; SQLite loses the zone, this puts it back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Store UTC; a naive moment is a programming error."""
        if value is not None and value.tzinfo is None:
            raise ValueError("expected an aware datetime")
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Return UTC, aware."""
        return None if value is None else value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Every table of the project; constraints have names, so that Alembic can change them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime,
        dict[str, Any]: JSON,
        list[str]: JSON,
        list[dict[str, Any]]: JSON,
    }


class Tenant(Base):
    """A customer: one TUF repository, one name space of everything below."""

    __tablename__ = "tenants"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_at: Mapped[datetime]


class User(Base):
    """A person or CI job: a role in one tenant, known by an API token of which only the SHA-256 is kept."""

    __tablename__ = "users"
    __table_args__ = (UniqueConstraint("tenant", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"))
    name: Mapped[str] = mapped_column(String(128))
    role: Mapped[str] = mapped_column(String(32))
    token_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]


class Worker(Base):
    """A process that shares this database: who it is, what it does, and a pulse. `executor` is its name over its restarts.

    `beats` grows while it lives, whatever its clock says; `kinds` are those of the builds that it takes.
    """

    __tablename__ = "workers"

    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"), primary_key=True)
    executor: Mapped[str] = mapped_column(String(64), primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int]
    version: Mapped[str] = mapped_column(String(64))
    roles: Mapped[list[str]]
    kinds: Mapped[list[str]]
    beats: Mapped[int] = mapped_column(BigInteger)
    started_at: Mapped[datetime]
    heard_at: Mapped[datetime]


class Version(Base):
    """One immutable publication of a model. `state`: BUILDING → READY (at least one variant) | FAILED."""

    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("tenant", "model", "version"),
        UniqueConstraint("tenant", "model", "counter", name="uq_versions_counter"),  # PostgreSQL: names are unique
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"))
    model: Mapped[str] = mapped_column(String(256), index=True)
    version: Mapped[str] = mapped_column(String(64))
    channel: Mapped[str] = mapped_column(String(16))
    counter: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    card: Mapped[dict[str, Any]]
    source_sha256: Mapped[str] = mapped_column(String(64))
    source_length: Mapped[int]
    card_sha256: Mapped[str] = mapped_column(String(64))
    golden_sha256: Mapped[str] = mapped_column(String(64))
    statement_sha256: Mapped[str] = mapped_column(String(64))
    """The publisher's DSSE envelope, a blob."""
    source_blob: Mapped[str | None] = mapped_column(String(64))
    """The blob with the encrypted source of a confidential version; null: the source lies under its own digest."""
    golden_blob: Mapped[str | None] = mapped_column(String(64))
    """Likewise, the golden set."""
    published_by: Mapped[str] = mapped_column(String(128))
    published_at: Mapped[datetime]


class Variant(Base):
    """The build of one version for one profile. `state`: BUILDING → READY | FAILED (then `error` says why)."""

    __tablename__ = "variants"
    __table_args__ = (UniqueConstraint("version_id", "profile"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), index=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"))
    model: Mapped[str] = mapped_column(String(256), index=True)
    version: Mapped[str] = mapped_column(String(64))
    profile: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    precision: Mapped[str | None] = mapped_column(String(32))
    counter: Mapped[int]
    path: Mapped[str | None] = mapped_column(String(512))
    manifest_sha256: Mapped[str | None] = mapped_column(String(64), index=True)
    manifest_length: Mapped[int | None]
    """From here on set when the variant is built, before it is signed: what was built is not built again."""
    attestation_sha256: Mapped[str | None] = mapped_column(String(64))
    """The gate's DSSE envelope, a blob."""
    bundle_sha256: Mapped[str | None] = mapped_column(String(64))
    """The OpenSSF model-signing bundle over all files, a blob."""
    entry_bundle_sha256: Mapped[str | None] = mapped_column(String(64))
    """The OpenSSF model-signing bundle over the entry file alone, a blob."""
    attestations: Mapped[list[dict[str, Any]] | None]
    """What the worker attests beside: name, predicate_type, sha256, length; each envelope is a blob."""
    files: Mapped[list[dict[str, Any]] | None]
    """The manifest's files: name, sha256, length, role; each is a blob."""
    size_bytes: Mapped[int | None]
    evidence: Mapped[dict[str, Any] | None]
    """The gate attestation's results: parity, accuracy, benchmark, scan, library versions."""
    error: Mapped[str | None]
    stage: Mapped[str | None] = mapped_column(String(64))
    """While it is built: the step and the precision that were begun last."""
    created_at: Mapped[datetime]
    ready_at: Mapped[datetime | None]
    released_at: Mapped[datetime | None]
    """When a rollout of it completed for its profile; the latest one is the stable that gates compare with."""


class Group(Base):
    """Devices that are steered together."""

    __tablename__ = "groups"
    __table_args__ = (UniqueConstraint("tenant", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"))
    name: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]


class Device(Base):
    """An enrolled device. `online` and `last_seen_at` follow its status messages; never updated on every heartbeat."""

    __tablename__ = "devices"
    __table_args__ = (
        UniqueConstraint("claim_sha256", "serial"),
        Index(
            "ix_devices_place",
            "tenant",
            "group_name",
            "profile",
            "id",
            postgresql_where=text("revoked_at IS NULL"),
            sqlite_where=text("revoked_at IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"), index=True)
    group: Mapped[str] = mapped_column("group_name", String(64), index=True)
    profile: Mapped[str] = mapped_column(String(64), index=True)
    public_key: Mapped[str]
    """PEM, P-256."""
    key_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    """Of the key's SubjectPublicKeyInfo in DER: one key is one device."""
    claim_sha256: Mapped[str] = mapped_column(String(64))
    """The claim token it enrolled with, so that a repeated request is answered alike."""
    serial: Mapped[str | None] = mapped_column(String(128))
    """What the device said its serial number is; with one claim token each serial number enrols once."""
    encryption_key: Mapped[str | None]
    """PEM, P-256: the device's second key, to which data keys of confidential versions are wrapped."""
    facts: Mapped[dict[str, Any]]
    agent_version: Mapped[str] = mapped_column(String(64))
    enrolled_at: Mapped[datetime]
    online: Mapped[bool] = mapped_column(default=False)
    last_seen_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class DeviceCertificate(Base):
    """A certificate that the fleet CA gave a device; the newest of another key than the device's waits for its first use."""

    __tablename__ = "device_certificates"

    serial: Mapped[str] = mapped_column(String(40), primary_key=True)
    """Hexadecimal, as in the certificate: random, at most 159 bits."""
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"), index=True)
    device: Mapped[str] = mapped_column(ForeignKey("devices.id"), index=True)
    key_sha256: Mapped[str] = mapped_column(String(64))
    public_key: Mapped[str]
    """PEM, P-256."""
    certificate: Mapped[str]
    """PEM."""
    issued_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)
    revoked_at: Mapped[datetime | None]
    reason: Mapped[str | None] = mapped_column(String(32))
    """Why it was revoked, by RFC 5280's names (`key_compromise`, `superseded`)."""


class ClaimToken(Base):
    """A right to enrol, stored hashed: for one group, a number of times, until it expires or is revoked.

    Where it has `serials`, only devices with these serial numbers enrol, each once.
    """

    __tablename__ = "claim_tokens"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"))
    group: Mapped[str] = mapped_column("group_name", String(64))
    uses_left: Mapped[int]
    expires_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    serials: Mapped[list[str] | None]


class DataKey(Base):
    """The key that a confidential variant's files, or a version's source, are encrypted with; wrapped by the KEK."""

    __tablename__ = "data_keys"

    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"), primary_key=True)
    scope: Mapped[str] = mapped_column(String(512), primary_key=True)
    wrapped: Mapped[str]
    created_at: Mapped[datetime]


class AuditRecord(Base):
    """One state change or decision, append-only; `leaf_sha256` is RFC 6962's leaf hash of its canonical JSON."""

    __tablename__ = "audit_records"
    __table_args__ = (UniqueConstraint("tenant", "log_index"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64), index=True)
    at: Mapped[datetime]
    actor: Mapped[str] = mapped_column(String(128))
    action: Mapped[str] = mapped_column(String(64), index=True)
    subject: Mapped[str] = mapped_column(String(512), index=True)
    detail: Mapped[dict[str, Any]]
    leaf_sha256: Mapped[str] = mapped_column(String(64))
    log_index: Mapped[int | None] = mapped_column(BigInteger)
    """Its place in the tenant's Merkle log, from 0 on without a gap; null until the sequencer has given it one."""


class AuditHead(Base):
    """How many records of a tenant are in its Merkle log; whoever sequences holds this row's lock."""

    __tablename__ = "audit_heads"

    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)


class AuditTile(Base):
    """Up to 256 hashes of the log's tree, 32 bytes each: leaves at level 0, at level n the roots of 256 of level n - 1."""

    __tablename__ = "audit_tiles"

    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)
    level: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    hashes: Mapped[bytes]


class AuditCheckpoint(Base):
    """A signed head of the log: C2SP tlog-checkpoint."""

    __tablename__ = "audit_checkpoints"

    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    note: Mapped[str]
    signed_at: Mapped[datetime]
