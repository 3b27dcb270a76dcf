"""The rows of very many devices, as a fleet leaves them that idles, or is on trial: written by COPY, nobody connects."""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from modelfleet.registry import catalog
from modelfleet.registry.copy_rows import copy_rows
from modelfleet.registry.tables import Device, Group, Variant, Version
from modelfleet.rollout.desired.documents import as_json
from modelfleet.rollout.tables import SlotStable
from modelfleet.signer.names import manifest_path, sha256_of

TENANT, SLOT, MODEL, OLD, NEW = "planning", "detector", "digits", "1.0.0", "1.1.0"
PROFILES = ("linux-cpu-float", "linux-cpu-int8")
CHUNK = 20_000


def register(sessions: sessionmaker[Session], devices: int, places: Sequence[tuple[str, str]]) -> None:
    """Register the devices by COPY, and their last word and counters of the release before, as an idle fleet leaves them."""
    now = datetime.now(UTC)
    with sessions.begin() as session:
        for group in sorted({group for group, _ in places}):
            session.add(Group(tenant=TENANT, name=group, created_at=now))
    for first in range(0, devices, CHUNK):
        with sessions.begin() as session:
            copy_rows(
                session,
                Device,
                [_device(places[n % len(places)], now) for n in range(first, min(first + CHUNK, devices))],
            )
    with sessions.begin() as session:
        old = {f"old_{number}": digest_of(OLD, profile) for number, profile in enumerate(PROFILES)}
        which = f"CASE profile WHEN '{PROFILES[0]}' THEN decode(:old_0, 'hex') ELSE decode(:old_1, 'hex') END"
        session.execute(
            text(
                "INSERT INTO device_slots (device, slot, boot, seq, state, digest, active, proven, proven_boot,"
                " proven_seq, received_at)"
                f" SELECT id, :slot, 1, 1, 'COMMITTED', {which}, {which}, {which}, 1, 1, :now"
                " FROM devices"
            ),
            {"slot": SLOT, "now": now, **old},
        )
        _fill_counters(session, which, {"now": now + timedelta(minutes=10), **old})
    settle(sessions)


def settle(sessions: sessionmaker[Session]) -> None:
    """Do what autovacuum does after a while."""
    with sessions() as session:
        engine = session.get_bind().engine
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


def prepare_versions(sessions: sessionmaker[Session], groups: Sequence[str], profiles: Sequence[str]) -> None:
    """Publish two versions; every place runs the older one."""
    now = datetime.now(UTC)
    with sessions.begin() as session:
        for counter, version in enumerate((OLD, NEW), start=1):
            _add_version(session, version, counter, profiles, now)
        session.flush()
        for group in groups:
            for profile in profiles:
                release = catalog.release_of(session, TENANT, MODEL, OLD, profile)
                session.add(
                    SlotStable(
                        tenant=TENANT,
                        group=group,
                        profile=profile,
                        slot=SLOT,
                        release=as_json(release),
                        rollout="before",
                        updated_at=now,
                    )
                )


def trial_row(rollout: str, device: str, now: datetime) -> dict[str, Any]:
    """Return a device that has committed."""
    return {
        "rollout": rollout,
        "device": device,
        "boot": 1,
        "seq": 9,
        "state": "COMMITTED",
        "seconds": 4.0,
        "started_at": now,
        "received_at": now,
        "outcome": "COMMITTED",
        "outcome_boot": 1,
        "outcome_seq": 9,
        "outcome_at": now,
    }


def count_candidate(session: Session, rollout: str, profile: str, now: datetime) -> None:
    """Have every device on trial count a thousand inferences of the candidate."""
    session.execute(
        text(
            "INSERT INTO device_counters (device, slot, activation, sha256, boot, seq, n, errors, slow, latency, classes,"
            " confidence, received_at) SELECT device, :slot, 2, decode(:digest, 'hex'), 1, 9, 1000, 5, 0, '', '', '', :now"
            " FROM device_trials JOIN devices ON devices.id = device WHERE rollout = :rollout AND profile = :profile"
        ),
        {
            "slot": SLOT,
            "digest": digest_of(NEW, profile),
            "rollout": rollout,
            "profile": profile,
            "now": now + timedelta(minutes=10),
        },
    )


def digest_of(version: str, profile: str) -> str:
    """Return a manifest digest that stands for the variant."""
    return sha256_of(f"manifest of {version} for {profile}".encode())


def _device(place: tuple[str, str], now: datetime) -> dict[str, Any]:
    name = str(uuid.uuid4())
    return {
        "id": name,
        "tenant": TENANT,
        "group_name": place[0],
        "profile": place[1],
        "public_key": "",
        "key_sha256": name,
        "claim_sha256": "",
        "serial": name,
        "facts": {},
        "agent_version": "0.1.0",
        "enrolled_at": now,
        "online": True,
    }


def _fill_counters(session: Session, which: str, values: dict[str, Any]) -> None:
    session.execute(
        text(
            "INSERT INTO device_counters (device, slot, activation, sha256, boot, seq, n, errors, slow, latency, classes,"
            f" confidence, received_at) SELECT id, :slot, 1, {which}, 1, 1, 1000, 5, 0, '', '', '', :now FROM devices"
        ),
        {"slot": SLOT, **values},
    )


def _add_version(session: Session, version: str, counter: int, profiles: Sequence[str], now: datetime) -> None:
    row = Version(
        tenant=TENANT,
        model=MODEL,
        version=version,
        channel="stable",
        counter=counter,
        state=catalog.READY,
        card={},
        source_sha256="1" * 64,
        source_length=1,
        card_sha256="2" * 64,
        golden_sha256="3" * 64,
        statement_sha256="4" * 64,
        published_by="ci",
        published_at=now,
    )
    session.add(row)
    session.flush()
    for profile in profiles:
        session.add(
            Variant(
                version_id=row.id,
                tenant=TENANT,
                model=MODEL,
                version=version,
                profile=profile,
                state=catalog.READY,
                precision="fp32",
                counter=counter,
                path=manifest_path(MODEL, version, profile),
                manifest_sha256=digest_of(version, profile),
                manifest_length=100,
                created_at=now,
                ready_at=now,
            )
        )
