"""One rollout after another in a slot: a second one is refused, or it supersedes the first.

What has not started ends when the new one is drafted. What runs goes on until the new one *starts*: its candidate leaves the
documents in the very signature in which the new candidate appears, so devices on it go straight to what is wanted; each still
has to prove that it left. What is rolling back already goes on doing so, and no longer holds the slot.
"""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from modelfleet.registry.tables import Group
from modelfleet.rollout.changes.transitions import (
    Cause,
    claim,
    follow_profiles,
    move,
    move_rollout,
    open_rollouts,
    places,
    profiles_of,
)
from modelfleet.rollout.desired.documents import wanted_slots
from modelfleet.rollout.errors import RolloutConflictError
from modelfleet.rollout.states import UNSTARTED, VERDICTS, Event, State, Verdict
from modelfleet.rollout.tables import Rollout, RolloutProfile


def require_room(session: Session, rollout: Rollout, profiles: Sequence[str], cause: Cause) -> None:
    """End what waits in the slot of a rollout that is drafted, where it supersedes.

    Raises:
        RolloutConflictError: another rollout holds the slot, and this one does not supersede.
    """
    for other in _in_the_way(session, rollout, profiles):
        if State(other.state) in UNSTARTED:
            claimed = claim(session, rollout.tenant, other.id)
            claimed.superseded_by = rollout.id
            close(session, claimed, Event.SUPERSEDE, _because_of(rollout, cause))


def take_over(session: Session, rollout: Rollout, profiles: Sequence[str], cause: Cause) -> list[tuple[str, str]]:
    """End whatever holds the slot of a rollout that starts; returns the (group, profile) pairs whose documents change.

    Raises:
        RolloutConflictError: something does, and this rollout does not supersede.
    """
    require_room(session, rollout, profiles, cause)
    changed: list[tuple[str, str]] = []
    for other in _in_the_way(session, rollout, profiles):
        changed += _supersede(session, claim(session, rollout.tenant, other.id), rollout, _because_of(rollout, cause))
    return changed


def close(session: Session, rollout: Rollout, event: Event, cause: Cause) -> None:
    """End a rollout that has not started, and all of its profiles (TransitionError: it has)."""
    move_rollout(session, rollout, event, cause)
    for row in profiles_of(session, rollout):
        move(session, rollout, row, event, cause)


def take_back(
    session: Session, rollout: Rollout, rows: Sequence[RolloutProfile], event: Event, cause: Cause, ending: State
) -> None:
    """Have these profiles' devices go back, for the rollout to end as `ending` once all have proved it."""
    if any(Verdict(row.verdict) is not Verdict.ROLLING_BACK for row in rows):
        rollout.ending = ending.value
    for row in rows:
        move(session, rollout, row, event, cause)
    follow_profiles(session, rollout, cause, event)


def wanted_again(session: Session, rollout: Rollout, row: RolloutProfile) -> bool:
    """Whether every group is told to run this very release again: then no device is left to prove that it is off it."""
    digest = row.release["sha256"]
    for group in rollout.groups:
        slot = wanted_slots(session, rollout.tenant, group, row.profile).get(rollout.slot)
        named = [] if slot is None else [slot.stable, *(candidate.release for candidate in slot.candidates)]
        if all(release is None or release.sha256 != digest for release in named):
            return False
    return True


def _in_the_way(session: Session, rollout: Rollout, profiles: Sequence[str]) -> list[Rollout]:
    """Return who holds the slot; two that ask at once wait for each other at the groups' rows."""
    wanted = select(Group).where(Group.tenant == rollout.tenant, Group.name.in_(rollout.groups))
    session.scalars(wanted.order_by(Group.name).with_for_update()).all()
    found = open_rollouts(session, rollout.tenant, rollout.slot, rollout.groups, list(profiles))
    others = [other for other in found if other.id != rollout.id]
    if others and not rollout.supersede:
        other = others[0]
        raise RolloutConflictError(
            f"rollout {other.id} of {other.model}@{other.version} is {other.state} on the same groups, profiles and"
            f" slot {rollout.slot}: end it first, or draft this one to supersede it"
        )
    return others


def _supersede(session: Session, other: Rollout, by: Rollout, cause: Cause) -> list[tuple[str, str]]:
    other.superseded_by = by.id
    rows = [row for row in profiles_of(session, other) if (Verdict(row.verdict), Event.SUPERSEDE) in VERDICTS]
    take_back(session, other, rows, Event.SUPERSEDE, cause, State.SUPERSEDED)
    return [place for row in rows for place in places(other, row)]


def _because_of(rollout: Rollout, cause: Cause) -> Cause:
    reason = f"superseded by rollout {rollout.id} of {rollout.model}@{rollout.version}"
    return Cause(actor=cause.actor, now=cause.now, reason=reason, evidence={"superseded_by": rollout.id})
