"""When a rollout starts by itself.

`start_at` is part of the plan, so who approves it approves the moment. An approved rollout starts at the first tick after it; one
that is approved later starts then. Nothing is stored beside the plan: a controller that was away starts it when it is back.
"""

import logging
from datetime import datetime

from modelfleet.policies.errors import ApprovalRefusedError
from modelfleet.policies.plan import Plan
from modelfleet.registry.errors import RegistryError
from modelfleet.rollout import lifecycle
from modelfleet.rollout.direction import Direction
from modelfleet.rollout.errors import RolloutConflictError, RolloutInputError, TransitionError
from modelfleet.rollout.states import State
from modelfleet.rollout.transitions import CONTROLLER, claim, find

log = logging.getLogger(__name__)


def is_due(plan: Plan, now: datetime) -> bool:
    """Whether the plan says that an approved rollout is to start now."""
    return plan.start_at is not None and plan.start_at <= now


def start_if_due(direction: Direction, rollout_id: str, plan: Plan, now: datetime) -> bool:
    """Start an approved rollout whose moment has come; whether it did. What stands in the way is told as its reason."""
    if not is_due(plan, now):
        return False
    tenant = direction.registry.tenant
    with direction.registry.sessions() as session:
        if State(find(session, tenant, rollout_id).state) is not State.SCHEDULED:
            return False
    try:
        lifecycle.start(direction, rollout_id, actor=CONTROLLER, now=now)
    except TransitionError:
        return False  # somebody else did meanwhile
    except (ApprovalRefusedError, RegistryError, RolloutConflictError, RolloutInputError) as error:
        _tell(direction, rollout_id, f"could not start at {plan.start_at:%F %H:%M} UTC: {error}")
        return False
    log.info("rollout started by itself", extra={"rollout": rollout_id, "start_at": str(plan.start_at)})
    return True


def _tell(direction: Direction, rollout_id: str, reason: str) -> None:
    """Keep why a rollout did not start, once."""
    registry = direction.registry
    with registry.sessions() as session:
        if find(session, registry.tenant, rollout_id).reason == reason:
            return
    with registry.sessions.begin() as session:
        rollout = claim(session, registry.tenant, rollout_id)
        if State(rollout.state) is State.SCHEDULED:
            rollout.reason = reason
    log.warning("rollout did not start by itself", extra={"rollout": rollout_id, "reason": reason})
