"""One service process put together: database, stores, signer, registry, broker, controller, durable jobs.

`Service.start` brings them up in the order in which they need each other, `stop` takes them down in reverse.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy.orm import Session, sessionmaker

from modelfleet.converters.table import kinds_here
from modelfleet.hardware_profiles.profile import ANY_MACHINE, HardwareProfile, load_profiles
from modelfleet.registry import build, catalog
from modelfleet.registry.audit_log import AuditLog
from modelfleet.registry.auth import authenticates_device
from modelfleet.registry.context import Registry
from modelfleet.registry.fleet_ca import FleetCa, create_ca
from modelfleet.registry.leftovers import remove_leftovers
from modelfleet.registry.replay import ReplayCache
from modelfleet.registry.service_certificates import ONLY_EXECUTOR, controller_name
from modelfleet.registry.store import BlobStore, FolderStore, s3_store
from modelfleet.registry.tables import Tenant
from modelfleet.rollout.controller import Controller
from modelfleet.rollout.ddi.devices import forget_absent
from modelfleet.rollout.ingest import keep
from modelfleet.rollout.leadership import leadership_of
from modelfleet.rollout.mqtt.client_certificate import ClientCertificate
from modelfleet.rollout.mqtt.paho_broker import MqttVersion, PahoBroker
from modelfleet.rollout.webhooks.send import Sender
from modelfleet.rollout.webhooks.sending import Sending
from modelfleet.rollout.webhooks.signature import WebhookKey
from modelfleet.service.broker_tls import EmbeddedTls, controller_certificate, public_host
from modelfleet.service.database import migrate, open_database, require_reachable, session_factory, without_password
from modelfleet.service.embedded_broker import CONTROLLER, EmbeddedBroker
from modelfleet.service.errors import NotInitialisedError, SettingsError
from modelfleet.service.jobs import Jobs
from modelfleet.service.keep_audit import keep_audit, open_audit_log, sign_audit
from modelfleet.service.no_broker import NeverLeads, NoBroker
from modelfleet.service.presence import Presence, executor_name
from modelfleet.service.reaper import Reaper
from modelfleet.service.settings import Role, Settings
from modelfleet.service.shared_signer import SharedSigner
from modelfleet.service.upkeep import ca_expiry, refresh_at_start, refresh_metadata
from modelfleet.service.workflows import Work
from modelfleet.signer.current_key import CurrentSigner
from modelfleet.signer.files import folder_lock
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
    version: MqttVersion = MqttVersion.V311


class Service:
    """Everything that one `modelfleet serve` runs, from `start` until `stop`.

    Attributes:
        registry: what the HTTP routes and the builds work with.
        controller: the rollout controller; one that only writes, where this process has not that role.
        jobs: the durable builds.
        kinds: of the builds that this process takes.
        webhook_key: what secrets of webhooks are derived from.
    """

    registry: Registry
    controller: Controller
    jobs: Jobs
    kinds: frozenset[str]

    def __init__(self, settings: Settings, public_url: str) -> None:
        self._settings, self._public_url = settings, public_url
        self.webhook_key = WebhookKey(settings.webhook_key)
        self._running = ExitStack()
        self._embedded: EmbeddedBroker | None = None
        self._reaper: Reaper | None = None
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
        require_reachable(engine)
        if settings.jobs_database_url.startswith("postgresql"):
            jobs_engine = open_database(settings.jobs_database_url)
            parts.callback(jobs_engine.dispose)
            require_reachable(jobs_engine, "MODELFLEET_JOBS_DATABASE_URL")
        with folder_lock(settings.data / "service" / "starting"):  # other processes on this folder make the same files
            migrate(engine)
            sessions = session_factory(engine)
            require_tenant(sessions, settings)
            ca, replays = create_ca(settings.ca_folder, settings.tenant, datetime.now(UTC)), ReplayCache()
            audit_log = open_audit_log(settings, sessions)
        profiles = load_profiles()
        kinds = self.kinds = kinds_of(settings, profiles)
        executor = executor_name(settings)
        presence = Presence(settings, sessions, executor, kinds, self._look_after)
        parts.callback(presence.stop)
        presence.start()
        signer = self._start_signer(parts)
        address = self._start_broker(parts, sessions, ca, replays)
        self.jobs = Jobs(settings, executor, kinds=kinds, all_kinds=kinds_in(profiles))
        self.registry = assemble_registry(
            settings, sessions, signer, self.jobs, self._public_url, address.url, ca, replays, audit_log, profiles
        )
        if self._embedded is not None:
            self.registry.on_device_revoked.append(self._embedded.disconnect)
        self.controller = assemble_controller(settings, self.registry, address)
        self.registry.trust.more.append(lambda: [ca_expiry(ca)])
        remove_leftovers(self.registry.work_dir, datetime.now(UTC))
        if Role.CONTROLLER in settings.role_set:
            self._start_controller(parts, sessions)
        else:
            self.registry.on_device_changed.append(self.controller.ensure_assignment)
        parts.callback(self.jobs.stop)
        self.jobs.start(self._work())
        if Role.CONTROLLER in settings.role_set:
            self._start_reaper(sessions, executor)
        parts.callback(presence.rest)
        presence.watch()
        log.info("service started", extra={"url": self._public_url, "mqtt": address.url, "executor": executor})

    def _start_signer(self, parts: ExitStack) -> SharedSigner:
        settings = self._settings
        signer = SharedSigner(settings.data, settings.tenant, settings.swu)
        if settings.role_set & {Role.API, Role.CONTROLLER}:
            parts.callback(signer.stop)
            signer.start()
        return signer

    def _start_controller(self, parts: ExitStack, sessions: sessionmaker[Session]) -> None:
        refresh_at_start(self.registry)
        parts.callback(lambda: sign_audit(self.registry, datetime.now(UTC)))
        parts.callback(self.controller.stop)
        self.controller.start(wakes=True)
        sending = assemble_sending(self._settings, sessions, self.webhook_key)
        parts.callback(sending.stop)
        sending.start()

    def _start_reaper(self, sessions: sessionmaker[Session], executor: str) -> None:
        lost_after = timedelta(seconds=self._settings.lost_after_seconds)
        waiting = lambda: unfinished_versions(self.registry)  # noqa: E731 - asked again and again
        reaper = Reaper(self._settings.tenant, executor, sessions, self.jobs, waiting, lost_after)
        reaper.begin_anew(datetime.now(UTC))  # published, but the process ended before it was enqueued
        self._reaper = reaper

    def _look_after(self) -> None:
        """Look after other processes, and after what builds have left; on the pulse's thread."""
        if self._reaper is not None:
            self._reaper.look_after()
        remove_leftovers(self.registry.work_dir, datetime.now(UTC))

    def _start_broker(
        self, parts: ExitStack, sessions: sessionmaker[Session], ca: FleetCa, replays: ReplayCache
    ) -> BrokerAddress:
        settings = self._settings
        if Role.CONTROLLER not in settings.role_set:
            return BrokerAddress(url=settings.mqtt_url)
        self._renewals.append(lambda now: self._keep_history(sessions, now))
        self._renewals.append(lambda now: controller_certificate(settings, ca, now))
        certificate = controller_certificate(settings, ca, datetime.now(UTC))
        version = MqttVersion(settings.mqtt_version)
        if settings.mqtt_url.startswith("mqtts:"):
            name = controller_name(ca.tenant, settings.executor)
            return BrokerAddress(url=settings.mqtt_url, client_id=name, certificate=certificate, version=version)
        if settings.mqtt_url:
            return BrokerAddress(
                url=settings.mqtt_url,
                client_id=CONTROLLER if settings.executor == ONLY_EXECUTOR else f"{CONTROLLER}@{settings.executor}",
                username=settings.mqtt_username,
                password=settings.mqtt_password,
                version=version,
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

    def _keep_history(self, sessions: sessionmaker[Session], now: datetime) -> None:
        settings = self._settings
        gone = keep.keep(
            sessions,
            settings.tenant,
            now,
            telemetry_days=settings.telemetry_days,
            trial_days=settings.trial_days,
        )
        log.info("history kept", extra={"removed": dict(gone)})

    def _refresh(self) -> None:
        try:
            for renew in self._renewals:
                renew(datetime.now(UTC))
        finally:
            refresh_metadata(self.registry)

    def _work(self) -> Work:
        registry, controller = self.registry, self.controller
        return Work(
            variants_of=lambda version_id: build.variant_kinds(registry, version_id),
            convert_variant=lambda version_id, profile: build.convert_variant(registry, version_id, profile),
            release_variant=lambda version_id, profile: build.release_variant(registry, version_id, profile),
            finish_version=lambda version_id: build.finish_version(registry, version_id),
            tick=lambda: tick(registry, controller, datetime.now(UTC)),
            refresh=self._refresh,
        )


def assemble_registry(
    settings: Settings,
    sessions: sessionmaker[Session],
    signer: SharedSigner,
    jobs: Jobs,
    public_url: str,
    mqtt_url: str,
    ca: FleetCa,
    replays: ReplayCache,
    audit_log: AuditLog,
    profiles: Mapping[str, HardwareProfile],
) -> Registry:
    """Return the registry's collaborators as the settings ask for them."""
    data, trust = settings.data, settings.data / "trust" / settings.tenant
    work_dir = data / "work"
    work_dir.mkdir(parents=True, exist_ok=True)
    return Registry(
        tenant=settings.tenant,
        sessions=sessions,
        store=open_store(settings),
        signer=signer.client,
        repository=OnlineRepository(
            metadata_dir=trust / "metadata",
            targets_dir=trust / "targets",
            snapshot_signer=CurrentSigner(data, "snapshot"),
            timestamp_signer=CurrentSigner(data, "timestamp"),
        ),
        builds=jobs,
        profiles=profiles,
        gate_key_uri=locate(data, settings.tenant).gate_key,
        work_dir=work_dir,
        trust_dir=trust,
        public_url=public_url,
        mqtt_url=mqtt_url,
        kek_uri=settings.kek,
        accel_prefix=settings.accel_prefix,
        ddi_proxy_header=settings.ddi_proxy_header,
        ddi_poll_seconds=settings.ddi_poll_seconds,
        ca=ca,
        replays=replays,
        audit_log=audit_log,
        lost_after=timedelta(seconds=settings.lost_after_seconds),
    )


def assemble_controller(settings: Settings, registry: Registry, address: BrokerAddress) -> Controller:
    """Return the rollout controller, with its own key and its own connection to the broker."""
    director = CurrentSigner(settings.data, "director")
    if Role.CONTROLLER not in settings.role_set:
        return Controller(
            registry=registry,
            broker=NoBroker(),
            director=director,
            clock=lambda: datetime.now(UTC),
            leadership=NeverLeads(),
        )
    broker = PahoBroker(
        address.url,
        client_id=address.client_id,
        username=address.username,
        password=address.password,
        certificate=address.certificate,
        version=address.version,
        one_of_several=settings.executor != ONLY_EXECUTOR,
    )
    return Controller(
        registry=registry,
        broker=broker,
        director=director,
        clock=lambda: datetime.now(UTC),
        leadership=leadership_of(settings.sqlalchemy_url, settings.tenant, settings.executor),
    )


def assemble_sending(settings: Settings, sessions: sessionmaker[Session], key: WebhookKey) -> Sending:
    """Return what sends webhooks."""
    sender = Sender(sessions, settings.tenant, key, private=settings.webhook_private)
    return Sending(sender, lambda: datetime.now(UTC))


def tick(registry: Registry, controller: Controller, now: datetime) -> None:
    """Have the controller decide, and the audit log signed."""
    try:
        controller.tick(now)
    finally:
        if controller.leads:
            keep_audit(registry, now)
            forget_absent(registry, now)


def kinds_in(profiles: Mapping[str, HardwareProfile]) -> frozenset[str]:
    """Return every kind of worker that some profile is built on."""
    return frozenset({ANY_MACHINE, *(profile.builds_on for profile in profiles.values())})


def kinds_of(settings: Settings, profiles: Mapping[str, HardwareProfile]) -> frozenset[str]:
    """Return the kinds of builds that this process takes.

    Raises:
        SettingsError: one is named that no profile is built on.
    """
    if Role.WORKER not in settings.role_set:
        return frozenset()
    known = kinds_in(profiles)
    asked = settings.can_build
    if asked is not None and not asked <= known:
        raise SettingsError(f"MODELFLEET_CAN: expected some of {sorted(known)}, got {sorted(asked - known)}")
    return asked if asked is not None else kinds_here() & known


def open_store(settings: Settings) -> BlobStore:
    """Return the artifact store: a folder, or an S3 bucket where one is set."""
    if not settings.s3_bucket:
        return FolderStore(settings.data / "blobs")
    return s3_store(settings.s3_bucket, endpoint_url=settings.s3_endpoint_url or None)


def require_initialised(settings: Settings) -> None:
    """Refuse to start on a folder that `modelfleet init` has not made."""
    if settings.data.exists() and not settings.data.is_dir():
        raise SettingsError(f"MODELFLEET_DATA: expected a folder, {settings.data} is none")
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
                f"no tenant {settings.tenant!r} in {without_password(settings.sqlalchemy_url)}: check MODELFLEET_TENANT,"
                " and that `modelfleet init` ran with the same MODELFLEET_DATABASE_URL"
            )


def unfinished_versions(registry: Registry) -> list[int]:
    """Return the ids of versions that are still to be built."""
    with registry.sessions() as session:
        return list(catalog.unfinished_versions(session, registry.tenant))
