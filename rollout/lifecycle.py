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
from sqlalchemy import select
from sqlalchemy.orm import Session

from modelfleet.policies.approval import SignedApproval, require_approved, require_covers
from modelfleet.policies.errors import NotEnoughApprovalsError
from modelfleet.policies.plan import parse_plan, plan_as_dict, plan_sha256
from modelfleet.registry import catalog
from modelfleet.registry.context import Registry
from modelfleet.registry.errors import ConflictError, NotFoundError
from modelfleet.rollout.documents import Desk
from modelfleet.rollout.errors import RolloutConflictError, RolloutInputError, RolloutNotFoundError, TransitionError
from modelfleet.rollout.states import ROLLOUTS, VERDICTS, Event, State, Verdict, next_state, resume_event
from modelfleet.rollout.tables import Rollout, RolloutApproval, RolloutProfile, SlotStable
from modelfleet.rollout.transitions import (
    Cause,
    claim,
    follow_profiles,
    move,
    move_rollout,
    open_rollouts,
    places,
    profiles_of,
    record,
    require_stable,
)
from modelfleet.signer.dsse import verify_envelope
from modelfleet.signer.errors import UntrustedError
from modelfleet.signer.keys import Signer
from modelfleet.signer.names import NAME_PATTERN, require
from modelfleet.signer.parse import parse_struct
from modelfleet.signer.statements import APPROVAL_PAYLOAD_TYPE, Approval, TrustPolicy

APPROVAL_LIFE = timedelta(days=180)
START_WITHIN = timedelta(days=30)
"""A rollout that has not started by then expires."""


@dataclass(frozen=True, kw_only=True)
class Direction:
    """What changing rollouts needs: the registry, and the director's key for the documents."""

    registry: Registry
    director: Signer

    def desk(self) -> Desk:
        """Return what writes documents under the trust policy as it is now."""
        return Desk(self.registry.tenant, self.director, self.registry.repository.policy().epoch)


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


def approval_request(registry: Registry, rollout_id: str, now: datetime) -> Approval:
    """Return what a person is asked to sign: exactly what the rollout would do.

    Raises:
        RolloutNotFoundError: there is no such rollout. TransitionError: it does not wait for approval.
    """
    with registry.sessions() as session:
        rollout = find(session, registry.tenant, rollout_id)
        next_state(ROLLOUTS, State(rollout.state), Event.APPROVE)
        return expected_approval(session, rollout, now)


def expected_approval(session: Session, rollout: Rollout, now: datetime) -> Approval:
    """Return the approval that covers this rollout, issued now."""
    return Approval(
        tenant=rollout.tenant,
        model=rollout.model,
        version=rollout.version,
        releases={row.profile: row.release["sha256"] for row in profiles_of(session, rollout)},
        groups=tuple(rollout.groups),
        plan_sha256=rollout.plan_sha256,
        author=rollout.author,
        issued=now,
        not_after=now + APPROVAL_LIFE,
    )


def approve(direction: Direction, rollout_id: str, envelope: bytes, *, actor: str, now: datetime) -> frozenset[str]:
    """Record a signed approval, and schedule the rollout once enough persons approved; returns who has.

    Args:
        direction: registry and director.
        rollout_id: which rollout.
        envelope: DSSE over `Approval`, by a key that the trust policy names as an approver's.
        actor: whose request this is; what counts is the key's person.
        now: aware.

    Raises:
        UntrustedError: malformed, or not signed by an approver. ApprovalRefusedError: by the author, or of something else.
        TransitionError: the rollout does not wait for approval.
    """
    registry, policy = direction.registry, direction.registry.repository.policy()
    payload, keyids = verify_envelope(envelope, APPROVAL_PAYLOAD_TYPE, {k: a.key for k, a in policy.approvers.items()})
    approval = parse_struct(payload, Approval)
    with registry.sessions() as session:  # refused before the blob is stored
        _require_approvable(session, find(session, registry.tenant, rollout_id), approval, keyids, policy, now)
    sha256 = registry.store.put(envelope)
    with registry.sessions.begin() as session:
        rollout = claim(session, registry.tenant, rollout_id)
        given = _require_approvable(session, rollout, approval, keyids, policy, now)
        for each in given:
            session.merge(_approval_row(rollout, each, sha256, now))
        session.flush()
        cause = Cause(actor=actor, now=now, evidence={"envelope": sha256, "persons": sorted(a.person for a in given)})
        return _schedule_if_approved(session, rollout, policy, cause)


def start(direction: Direction, rollout_id: str, *, actor: str, now: datetime) -> None:
    """Put every profile's candidate before its canaries.

    Raises:
        TransitionError: the rollout is not scheduled. NotEnoughApprovalsError: approvals have expired or were withdrawn.
    """
    registry, policy, desk = direction.registry, direction.registry.repository.policy(), direction.desk()
    with registry.sessions.begin() as session:
        rollout = claim(session, registry.tenant, rollout_id)
        next_state(ROLLOUTS, State(rollout.state), Event.START)
        persons = _require_enough(session, rollout, policy, now)
        rollout.started_at = now
        cause = Cause(actor=actor, now=now, evidence={"approved_by": sorted(persons)})
        rows = profiles_of(session, rollout)
        for row in rows:
            row.release = {**row.release, "approvals": _approval_digests(session, rollout, policy, now)}
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


def find(session: Session, tenant: str, rollout_id: str) -> Rollout:
    """Return the rollout (RolloutNotFoundError: there is none in this tenant)."""
    found = session.get(Rollout, rollout_id)
    if found is None or found.tenant != tenant:
        raise RolloutNotFoundError(f"no rollout {rollout_id[:64]!r}: see `modelfleet rollout list`")
    return found


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


def _require_approvable(
    session: Session,
    rollout: Rollout,
    approval: Approval,
    keyids: frozenset[str],
    policy: TrustPolicy,
    now: datetime,
) -> list[SignedApproval]:
    next_state(ROLLOUTS, State(rollout.state), Event.APPROVE)
    expected = expected_approval(session, rollout, now)
    given = [SignedApproval(approval=approval, person=policy.approvers[k].person, keyid=k) for k in sorted(keyids)]
    for each in given:
        require_covers(each, expected, now)
    return given


def _approval_row(rollout: Rollout, given: SignedApproval, sha256: str, now: datetime) -> RolloutApproval:
    return RolloutApproval(
        rollout=rollout.id,
        person=given.person,
        envelope_sha256=sha256,
        keyid=given.keyid,
        approval=msgspec.to_builtins(given.approval),
        approved_at=now,
    )


def _schedule_if_approved(session: Session, rollout: Rollout, policy: TrustPolicy, cause: Cause) -> frozenset[str]:
    try:
        persons = _require_enough(session, rollout, policy, cause.now)
    except NotEnoughApprovalsError as error:
        waiting = Cause(actor=cause.actor, now=cause.now, reason=str(error), evidence=cause.evidence)
        record(session, rollout, Event.APPROVE, waiting, before=rollout.state, after=rollout.state)
        return frozenset(each.person for each in _approvals(session, rollout, policy))
    rollout.approved_at = cause.now
    move_rollout(session, rollout, Event.APPROVE, cause)
    return persons


def _require_enough(session: Session, rollout: Rollout, policy: TrustPolicy, now: datetime) -> frozenset[str]:
    given = _approvals(session, rollout, policy)
    return require_approved(given, rollout.author, policy.approvals_required, now)


def _approvals(session: Session, rollout: Rollout, policy: TrustPolicy) -> list[SignedApproval]:
    """Return the recorded approvals whose key the trust policy still names."""
    query = select(RolloutApproval).where(RolloutApproval.rollout == rollout.id)
    return [
        SignedApproval(approval=msgspec.convert(row.approval, Approval), person=row.person, keyid=row.keyid)
        for row in session.scalars(query)
        if row.keyid in policy.approvers and policy.approvers[row.keyid].person == row.person
    ]


def _approval_digests(session: Session, rollout: Rollout, policy: TrustPolicy, now: datetime) -> list[str]:
    valid = {each.keyid for each in _approvals(session, rollout, policy) if now < each.approval.not_after}
    query = select(RolloutApproval).where(RolloutApproval.rollout == rollout.id)
    return sorted({row.envelope_sha256 for row in session.scalars(query) if row.keyid in valid})
