"""Approvals of a rollout: what is asked, what was signed, and whether it is enough.

An envelope is verified against the trust policy's approver keys and `policies.approval` before anything is stored; it is then
kept as a blob, byte by byte, since devices fetch it by its digest and check it again. What runs, or is stable, can be approved
anew before its approvals end: the documents then name the new ones beside the old.
"""

from dataclasses import replace
from datetime import datetime

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from modelfleet.policies.approval import APPROVAL_LIFE, SignedApproval, require_approved, require_covers
from modelfleet.policies.errors import NotEnoughApprovalsError
from modelfleet.registry.context import Registry
from modelfleet.rollout.changes.direction import Direction
from modelfleet.rollout.changes.transitions import Cause, claim, find, move_rollout, places, profiles_of, record
from modelfleet.rollout.desired.documents import Desk
from modelfleet.rollout.errors import RolloutInputError
from modelfleet.rollout.states import ON_TRIAL, ROLLOUTS, UNSTARTED, Event, State, Verdict, next_state
from modelfleet.rollout.tables import Rollout, RolloutApproval, SlotStable
from modelfleet.signer.dsse import verify_envelope
from modelfleet.signer.parse import parse_struct
from modelfleet.signer.statements import APPROVAL_PAYLOAD_TYPE, Approval, TrustPolicy, persons_required

MAX_NAMED = 16
"""How many approvals a release may name (`signer.desired.Release`)."""


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
        emergency=rollout.emergency_reason if rollout.emergency else msgspec.UNSET,
    )


def approve(direction: Direction, rollout_id: str, envelope: bytes, *, actor: str, now: datetime) -> frozenset[str]:
    """Record a signed approval, and schedule the rollout once enough persons approved; returns who has.

    One that runs, or has completed, is approved anew: its documents name the approval from then on.

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
        if State(rollout.state) in UNSTARTED:
            return _schedule_if_approved(session, rollout, policy, cause)
        return _renew(session, rollout, policy, direction.desk(), cause)


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
        persons = require_enough(session, rollout, policy, cause.now)
    except NotEnoughApprovalsError as error:
        _note(session, rollout, Event.APPROVE, replace(cause, reason=str(error)))
        return frozenset(each.person for each in _approvals(session, rollout, policy))
    rollout.approved_at = cause.now
    move_rollout(session, rollout, Event.APPROVE, cause)
    return persons


def _renew(session: Session, rollout: Rollout, policy: TrustPolicy, desk: Desk, cause: Cause) -> frozenset[str]:
    """Name the new approval wherever the release stands: on trial, and as the stable one that this rollout made."""
    kept = session.scalars(select(RolloutApproval).where(RolloutApproval.rollout == rollout.id))
    digests = sorted({row.envelope_sha256 for row in kept if row.keyid in policy.approvers})[:MAX_NAMED]
    changed: list[tuple[str, str]] = []
    for row in profiles_of(session, rollout):
        if Verdict(row.verdict) in ON_TRIAL | {Verdict.COMPLETED}:
            row.release = {**row.release, "approvals": digests}
            changed += places(rollout, row)
    mine = select(SlotStable).where(SlotStable.tenant == rollout.tenant, SlotStable.rollout == rollout.id)
    for stable in session.scalars(mine):
        if stable.release is not None and stable.release["version"] == rollout.version:
            stable.release = {**stable.release, "approvals": digests}
    _note(session, rollout, Event.APPROVE, cause)
    desk.write_groups(session, changed, cause.now)
    return frozenset(
        each.person for each in _approvals(session, rollout, policy) if cause.now < each.approval.not_after
    )


def withdraw(direction: Direction, rollout_id: str, *, actor: str, now: datetime, reason: str = "") -> None:
    """Take back the approval that `actor` gave; a rollout that then lacks approvals is no longer scheduled.

    Raises:
        TransitionError: it has started, or ended. RolloutInputError: this person has given none.
    """
    registry, policy = direction.registry, direction.registry.repository.policy()
    with registry.sessions.begin() as session:
        rollout = claim(session, registry.tenant, rollout_id)
        next_state(ROLLOUTS, State(rollout.state), Event.WITHDRAW)
        given = session.get(RolloutApproval, (rollout.id, actor))
        if given is None:
            raise RolloutInputError(f"expected an approval by {actor}, there is none: only who gave one withdraws it")
        cause = Cause(actor=actor, now=now, reason=reason, evidence={"envelope": given.envelope_sha256})
        session.delete(given)
        session.flush()
        try:
            require_enough(session, rollout, policy, now)
        except NotEnoughApprovalsError:
            rollout.approved_at = None
            move_rollout(session, rollout, Event.WITHDRAW, cause)
        else:
            _note(session, rollout, Event.WITHDRAW, cause)


def _note(session: Session, rollout: Rollout, event: Event, cause: Cause) -> None:
    """Record what happened without a change of state."""
    record(session, rollout, event, cause, before=rollout.state, after=rollout.state)


def require_enough(session: Session, rollout: Rollout, policy: TrustPolicy, now: datetime) -> frozenset[str]:
    """Return who approved, when these are enough (NotEnoughApprovalsError: they are not)."""
    given = _approvals(session, rollout, policy)
    required = persons_required(policy.approvals_required, emergency=rollout.emergency)
    return require_approved(given, rollout.author, required, now)


def _approvals(session: Session, rollout: Rollout, policy: TrustPolicy) -> list[SignedApproval]:
    """Return the recorded approvals whose key the trust policy still names."""
    query = select(RolloutApproval).where(RolloutApproval.rollout == rollout.id)
    return [
        SignedApproval(approval=msgspec.convert(row.approval, Approval), person=row.person, keyid=row.keyid)
        for row in session.scalars(query)
        if row.keyid in policy.approvers and policy.approvers[row.keyid].person == row.person
    ]


def approval_digests(session: Session, rollout: Rollout, policy: TrustPolicy, now: datetime) -> list[str]:
    """Return the digests of the envelopes that count now: what a release names."""
    valid = {each.keyid for each in _approvals(session, rollout, policy) if now < each.approval.not_after}
    query = select(RolloutApproval).where(RolloutApproval.rollout == rollout.id)
    return sorted({row.envelope_sha256 for row in session.scalars(query) if row.keyid in valid})
