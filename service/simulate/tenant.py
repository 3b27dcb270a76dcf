"""A tenant made for a simulation: keys, a database, releases with real manifests and approvals, a controller's registry."""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import Engine, event, func, select
from sqlalchemy.orm import Session

from modelfleet.agent_client.version import agent_version
from modelfleet.hardware_profiles.profile import HardwareProfile
from modelfleet.registry import audit
from modelfleet.registry.context import Registry
from modelfleet.registry.no_builds import registry_without_builds
from modelfleet.registry.register_many import NewDevice, register_many, require_only_simulated
from modelfleet.registry.tables import Tenant, User, Variant, Version
from modelfleet.rollout.desired.documents import Desk, as_json
from modelfleet.rollout.desired.issue_many import issue_many
from modelfleet.rollout.tables import SlotStable
from modelfleet.service.database import open_database, prepare_database, session_factory
from modelfleet.service.errors import ServiceError
from modelfleet.service.simulate.believed import Shelf
from modelfleet.service.simulate.world import SLOT
from modelfleet.signer.ceremony import CeremonyResult, create_repository, locate
from modelfleet.signer.desired import Release
from modelfleet.signer.keys import Signer, load_signer
from modelfleet.signer.manifest import Manifest, ManifestFile, ManifestLimits, Tensor, Tolerance, encode_manifest
from modelfleet.signer.names import manifest_path, sha256_of
from modelfleet.signer.sign import sign_approval
from modelfleet.signer.statements import Approval

MODEL = "simulated"
AUTHOR, APPROVER = "author", "approver"
ACTOR = "simulator"
BATCH = 1000
TEMPORARY = "simulated.sqlite"
LONG = timedelta(days=90)


@dataclass(frozen=True, kw_only=True)
class SimulatedTenant:
    """The server's side of a simulation; `close` gives the database back."""

    registry: Registry
    ceremony: CeremonyResult
    engine: Engine
    database_url: str
    shelf: Shelf
    director: Signer

    def close(self) -> None:
        """Let go of the database."""
        self.engine.dispose()


def make_tenant(folder: Path, database_url: str, name: str, now: datetime) -> SimulatedTenant:
    """Make keys in `folder`, and the tenant in the database, unless it is there already.

    Raises:
        ServiceError: the tenant has devices or versions that no simulation made.
    """
    create_repository(folder, name, bits=1, approvers=[APPROVER], now=datetime.now(UTC))
    url = database_url or f"sqlite:///{folder / TEMPORARY}"
    engine = prepare_database(url)
    try:
        with session_factory(engine).begin() as session:
            _claim_tenant(session, name, now)
    finally:
        engine.dispose()
    return open_tenant(folder, url, name)


def open_tenant(folder: Path, database_url: str, name: str) -> SimulatedTenant:
    """Return the tenant that `make_tenant` made in the folder."""
    ceremony, engine = locate(folder, name), open_database(database_url)
    if database_url == f"sqlite:///{folder / TEMPORARY}":  # it does not outlive the simulation
        event.listen(engine, "connect", _without_syncing)
    sessions = session_factory(engine)
    registry = registry_without_builds(folder, ceremony, sessions, public_url="https://simulated.invalid")
    shelf = Shelf(policy=registry.repository.policy(), store=registry.store, expires=datetime.now(UTC) + 10 * LONG)
    return SimulatedTenant(
        registry=registry,
        ceremony=ceremony,
        engine=engine,
        database_url=database_url,
        shelf=shelf,
        director=load_signer(ceremony.director_key),
    )


def publish(
    tenant: SimulatedTenant,
    version: str,
    counter: int,
    profiles: Sequence[HardwareProfile],
    *,
    size_bytes: int,
    now: datetime,
) -> dict[str, Release]:
    """Have a version ready on every profile; returns the releases by profile, without approvals."""
    releases: dict[str, Release] = {}
    with tenant.registry.sessions.begin() as session:
        row = _version_row(tenant.registry.tenant, version, counter, now)
        session.add(row)
        session.flush()
        for profile in profiles:
            manifest = _manifest(tenant.registry.tenant, version, counter, profile, size_bytes)
            data, path = encode_manifest(manifest), manifest_path(MODEL, version, profile.name)
            tenant.shelf.manifests[path] = data
            releases[profile.name] = Release(
                model=MODEL,
                version=version,
                counter=counter,
                path=path,
                sha256=sha256_of(data),
                length=len(data),
                approvals=(),
            )
            session.add(_variant_row(row, manifest, releases[profile.name], now))
    return releases


def make_stable(
    tenant: SimulatedTenant, releases: Mapping[str, Release], group: str, now: datetime
) -> dict[str, Release]:
    """Make approved releases the group's stable ones, as if their rollout had completed long ago; returns them."""
    approval = Approval(
        tenant=tenant.registry.tenant,
        model=MODEL,
        version=next(iter(releases.values())).version,
        releases={profile: release.sha256 for profile, release in releases.items()},
        groups=(group,),
        plan_sha256="0" * 64,
        author=AUTHOR,
        issued=now,
        not_after=now + LONG,
    )
    envelope = sign_approval(approval, load_signer(tenant.ceremony.approver_keys[APPROVER]))
    sha256 = tenant.registry.store.put(envelope)
    approved = {profile: _with_approval(release, sha256) for profile, release in releases.items()}
    with tenant.registry.sessions.begin() as session:
        for profile, release in approved.items():
            session.add(
                SlotStable(
                    tenant=tenant.registry.tenant,
                    group=group,
                    profile=profile,
                    slot=SLOT,
                    release=as_json(release),
                    rollout="",
                    updated_at=now,
                )
            )
        session.flush()
        desk = Desk(tenant.registry.tenant, tenant.director, tenant.registry.repository.policy().epoch)
        desk.write_groups(session, [(group, profile) for profile in approved], now)
    return approved


def register(tenant: SimulatedTenant, devices: Sequence[NewDevice], now: datetime) -> None:
    """Register the devices and issue their assignments, a thousand in a transaction."""
    registry = tenant.registry
    epoch = registry.repository.policy().epoch
    for start in range(0, len(devices), BATCH):
        some = devices[start : start + BATCH]
        with registry.sessions.begin() as session:
            register_many(session, registry.tenant, some, actor=ACTOR, agent_version=agent_version(), now=now)
            named = [(device.id, device.group, device.profile) for device in some]
            issue_many(session, registry.tenant, tenant.director, epoch, named, now)


def _without_syncing(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA synchronous=OFF")


def _claim_tenant(session: Session, name: str, now: datetime) -> None:
    if session.get(Tenant, name) is None:
        session.add(Tenant(name=name, created_at=now))
        session.flush()
        audit.append(
            session, tenant=name, actor=ACTOR, action="tenant.simulate", subject=f"tenant/{name}", detail={}, now=now
        )
        return
    require_only_simulated(session, name)
    for kind, what in ((Version, "versions"), (User, "users")):
        if session.scalar(select(func.count()).select_from(kind).where(kind.tenant == name)):
            raise ServiceError(
                f"tenant {name}: expected one without {what}, got one that has some: choose another --tenant"
            )


def _with_approval(release: Release, sha256: str) -> Release:
    return Release(
        model=release.model,
        version=release.version,
        counter=release.counter,
        path=release.path,
        sha256=release.sha256,
        length=release.length,
        approvals=(sha256,),
    )


def _manifest(tenant: str, version: str, counter: int, profile: HardwareProfile, size_bytes: int) -> Manifest:
    def file(name: str, length: int, role: str) -> ManifestFile:
        digest = sha256_of(f"{version}/{profile.name}/{name}".encode())
        return ManifestFile(name=name, sha256=digest, length=length, role="golden" if role == "golden" else "model")

    return Manifest(
        tenant=tenant,
        model=MODEL,
        version=version,
        channel="stable",
        profile=profile.name,
        runtime=profile.runtime.value,
        precision=profile.precisions[0].value,
        counter=counter,
        source_sha256=sha256_of(version.encode()),
        files=(file("model.bin", size_bytes, "model"), file("golden.npz", 100_000, "golden")),
        entry="model.bin",
        golden="golden.npz",
        inputs=(Tensor(name="input", dtype="float32", shape=(None, 64)),),
        outputs=(Tensor(name="output", dtype="float32", shape=(None, 10)),),
        limits=ManifestLimits(
            latency_ms=profile.limits.latency_ms, memory_bytes=profile.limits.memory_bytes, accuracy=None
        ),
        tolerance=Tolerance(rtol=0.1, atol=0.1, mismatch_share=0.01),
    )


def _version_row(tenant: str, version: str, counter: int, now: datetime) -> Version:
    digest = sha256_of(version.encode())
    return Version(
        tenant=tenant,
        model=MODEL,
        version=version,
        channel="stable",
        counter=counter,
        state="READY",
        card={},
        source_sha256=digest,
        source_length=1,
        card_sha256=digest,
        golden_sha256=digest,
        statement_sha256=digest,
        published_by=ACTOR,
        published_at=now,
    )


def _variant_row(row: Version, manifest: Manifest, release: Release, now: datetime) -> Variant:
    return Variant(
        version_id=row.id,
        tenant=row.tenant,
        model=MODEL,
        version=row.version,
        profile=manifest.profile,
        state="READY",
        precision=manifest.precision,
        counter=row.counter,
        path=release.path,
        manifest_sha256=release.sha256,
        manifest_length=release.length,
        created_at=now,
        ready_at=now,
    )
