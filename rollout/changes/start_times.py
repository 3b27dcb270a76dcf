"""Whether a plan's times can be kept: it starts before it would expire, after a rollout that there is, and within a window."""

from datetime import datetime

from sqlalchemy.orm import Session

from modelfleet.policies.conditions import first_start
from modelfleet.policies.plan import Plan
from modelfleet.rollout.errors import RolloutInputError
from modelfleet.rollout.tables import Rollout


def require_time(plan: Plan, approve_by: datetime) -> None:
    """Return if the plan starts before the rollout would expire (RolloutInputError: it does not)."""
    if plan.start_at is not None and plan.start_at >= approve_by:
        raise RolloutInputError(
            f"expected start_at before {approve_by:%F %H:%M} UTC, when the rollout expires, got {plan.start_at:%F %H:%M}"
        )


def require_ahead(plan: Plan, now: datetime) -> None:
    """Return if the plan's start lies ahead (RolloutInputError: it is over, and approval would start the rollout at once)."""
    if plan.start_at is not None and plan.start_at < now:
        raise RolloutInputError(
            f"expected start_at after now, {now:%F %H:%M} UTC, got {plan.start_at:%F %H:%M}: leave it out to start by hand"
        )


def require_window(plan: Plan, now: datetime) -> None:
    """Return if devices may start before the deadline of a trial that begins now (RolloutInputError: none may)."""
    if plan.windows and first_start(plan.windows, now, plan.deadline_seconds) is None:
        raise RolloutInputError(
            f"no maintenance window opens within the plan's deadline of {plan.deadline_seconds:.0f} s from now: start it later"
        )


def require_former(session: Session, tenant: str, plan: Plan, but: str = "") -> None:
    """Return if the rollout that this one waits for is there, and is not itself (RolloutInputError: it is not)."""
    if not plan.start_after:
        return
    former = session.get(Rollout, plan.start_after)
    if former is None or former.tenant != tenant or former.id == but:
        raise RolloutInputError(
            f"expected start_after to name another rollout, got {plan.start_after[:64]!r}: see `modelfleet rollout list`"
        )
