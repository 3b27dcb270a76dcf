"""What people do with a rollout: start, pause, resume, halt, roll back, cancel, reject; `drafts` and `approvals` hold the rest.

Each function is one transaction: it claims the rollout, asks the state table, and writes the change, its audit record and the
documents that follow from it together, or nothing. The caller publishes afterwards; the controller's next tick would, too.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from modelfleet.policies.errors import NotEnoughApprovalsError
from modelfleet.policies.plan import parse_plan
from modelfleet.rollout.changes.approvals import approval_digests, approval_request, approve, require_enough, withdraw
from modelfleet.rollout.changes.direction import Direction
from modelfleet.rollout.changes.drafts import RolloutChange, RolloutRequest, change, create
from modelfleet.rollout.changes.standing import obstacle
from modelfleet.rollout.changes.start_times import require_window
from modelfleet.rollout.changes.succession import close, take_back, take_over
from modelfleet.rollout.changes.transitions import (
    CONTROLLER,
    Cause,
    claim,
    find,
    follow_profiles,
    move,
    move_rollout,
    places,
    profiles_of,
    require_stable,
)
from modelfleet.rollout.changes.validation import require_still_valid
from modelfleet.rollout.desired.documents import Desk
from modelfleet.rollout.errors import RolloutConflictError, RolloutInputError, TransitionError
from modelfleet.rollout.states import ROLLOUTS, UNSTARTED, VERDICTS, Event, State, Verdict, next_state, resume_event
from modelfleet.rollout.tables import Rollout, RolloutProfile


def start(direction: Direction, rollout_id: str, *, actor: str, now: datetime) -> None:
    """Put every profile's candidate before its canaries; what the rollout supersedes leaves the same documents.

    Raises:
        TransitionError: the rollout is not scheduled. NotEnoughApprovalsError: approvals have expired or were withdrawn.
        RolloutInputError: it could not be drafted any more. RolloutConflictError: another one holds the slot.
    """
    registry, policy, desk = direction.registry, direction.registry.repository.policy(), direction.desk()
    with registry.sessions.begin() as session:
        rollout = claim(session, registry.tenant, rollout_id)
        next_state(ROLLOUTS, State(rollout.state), Event.START)
        persons = require_enough(session, rollout, policy, now)
        rows = profiles_of(session, rollout)
        require_still_valid(session, policy, rollout, rows)
        if not rollout.emergency:
            require_window(parse_plan(rollout.plan), now)
        cause = Cause(actor=actor, now=now, evidence={"approved_by": sorted(persons)})
        changed = take_over(session, rollout, [row.profile for row in rows], cause)
        rollout.started_at = now
        for row in rows:
            row.release = {**row.release, "approvals": approval_digests(session, rollout, policy, now)}
            move(session, rollout, row, Event.START, cause)
        move_rollout(session, rollout, Event.START, cause)
        desk.write_groups(session, [*changed, *(place for row in rows for place in places(rollout, row))], now)


def pause(
    direction: Direction, rollout_id: str, *, actor: str, now: datetime, reason: str = "", profile: str | None = None
) -> None:
    """Advance no profile, or not this one, until resumed; the guardrails go on watching (TransitionError: none is running)."""
    _apply(direction, rollout_id, Event.PAUSE, Cause(actor=actor, now=now, reason=reason), profile)


def halt(
    direction: Direction, rollout_id: str, *, actor: str, now: datetime, reason: str = "", profile: str | None = None
) -> None:
    """Let no further device start, or none of this profile; who has started stays (TransitionError: none is on trial)."""
    _apply(direction, rollout_id, Event.HALT, Cause(actor=actor, now=now, reason=reason), profile)


def resume(
    direction: Direction, rollout_id: str, *, actor: str, now: datetime, reason: str = "", profile: str | None = None
) -> None:
    """Go on where paused or halted profiles were, or this one; their wait for evidence begins anew.

    Raises:
        TransitionError: none is paused or halted. RolloutConflictError: devices would refuse it, or start no more.
    """
    registry, policy, desk = direction.registry, direction.registry.repository.policy(), direction.desk()
    cause = Cause(actor=actor, now=now, reason=reason)
    with registry.sessions.begin() as session:
        rollout = claim(session, registry.tenant, rollout_id)
        plan = parse_plan(rollout.plan)
        rows = [row for row in _chosen(session, rollout, profile) if row.verdict in (Verdict.PAUSED, Verdict.HALTED)]
        if not rows:
            raise TransitionError(f"cannot resume in state {rollout.state}: nothing is paused or halted")
        for row in rows:
            found = obstacle(session, rollout, row, plan, policy, now)
            if found is not None:
                raise RolloutConflictError(f"profile {row.profile} cannot go on: {found.reason}")
            move(session, rollout, row, resume_event(row.stage, plan.last_stage), cause)
        _follow(session, desk, rollout, rows, cause)


def rollback(
    direction: Direction, rollout_id: str, *, actor: str, now: datetime, reason: str = "", profile: str | None = None
) -> None:
    """Send every profile that has the candidate, or this one, back to its former release; a completed one too.

    Raises:
        TransitionError: no profile has it. RolloutConflictError: the fleet has moved on since.
    """
    _apply(direction, rollout_id, Event.ROLL_BACK, Cause(actor=actor, now=now, reason=reason), profile)


def cancel(direction: Direction, rollout_id: str, *, actor: str, now: datetime, reason: str = "") -> None:
    """End a rollout: at once where it has not started, else once every device on trial has proved to be back.

    What has completed stays stable; `rollback` takes that back, too.

    Raises:
        TransitionError: it has ended, or is rolling back already.
    """
    registry, desk = direction.registry, direction.desk()
    cause = Cause(actor=actor, now=now, reason=reason)
    with registry.sessions.begin() as session:
        rollout = claim(session, registry.tenant, rollout_id)
        if State(rollout.state) in UNSTARTED:
            close(session, rollout, Event.CANCEL, cause)
            return
        rows = [row for row in profiles_of(session, rollout) if (Verdict(row.verdict), Event.CANCEL) in VERDICTS]
        if not rows:
            raise TransitionError(f"cannot cancel in state {rollout.state}: no profile is on trial")
        take_back(session, rollout, rows, Event.CANCEL, cause, State.CANCELLED)
        desk.write_groups(session, [place for row in rows for place in places(rollout, row)], now)


def reject(direction: Direction, rollout_id: str, *, actor: str, now: datetime, reason: str = "") -> None:
    """Refuse the approval that a rollout asks for, which ends it (TransitionError: it asks for none)."""
    with direction.registry.sessions.begin() as session:
        rollout = claim(session, direction.registry.tenant, rollout_id)
        close(session, rollout, Event.REJECT, Cause(actor=actor, now=now, reason=reason))


def tend(direction: Direction, rollout_id: str, revision: int, now: datetime) -> None:
    """End a rollout that was not started in time; ask for approval again where approvals no longer suffice."""
    registry = direction.registry
    with registry.sessions() as session:
        found = find(session, registry.tenant, rollout_id)
        event, reason = _lapsed(session, direction, found, now)
    if event is None:
        return
    with registry.sessions.begin() as session:
        rollout = claim(session, registry.tenant, rollout_id, revision)
        cause = Cause(actor=CONTROLLER, now=now, reason=reason)
        if event is Event.EXPIRE:
            close(session, rollout, event, cause)
        else:
            rollout.approved_at = None
            move_rollout(session, rollout, event, cause)


def _lapsed(session: Session, direction: Direction, rollout: Rollout, now: datetime) -> tuple[Event | None, str]:
    """Return what time has done to a rollout that has not started, and why."""
    if State(rollout.state) not in UNSTARTED:
        return None, ""
    if rollout.approve_by < now:
        return Event.EXPIRE, "not approved and started in time"
    if State(rollout.state) is State.SCHEDULED:
        try:
            require_enough(session, rollout, direction.registry.repository.policy(), now)
        except NotEnoughApprovalsError as error:
            return Event.LAPSE, str(error)
    return None, ""


def _apply(direction: Direction, rollout_id: str, event: Event, cause: Cause, profile: str | None) -> None:
    """Apply the event to every profile whose table has it, or to this one; at least one must."""
    registry, desk = direction.registry, direction.desk()
    with registry.sessions.begin() as session:
        rollout = claim(session, registry.tenant, rollout_id)
        chosen = _chosen(session, rollout, profile)
        rows = [row for row in chosen if (Verdict(row.verdict), event) in VERDICTS]
        if not rows:
            raise TransitionError(f"cannot {event} in state {rollout.state}: no profile allows it")
        for row in rows:
            if row.verdict == Verdict.COMPLETED:
                require_stable(session, rollout, row)
            move(session, rollout, row, event, cause)
        _follow(session, desk, rollout, rows, cause)


def _chosen(session: Session, rollout: Rollout, profile: str | None) -> list[RolloutProfile]:
    rows = profiles_of(session, rollout)
    if profile is None:
        return rows
    found = [row for row in rows if row.profile == profile]
    if not found:
        names = ", ".join(row.profile for row in rows)
        raise RolloutInputError(f"expected a profile of the rollout, one of {names}, got {profile[:64]!r}")
    return found


def _follow(session: Session, desk: Desk, rollout: Rollout, rows: Sequence[RolloutProfile], cause: Cause) -> None:
    follow_profiles(session, rollout, cause)
    desk.write_groups(session, [place for row in rows for place in places(rollout, row)], cause.now)


__all__ = [
    "Direction",
    "RolloutChange",
    "RolloutRequest",
    "approval_request",
    "approve",
    "cancel",
    "change",
    "create",
    "find",
    "halt",
    "pause",
    "reject",
    "resume",
    "rollback",
    "start",
    "tend",
    "withdraw",
]
