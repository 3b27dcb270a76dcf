"""Whether a plan's times can be kept: it starts before it would expire, and a window opens before its deadline."""

from datetime import datetime

from modelfleet.policies.conditions import first_start
from modelfleet.policies.plan import Plan
from modelfleet.rollout.errors import RolloutInputError


def require_time(plan: Plan, approve_by: datetime) -> None:
    """Return if the plan starts before the rollout would expire (RolloutInputError: it does not)."""
    if plan.start_at is not None and plan.start_at >= approve_by:
        raise RolloutInputError(
            f"expected start_at before {approve_by:%F %H:%M} UTC, when the rollout expires, got {plan.start_at:%F %H:%M}"
        )


def require_window(plan: Plan, now: datetime) -> None:
    """Return if devices may start before the deadline of a trial that begins now (RolloutInputError: none may)."""
    if plan.windows and first_start(plan.windows, now, plan.deadline_seconds) is None:
        raise RolloutInputError(
            f"no maintenance window opens within the plan's deadline of {plan.deadline_seconds:.0f} s from now: start it later"
        )
