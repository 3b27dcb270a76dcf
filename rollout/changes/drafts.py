"""What people draft: a rollout, and changes of one that has not started.

A draft is validated (`validation`) and then asks for approval; nothing is stored where it is not valid. A change is another
rollout to whoever approved it: it voids every approval, and who changed it is its author from then on.
"""

import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from modelfleet.policies.plan import Plan, parse_plan, plan_as_dict, plan_sha256
from modelfleet.rollout.changes.direction import Direction
from modelfleet.rollout.changes.start_times import require_ahead, require_former, require_time
from modelfleet.rollout.changes.succession import require_room
from modelfleet.rollout.changes.transitions import Cause, claim, move_rollout, profiles_of
from modelfleet.rollout.changes.validation import Offer, offer, require_groups
from modelfleet.rollout.errors import RolloutInputError
from modelfleet.rollout.states import Event, State, Verdict
from modelfleet.rollout.tables import Rollout, RolloutApproval, RolloutProfile
from modelfleet.signer.statements import TrustPolicy

START_WITHIN = timedelta(days=30)
"""A rollout that has not started by then expires."""
MAX_REASON = 1024


@dataclass(frozen=True, kw_only=True)
class RolloutRequest:
    """What somebody wants to roll out; `plan` is a JSON object or TOML, None for the default plan."""

    model: str
    version: str
    slot: str
    groups: Sequence[str]
    plan: Mapping[str, Any] | str | None = None
    supersede: bool = False
    """End rollouts that hold the same slot: those that wait at once, one that runs when this one starts."""
    emergency: bool = False
    """Skip bake times and waits for evidence, never a guardrail; two persons must approve, and `reason` is what they sign."""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class RolloutChange:
    """What is to be different in a rollout that has not started; None: stays."""

    plan: Mapping[str, Any] | str | None = None
    groups: Sequence[str] | None = None


def create(direction: Direction, request: RolloutRequest, *, author: str, now: datetime) -> str:
    """Draft a rollout, validate it, ask for approval, and return its id; nothing is stored where it is not valid.

    Raises:
        PlanError: the plan is refused. NotFoundError: no such version or group.
        RolloutInputError: the version is not READY, no profile of the groups' devices has anything to roll out, or an
            emergency has no reason.
        RolloutConflictError: another rollout is open on one of the groups, profiles and the slot.
    """
    registry, plan, policy = direction.registry, parse_plan(request.plan), direction.registry.repository.policy()
    _require_reason(request)
    require_ahead(plan, now)
    require_time(plan, now + START_WITHIN)
    with registry.sessions.begin() as session:
        require_former(session, registry.tenant, plan)
        groups = require_groups(session, registry.tenant, request.slot, request.groups)
        offered = offer(session, registry.tenant, policy, request.model, request.version, request.slot, groups)
        rollout = _draft(registry.tenant, request, groups, plan, author, now)
        session.add(rollout)
        session.flush()
        cause = Cause(actor=author, now=now, reason=rollout.emergency_reason)
        require_room(session, rollout, sorted(offered.releases), cause)
        _offer(session, rollout, offered)
        move_rollout(session, rollout, Event.VALIDATE, cause)
        move_rollout(session, rollout, Event.REQUEST_APPROVAL, cause)
        return rollout.id


def change(direction: Direction, rollout_id: str, changes: RolloutChange, *, actor: str, now: datetime) -> None:
    """Change a rollout that has not started: it is validated anew and asks for approval anew.

    Raises:
        TransitionError: it has started, or ended. RolloutInputError: nothing is to change. Others as `create`.
    """
    if changes.plan is None and changes.groups is None:
        raise RolloutInputError("expected another plan or other groups, got neither")
    registry, policy = direction.registry, direction.registry.repository.policy()
    with registry.sessions.begin() as session:
        rollout = claim(session, registry.tenant, rollout_id)
        voided = sorted(
            session.scalars(select(RolloutApproval.person).where(RolloutApproval.rollout == rollout.id).distinct())
        )
        cause = Cause(actor=actor, now=now, evidence={"voided": voided, "author": rollout.author})
        move_rollout(session, rollout, Event.CHANGE, cause)
        _rewrite(session, rollout, changes, policy, cause)
        move_rollout(session, rollout, Event.REQUEST_APPROVAL, Cause(actor=actor, now=now))


def _rewrite(session: Session, rollout: Rollout, changes: RolloutChange, policy: TrustPolicy, cause: Cause) -> None:
    """Void the approvals, and write what the rollout is from now on."""
    plan = parse_plan(rollout.plan if changes.plan is None else changes.plan)
    wanted = rollout.groups if changes.groups is None else changes.groups
    session.execute(delete(RolloutApproval).where(RolloutApproval.rollout == rollout.id))
    for row in profiles_of(session, rollout):
        session.delete(row)
    rollout.groups = require_groups(session, rollout.tenant, rollout.slot, wanted)
    rollout.plan, rollout.plan_sha256 = plan_as_dict(plan), plan_sha256(plan)
    rollout.author, rollout.approved_at, rollout.approve_by = cause.actor, None, cause.now + START_WITHIN
    require_time(plan, rollout.approve_by)
    require_former(session, rollout.tenant, plan, rollout.id)
    session.flush()
    found = offer(session, rollout.tenant, policy, rollout.model, rollout.version, rollout.slot, rollout.groups)
    require_room(session, rollout, sorted(found.releases), cause)
    _offer(session, rollout, found)


def _draft(tenant: str, request: RolloutRequest, groups: list[str], plan: Plan, author: str, now: datetime) -> Rollout:
    return Rollout(
        id=str(uuid.uuid4()),
        tenant=tenant,
        model=request.model,
        version=request.version,
        slot=request.slot,
        groups=groups,
        plan=plan_as_dict(plan),
        plan_sha256=plan_sha256(plan),
        author=author,
        salt=secrets.token_hex(16),
        state=State.DRAFT.value,
        skipped_profiles={},
        supersede=request.supersede or request.emergency,
        emergency=request.emergency,
        emergency_reason=request.reason.strip() if request.emergency else "",
        created_at=now,
        approve_by=now + START_WITHIN,
        revision=0,
    )


def _require_reason(request: RolloutRequest) -> None:
    if request.reason.strip() and not request.emergency:
        raise RolloutInputError(
            "expected a reason of an emergency only: what does the release belongs on its model card"
        )
    if request.emergency and not 0 < len(request.reason.strip()) <= MAX_REASON:
        raise RolloutInputError(
            f"expected why this is an emergency in 1 to {MAX_REASON} characters, got {len(request.reason.strip())}:"
            " it is what two persons sign"
        )


def _offer(session: Session, rollout: Rollout, found: Offer) -> None:
    rollout.skipped_profiles = dict(found.skipped)
    for profile, release in found.releases.items():
        session.add(_pending(rollout, profile, release))
    session.flush()


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
