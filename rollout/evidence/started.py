"""The devices that have started on a rollout, and what they counted on the candidate: all of its profiles in one pass.

The first query goes over the trials and the candidates' counters, the second over those trials alone of which no counters came
lately: only of these is it looked up when anything was heard last. Both cost the same however many profiles there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Label,
    Select,
    Subquery,
    and_,
    case,
    func,
    literal,
    null,
    or_,
    select,
    union_all,
)
from sqlalchemy.orm import Session

from modelfleet.agent_client.protocol import DeviceState
from modelfleet.policies.plan import Plan
from modelfleet.registry.tables import Device
from modelfleet.rollout.decisions.statistics import Counts
from modelfleet.rollout.evidence import population
from modelfleet.rollout.evidence.heard import is_silent
from modelfleet.rollout.evidence.totals import moment_of
from modelfleet.rollout.ingest.waits import waits
from modelfleet.rollout.tables import DeviceCounters, DeviceTrial, Rollout, RolloutProfile

FAILURES = frozenset({DeviceState.REJECTED.value, DeviceState.ROLLED_BACK.value})
GAVE_UP = frozenset({DeviceState.CANCELLED.value, DeviceState.EXPIRED.value})
INSTALLING = frozenset(
    state.value
    for state in (
        DeviceState.PREFLIGHT,
        DeviceState.DOWNLOADING,
        DeviceState.VERIFYING,
        DeviceState.BENCHMARKING,
        DeviceState.ACTIVATING,
        DeviceState.PROBATION,
        DeviceState.ROLLING_BACK,
    )
)
"""States from which a device may still end up on the candidate."""
_OUTCOMES = (None, DeviceState.COMMITTED.value, *sorted(FAILURES))


@dataclass(frozen=True, kw_only=True)
class Started:
    """The devices that have started, counted by what became of them; see `DeviceTally`."""

    started: int = 0
    ended: int = 0
    committed: int = 0
    failed: int = 0
    silent: int = 0
    blocking: int = 0
    since: tuple[Counts, ...] = ()
    """Those that started in each stage or after it, the first stage first, and how many of them failed."""
    n: int = 0
    errors: int = 0
    slow: int = 0
    """What the profile's devices counted on the candidate, with those whose reports on it are missing."""


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """So many devices of one profile, of which the same is true: `code` is `_code`'s."""

    profile: str
    code: int
    stage: int
    silent: bool = False
    devices: int

    @property
    def ended(self) -> bool:
        return bool(self.code & 1)

    @property
    def stalled(self) -> bool:
        return bool(self.code & 2)

    @property
    def waiting(self) -> bool:
        return bool(self.code & 4)

    @property
    def outcome(self) -> str | None:
        return _OUTCOMES[self.code // 8]

    @property
    def blocks(self) -> bool:
        return not (self.ended or self.stalled or self.silent or self.waiting)

    @property
    def failed(self) -> bool:
        return self.outcome in FAILURES or (self.stalled and not self.silent)


def count(
    session: Session, rollout: Rollout, rows: Sequence[RolloutProfile], plan: Plan, now: datetime
) -> dict[str, Started]:
    """Return profile -> its devices that have reported on the rollout, and what the candidate counted."""
    if not rows:
        return {}
    kinds, sums = _all(session, rollout, rows, plan, now)
    unheard = _unheard(session, rollout, rows, plan, now)
    return {row.profile: _started(row, _joined(row.profile, kinds, unheard), sums[row.profile]) for row in rows}


def has_ended(plan: Plan, now: datetime) -> ColumnElement[bool]:
    """Return whether a trial's device is done with the candidate, for better or worse; a retry starts it again."""
    boot, seq, trial = DeviceTrial.outcome_boot, DeviceTrial.outcome_seq, DeviceTrial
    begun_again = or_(trial.boot > boot, and_(trial.boot == boot, trial.seq > seq)) & trial.state.in_(INSTALLING)
    over = DeviceTrial.received_at < now - timedelta(seconds=plan.limits.probation_seconds)
    return or_(
        and_(DeviceTrial.outcome.is_not(None), ~begun_again),
        and_(DeviceTrial.state == DeviceState.PROBATION.value, over),
        DeviceTrial.state.in_(GAVE_UP),
    )


def _all(
    session: Session, rollout: Rollout, rows: Sequence[RolloutProfile], plan: Plan, now: datetime
) -> tuple[list[_Kind], dict[str, tuple[int, int, int]]]:
    """Return every started device, none of them silent, and profile -> inferences, errors, slow ones of the candidate.

    Trials and counters are put under each other, so that the devices' rows, which say who belongs to the profile, are gone over
    once.
    """
    both = union_all(_trials(rollout, plan, now), _counters(rollout, rows)).subquery()
    query = (
        select(Device.profile, both.c.code, _stage(rows, both))
        .add_columns(*[func.sum(both.c[name]) for name in ("devices", "n", "errors", "slow")])
        .join_from(both, Device, Device.id == both.c.device)
        .where(_of_profiles(rollout, rows))
        .group_by(Device.profile, both.c.code, "stage")
    )
    kinds: list[_Kind] = []
    counted = dict[tuple[str, str], tuple[int, int, int]]()
    digests = _digests(rows)
    for profile, code, stage, devices, n, errors, slow in session.execute(query):
        if code >= 0:
            kinds.append(_Kind(profile=profile, code=code, stage=stage, devices=int(devices)))
        else:
            counted[profile, digests[-code - 1]] = (int(n), int(errors), int(slow))
    return kinds, {row.profile: counted.get((row.profile, row.release["sha256"]), (0, 0, 0)) for row in rows}


def _trials(rollout: Rollout, plan: Plan, now: datetime) -> Select[*tuple[Any, ...]]:
    """Return the rollout's trials: each is a device, and has counted nothing."""
    # PostgreSQL goes over both selects as one only where their columns are of the same types.
    nothing = [literal(0, BigInteger).label(name) for name in ("n", "errors", "slow")]
    about = (DeviceTrial.device, _code(plan, now), DeviceTrial.started_at, literal(1).label("devices"))
    return select(*about, *nothing).where(DeviceTrial.rollout == rollout.id)


def _counters(rollout: Rollout, rows: Sequence[RolloutProfile]) -> Select[*tuple[Any, ...]]:
    """Return the candidates' counters in the columns of `_trials`: none is a device, and the code tells the candidate."""
    code = case(*[(DeviceCounters.sha256 == each, -1 - place) for place, each in enumerate(_digests(rows))])
    about = (DeviceCounters.device, code.label("code"), null().label("started_at"), literal(0).label("devices"))
    counted = (DeviceCounters.n, DeviceCounters.errors, DeviceCounters.slow)
    return select(*about, *counted).where(_on_candidate(rollout, rows))


def _unheard(
    session: Session, rollout: Rollout, rows: Sequence[RolloutProfile], plan: Plan, now: datetime
) -> list[_Kind]:
    """Return the started devices of which no counters on the candidate came lately, by whether they are silent."""
    since = now - timedelta(seconds=plan.silent_seconds)
    # Said so that PostgreSQL expects it of nearly all counters: its figures of these times are always older than they.
    lately = case((DeviceCounters.received_at >= since, 1), else_=0) != 0
    mine = _on_candidate(rollout, rows) & lately
    heard = select(DeviceCounters.device).where(DeviceCounters.device == DeviceTrial.device, mine)
    silent = is_silent(rollout, DeviceTrial.device, since).label("silent")
    trials = select(DeviceTrial.device, _code(plan, now), DeviceTrial.started_at, silent)
    quiet = trials.where(DeviceTrial.rollout == rollout.id, ~heard.exists()).subquery()
    query = (
        select(Device.profile, quiet.c.code, _stage(rows, quiet), quiet.c.silent, func.count())
        .join_from(quiet, Device, Device.id == quiet.c.device)
        .where(_of_profiles(rollout, rows))
        .group_by(Device.profile, quiet.c.code, "stage", quiet.c.silent)
    )
    return [
        _Kind(profile=profile, code=code, stage=stage, silent=bool(silent), devices=devices)
        for profile, code, stage, silent, devices in session.execute(query)
    ]


def _joined(profile: str, everybody: Sequence[_Kind], unheard: Sequence[_Kind]) -> list[_Kind]:
    """Return the profile's kinds: those that the second query found silent, and all others."""
    silent = {(each.code, each.stage): each for each in unheard if each.silent and each.profile == profile}
    others = [each for each in everybody if each.profile == profile]
    gone = {kind: each.devices for kind, each in silent.items()}
    left = [each.devices - gone.get((each.code, each.stage), 0) for each in others]
    # Something may have changed between the two queries.
    return [*silent.values(), *(replace(each, devices=max(0, some)) for each, some in zip(others, left, strict=True))]


def _started(row: RolloutProfile, found: Sequence[_Kind], sums: tuple[int, int, int]) -> Started:
    return Started(
        started=sum(each.devices for each in found),
        ended=sum(each.devices for each in found if each.ended or each.stalled),
        committed=sum(each.devices for each in found if each.outcome == DeviceState.COMMITTED),
        failed=sum(each.devices for each in found if each.failed),
        silent=sum(each.devices for each in found if each.silent),
        blocking=sum(each.devices for each in found if each.blocks),
        since=tuple(_installs(found, stage) for stage in range(len(row.baselines))),
        n=sums[0],
        errors=sums[1],
        slow=sums[2],
    )


def _installs(found: Sequence[_Kind], stage: int) -> Counts:
    since = [each for each in found if each.stage >= stage]
    return Counts(n=sum(each.devices for each in since), errors=sum(each.devices for each in since if each.failed))


def _code(plan: Plan, now: datetime) -> Label[int]:
    """Return what is told of a trial as one number, `_Kind`'s `code`.

    By one number PostgreSQL groups in memory; of several columns it expects so many groups that it sorts all rows first.
    """
    ended, late = has_ended(plan, now), DeviceTrial.started_at < now - timedelta(seconds=plan.stall_seconds)
    said = (ended, and_(~ended, ~waits(), late), waits())
    flags = [case((each, 2**place), else_=0) for place, each in enumerate(said)]
    outcomes = [(DeviceTrial.outcome == each, 8 * place) for place, each in enumerate(_OUTCOMES) if each is not None]
    return (flags[0] + flags[1] + flags[2] + case(*outcomes, else_=0)).label("code")


def _stage(rows: Sequence[RolloutProfile], trials: Subquery) -> Label[int]:
    """Return the number of the stage in which a device of the joined profile started."""
    each = [(Device.profile == row.profile, _stage_of(row, trials)) for row in rows if len(row.baselines) > 1]
    return (case(*each, else_=0) if each else literal(0)).label("stage")


def _stage_of(row: RolloutProfile, trials: Subquery) -> ColumnElement[int]:
    starts = list(enumerate(moment_of(baseline) for baseline in row.baselines))
    return case(*[(trials.c.started_at >= at, stage) for stage, at in reversed(starts)], else_=0)


def _on_candidate(rollout: Rollout, rows: Sequence[RolloutProfile]) -> ColumnElement[bool]:
    return (DeviceCounters.slot == rollout.slot) & DeviceCounters.sha256.in_(_digests(rows))


def _digests(rows: Sequence[RolloutProfile]) -> list[str]:
    return sorted({row.release["sha256"] for row in rows})


def _of_profiles(rollout: Rollout, rows: Sequence[RolloutProfile]) -> ColumnElement[bool]:
    return population.of_profiles(rollout, [row.profile for row in rows])
