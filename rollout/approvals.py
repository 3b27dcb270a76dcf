"""Approvals of a rollout: what is asked, what was signed, and whether it is enough.

An envelope is verified against the trust policy's approver keys and `policies.approval` before anything is stored; it is then
kept as a blob, byte by byte, since devices fetch it by its digest and check it again.
"""

from datetime import datetime, timedelta

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from modelfleet.policies.approval import SignedApproval, require_approved, require_covers
from modelfleet.policies.errors import NotEnoughApprovalsError
from modelfleet.registry.context import Registry
from modelfleet.rollout.direction import Direction
from modelfleet.rollout.states import ROLLOUTS, Event, State, next_state
from modelfleet.rollout.tables import Rollout, RolloutApproval
from modelfleet.rollout.transitions import Cause, claim, find, move_rollout, profiles_of, record
from modelfleet.signer.dsse import verify_envelope
from modelfleet.signer.parse import parse_struct
from modelfleet.signer.statements import APPROVAL_PAYLOAD_TYPE, Approval, TrustPolicy

APPROVAL_LIFE = timedelta(days=180)


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
        waiting = Cause(actor=cause.actor, now=cause.now, reason=str(error), evidence=cause.evidence)
        record(session, rollout, Event.APPROVE, waiting, before=rollout.state, after=rollout.state)
        return frozenset(each.person for each in _approvals(session, rollout, policy))
    rollout.approved_at = cause.now
    move_rollout(session, rollout, Event.APPROVE, cause)
    return persons


def require_enough(session: Session, rollout: Rollout, policy: TrustPolicy, now: datetime) -> frozenset[str]:
    """Return who approved, when these are enough (NotEnoughApprovalsError: they are not)."""
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


def approval_digests(session: Session, rollout: Rollout, policy: TrustPolicy, now: datetime) -> list[str]:
    """Return the digests of the envelopes that count now: what a release names."""
    valid = {each.keyid for each in _approvals(session, rollout, policy) if now < each.approval.not_after}
    query = select(RolloutApproval).where(RolloutApproval.rollout == rollout.id)
    return sorted({row.envelope_sha256 for row in session.scalars(query) if row.keyid in valid})
