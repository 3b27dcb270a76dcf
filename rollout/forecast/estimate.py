"""What a rollout will cost before it starts: bytes, hours, and the earliest end of each stage; pure, from a plan and facts.

Every figure is the least that the plan allows if all goes well: no device fails, every device of a cohort takes part, and those
on stable go on inferring as they do now. Evidence suffices when the promotion test (`statistics.log_promotion`) would pass at the
error share that stable shows. Nothing here is used for a decision.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from modelfleet.policies.plan import Plan
from modelfleet.rollout.decisions.statistics import Counts, log_promotion
from modelfleet.signer.windows import after_open, next_opening

ASSUMED_SHARE = 0.5
"""Of the plan's error threshold: what a good candidate errs, where nothing is known of stable (the requirement's 0.5 %)."""
MOST_INFERENCES = 10**12


@dataclass(frozen=True, kw_only=True)
class Reach:
    """How many devices there are, how many are online now, and heard of within a day or a week (online ones included)."""

    devices: int = 0
    online: int = 0
    within_1_day: int = 0
    within_7_days: int = 0


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What a device on stable does now: inferences a minute, its error share, and where the figures are from."""

    per_device_minute: float
    error_share: float
    source: str


@dataclass(frozen=True, kw_only=True)
class ProfileFacts:
    """One profile of a rollout as it is now.

    variant_bytes: all files of the variant. bytes_to_transfer: over all devices, without what each holds already.
    largest_transfer_bytes: of one device. holding: devices that run the candidate already. stage, stage_started_at and
    trial_started_at: where a trial stands that has begun.
    """

    profile: str
    reach: Reach
    groups: Mapping[str, int]
    variant_bytes: int
    bytes_to_transfer: int
    largest_transfer_bytes: int
    traffic: Traffic | None = None
    holding: int = 0
    stage: int = 0
    stage_started_at: datetime | None = None
    trial_started_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Bandwidth:
    """Bits a second: what the server sends in all, and what one device receives; None: unknown."""

    server: float | None = None
    device: float | None = None


@dataclass(frozen=True, kw_only=True)
class StageForecast:
    """One stage: devices that have the candidate by its end, those new in it, what they fetch, and its earliest end.

    evidence_seconds: until the inferences needed have been counted, bake and windows aside; None: no traffic is known, and
    `ends_at` leaves it out. too_slow: the evidence takes longer than the plan holds a stage, so a person will be asked.
    """

    stage: int
    share: float
    devices: int
    new_devices: int
    bytes: int
    transfer_hours: float | None
    begins_at: datetime
    first_start_at: datetime | None
    inferences_needed: int | None
    evidence_seconds: float | None
    ends_at: datetime | None
    too_slow: bool


@dataclass(frozen=True, kw_only=True)
class ProfileForecast:
    """One profile: its devices, its bytes, its stages, and when it is COMPLETED at the earliest (None: never by its windows)."""

    profile: str
    reach: Reach
    groups: Mapping[str, int]
    variant_bytes: int
    bytes_to_transfer: int
    saved_bytes: int
    traffic: Traffic | None
    stages: Sequence[StageForecast]
    completes_at: datetime | None
    past_deadline: bool


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A whole rollout; `transfer_hours` is all bytes at the server's bandwidth."""

    starts_at: datetime
    profiles: Sequence[ProfileForecast]
    devices: int
    bytes_to_transfer: int
    transfer_hours: float | None
    completes_at: datetime | None
    skipped_profiles: Mapping[str, str] = field(default_factory=dict[str, str])
    conflicts: Sequence[str] = ()
    not_proved: Sequence[str] = ()


def forecast(plan: Plan, facts: Sequence[ProfileFacts], starts_at: datetime, bandwidth: Bandwidth) -> Forecast:
    """Return what the rollout costs and when it ends, at the earliest, if it starts then; one that runs goes on from then."""
    profiles = [forecast_profile(plan, each, starts_at, bandwidth) for each in facts]
    total = sum(each.bytes_to_transfer for each in profiles)
    ends = [each.completes_at for each in profiles]
    known = [end for end in ends if end is not None]
    return Forecast(
        starts_at=starts_at,
        profiles=profiles,
        devices=sum(each.reach.devices for each in profiles),
        bytes_to_transfer=total,
        transfer_hours=None if bandwidth.server is None else total * 8 / bandwidth.server / 3600,
        completes_at=max(known) if known and len(known) == len(ends) else None,
    )


def forecast_profile(plan: Plan, facts: ProfileFacts, starts_at: datetime, bandwidth: Bandwidth) -> ProfileForecast:
    """Return the forecast of one profile: its stages from where it stands, one after the other, and the soak."""
    stages: list[StageForecast] = []
    begins: datetime | None = facts.stage_started_at or starts_at
    for stage in range(facts.stage, len(plan.stages)):
        if begins is None:
            break
        stages.append(forecast_stage(plan, facts, stage, begins, starts_at, bandwidth))
        begins = stages[-1].ends_at
    deadline = (facts.trial_started_at or starts_at) + timedelta(seconds=plan.deadline_seconds)
    return ProfileForecast(
        profile=facts.profile,
        reach=facts.reach,
        groups=facts.groups,
        variant_bytes=facts.variant_bytes,
        bytes_to_transfer=facts.bytes_to_transfer,
        saved_bytes=facts.variant_bytes * facts.reach.devices - facts.bytes_to_transfer,
        traffic=facts.traffic,
        stages=stages,
        completes_at=None if begins is None else after_open(plan.windows, begins, plan.soak_seconds),
        past_deadline=begins is None or begins >= deadline,
    )


def forecast_stage(
    plan: Plan, facts: ProfileFacts, stage: int, begins: datetime, now: datetime, bandwidth: Bandwidth
) -> StageForecast:
    """Return the forecast of one stage that begins then, or began before `now`."""
    total = facts.reach.devices
    before = 0 if stage == 0 else cohort_size(plan, stage - 1, total)
    devices = cohort_size(plan, stage, total)
    sent = _bytes_of(facts, before, devices)
    seconds = transfer_seconds(sent, facts.largest_transfer_bytes if sent else 0, bandwidth)
    first = next_opening(plan.windows, begins)
    needed = None if facts.traffic is None else inferences_needed(plan, facts.traffic.error_share)
    evidence = _evidence_seconds(needed, facts.traffic, before, devices, _wait(begins, first, seconds))
    return StageForecast(
        stage=stage,
        share=plan.stages[stage],
        devices=devices,
        new_devices=devices - before,
        bytes=sent,
        transfer_hours=None if seconds is None else seconds / 3600,
        begins_at=begins,
        first_start_at=first,
        inferences_needed=needed,
        evidence_seconds=evidence,
        ends_at=_ends_at(plan, stage, begins, first, seconds or 0.0, evidence, now),
        too_slow=facts.traffic is not None
        and (evidence is None or evidence > plan.bake_seconds[stage] + plan.max_hold_seconds),
    )


def cohort_size(plan: Plan, stage: int, devices: int) -> int:
    """Return how many of a profile's devices may have the candidate in a stage."""
    if plan.stages[stage] >= 1.0:
        return devices
    return min(devices, max(plan.min_canaries, math.ceil(plan.stages[stage] * devices - 1e-9)))


def transfer_seconds(total_bytes: int, largest_bytes: int, bandwidth: Bandwidth) -> float | None:
    """Return how long bytes take: the server's line, or the slowest device's own; None where neither is known."""
    known = [
        size * 8 / speed
        for size, speed in ((total_bytes, bandwidth.server), (largest_bytes, bandwidth.device))
        if speed
    ]
    return max(known) if known else None


def inferences_needed(plan: Plan, error_share: float) -> int | None:
    """Return after how many inferences at that error share a stage is promoted; None: never, it is no better than p0."""
    limit = math.log(1 / plan.beta)

    def suffices(n: int) -> bool:
        return log_promotion(Counts(n=n, errors=round(n * error_share)), plan.error_threshold) >= limit

    high = 1
    while not suffices(high):
        high *= 2
        if high > MOST_INFERENCES:
            return None
    low = high // 2 + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle + 1, high)
    return high


def in_a_hurry(plan: Plan) -> Plan:
    """Return the plan as an emergency follows it: without bake times and soak (`emergency`)."""
    return replace(plan, bake_seconds=(0.0,) * len(plan.stages), soak_seconds=0.0)


def _bytes_of(facts: ProfileFacts, before: int, devices: int) -> int:
    """Return what the devices fetch that are new between two cohorts; those that run the candidate are the first of all."""
    left = facts.reach.devices - facts.holding
    new = max(devices, facts.holding) - max(before, facts.holding)
    return round(facts.bytes_to_transfer * new / left) if left > 0 else 0


def _wait(begins: datetime, first: datetime | None, seconds: float | None) -> float:
    return (0.0 if first is None else (first - begins).total_seconds()) + (seconds or 0.0)


def _evidence_seconds(
    needed: int | None, traffic: Traffic | None, before: int, devices: int, wait: float
) -> float | None:
    """Return when the needed inferences are counted: devices from before count at once, new ones after `wait` seconds."""
    if needed is None or traffic is None or traffic.per_device_minute <= 0 or devices == 0:
        return None
    rate = traffic.per_device_minute / 60
    by_former = rate * before * wait
    if by_former >= needed:
        return needed / (rate * before)
    return wait + (needed - by_former) / (rate * devices)


def _ends_at(
    plan: Plan,
    stage: int,
    begins: datetime,
    first: datetime | None,
    seconds: float,
    evidence: float | None,
    now: datetime,
) -> datetime | None:
    baked = after_open(plan.windows, begins, plan.bake_seconds[stage])
    if first is None or baked is None:
        return None
    committed = first + timedelta(seconds=seconds + plan.limits.probation_seconds)
    proved = begins + timedelta(seconds=evidence or 0.0)
    return next_opening(plan.advance_within, max(baked, committed, proved, now))
