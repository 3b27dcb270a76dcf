"""Changing a rollout's state: one claim, the table's next state, the audit record and the documents, in one transaction.

Whoever changes a rollout first claims it (`claim`): the row's revision grows, under the row's lock. A decision that was made from
an older revision is refused, so two controllers never both act on one. Everything here works inside the caller's transaction.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

from sqlalchemy import CursorResult, select, update
from sqlalchemy.orm import Session

from modelfleet.policies.plan import Plan, parse_plan
from modelfleet.registry import audit, catalog
from modelfleet.rollout.desired.planning import plan_stage
from modelfleet.rollout.errors import RolloutConflictError, RolloutNotFoundError, StaleRevisionError
from modelfleet.rollout.evidence import answers, population, totals
from modelfleet.rollout.states import ROLLOUTS, VERDICTS, Event, State, Verdict, event_between, next_state, summary
from modelfleet.rollout.tables import Rollout, RolloutProfile, SlotStable
from modelfleet.rollout.webhooks.outbox import enqueue

CONTROLLER = "system:controller"
_SETTLED = frozenset({Verdict.COMPLETED, Verdict.ROLLED_BACK, Verdict.CLOSED, Verdict.ROLLBACK_INCOMPLETE})


@dataclass(frozen=True, kw_only=True)
class Cause:
    """Who moves a rollout, when, why, and on what evidence: what the audit record says."""

    actor: str
    now: datetime
    reason: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict[str, Any])


def claim(session: Session, tenant: str, rollout_id: str, revision: int | None = None) -> Rollout:
    """Return the rollout, locked and with a new revision; it must be the transaction's first statement.

    Args:
        session: in a transaction of the caller's.
        tenant: whose rollout.
        rollout_id: which one.
        revision: what a decision was based on; None where it is made after the claim.

    Raises:
        RolloutNotFoundError: there is none in this tenant.
        StaleRevisionError: it has another revision.
    """
    wanted = update(Rollout).where(Rollout.id == rollout_id, Rollout.tenant == tenant)
    if revision is not None:
        wanted = wanted.where(Rollout.revision == revision)
    changed = wanted.values(revision=Rollout.revision + 1).execution_options(synchronize_session=False)
    claimed = cast("CursorResult[Any]", session.execute(changed)).rowcount
    found = session.get(Rollout, rollout_id, populate_existing=True)
    if found is None or found.tenant != tenant:
        raise RolloutNotFoundError(f"no rollout {rollout_id[:64]!r}: see `modelfleet rollout list`")
    if claimed != 1:
        raise StaleRevisionError(f"expected revision {revision} of rollout {rollout_id}, it has {found.revision}")
    return found


def find(session: Session, tenant: str, rollout_id: str) -> Rollout:
    """Return the rollout (RolloutNotFoundError: there is none in this tenant)."""
    found = session.get(Rollout, rollout_id)
    if found is None or found.tenant != tenant:
        raise RolloutNotFoundError(f"no rollout {rollout_id[:64]!r}: see `modelfleet rollout list`")
    return found


def profiles_of(session: Session, rollout: Rollout) -> list[RolloutProfile]:
    """Return the rollout's profiles by name."""
    query = select(RolloutProfile).where(RolloutProfile.rollout == rollout.id).order_by(RolloutProfile.profile)
    return list(session.scalars(query))


def places(rollout: Rollout, row: RolloutProfile) -> list[tuple[str, str]]:
    """Return the (group, profile) pairs whose documents name this profile's candidate."""
    return [(group, row.profile) for group in rollout.groups]


def move(session: Session, rollout: Rollout, row: RolloutProfile, event: Event, cause: Cause) -> None:
    """Move one profile's verdict along its table, with everything that belongs to the event (TransitionError)."""
    before = Verdict(row.verdict)
    after = next_state(VERDICTS, before, event)
    row.verdict = after.value
    if (before, event) != (Verdict.ROLLING_BACK, Event.SUPERSEDE):  # it goes on for the reason that it had
        row.reason, row.evidence = cause.reason, dict(cause.evidence)
    row.ended_at = cause.now if after in _SETTLED else None
    if after in _SETTLED:
        answers.forget_baselines(session, row)
    plan = parse_plan(rollout.plan)
    match event:
        case Event.START:
            _begin_trial(session, rollout, row, plan, cause.now)
        case Event.ADVANCE | Event.SOAK:
            _enter_stage(session, rollout, row, plan, row.stage + 1, cause.now)
        case Event.RESUME_CANARY | Event.RESUME_STAGE | Event.RESUME_SOAK:
            row.hold_started_at = cause.now
        case Event.PAUSE:
            answers.ask_person(row, cause.evidence)
        case Event.COMPLETE:
            _make_stable(session, rollout, row, cause.now)
        case Event.ROLL_BACK:
            row.rollback_started_at = cause.now
            rollout.ending = None
            if before is Verdict.COMPLETED:
                _restore_stable(session, rollout, row, cause.now)
        case Event.CANCEL | Event.SUPERSEDE if before not in (Verdict.PENDING, Verdict.ROLLING_BACK):
            row.rollback_started_at = cause.now
        case _:
            pass
    record(session, rollout, event, cause, profile=row.profile, before=before, after=after, stage=row.stage)


def move_rollout(session: Session, rollout: Rollout, event: Event, cause: Cause) -> None:
    """Move the rollout itself along its table (TransitionError)."""
    before = State(rollout.state)
    after = next_state(ROLLOUTS, before, event)
    _set_state(rollout, after, cause)
    record(session, rollout, event, cause, before=before, after=after)


def follow_profiles(session: Session, rollout: Rollout, cause: Cause, event: Event | None = None) -> None:
    """Bring the rollout's state to what its profiles' verdicts amount to; `event` names the change where it leads there."""
    session.flush()
    before = State(rollout.state)
    ending = None if rollout.ending is None else State(rollout.ending)
    target = summary((Verdict(row.verdict) for row in profiles_of(session, rollout)), ending)
    if event is None or ROLLOUTS.get((before, event)) is not target:
        event = event_between(before, target)
    if event is not None:
        _set_state(rollout, target, cause)
        record(session, rollout, event, cause, before=before, after=target)


def record(session: Session, rollout: Rollout, event: Event, cause: Cause, **detail: Any) -> None:
    """Append the audit record of a change to the transaction, and what webhooks tell of it."""
    about: dict[str, Any] = {
        "model": rollout.model,
        "version": rollout.version,
        "slot": rollout.slot,
        "revision": rollout.revision,
    }
    if rollout.emergency:
        about["emergency"] = rollout.emergency_reason
    told = {**about, **detail, "reason": cause.reason, "evidence": dict(cause.evidence)}
    audit.append(
        session,
        tenant=rollout.tenant,
        actor=cause.actor,
        action=f"rollout.{event}",
        subject=subject_of(rollout.id),
        detail=told,
        now=cause.now,
    )
    about_whom = {"tenant": rollout.tenant, "rollout": rollout.id, "groups": rollout.groups, "actor": cause.actor}
    enqueue(session, rollout.tenant, f"rollout.{event}", {**about_whom, **told}, cause.now)


def subject_of(rollout_id: str) -> str:
    """Return what audit records call a rollout."""
    return f"rollout/{rollout_id}"


def require_stable(session: Session, rollout: Rollout, row: RolloutProfile) -> None:
    """Refuse to roll back a completed profile where the fleet has moved on.

    Raises:
        RolloutConflictError: another release is stable in one of its groups, or a newer rollout is open there.
    """
    for group in rollout.groups:
        stable = session.get(SlotStable, (rollout.tenant, group, row.profile, rollout.slot))
        if stable is None or stable.rollout != rollout.id:
            raise RolloutConflictError(
                f"group {group}, profile {row.profile}, slot {rollout.slot} has moved on to another stable release:"
                " roll that one back first"
            )
    others = open_rollouts(session, rollout.tenant, rollout.slot, rollout.groups, [row.profile])
    blocking = [other.id for other in others if other.id != rollout.id]
    if blocking:
        raise RolloutConflictError(f"rollout {blocking[0]} is open there: end it first")


def open_rollouts(session: Session, tenant: str, slot: str, groups: list[str], profiles: list[str]) -> list[Rollout]:
    """Return the rollouts that still hold this slot on one of these groups and profiles."""
    ended = [
        Verdict.COMPLETED.value,
        Verdict.ROLLED_BACK.value,
        Verdict.ROLLBACK_INCOMPLETE.value,
        Verdict.CLOSED.value,
    ]
    query = (
        select(Rollout)
        .join(RolloutProfile, RolloutProfile.rollout == Rollout.id)
        .where(
            Rollout.tenant == tenant,
            Rollout.slot == slot,
            RolloutProfile.profile.in_(profiles),
            RolloutProfile.verdict.not_in(ended),
            (RolloutProfile.verdict != Verdict.ROLLING_BACK.value) | Rollout.superseded_by.is_(None),
        )
        .distinct()
        .order_by(Rollout.created_at, Rollout.id)
    )
    return [each for each in _unique(session, query) if set(each.groups) & set(groups)]


def _unique(session: Session, query: Any) -> list[Rollout]:
    ids = session.scalars(query.with_only_columns(Rollout.id, Rollout.created_at)).all()
    return [found for name in ids if (found := session.get(Rollout, name)) is not None]


def _set_state(rollout: Rollout, state: State, cause: Cause) -> None:
    rollout.state, rollout.reason = state.value, cause.reason
    rollout.ended_at = cause.now if state not in _GOING_ON else None


_GOING_ON = frozenset(
    {State.DRAFT, State.VALIDATING, State.AWAITING_APPROVAL, State.SCHEDULED, State.CANARY, State.STAGE, State.SOAK}
    | {State.PAUSED, State.HALTED, State.ROLLING_BACK}
)


def _begin_trial(session: Session, rollout: Rollout, row: RolloutProfile, plan: Plan, now: datetime) -> None:
    row.previous = {group: _stable_release(session, rollout, group, row.profile) for group in rollout.groups}
    row.trial_started_at = now
    row.baselines = []
    row.control_until = population.control_until(session, rollout, row.profile)
    session.flush()
    answers.keep_baselines(session, rollout, row)
    _enter_stage(session, rollout, row, plan, 0, now)


def _enter_stage(
    session: Session, rollout: Rollout, row: RolloutProfile, plan: Plan, stage: int, now: datetime
) -> None:
    """Begin a stage: its clock, its baseline, its cohort. The soak goes on counting from the last stage's start."""
    row.stage, row.stage_started_at, row.hold_started_at = stage, now, now
    if stage > plan.last_stage:
        return
    row.baselines = [*row.baselines, totals.baseline_of(totals.count(session, rollout, row), now)]
    planned = plan_stage(session, rollout, row, plan, stage)
    row.below, row.cohort = planned.below, planned.devices


def _make_stable(session: Session, rollout: Rollout, row: RolloutProfile, now: datetime) -> None:
    for group in rollout.groups:
        _set_stable(session, rollout, group, row.profile, row.release, rollout.id, now)
    catalog.mark_released(session, rollout.tenant, rollout.model, rollout.version, row.profile, now)


def _restore_stable(session: Session, rollout: Rollout, row: RolloutProfile, now: datetime) -> None:
    """Re-issue each group's former stable release; the version no longer counts as released for the gates."""
    for group in rollout.groups:
        _set_stable(session, rollout, group, row.profile, row.previous.get(group), rollout.id, now)
    catalog.withdraw_released(session, rollout.tenant, rollout.model, rollout.version, row.profile, now)


def _stable_release(session: Session, rollout: Rollout, group: str, profile: str) -> dict[str, Any] | None:
    stable = session.get(SlotStable, (rollout.tenant, group, profile, rollout.slot))
    return None if stable is None else stable.release


def _set_stable(
    session: Session,
    rollout: Rollout,
    group: str,
    profile: str,
    release: dict[str, Any] | None,
    by: str,
    now: datetime,
) -> None:
    key = {"tenant": rollout.tenant, "group": group, "profile": profile, "slot": rollout.slot}
    session.merge(SlotStable(**key, release=release, rollout=by, updated_at=now))
