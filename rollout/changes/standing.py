"""Whether a trial may still go on, apart from how the candidate does: its approvals, the trust policy, its time.

Devices check all three themselves and refuse; the server issues no documents that they would refuse. What the trust policy
revokes is taken back. Approvals that no longer suffice halt: who has the candidate keeps it, as devices do, and enough new
approvals let it be resumed. After the deadline no device starts, so a stage that went on would prove nothing: it halts.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from modelfleet.policies.errors import NotEnoughApprovalsError
from modelfleet.policies.plan import Plan
from modelfleet.rollout.changes.approvals import require_enough
from modelfleet.rollout.changes.validation import revoked
from modelfleet.rollout.states import Event
from modelfleet.rollout.tables import Rollout, RolloutProfile
from modelfleet.signer.statements import TrustPolicy


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """Why a trial may not go on, and what happens to it: ROLL_BACK or HALT."""

    event: Event
    reason: str


def obstacle(
    session: Session, rollout: Rollout, row: RolloutProfile, plan: Plan, policy: TrustPolicy, now: datetime
) -> Obstacle | None:
    """Return what stands in the way of a profile on trial, or None."""
    refused = revoked(row.release, policy)
    if refused is not None:
        return Obstacle(event=Event.ROLL_BACK, reason=refused)
    try:
        require_enough(session, rollout, policy, now)
    except NotEnoughApprovalsError as error:
        return Obstacle(event=Event.HALT, reason=f"devices would refuse it: {error}")
    assert row.trial_started_at is not None
    late = (now - row.trial_started_at).total_seconds() >= plan.deadline_seconds
    if late and row.stage <= plan.last_stage:
        return Obstacle(
            event=Event.HALT,
            reason=f"the plan's deadline of {plan.deadline_seconds:.0f} s passed: no device starts any more",
        )
    return None
