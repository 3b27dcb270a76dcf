"""Settings of one service process, from environment variables `MODELFLEET_*`; the defaults are the embedded ones.

The data folder's layout is made by `modelfleet init` (`signer.ceremony` says who owns which part of it).
"""

import enum
import re
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from modelfleet.service.errors import SettingsError
from modelfleet.signer.names import sha256_of
from modelfleet.signer.swu import DEFAULT_ROOT
from modelfleet.signer.swu_release import SwuKey

ONLY_EXECUTOR = "modelfleet"
"""The name of a process that is alone on its database."""
EXECUTOR_PATTERN = r"^[a-z0-9][a-z0-9-]{0,31}$"


class Role(enum.StrEnum):
    """What a process does; by default one does everything."""

    API = "api"
    """Answers HTTP."""
    CONTROLLER = "controller"
    """Decides on rollouts, takes in what devices say, releases what was built."""
    WORKER = "worker"
    """Converts models."""


class Settings(BaseSettings):
    """What a service process is told from outside.

    Attributes:
        data: folder of everything the embedded default stores.
        tenant: the tenant this process serves.
        executor: this process' name among those that share a database: the same over its restarts, another in each process.
        roles: what this process does, of `api`, `controller` and `worker`, with commas.
        can: the kinds of builds that it takes as a worker, with commas; empty: what its libraries can.
        host, port: where HTTP listens; port 0 picks a free one.
        public_url: what devices are told; empty: the address that HTTP listens on.
        database_url: SQLAlchemy URL; empty: SQLite in `data`.
        jobs_database_url: DBOS' own database; empty: `database_url` if that is PostgreSQL, else a second SQLite file in `data`.
        mqtt_url: an external broker (`mqtts://host:port`); empty: amqtt in this process on `mqtt_port` (0: a free one).
        mqtt_tls: whether the embedded broker speaks TLS and asks devices for their certificates (`mqtts://`).
        mqtt_ca, mqtt_cert, mqtt_key: PEM files for `mqtts://`: whom to believe (default: the fleet's CA), and what the
            controller shows (default: a certificate that it gets itself from the fleet's CA).
        mqtt_version: what an external broker speaks: `5` (shared subscriptions, a window), or `3.1.1` where it knows no other.
        mqtt_username, mqtt_password: the controller's account at an external broker of `mqtt://`.
        s3_bucket: artifacts in S3 in place of the folder `data/blobs`.
        accel_prefix: where nginx in front serves that folder on the service's word (`/_blobs/`, X-Accel-Redirect); empty: the
            service sends the bytes itself.
        kek_uri: what wraps the data keys of confidential versions, `file:` or `awskms:`; empty: `service/kek.json` in `data`.
        audit_key: URI of the key that signs the audit log's checkpoints; empty: `service/audit.pem` in `data`.
        ddi_key, ddi_certificate: URI of the key that signs `.swu` containers, and its certificate; empty: `signer/swu.pem` and
            `signer/swu.crt.pem` in `data`, as `modelfleet ddi keys init` makes them.
        ddi_root: the folder on swupdate's devices below which slots lie.
        ddi_proxy_header: the header in which a proxy, and nobody else, says which client certificate's CN it has verified;
            empty: no such header is believed.
        ddi_poll_seconds: how often an idle hawkBit client polls; one that has something to do polls every 30 s, if that is less.
        audit_seconds: at most this often a checkpoint is signed, where there are new records.
        webhook_private: whether webhooks may be sent to private and loopback addresses.
        telemetry_days: how long the hours' roll-ups are kept.
        trial_days: how long devices' trials and samples of a rollout, and counters of its activations, are kept after its end.
        tick_seconds: how often the controller decides.
        build_workers: how many variants this process converts at once, and of each kind any one process.
        lost_after_seconds: a process that was not heard for this long counts as lost, and its work is taken over.
    """

    model_config = SettingsConfigDict(env_prefix="MODELFLEET_", extra="ignore")

    data: Path = Path("var/modelfleet")
    tenant: str = "default"
    executor: str = Field(default=ONLY_EXECUTOR, pattern=EXECUTOR_PATTERN)
    roles: str = "api,controller,worker"
    can: str = ""
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    public_url: str = ""
    database_url: str = ""
    jobs_database_url: str = ""
    mqtt_url: str = ""
    mqtt_port: int = Field(default=1883, ge=0, le=65535)
    mqtt_tls: bool = True
    mqtt_ca: Path | None = None
    mqtt_cert: Path | None = None
    mqtt_key: Path | None = None
    mqtt_version: Literal["5", "3.1.1"] = "5"
    mqtt_username: str = ""
    mqtt_password: str = ""
    s3_bucket: str = ""
    s3_endpoint_url: str = ""
    accel_prefix: str = Field(default="", pattern=r"^(/[A-Za-z0-9_.-]+)*/$|^$")
    kek_uri: str = ""
    audit_key: str = ""
    ddi_key: str = ""
    ddi_certificate: Path | None = None
    ddi_root: str = DEFAULT_ROOT
    ddi_proxy_header: str = Field(default="", pattern=r"^[A-Za-z0-9-]{0,64}$")
    ddi_poll_seconds: int = Field(default=300, ge=1, le=86399)
    audit_seconds: float = Field(default=10.0, gt=0, le=3600)
    webhook_private: bool = False
    telemetry_days: int = Field(default=400, ge=1, le=10_000)
    trial_days: int = Field(default=90, ge=1, le=10_000)
    tick_seconds: float = Field(default=1.0, gt=0, le=60)
    build_workers: int = Field(default=2, ge=1, le=64)
    lost_after_seconds: float = Field(default=30.0, ge=1, le=3600)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.s3_endpoint_url and not self.s3_bucket:
            raise SettingsError("MODELFLEET_S3_ENDPOINT_URL is set without MODELFLEET_S3_BUCKET")
        _require_broker_url(self.mqtt_url)
        if Role.API in self.role_set and Role.CONTROLLER not in self.role_set and not self.mqtt_url:
            raise SettingsError(
                "MODELFLEET_ROLES has api without controller: set MODELFLEET_MQTT_URL, which devices are told at enrolment"
            )
        return self

    @property
    def role_set(self) -> frozenset[Role]:
        """The roles (SettingsError: there is none, or an unknown one)."""
        named = _named(self.roles)
        unknown = sorted(set(named) - {role.value for role in Role})
        if unknown or not named:
            raise SettingsError(f"MODELFLEET_ROLES: expected some of {', '.join(Role)}, got {self.roles!r}")
        return frozenset(Role(name) for name in named)

    @property
    def can_build(self) -> frozenset[str] | None:
        """The kinds that are named; None: whatever this machine can."""
        return frozenset(_named(self.can)) or None

    @property
    def sqlalchemy_url(self) -> str:
        """The database of the registry and the controller."""
        return self.database_url or f"sqlite:///{self.data.absolute() / 'modelfleet.db'}"

    @property
    def kek(self) -> str:
        """The URI of the key-encryption key."""
        return self.kek_uri or f"file:{self.kek_file}"

    @property
    def kek_file(self) -> Path:
        """Where `modelfleet init` makes a key-encryption key."""
        return self.data.absolute() / "service" / "kek.json"

    @property
    def swu(self) -> SwuKey:
        """What signs containers for swupdate, whether it was made already or not."""
        folder = self.data.absolute() / "signer"
        uri = self.ddi_key or f"file:{folder / 'swu.pem'}"
        return SwuKey(uri=uri, certificate=self.ddi_certificate or folder / "swu.crt.pem", root=self.ddi_root)

    @property
    def webhook_key(self) -> Path:
        """The file that secrets of webhooks are derived from."""
        return self.data.absolute() / "service" / "webhooks.key"

    @property
    def ca_folder(self) -> Path:
        """Where the fleet CA lies."""
        return self.data / "ca"

    @property
    def dbos_url(self) -> str:
        """The database of the durable workflows."""
        shared = self.database_url if self.database_url.startswith("postgresql") else ""
        return self.jobs_database_url or shared or f"sqlite:///{self.data.absolute() / 'jobs.db'}"

    @property
    def dbos_schema(self) -> str:
        """The schema of the durable workflows in PostgreSQL: tenants that share a database do not share their queues."""
        plain = re.fullmatch(r"[a-z0-9_]{1,40}", self.tenant) is not None
        return f"jobs_{self.tenant if plain else sha256_of(self.tenant.encode())[:32]}"


def _require_broker_url(url: str) -> None:
    try:
        found = urlsplit(url)
        usable = found.scheme in ("mqtt", "mqtts") and bool(found.hostname) and found.port != 0
    except ValueError:  # the port is no number, or the brackets of an address do not close
        usable = False
    if url and not usable:
        raise SettingsError(f"MODELFLEET_MQTT_URL: expected mqtts://host:port or mqtt://host:port, got {url[:80]!r}")


def _named(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
