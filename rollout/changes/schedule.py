"""When a rollout starts by itself.

`start_at` and `start_after` are part of the plan, so who approves it approves them. An approved rollout starts at the first tick
after that moment, and after the other rollout has completed on every profile; one that is approved later starts then. So groups
follow each other, each with a verdict of its own (decision 31). Nothing is stored beside the plan: a controller that was away
starts it when it is back.
"""

import logging
from datetime import datetime

from sqlalchemy.orm import Session

from modelfleet.policies.errors import ApprovalRefusedError
from modelfleet.policies.plan import Plan
from modelfleet.registry.errors import RegistryError
from modelfleet.rollout.changes import lifecycle
from modelfleet.rollout.changes.direction import Direction
from modelfleet.rollout.changes.transitions import CONTROLLER, claim, find, profiles_of
from modelfleet.rollout.errors import RolloutConflictError, RolloutInputError, TransitionError
from modelfleet.rollout.states import TERMINAL, State, Verdict
from modelfleet.rollout.tables import Rollout

ENDED_OTHERWISE = TERMINAL | {State.ROLLING_BACK, State.ROLLBACK_INCOMPLETE}

log = logging.getLogger(__name__)


def start_if_due(direction: Direction, rollout_id: str, plan: Plan, now: datetime) -> bool:
    """Start an approved rollout whose moment has come; whether it did. What stands in the way is told as its reason."""
    if not (plan.start_at or plan.start_after) or (plan.start_at is not None and now < plan.start_at):
        return False
    tenant = direction.registry.tenant
    with direction.registry.sessions() as session:
        if State(find(session, tenant, rollout_id).state) is not State.SCHEDULED:
            return False
        reason = _not_after(session, plan.start_after) if plan.start_after else None
    if reason is not None:
        if reason:
            _tell(direction, rollout_id, reason)
        return False
    try:
        lifecycle.start(direction, rollout_id, actor=CONTROLLER, now=now)
    except TransitionError:
        return False  # somebody else did meanwhile
    except (ApprovalRefusedError, RegistryError, RolloutConflictError, RolloutInputError) as error:
        _tell(direction, rollout_id, f"could not start by itself: {error}")
        return False
    log.info("rollout started by itself", extra={"rollout": rollout_id})
    return True


def _not_after(session: Session, former_id: str) -> str | None:
    """Return why a rollout does not start after that one, empty while it goes on; None: it has completed everywhere."""
    former = session.get(Rollout, former_id)
    if former is None:
        return f"does not start: rollout {former_id}, which it follows, is gone"
    if State(former.state) is State.COMPLETED:
        other = [row for row in profiles_of(session, former) if row.verdict != Verdict.COMPLETED]
        return None if not other else f"does not start: {other[0].profile} is {other[0].verdict} in rollout {former_id}"
    if State(former.state) in ENDED_OTHERWISE:
        return f"does not start: rollout {former_id}, which it follows, is {former.state}"
    return ""


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
