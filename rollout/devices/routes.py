"""HTTP routes about a rollout's devices, one by one: where each stands, and asking them to try again."""

from datetime import UTC, datetime
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, Field

from modelfleet.policies.roles import Permission
from modelfleet.registry.auth import UserIdentity, registry_of, require
from modelfleet.registry.small_body import Body, SmallBodyRoute
from modelfleet.rollout.changes.transitions import find
from modelfleet.rollout.controller import Controller
from modelfleet.rollout.desired.retries import MAX_ASKED, retry
from modelfleet.rollout.devices.listing import count_standings, device_page
from modelfleet.rollout.devices.standing import MAX_PAGE, Standing
from modelfleet.rollout.errors import RolloutInputError

router = APIRouter(prefix="/v1/rollouts", tags=["rollouts"], route_class=SmallBodyRoute)

Reader = Annotated[UserIdentity, Depends(require(Permission.ROLLOUTS_READ))]
Operator = Annotated[UserIdentity, Depends(require(Permission.ROLLOUTS_CONTROL))]


class DeviceView(BaseModel):
    """Where one device of a rollout stands; `offline_since` is set where it is offline."""

    device: str
    group: str
    profile: str
    standing: Standing
    state: str | None
    error: dict[str, Any] | None
    retries: int
    started_at: datetime | None
    heard_at: datetime | None
    offline_since: datetime | None


class DevicePage(BaseModel):
    """A page of devices by id; `next` is what to give as `after` for the one that follows, null on the last.

    One of a rare standing may be short, or empty, and yet not be the last.
    """

    devices: list[DeviceView]
    next: str | None


class StandingCounts(BaseModel):
    """How many devices of a rollout stand where."""

    counts: dict[Standing, int]


class RetryAsked(Body):
    """Whom to ask to try again: these devices, or every one that failed."""

    devices: list[Annotated[str, Field(max_length=64)]] = Field(default=[], max_length=MAX_ASKED)
    all_failed: bool = False
    reason: str = Field(default="", max_length=1024)


class RetryAnswer(BaseModel):
    """Who was asked; who had been asked three times; who has not failed. `more`: others failed, too, ask again."""

    asked: list[str]
    exhausted: list[str]
    not_failed: list[str]
    more: bool


@router.get("/{rollout_id}/devices")
def list_devices(
    request: Request,
    user: Reader,
    rollout_id: str,
    state: Annotated[list[Standing], Query()] = [],  # noqa: B006 - FastAPI copies it
    profile: str | None = None,
    after: str = "",
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
) -> DevicePage:
    """List where the rollout's devices stand, by id."""
    with registry_of(request).sessions() as session:
        rollout = find(session, user.tenant, rollout_id)
        found = device_page(session, rollout, standings=state, profile=profile, after=after, limit=limit)
    return DevicePage(devices=[DeviceView(**vars(each)) for each in found.devices], next=found.after)


@router.get("/{rollout_id}/devices/count")
def count_devices(request: Request, user: Reader, rollout_id: str) -> StandingCounts:
    """Count the rollout's devices by where they stand."""
    with registry_of(request).sessions() as session:
        counts = count_standings(session, find(session, user.tenant, rollout_id))
    return StandingCounts(counts={Standing(name): number for name, number in counts.items()})


@router.post("/{rollout_id}/retry")
def retry_devices(request: Request, user: Operator, rollout_id: str, asked: RetryAsked) -> RetryAnswer:
    """Ask devices to try again what they refused or could not install."""
    if asked.all_failed == bool(asked.devices):
        raise RolloutInputError("expected devices, or all_failed, and not both")
    controller = cast("Controller", request.app.state.controller)
    done = retry(
        controller.direction,
        rollout_id,
        devices=asked.devices,
        actor=user.name,
        now=datetime.now(UTC),
        reason=asked.reason,
    )
    controller.dispatch()
    return RetryAnswer(
        asked=list(done.asked), exhausted=list(done.exhausted), not_failed=list(done.not_failed), more=done.more
    )
