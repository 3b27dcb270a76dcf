"""The rollout's HTTP routes, and the fallback for devices that cannot hold MQTT; every route declares who may call it.

Endpoints are plain functions: they parse, call one function of `lifecycle`, publish what it wrote, and answer a view.
"""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, cast

import msgspec
from fastapi import APIRouter, Depends, Request, Response, status
from pydantic import BaseModel, Field
from sqlalchemy import select

from modelfleet.agent_client.protocol import device_topic, group_desired_topic
from modelfleet.policies.errors import ApprovalRefusedError, PlanError
from modelfleet.policies.roles import Permission
from modelfleet.registry.auth import DeviceIdentity, UserIdentity, current_device, registry_of, require
from modelfleet.registry.errors import UnauthenticatedError
from modelfleet.registry.problems import add_problem
from modelfleet.registry.small_body import Body, SmallBodyRoute
from modelfleet.registry.tables import Device
from modelfleet.rollout import errors
from modelfleet.rollout.changes import lifecycle
from modelfleet.rollout.controller import Controller
from modelfleet.rollout.tables import DesiredDocument, Rollout
from modelfleet.rollout.views import RolloutSummary, RolloutView, describe, summarise_many
from modelfleet.signer.desired import device_scope, group_scope
from modelfleet.signer.dsse import MAX_ENVELOPE_BYTES

MAX_MESSAGES = 200
MAX_BODY_BYTES = 4 * 1024 * 1024

add_problem(errors.RolloutNotFoundError, 404, "No such rollout")
add_problem(errors.RolloutInputError, 422, "Nothing to roll out as asked")
add_problem(errors.RolloutConflictError, 409, "Another rollout stands in the way")
add_problem(errors.TransitionError, 409, "Not possible in this state")
add_problem(errors.StaleRevisionError, 409, "Changed in between")
add_problem(errors.BrokerError, 503, "The broker did not answer")
add_problem(PlanError, 422, "The plan is refused")
add_problem(ApprovalRefusedError, 403, "The approval is refused")


class BoundedBodyRoute(SmallBodyRoute):
    """A route whose body may hold what a polling device has to say, and no more."""

    max_body_bytes = MAX_BODY_BYTES


router = APIRouter(prefix="/v1", route_class=BoundedBodyRoute)

Reader = Annotated[UserIdentity, Depends(require(Permission.ROLLOUTS_READ))]
Writer = Annotated[UserIdentity, Depends(require(Permission.ROLLOUTS_WRITE))]
Approving = Annotated[UserIdentity, Depends(require(Permission.ROLLOUTS_APPROVE))]
Operator = Annotated[UserIdentity, Depends(require(Permission.ROLLOUTS_CONTROL))]
FleetDevice = Annotated[DeviceIdentity, Depends(current_device)]


class NewRollout(Body):
    """A rollout to draft; `plan` holds what differs from the default plan."""

    model: str = Field(max_length=256)
    version: str = Field(max_length=64)
    slot: str = Field(max_length=64)
    groups: list[str] = Field(max_length=256)
    plan: dict[str, Any] | None = None
    supersede: bool = False
    emergency: bool = False
    reason: str = Field(default="", max_length=1024)


class Change(Body):
    """What is to be different in a rollout that has not started; null: stays."""

    plan: dict[str, Any] | None = None
    groups: list[str] | None = Field(default=None, max_length=256)


class NewApproval(Body):
    """A signed approval: the DSSE envelope as an object."""

    envelope: dict[str, Any]


class Reason(Body):
    """Why somebody does something; goes into the audit trail."""

    reason: str = Field(default="", max_length=1024)


class Steering(Reason):
    """Why, and which hardware profile alone; null: every one."""

    profile: str | None = Field(default=None, max_length=64)


class DeviceMessage(Body):
    """One message as it would be published over MQTT."""

    topic: str = Field(max_length=256)
    payload: str = Field(max_length=2 * MAX_ENVELOPE_BYTES)


class DeviceMessages(Body):
    """What a polling device has to say, oldest first."""

    messages: list[DeviceMessage] = Field(max_length=MAX_MESSAGES)


class Rollouts(BaseModel):
    """Rollouts, the newest first."""

    rollouts: list[RolloutSummary]


class Approved(BaseModel):
    """The rollout's state after an approval, and everybody who has approved."""

    state: str
    approved_by: list[str]


class Taken(BaseModel):
    """How many messages were taken; the others broke a rule and are dropped, so sending them again is of no use."""

    accepted: int


def controller_of(request: Request) -> Controller:
    """Return the controller that the composition root put on the app."""
    return cast("Controller", request.app.state.controller)


@router.post("/rollouts", status_code=status.HTTP_201_CREATED, tags=["rollouts"])
def create_rollout(request: Request, user: Writer, asked: NewRollout) -> RolloutView:
    """Draft a rollout; it waits for approval."""
    controller = controller_of(request)
    wanted = lifecycle.RolloutRequest(**asked.model_dump())
    made = lifecycle.create(controller.direction, wanted, author=user.name, now=_now())
    return _view(request, made)


@router.get("/rollouts", tags=["rollouts"])
def list_rollouts(request: Request, user: Reader, limit: int = 100) -> Rollouts:
    """List rollouts, the newest first."""
    query = select(Rollout).where(Rollout.tenant == user.tenant).order_by(Rollout.created_at.desc(), Rollout.id)
    with registry_of(request).sessions() as session:
        found = session.scalars(query.limit(max(1, min(limit, 1000))))
        return Rollouts(rollouts=summarise_many(session, list(found)))


@router.get("/rollouts/{rollout_id}", tags=["rollouts"])
def get_rollout(request: Request, user: Reader, rollout_id: str) -> RolloutView:  # noqa: ARG001
    """Return one rollout, with what its profiles wait for and the figures as they are now."""
    return _view(request, rollout_id)


@router.get("/rollouts/{rollout_id}/approval-request", tags=["rollouts"])
def get_approval_request(request: Request, user: Reader, rollout_id: str) -> dict[str, Any]:  # noqa: ARG001
    """Return the approval to sign: DSSE, payload type `application/vnd.modelfleet.approval+json`."""
    asked = lifecycle.approval_request(registry_of(request), rollout_id, _now())
    return msgspec.to_builtins(asked)


@router.post("/rollouts/{rollout_id}/approvals", status_code=status.HTTP_201_CREATED, tags=["rollouts"])
def approve_rollout(request: Request, user: Approving, rollout_id: str, given: NewApproval) -> Approved:
    """Record a person's signed approval; enough of them schedule the rollout, and one that runs goes on with it."""
    envelope = msgspec.json.encode(given.envelope)
    direction = controller_of(request).direction
    persons = lifecycle.approve(direction, rollout_id, envelope, actor=user.name, now=_now())
    return Approved(state=_published(request, rollout_id).state, approved_by=sorted(persons))


@router.post("/rollouts/{rollout_id}/start", tags=["rollouts"])
def start_rollout(request: Request, user: Operator, rollout_id: str) -> RolloutView:
    """Start an approved rollout with its canaries."""
    lifecycle.start(controller_of(request).direction, rollout_id, actor=user.name, now=_now())
    return _published(request, rollout_id)


@router.post("/rollouts/{rollout_id}/pause", tags=["rollouts"])
def pause_rollout(request: Request, user: Operator, rollout_id: str, why: Steering) -> RolloutView:
    """Advance no further until resumed."""
    return _steer(request, lifecycle.pause, user, rollout_id, why)


@router.post("/rollouts/{rollout_id}/resume", tags=["rollouts"])
def resume_rollout(request: Request, user: Operator, rollout_id: str, why: Steering) -> RolloutView:
    """Go on after a pause or a halt."""
    return _steer(request, lifecycle.resume, user, rollout_id, why)


@router.post("/rollouts/{rollout_id}/halt", tags=["rollouts"])
def halt_rollout(request: Request, user: Operator, rollout_id: str, why: Steering) -> RolloutView:
    """Let no further device start."""
    return _steer(request, lifecycle.halt, user, rollout_id, why)


@router.post("/rollouts/{rollout_id}/rollback", tags=["rollouts"])
def roll_back_rollout(request: Request, user: Operator, rollout_id: str, why: Steering) -> RolloutView:
    """Send every device back to the former release; also after completion."""
    return _steer(request, lifecycle.rollback, user, rollout_id, why)


@router.post("/rollouts/{rollout_id}/cancel", tags=["rollouts"])
def cancel_rollout(request: Request, user: Operator, rollout_id: str, why: Reason) -> RolloutView:
    """End a rollout: at once, or once every device that has the candidate is back."""
    return _act(request, lifecycle.cancel, user, rollout_id, why)


@router.post("/rollouts/{rollout_id}/reject", tags=["rollouts"])
def reject_rollout(request: Request, user: Approving, rollout_id: str, why: Reason) -> RolloutView:
    """Refuse the approval, which ends the rollout."""
    return _act(request, lifecycle.reject, user, rollout_id, why)


@router.post("/rollouts/{rollout_id}/withdraw", tags=["rollouts"])
def withdraw_approval(request: Request, user: Approving, rollout_id: str, why: Reason) -> RolloutView:
    """Take back one's own approval of a rollout that has not started."""
    return _act(request, lifecycle.withdraw, user, rollout_id, why)


@router.post("/rollouts/{rollout_id}/change", tags=["rollouts"])
def change_rollout(request: Request, user: Writer, rollout_id: str, asked: Change) -> RolloutView:
    """Change a rollout that has not started; every approval is void."""
    changes = lifecycle.RolloutChange(plan=asked.plan, groups=asked.groups)
    lifecycle.change(controller_of(request).direction, rollout_id, changes, actor=user.name, now=_now())
    return _view(request, rollout_id)


@router.get("/device/desired", tags=["device"])
def get_desired(request: Request, device: FleetDevice) -> Response:
    """Return the device's two signed documents, for a device that cannot hold MQTT; 304 where nothing changed."""
    documents, topics = _documents(request, device)
    body = b'{"group":%b,"assignment":%b,"topics":%b}' % (*documents, msgspec.json.encode(topics))
    etag = f'"{hashlib.sha256(body).hexdigest()}"'
    if etag in [part.strip() for part in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers={"ETag": etag})
    return Response(body, media_type="application/json", headers={"ETag": etag, "Cache-Control": "private, no-cache"})


@router.post("/device/messages", tags=["device"])
def post_messages(request: Request, device: FleetDevice, sent: DeviceMessages) -> Taken:
    """Take what a polling device would have published; only on its own topics."""
    messages = [(each.topic, each.payload.encode()) for each in sent.messages]
    return Taken(accepted=controller_of(request).ingest.accept(messages, _now(), only_device=device.device))


Action = Callable[..., None]


def _act(request: Request, action: Action, user: UserIdentity, rollout_id: str, why: Reason) -> RolloutView:
    action(controller_of(request).direction, rollout_id, actor=user.name, now=_now(), reason=why.reason)
    return _published(request, rollout_id)


def _steer(request: Request, action: Action, user: UserIdentity, rollout_id: str, why: Steering) -> RolloutView:
    direction = controller_of(request).direction
    action(direction, rollout_id, actor=user.name, now=_now(), reason=why.reason, profile=why.profile)
    return _published(request, rollout_id)


def _published(request: Request, rollout_id: str) -> RolloutView:
    controller_of(request).dispatch()
    return _view(request, rollout_id)


def _view(request: Request, rollout_id: str) -> RolloutView:
    registry = registry_of(request)
    with registry.sessions() as session:
        rollout = lifecycle.find(session, registry.tenant, rollout_id)
        return describe(session, rollout, _now())


def _documents(request: Request, identity: DeviceIdentity) -> tuple[tuple[bytes, bytes], dict[str, str]]:
    with registry_of(request).sessions() as session:
        device = session.get(Device, identity.device)
        if device is None:
            raise UnauthenticatedError("the device is unknown: enrol it again")
        scopes = (group_scope(device.group, device.profile), device_scope(device.id))
        rows = [session.get(DesiredDocument, (identity.tenant, scope)) for scope in scopes]
        topics = {
            "group": group_desired_topic(identity.tenant, device.group, device.profile),
            "assignment": device_topic(identity.tenant, device.id, "desired"),
        }
        group, assignment = (b"null" if row is None else row.envelope for row in rows)
        return (group, assignment), topics


def _now() -> datetime:
    return datetime.now(UTC)
