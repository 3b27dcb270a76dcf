"""HTTP routes that say what a rollout will cost: of a draft that is not stored (a dry run), and of a rollout that is there."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from sqlalchemy.orm import Session

from modelfleet.policies.plan import Plan, parse_plan
from modelfleet.policies.roles import Permission
from modelfleet.registry.auth import UserIdentity, registry_of, require
from modelfleet.registry.context import Registry
from modelfleet.registry.small_body import Body, SmallBodyRoute
from modelfleet.rollout.changes.start_times import require_window
from modelfleet.rollout.changes.transitions import find, open_rollouts, profiles_of
from modelfleet.rollout.changes.validation import offer, require_groups
from modelfleet.rollout.decisions.residual import residual_risk
from modelfleet.rollout.errors import RolloutConflictError
from modelfleet.rollout.forecast.estimate import Bandwidth, Forecast, forecast, in_a_hurry
from modelfleet.rollout.forecast.facts import Target, gather
from modelfleet.rollout.states import ON_TRIAL, Verdict
from modelfleet.rollout.tables import Rollout, RolloutProfile

MAX_BITS = 1e15

router = APIRouter(prefix="/v1/rollouts", tags=["rollouts"], route_class=SmallBodyRoute)

Reader = Annotated[UserIdentity, Depends(require(Permission.ROLLOUTS_READ))]
Speed = Annotated[float | None, Field(gt=0, le=MAX_BITS)]
AskedSpeed = Annotated[float | None, Query(gt=0, le=MAX_BITS)]


class Asked(Body):
    """A rollout as it would be drafted, and what the fleet's lines carry; bits a second, null: unknown."""

    model: str = Field(max_length=256)
    version: str = Field(max_length=64)
    slot: str = Field(max_length=64)
    groups: list[str] = Field(max_length=256)
    plan: dict[str, Any] | None = None
    supersede: bool = False
    emergency: bool = False
    bandwidth_bits_per_second: Speed = None
    device_bandwidth_bits_per_second: Speed = None


@router.post("/forecast")
def forecast_draft(request: Request, user: Reader, asked: Asked) -> Forecast:  # noqa: ARG001
    """Validate a rollout as it would be drafted, and say what it would cost; nothing is stored."""
    now, registry, plan = datetime.now(UTC), registry_of(request), parse_plan(asked.plan)
    bandwidth = Bandwidth(server=asked.bandwidth_bits_per_second, device=asked.device_bandwidth_bits_per_second)
    starts_at = max(now, plan.start_at or now)
    require_window(plan, starts_at)
    with registry.sessions() as session:
        groups = require_groups(session, registry.tenant, asked.slot, asked.groups)
        policy = registry.repository.policy()
        found = offer(session, registry.tenant, policy, asked.model, asked.version, asked.slot, groups)
        in_the_way = _conflicts(session, registry, asked.slot, groups, sorted(found.releases))
        facts = gather(
            session, Target(tenant=registry.tenant, slot=asked.slot, groups=groups), plan, found.releases, now
        )
    made = forecast(in_a_hurry(plan) if asked.emergency else plan, facts, starts_at, bandwidth)
    return _completed(made, plan, found.skipped, in_the_way, emergency=asked.emergency)


@router.get("/{rollout_id}/forecast")
def forecast_rollout(
    request: Request,
    user: Reader,  # noqa: ARG001
    rollout_id: str,
    bandwidth_bits_per_second: AskedSpeed = None,
    device_bandwidth_bits_per_second: AskedSpeed = None,
) -> Forecast:
    """Say what is left of a rollout: bytes, hours, and the earliest end of each stage that is not over."""
    now, registry = datetime.now(UTC), registry_of(request)
    bandwidth = Bandwidth(server=bandwidth_bits_per_second, device=device_bandwidth_bits_per_second)
    with registry.sessions() as session:
        rollout = find(session, registry.tenant, rollout_id)
        plan, rows = parse_plan(rollout.plan), _going_on(session, rollout)
        releases = {profile: row.release for profile, row in rows.items()}
        target = Target(tenant=registry.tenant, slot=rollout.slot, groups=rollout.groups)
        facts = gather(session, target, plan, releases, now, rows)
        others = _conflicts(session, registry, rollout.slot, rollout.groups, sorted(rows), but=rollout.id)
        starts_at = now if rollout.started_at is not None else max(now, plan.start_at or now)
        made = forecast(in_a_hurry(plan) if rollout.emergency else plan, facts, starts_at, bandwidth)
        return _completed(made, plan, rollout.skipped_profiles, others, emergency=rollout.emergency)


def _going_on(session: Session, rollout: Rollout) -> dict[str, RolloutProfile]:
    """Return the profiles that have stages before them."""
    ahead = ON_TRIAL | {Verdict.PENDING}
    found = {row.profile: row for row in profiles_of(session, rollout) if Verdict(row.verdict) in ahead}
    if not found:
        raise RolloutConflictError(f"rollout {rollout.id} is {rollout.state}: no stage of it lies ahead")
    return found


def _conflicts(
    session: Session, registry: Registry, slot: str, groups: Sequence[str], profiles: list[str], but: str = ""
) -> list[str]:
    found = open_rollouts(session, registry.tenant, slot, list(groups), profiles)
    return [
        f"rollout {other.id} of {other.model}@{other.version} is {other.state} on {', '.join(other.groups)}"
        for other in found
        if other.id != but
    ]


def _completed(
    made: Forecast, plan: Plan, skipped: Mapping[str, str], conflicts: Sequence[str], *, emergency: bool
) -> Forecast:
    devices = {each.profile: each.reach.devices for each in made.profiles}
    traffic = {
        each.profile: None if each.traffic is None else each.traffic.per_device_minute * each.reach.devices
        for each in made.profiles
    }
    risks = residual_risk(plan, devices, traffic, emergency=emergency)
    return replace(made, skipped_profiles=dict(skipped), conflicts=tuple(conflicts), not_proved=tuple(risks))
