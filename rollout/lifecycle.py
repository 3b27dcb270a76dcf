"""What people do with a rollout: create, approve, start, pause, resume, halt, roll back, cancel, reject.

Each function is one transaction: it claims the rollout, asks the state table, and writes the change, its audit record and the
documents that follow from it together, or nothing. The caller publishes afterwards; the controller's next tick would, too.
"""

import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy.orm import Session

from modelfleet.policies.plan import parse_plan, plan_as_dict, plan_sha256
from modelfleet.registry import catalog
from modelfleet.registry.errors import ConflictError, NotFoundError
from modelfleet.rollout.approvals import approval_digests, approval_request, approve, require_enough
from modelfleet.rollout.direction import Direction
from modelfleet.rollout.documents import Desk
from modelfleet.rollout.errors import RolloutConflictError, RolloutInputError, TransitionError
from modelfleet.rollout.states import ROLLOUTS, VERDICTS, Event, State, Verdict, next_state, resume_event
from modelfleet.rollout.tables import Rollout, RolloutProfile, SlotStable
from modelfleet.rollout.transitions import (
    Cause,
    claim,
    find,
    follow_profiles,
    move,
    move_rollout,
    open_rollouts,
    places,
    profiles_of,
    require_stable,
)
from modelfleet.signer.errors import UntrustedError
from modelfleet.signer.names import NAME_PATTERN, require

START_WITHIN = timedelta(days=30)
"""A rollout that has not started by then expires."""


@dataclass(frozen=True, kw_only=True)
class RolloutRequest:
    """What somebody wants to roll out; `plan` is a JSON object or TOML, None for the default plan."""

    model: str
    version: str
    slot: str
    groups: Sequence[str]
    plan: Mapping[str, Any] | str | None = None
    supersede: bool = False
    """End rollouts that hold the same slot and have not started."""


def create(direction: Direction, request: RolloutRequest, *, author: str, now: datetime) -> str:
    """Draft a rollout, validate it, ask for approval, and return its id; nothing is stored where it is not valid.

    Raises:
        PlanError: the plan is refused. NotFoundError: no such version or group.
        RolloutInputError: the version is not READY, or no profile of the groups' devices has anything to roll out.
        RolloutConflictError: another rollout is open on one of the groups, profiles and the slot.
    """
    registry, plan = direction.registry, parse_plan(request.plan)
    with registry.sessions.begin() as session:
        groups = _require_groups(session, registry.tenant, request)
        releases, skipped = _releases(session, registry.tenant, request, groups)
        cause = Cause(actor=author, now=now)
        _require_free(session, registry.tenant, request, groups, sorted(releases), cause)
        rollout = Rollout(
            id=str(uuid.uuid4()),
            tenant=registry.tenant,
            model=request.model,
            version=request.version,
            slot=request.slot,
            groups=groups,
            plan=plan_as_dict(plan),
            plan_sha256=plan_sha256(plan),
            author=author,
            salt=secrets.token_hex(16),
            state=State.DRAFT.value,
            skipped_profiles=skipped,
            created_at=now,
            approve_by=now + START_WITHIN,
            revision=0,
        )
        session.add(rollout)
        session.flush()
        for profile, release in releases.items():
            session.add(_pending(rollout, profile, release))
        move_rollout(session, rollout, Event.VALIDATE, cause)
        move_rollout(session, rollout, Event.REQUEST_APPROVAL, cause)
        return rollout.id


def start(direction: Direction, rollout_id: str, *, actor: str, now: datetime) -> None:
    """Put every profile's candidate before its canaries.

    Raises:
        TransitionError: the rollout is not scheduled. NotEnoughApprovalsError: approvals have expired or were withdrawn.
    """
    registry, policy, desk = direction.registry, direction.registry.repository.policy(), direction.desk()
    with registry.sessions.begin() as session:
        rollout = claim(session, registry.tenant, rollout_id)
        next_state(ROLLOUTS, State(rollout.state), Event.START)
        persons = require_enough(session, rollout, policy, now)
        rollout.started_at = now
        cause = Cause(actor=actor, now=now, evidence={"approved_by": sorted(persons)})
        rows = profiles_of(session, rollout)
        for row in rows:
            row.release = {**row.release, "approvals": approval_digests(session, rollout, policy, now)}
            move(session, rollout, row, Event.START, cause)
        move_rollout(session, rollout, Event.START, cause)
        desk.write_groups(session, [place for row in rows for place in places(rollout, row)], now)


def pause(direction: Direction, rollout_id: str, *, actor: str, now: datetime, reason: str = "") -> None:
    """Advance no profile until resumed; the guardrails go on watching (TransitionError: none is running)."""
    _apply(direction, rollout_id, Event.PAUSE, Cause(actor=actor, now=now, reason=reason))


def halt(direction: Direction, rollout_id: str, *, actor: str, now: datetime, reason: str = "") -> None:
    """Let no further device start; who has started stays (TransitionError: none is on trial)."""
    _apply(direction, rollout_id, Event.HALT, Cause(actor=actor, now=now, reason=reason))


def resume(direction: Direction, rollout_id: str, *, actor: str, now: datetime, reason: str = "") -> None:
    """Go on where a paused or halted profile was; its wait for evidence begins anew (TransitionError: none is)."""
    registry, desk = direction.registry, direction.desk()
    cause = Cause(actor=actor, now=now, reason=reason)
    with registry.sessions.begin() as session:
        rollout = claim(session, registry.tenant, rollout_id)
        last_stage = parse_plan(rollout.plan).last_stage
        rows = [row for row in profiles_of(session, rollout) if row.verdict in (Verdict.PAUSED, Verdict.HALTED)]
        if not rows:
            raise TransitionError(f"cannot resume in state {rollout.state}: nothing is paused or halted")
        for row in rows:
            move(session, rollout, row, resume_event(row.stage, last_stage), cause)
        _follow(session, desk, rollout, rows, cause)


def rollback(direction: Direction, rollout_id: str, *, actor: str, now: datetime, reason: str = "") -> None:
    """Send every profile that has the candidate back to its former release; a completed one too.

    Raises:
        TransitionError: no profile has it. RolloutConflictError: the fleet has moved on since.
    """
    _apply(direction, rollout_id, Event.ROLL_BACK, Cause(actor=actor, now=now, reason=reason))


def cancel(direction: Direction, rollout_id: str, *, actor: str, now: datetime, reason: str = "") -> None:
    """End a rollout that has not started (TransitionError: it has)."""
    _close(direction, rollout_id, Event.CANCEL, Cause(actor=actor, now=now, reason=reason))


def reject(direction: Direction, rollout_id: str, *, actor: str, now: datetime, reason: str = "") -> None:
    """Refuse the approval that a rollout asks for, which ends it (TransitionError: it asks for none)."""
    _close(direction, rollout_id, Event.REJECT, Cause(actor=actor, now=now, reason=reason))


def expire(direction: Direction, rollout_id: str, revision: int, now: datetime) -> None:
    """End a rollout that was not started in time."""
    cause = Cause(actor="system:controller", now=now, reason="not approved and started in time")
    _close(direction, rollout_id, Event.EXPIRE, cause, revision)


def _apply(direction: Direction, rollout_id: str, event: Event, cause: Cause) -> None:
    """Apply the event to every profile whose table has it; at least one must."""
    registry, desk = direction.registry, direction.desk()
    with registry.sessions.begin() as session:
        rollout = claim(session, registry.tenant, rollout_id)
        rows = [row for row in profiles_of(session, rollout) if (Verdict(row.verdict), event) in VERDICTS]
        if not rows:
            raise TransitionError(f"cannot {event} in state {rollout.state}: no profile allows it")
        for row in rows:
            if row.verdict == Verdict.COMPLETED:
                require_stable(session, rollout, row)
            move(session, rollout, row, event, cause)
        _follow(session, desk, rollout, rows, cause)


def _follow(session: Session, desk: Desk, rollout: Rollout, rows: Sequence[RolloutProfile], cause: Cause) -> None:
    follow_profiles(session, rollout, cause)
    desk.write_groups(session, [place for row in rows for place in places(rollout, row)], cause.now)


def _close(direction: Direction, rollout_id: str, event: Event, cause: Cause, revision: int | None = None) -> None:
    with direction.registry.sessions.begin() as session:
        _close_claimed(session, claim(session, direction.registry.tenant, rollout_id, revision), event, cause)


def _close_claimed(session: Session, rollout: Rollout, event: Event, cause: Cause) -> None:
    move_rollout(session, rollout, event, cause)
    for row in profiles_of(session, rollout):
        move(session, rollout, row, event, cause)


def _require_groups(session: Session, tenant: str, request: RolloutRequest) -> list[str]:
    groups = sorted(set(request.groups))
    if not groups:
        raise RolloutInputError("expected one group at least, got none: name groups with --group")
    try:
        require(request.slot, NAME_PATTERN, "slot")
    except UntrustedError as error:
        raise RolloutInputError(str(error)) from error
    for name in groups:
        catalog.require_group(session, tenant, name)
    return groups


def _releases(
    session: Session, tenant: str, request: RolloutRequest, groups: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return profile -> release for the profiles of the groups' devices, and profile -> why it is left out."""
    version = catalog.version_of(session, tenant, request.model, request.version)
    if version.state != catalog.READY:
        raise RolloutInputError(f"expected {request.model}@{request.version} READY, it is {version.state}")
    profiles = sorted({device.profile for group in groups for device in catalog.devices(session, tenant, group=group)})
    if not profiles:
        raise RolloutInputError(f"no device is enrolled in {', '.join(groups)}: enrol devices first")
    releases: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    for profile in profiles:
        try:
            release = catalog.release_of(session, tenant, request.model, request.version, profile)
        except (NotFoundError, ConflictError) as error:
            skipped[profile] = str(error)
            continue
        if _is_stable_everywhere(session, tenant, request.slot, groups, profile, release.sha256):
            skipped[profile] = f"{request.model}@{request.version} is stable there already"
        else:
            releases[profile] = msgspec.to_builtins(release)
    if not releases:
        why = "; ".join(f"{profile}: {reason}" for profile, reason in skipped.items())
        raise RolloutInputError(f"nothing to roll out: {why}")
    return releases, skipped


def _is_stable_everywhere(
    session: Session, tenant: str, slot: str, groups: Sequence[str], profile: str, sha256: str
) -> bool:
    stables = [session.get(SlotStable, (tenant, group, profile, slot)) for group in groups]
    return all(row is not None and row.release is not None and row.release["sha256"] == sha256 for row in stables)


def _require_free(
    session: Session, tenant: str, request: RolloutRequest, groups: list[str], profiles: list[str], cause: Cause
) -> None:
    """Refuse a second rollout on the same groups, profiles and slot, or supersede one that has not started."""
    for other in open_rollouts(session, tenant, request.slot, groups, profiles):
        if not request.supersede or (State(other.state), Event.SUPERSEDE) not in ROLLOUTS:
            raise RolloutConflictError(
                f"rollout {other.id} of {other.model}@{other.version} is {other.state} on the same groups, profiles and"
                f" slot {request.slot}: end it first"
            )
        _close_claimed(session, claim(session, tenant, other.id), Event.SUPERSEDE, cause)


def _pending(rollout: Rollout, profile: str, release: dict[str, Any]) -> RolloutProfile:
    return RolloutProfile(
        rollout=rollout.id,
        profile=profile,
        verdict=Verdict.PENDING.value,
        release=release,
        previous={},
        below=0,
        stage=0,
        baselines=[],
        unproven=[],
        evidence={},
    )


__all__ = [
    "Direction",
    "RolloutRequest",
    "approval_request",
    "approve",
    "cancel",
    "create",
    "expire",
    "find",
    "halt",
    "pause",
    "reject",
    "resume",
    "rollback",
    "start",
]
