"""One service process put together: database, stores, signer, registry, broker, controller, durable jobs.

`Service.start` brings them up in the order in which they need each other, `stop` takes them down in reverse.
"""

import contextlib
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy.orm import Session, sessionmaker

from modelfleet.hardware_profiles.profile import load_profiles
from modelfleet.registry import build, catalog
from modelfleet.registry.auth import authenticates_device
from modelfleet.registry.context import Registry
from modelfleet.registry.fleet_ca import FleetCa, create_ca
from modelfleet.registry.leftovers import remove_leftovers
from modelfleet.registry.replay import ReplayCache
from modelfleet.registry.service_certificates import controller_name
from modelfleet.registry.store import BlobStore, FolderStore, s3_store
from modelfleet.registry.tables import Tenant
from modelfleet.rollout.broker import ClientCertificate, PahoBroker
from modelfleet.rollout.controller import Controller
from modelfleet.service.broker_tls import EmbeddedTls, controller_certificate, public_host
from modelfleet.service.database import migrate, open_database, session_factory
from modelfleet.service.embedded_broker import CONTROLLER, EmbeddedBroker
from modelfleet.service.errors import NotInitialisedError, SettingsError
from modelfleet.service.jobs import Jobs, Work
from modelfleet.service.keep_audit import keep_audit, open_audit_log, sign_audit
from modelfleet.service.settings import Settings
from modelfleet.service.signer_process import SignerProcess
from modelfleet.signer.client import SignerClient, renew_bins
from modelfleet.signer.current_key import CurrentSigner
from modelfleet.signer.errors import FormatError, SignerError
from modelfleet.signer.expiry import Expiring
from modelfleet.signer.key_book import locate
from modelfleet.signer.repository import OnlineRepository

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BrokerAddress:
    """Where MQTT is, and how the controller shows there who it is."""

    url: str
    client_id: str = CONTROLLER
    username: str = ""
    password: str = ""
    certificate: ClientCertificate | None = None


class Service:
    """Everything that one `modelfleet serve` runs, from `start` until `stop`.

    Attributes:
        registry: what the HTTP routes and the builds work with.
        controller: the rollout controller.
    """

    registry: Registry
    controller: Controller

    def __init__(self, settings: Settings, public_url: str) -> None:
        self._settings, self._public_url = settings, public_url
        self._running = ExitStack()
        self._embedded: EmbeddedBroker | None = None
        self._renewals: list[Callable[[datetime], object]] = []

    def start(self) -> None:
        """Bring everything up, or nothing.

        Raises:
            NotInitialisedError: the data folder has no such tenant.
            ServiceError: a part did not start.
        """
        with ExitStack() as starting:
            self._start(starting)
            self._running = starting.pop_all()

    def stop(self) -> None:
        """Take everything down; what was in work is recovered at the next start."""
        self._running.close()

    def _start(self, parts: ExitStack) -> None:
        settings = self._settings
        require_initialised(settings)
        engine = open_database(settings.sqlalchemy_url)
        parts.callback(engine.dispose)
        migrate(engine)
        sessions = session_factory(engine)
        require_tenant(sessions, settings)
        signer = SignerProcess(settings.data, settings.tenant, settings.swu)
        parts.callback(signer.stop)
        signer.start()
        ca, replays = create_ca(settings.ca_folder, settings.tenant, datetime.now(UTC)), ReplayCache()
        address = self._start_broker(parts, sessions, ca, replays)
        jobs = Jobs(settings)
        self.registry = assemble_registry(settings, sessions, signer, jobs, self._public_url, address.url, ca, replays)
        if self._embedded is not None:
            self.registry.on_device_revoked.append(self._embedded.disconnect)
        self.controller = assemble_controller(settings, self.registry, address)
        self.registry.trust.more.append(lambda: [ca_expiry(ca)])
        remove_leftovers(self.registry.work_dir, datetime.now(UTC))
        refresh_at_start(self.registry)
        parts.callback(lambda: sign_audit(self.registry, datetime.now(UTC)))
        parts.callback(self.controller.stop)
        self.controller.start()
        parts.callback(jobs.stop)
        jobs.start(self._work())
        log.info("service started", extra={"url": self._public_url, "mqtt": address.url})

    def _start_broker(
        self, parts: ExitStack, sessions: sessionmaker[Session], ca: FleetCa, replays: ReplayCache
    ) -> BrokerAddress:
        settings = self._settings
        self._renewals.append(lambda now: controller_certificate(settings, ca, now))
        certificate = controller_certificate(settings, ca, datetime.now(UTC))
        if settings.mqtt_url.startswith("mqtts:"):
            return BrokerAddress(url=settings.mqtt_url, client_id=controller_name(ca.tenant), certificate=certificate)
        if settings.mqtt_url:
            return BrokerAddress(
                url=settings.mqtt_url, username=settings.mqtt_username, password=settings.mqtt_password
            )
        tls = EmbeddedTls(settings, ca, sessions, self._public_url) if settings.mqtt_tls else None
        if tls is not None:
            self._renewals.append(tls.refresh)
        broker = EmbeddedBroker(
            settings.tenant,
            lambda device, token: authenticates_device(
                sessions, settings.tenant, replays, device, token, datetime.now(UTC)
            ),
            host=settings.host,
            port=settings.mqtt_port,
            await_controller=True,
            tls=tls.broker if tls is not None else None,
            public_host=public_host(settings, self._public_url),
        )
        parts.callback(broker.stop)
        broker.start()
        self._embedded = broker
        return BrokerAddress(
            url=broker.url, username=CONTROLLER, password=broker.controller_password, certificate=certificate
        )

    def _refresh(self) -> None:
        try:
            for renew in self._renewals:
                renew(datetime.now(UTC))
        finally:
            refresh_metadata(self.registry)

    def _work(self) -> Work:
        registry, controller = self.registry, self.controller
        return Work(
            profiles_of=lambda version_id: build.variant_profiles(registry, version_id),
            build_variant=lambda version_id, profile: build.build_variant(registry, version_id, profile),
            finish_version=lambda version_id: build.finish_version(registry, version_id),
            unfinished_versions=lambda: unfinished_versions(registry),
            tick=lambda: tick(registry, controller, datetime.now(UTC)),
            refresh=self._refresh,
        )


def assemble_registry(
    settings: Settings,
    sessions: sessionmaker[Session],
    signer: SignerProcess,
    jobs: Jobs,
    public_url: str,
    mqtt_url: str,
    ca: FleetCa,
    replays: ReplayCache,
) -> Registry:
    """Return the registry's collaborators as the settings ask for them."""
    data, trust = settings.data, settings.data / "trust" / settings.tenant
    work_dir = data / "work"
    work_dir.mkdir(parents=True, exist_ok=True)
    return Registry(
        tenant=settings.tenant,
        sessions=sessions,
        store=open_store(settings),
        signer=SignerClient(signer.socket),
        repository=OnlineRepository(
            metadata_dir=trust / "metadata",
            targets_dir=trust / "targets",
            snapshot_signer=CurrentSigner(data, "snapshot"),
            timestamp_signer=CurrentSigner(data, "timestamp"),
        ),
        builds=jobs,
        profiles=load_profiles(),
        gate_key_uri=locate(data, settings.tenant).gate_key,
        work_dir=work_dir,
        trust_dir=trust,
        public_url=public_url,
        mqtt_url=mqtt_url,
        kek_uri=settings.kek,
        accel_prefix=settings.accel_prefix,
        ddi_proxy_header=settings.ddi_proxy_header,
        ca=ca,
        replays=replays,
        audit_log=open_audit_log(settings, sessions),
    )


def assemble_controller(settings: Settings, registry: Registry, address: BrokerAddress) -> Controller:
    """Return the rollout controller, with its own key and its own connection to the broker."""
    director = CurrentSigner(settings.data, "director")
    broker = PahoBroker(
        address.url,
        client_id=address.client_id,
        username=address.username,
        password=address.password,
        certificate=address.certificate,
    )
    return Controller(registry=registry, broker=broker, director=director, clock=lambda: datetime.now(UTC))


def tick(registry: Registry, controller: Controller, now: datetime) -> None:
    """Have the controller decide, and the audit log signed."""
    try:
        controller.tick(now)
    finally:
        keep_audit(registry, now)


def refresh_metadata(registry: Registry) -> None:
    """Have everything signed again that expires soon, and log what still does: the service's own first.

    Snapshot and timestamp are signed here, bins by the signer process, whose absence must not let the timestamp expire.

    Raises:
        SignerError: the signer process did not answer, or what it holds is not to be published.
    """
    now = datetime.now(UTC)
    try:
        registry.repository.refresh(now)
        renew_bins(registry.signer, registry.repository, now)
    finally:
        with contextlib.suppress(FormatError):  # a damaged repository has raised above
            registry.trust.alarm(now)


def refresh_at_start(registry: Registry) -> None:
    """Refresh, but serve what there is where that fails: devices need it, and who repairs it may need this service."""
    try:
        refresh_metadata(registry)
    except SignerError:
        log.exception("re-signing failed at start; after a rotation that was cut off run `modelfleet keys publish`")


def ca_expiry(ca: FleetCa) -> Expiring:
    """Return when the fleet's CA ends, and with it every certificate."""
    remedy = "make its successor in time: devices have to enrol again under it"
    return Expiring(kind="ca", name="the fleet CA", expires=ca.expires, remedy=remedy)


def open_store(settings: Settings) -> BlobStore:
    """Return the artifact store: a folder, or an S3 bucket where one is set."""
    if not settings.s3_bucket:
        return FolderStore(settings.data / "blobs")
    return s3_store(settings.s3_bucket, endpoint_url=settings.s3_endpoint_url or None)


def require_initialised(settings: Settings) -> None:
    """Refuse to start on a folder that `modelfleet init` has not made."""
    if not (settings.data / "root.json").is_file():
        raise NotInitialisedError(f"{settings.data} holds no fleet: run `modelfleet init --data {settings.data}` first")
    if settings.mqtt_url.startswith("mqtt:") and not settings.mqtt_username:
        raise SettingsError(
            "MODELFLEET_MQTT_URL is set without MODELFLEET_MQTT_USERNAME: set it, or use mqtts:// with certificates"
        )


def require_tenant(sessions: sessionmaker[Session], settings: Settings) -> None:
    """Refuse to serve a tenant that the database does not know."""
    with sessions() as session:
        if session.get(Tenant, settings.tenant) is None:
            raise NotInitialisedError(
                f"no tenant {settings.tenant!r} in {settings.sqlalchemy_url}: check MODELFLEET_TENANT"
            )


def unfinished_versions(registry: Registry) -> list[int]:
    """Return the ids of versions that are still to be built."""
    with registry.sessions() as session:
        return list(catalog.unfinished_versions(session, registry.tenant))
