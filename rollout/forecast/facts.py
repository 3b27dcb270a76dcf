"""What a forecast rests on, asked of the database: counts by profile in a few aggregates, however large the fleet is.

What a device need not fetch is known by digest: the files of the candidate that the version it runs has, too, as the agent
links those. `DeviceSlot.active` says what it runs.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, func, or_, select, true
from sqlalchemy.orm import Session

from modelfleet.policies.plan import Plan
from modelfleet.registry.tables import Device, Variant
from modelfleet.rollout.forecast.estimate import ASSUMED_SHARE, ProfileFacts, Reach, Traffic
from modelfleet.rollout.forecast.traffic import inferences_per_minute
from modelfleet.rollout.tables import DeviceCounters, DeviceSlot, DeviceTrial, RolloutProfile, SlotStable, TelemetryHour

DAY, WEEK = timedelta(days=1), timedelta(days=7)
LEAST_MINUTES = 10.0
"""Minutes of devices: what is known of a fleet in less is not said."""
SAMPLED = 1000
MAX_VERSIONS = 500
"""So many of the versions that devices run are looked at, the most frequent ones; others are taken to share nothing."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a rollout goes: a slot of some groups."""

    tenant: str
    slot: str
    groups: Sequence[str]


def gather(
    session: Session,
    target: Target,
    plan: Plan,
    releases: Mapping[str, Mapping[str, Any]],
    now: datetime,
    rows: Mapping[str, RolloutProfile] | None = None,
) -> list[ProfileFacts]:
    """Return the facts of each profile.

    Args:
        releases: profile -> release as documents name it.
        rows: profile -> where a trial stands that has begun.
    """
    reach, groups = _reach(session, target, releases, now)
    running = _running(session, target, releases)
    files = _files(session, target.tenant, releases, running)
    found: list[ProfileFacts] = []
    for profile, release in sorted(releases.items()):
        wanted = files.get(release["sha256"], {})
        each = {
            digest: _missing(wanted, files.get(digest or "", {}), digest == release["sha256"])
            for digest in running[profile]
        }
        row = (rows or {}).get(profile)
        found.append(
            ProfileFacts(
                profile=profile,
                reach=reach.get(profile, Reach()),
                groups=groups.get(profile, {}),
                variant_bytes=sum(wanted.values()),
                bytes_to_transfer=sum(each[digest] * number for digest, number in running[profile].items()),
                largest_transfer_bytes=max(each.values(), default=0),
                traffic=traffic_of(session, target, plan, profile, reach.get(profile, Reach()).devices, now),
                holding=running[profile].get(release["sha256"], 0),
                stage=0 if row is None or row.trial_started_at is None else row.stage,
                stage_started_at=None if row is None else row.stage_started_at,
                trial_started_at=None if row is None else row.trial_started_at,
            )
        )
    return found


def traffic_of(
    session: Session, target: Target, plan: Plan, profile: str, devices: int, now: datetime
) -> Traffic | None:
    """Return what the profile's devices on stable do now.

    By the hours of the last day that lie wholly after it became stable; in a fleet that is younger, by what some devices have
    counted since they committed it, None where that is less than `LEAST_MINUTES`; where nothing was counted, by the slot's last
    rollout.
    """
    hours = _hours(session, target, profile, now)
    since = _stable_since(session, target, profile)
    hour = now.replace(minute=0, second=0, microsecond=0)
    whole = [row for row in hours if row.hour < hour and (since is None or row.hour >= since)]
    if any(row.n for row in whole):
        minutes = sum(60.0 * row.devices for row in whole)
        return _traffic(sum(row.n for row in whole), sum(row.errors for row in whole), minutes, "the last day")
    if any(row.n for row in hours):
        return traffic_since_activation(session, target, profile)
    rate = inferences_per_minute(session, target.tenant, target.slot, profile)
    if rate is None or devices == 0:
        return None
    assumed = plan.error_threshold * ASSUMED_SHARE
    return Traffic(per_device_minute=rate / devices, error_share=assumed, source="the slot's last rollout")


def _traffic(n: int, errors: int, minutes: float, of: str) -> Traffic | None:
    if not n or minutes < LEAST_MINUTES:
        return None
    return Traffic(per_device_minute=n / minutes, error_share=errors / n, source=f"counters of {of}")


def traffic_since_activation(session: Session, target: Target, profile: str) -> Traffic | None:
    """Return what devices have counted on stable since each of them committed it, or enrolled, of `SAMPLED` at most."""
    start = func.coalesce(DeviceTrial.outcome_at, Device.enrolled_at).label("start")
    counted = DeviceCounters
    query = (
        select(counted.n, counted.errors, counted.received_at, start)
        .join(Device, Device.id == counted.device)
        .outerjoin(SlotStable, _stables(target, profile) & (SlotStable.group == Device.group))
        .outerjoin(DeviceTrial, (DeviceTrial.rollout == SlotStable.rollout) & (DeviceTrial.device == Device.id))
        .join(DeviceSlot, (DeviceSlot.device == Device.id) & (DeviceSlot.slot == counted.slot))
        .where(Device.tenant == target.tenant, Device.group.in_(target.groups), Device.profile == profile)
        .where(counted.slot == target.slot, counted.sha256 == DeviceSlot.active)
    )
    rows = [(*row[:2], (row[2] - row[3]).total_seconds() / 60) for row in session.execute(query.limit(SAMPLED))]
    seen = [row for row in rows if row[2] >= 1.0]
    return _traffic(
        sum(row[0] for row in seen), sum(row[1] for row in seen), sum(row[2] for row in seen), "each activation"
    )


def _stables(target: Target, profile: str) -> Any:
    mine = (SlotStable.tenant == target.tenant) & SlotStable.group.in_(target.groups)
    return mine & (SlotStable.profile == profile) & (SlotStable.slot == target.slot)


def _stable_since(session: Session, target: Target, profile: str) -> datetime | None:
    """Return when the last of the target's groups came to its stable release; None: no rollout is known that brought it."""
    by = (RolloutProfile.rollout == SlotStable.rollout) & (RolloutProfile.profile == SlotStable.profile)
    return session.scalar(
        select(func.max(RolloutProfile.ended_at)).join(SlotStable, by).where(_stables(target, profile))
    )


def _of(target: Target, releases: Mapping[str, Any]) -> Any:
    mine = (Device.tenant == target.tenant) & Device.group.in_(target.groups) & Device.revoked_at.is_(None)
    return mine & Device.profile.in_(sorted(releases))


def _reach(
    session: Session, target: Target, releases: Mapping[str, Any], now: datetime
) -> tuple[dict[str, Reach], dict[str, dict[str, int]]]:
    """Return each profile's reach, and its devices by group."""
    online = func.count().filter(Device.online.is_(true()))
    within = [
        func.count().filter(or_(Device.online.is_(true()), Device.last_seen_at >= now - span)) for span in (DAY, WEEK)
    ]
    query = select(Device.profile, Device.group, func.count(), online, *within).where(_of(target, releases))
    rows: Sequence[Any] = session.execute(query.group_by(Device.profile, Device.group)).all()
    groups: dict[str, dict[str, int]] = defaultdict(dict)
    for profile, group, devices, *_ in rows:
        groups[profile][group] = devices
    sums = {
        profile: [sum(each) for each in zip(*(row[2:] for row in rows if row[0] == profile), strict=True)]
        for profile in groups
    }
    return {
        profile: Reach(devices=devices, online=there, within_1_day=day, within_7_days=week)
        for profile, (devices, there, day, week) in sums.items()
    }, groups


def _running(session: Session, target: Target, releases: Mapping[str, Any]) -> dict[str, dict[str | None, int]]:
    """Return profile -> manifest digest that runs (None: nothing is known) -> devices."""
    found: dict[str, dict[str | None, int]] = defaultdict(dict)
    query = (
        select(Device.profile, DeviceSlot.active, func.count())
        .outerjoin(DeviceSlot, and_(DeviceSlot.device == Device.id, DeviceSlot.slot == target.slot))
        .where(_of(target, releases))
        .group_by(Device.profile, DeviceSlot.active)
        .order_by(func.count().desc())
    )
    for profile, digest, number in session.execute(query):
        found[profile][digest] = number
    return found


def _files(
    session: Session, tenant: str, releases: Mapping[str, Any], running: Mapping[str, Mapping[str | None, int]]
) -> dict[str, dict[str, int]]:
    """Return manifest digest -> file digest -> length."""
    ran = [digest for versions in running.values() for digest in versions if digest is not None]
    asked = {*(release["sha256"] for release in releases.values()), *ran[:MAX_VERSIONS]}
    query = select(Variant.manifest_sha256, Variant.files)
    rows = session.execute(query.where(Variant.tenant == tenant, Variant.manifest_sha256.in_(sorted(asked))))
    return {digest: {each["sha256"]: each["length"] for each in files or []} for digest, files in rows if digest}


def _missing(wanted: Mapping[str, int], held: Mapping[str, int], same: bool) -> int:
    return 0 if same else sum(length for sha256, length in wanted.items() if sha256 not in held)


def _hours(session: Session, target: Target, profile: str, now: datetime) -> Sequence[Any]:
    """Return the last day's hours of the versions that are stable in the target."""
    query = select(SlotStable.release).where(_stables(target, profile))
    stables = {(release["model"], release["version"]) for release in session.scalars(query) if release is not None}
    if not stables:
        return []
    named = or_(*(and_(TelemetryHour.model == model, TelemetryHour.version == version) for model, version in stables))
    mine = (TelemetryHour.tenant == target.tenant) & TelemetryHour.group.in_(target.groups)
    hours = select(TelemetryHour.hour, TelemetryHour.n, TelemetryHour.errors, TelemetryHour.devices)
    wanted = hours.where(mine, TelemetryHour.profile == profile, named, TelemetryHour.hour >= now - DAY)
    return session.execute(wanted).all()
