"""What the registry's routes and jobs work with, put together once by the composition root (`service`)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sqlalchemy.orm import Session, sessionmaker

from modelfleet.hardware_profiles.profile import HardwareProfile
from modelfleet.registry.certificates import RevocationList
from modelfleet.registry.fleet_ca import FleetCa
from modelfleet.registry.replay import ReplayCache
from modelfleet.registry.workers import LOST_AFTER
from modelfleet.signer.status import TrustWatch

if TYPE_CHECKING:
    from modelfleet.registry.audit_log import AuditLog
    from modelfleet.registry.store import BlobStore
    from modelfleet.signer.client import SignerClient
    from modelfleet.signer.repository import OnlineRepository


class BuildQueue(Protocol):
    """Where a published version waits to be built; the durable queue of `service` stands behind it."""

    def enqueue(self, version_id: int) -> None:
        """Have every variant of the version built, once, also after a crash."""
        ...


@dataclass(frozen=True, kw_only=True)
class UploadLimits:
    """The most bytes that a publication's parts may have; what is longer is refused while it streams in."""

    model_bytes: int = 2 * 1024**3
    golden_bytes: int = 256 * 1024**2
    card_bytes: int = 64 * 1024
    statement_bytes: int = 128 * 1024


@dataclass(frozen=True, kw_only=True)
class BuildLimits:
    """What one conversion may use."""

    timeout_seconds: float = 600.0
    memory_bytes: int = 4 * 1024**3


@dataclass(frozen=True, kw_only=True)
class Registry:
    """The registry's collaborators.

    gate_key_uri is only handed on to the converter worker's process. trust_dir is the tenant's folder with `metadata/`
    and `targets/`, as it is served. public_url and mqtt_url are what a device is told at enrolment.
    `on_device_changed` are called with a device's id, after the commit, at every enrolment, also a repeated one: the
    rollout controller appends what issues its assignment. `on_device_revoked` are called after the commit of a revocation:
    the embedded broker appends what ends the device's connection. `kek_uri` names the key-encryption key, empty: there is
    none, and no confidential version is taken. `ca` signs device certificates; `replays` remembers the
    device tokens that were used. `audit_log` sequences and signs the audit trail. `accel_prefix` is where a proxy in front serves
    the blobs' folder on this service's word (nginx: X-Accel-Redirect), such as `/_blobs/`; empty: there is none.
    `ddi_proxy_header` is the header in which a proxy names the client certificate that it has verified; empty: none is believed;
    `ddi_poll_seconds` is how often an idle hawkBit client is asked to poll.
    """

    tenant: str
    sessions: sessionmaker[Session]
    store: "BlobStore"
    signer: "SignerClient"
    repository: "OnlineRepository"
    builds: BuildQueue
    profiles: Mapping[str, HardwareProfile]
    gate_key_uri: str
    work_dir: Path
    trust_dir: Path
    public_url: str
    mqtt_url: str
    ca: FleetCa
    audit_log: "AuditLog"
    upload_limits: UploadLimits = field(default_factory=UploadLimits)
    build_limits: BuildLimits = field(default_factory=BuildLimits)
    kek_uri: str = ""
    accel_prefix: str = ""
    ddi_proxy_header: str = ""
    ddi_poll_seconds: int = 300
    lost_after: timedelta = LOST_AFTER
    replays: ReplayCache = field(default_factory=ReplayCache)
    on_device_changed: list[Callable[[str], None]] = field(default_factory=list[Callable[[str], None]])
    on_device_revoked: list[Callable[[str], None]] = field(default_factory=list[Callable[[str], None]])

    @cached_property
    def revocations(self) -> RevocationList:
        """The list of revoked device certificates."""
        return RevocationList(self.ca, self.sessions)

    @cached_property
    def trust(self) -> TrustWatch:
        """What the tenant's published metadata says, and when it expires."""
        return TrustWatch(self.trust_dir)
