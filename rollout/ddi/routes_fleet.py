"""What people do with DDI devices: register them, make tokens, look at their actions, have one tried again."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, status
from pydantic import BaseModel, Field

from modelfleet.policies.roles import Permission
from modelfleet.registry.auth import UserIdentity, registry_of, require
from modelfleet.registry.small_body import Body, SmallBodyRoute
from modelfleet.registry.tables import Device
from modelfleet.rollout.ddi import tokens
from modelfleet.rollout.ddi.devices import SWU, ddi_devices, find_device, make_device
from modelfleet.rollout.ddi.retry import actions_since, forgive
from modelfleet.rollout.ddi.tables import DdiAction, DdiDevice, DdiToken

router = APIRouter(prefix="/v1/ddi", tags=["fleet"], route_class=SmallBodyRoute)

DeviceReader = Annotated[UserIdentity, Depends(require(Permission.DEVICES_READ))]
TokenWriter = Annotated[UserIdentity, Depends(require(Permission.CLAIM_TOKENS_WRITE))]
Operator = Annotated[UserIdentity, Depends(require(Permission.ROLLOUTS_CONTROL))]


class NewDdiDevice(Body):
    """A device to register: what it will call itself, where it belongs, and what it is sent: `swu` or `files`."""

    name: str = Field(max_length=128)
    group: str = Field(max_length=64)
    profile: str = Field(max_length=64)
    artifacts: str = Field(default=SWU, max_length=8)


class NewDdiToken(Body):
    """A token to make: of a device (its name or id), or of a group; `days` until it ends, none: never."""

    device: str | None = Field(default=None, max_length=128)
    group: str | None = Field(default=None, max_length=64)
    days: float | None = Field(default=None, gt=0, le=36600)


class Rotation(Body):
    """For how long the former token still works."""

    grace_hours: float = Field(default=24, ge=0, le=24 * 366)


class DdiDeviceView(BaseModel):
    """A DDI device; `id` is its name among all devices, `name` what it calls itself."""

    id: str
    name: str
    group: str
    profile: str
    artifacts: str
    online: bool
    polled_at: datetime | None
    attributes: Mapping[str, Any]


class DdiDevices(BaseModel):
    """DDI devices by name."""

    devices: list[DdiDeviceView]


class DdiTokenView(BaseModel):
    """A DDI token, named by the start of its hash; the token itself is not known."""

    id: str
    device: str | None
    group: str | None
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class DdiTokenCreated(DdiTokenView):
    """A new token, shown this once."""

    token: str


class DdiTokens(BaseModel):
    """DDI tokens, the newest first."""

    tokens: list[DdiTokenView]


class DdiActionView(BaseModel):
    """What a device was asked to install. `counts`: whether its word decides anything; it never signs it."""

    id: int
    slot: str
    model: str
    version: str
    rollout: str
    digest: str
    state: str
    reason: str
    counts: bool
    forgiven: bool
    opened_at: datetime
    seen_at: datetime | None
    fetched_at: datetime | None
    closed_at: datetime | None


class DdiActions(BaseModel):
    """A device's actions, the newest first."""

    actions: list[DdiActionView]


class Forgiven(BaseModel):
    """How many failed actions do not stand in the way any more."""

    forgiven: int


@router.post("/devices", status_code=status.HTTP_201_CREATED)
def create_device(request: Request, user: TokenWriter, asked: NewDdiDevice) -> DdiDeviceView:
    """Register a device that will poll; it needs a token of its own, or its group's."""
    registry = registry_of(request)
    with registry.sessions.begin() as session:
        row = make_device(
            session,
            user.tenant,
            registry.profiles,
            controller_id=asked.name,
            group=asked.group,
            profile=asked.profile,
            artifacts=asked.artifacts,
            actor=user.name,
            now=_now(),
        )
        view = _device_view(row, session.get_one(Device, row.device))
    for changed in registry.on_device_changed:
        changed(view.id)
    return view


@router.get("/devices")
def list_devices(request: Request, user: DeviceReader) -> DdiDevices:
    """List DDI devices."""
    with registry_of(request).sessions() as session:
        return DdiDevices(devices=[_device_view(*each) for each in ddi_devices(session, user.tenant)])


@router.get("/devices/{name}/actions")
def list_actions(request: Request, user: DeviceReader, name: str) -> DdiActions:
    """List what the device was asked to install, the newest first."""
    with registry_of(request).sessions() as session:
        row = find_device(session, user.tenant, name)
        return DdiActions(actions=[_action_view(each) for each in actions_since(session, row.device)])


@router.post("/devices/{name}/retry")
def retry(request: Request, user: Operator, name: str) -> Forgiven:
    """Let the device try again what it has failed to install."""
    with registry_of(request).sessions.begin() as session:
        row = find_device(session, user.tenant, name)
        return Forgiven(forgiven=forgive(session, row, actor=user.name, now=_now()))


@router.post("/tokens", status_code=status.HTTP_201_CREATED)
def create_token(request: Request, user: TokenWriter, asked: NewDdiToken) -> DdiTokenCreated:
    """Make a target or gateway token; the answer shows it this once."""
    with registry_of(request).sessions.begin() as session:
        token, row = tokens.make_token(
            session,
            user.tenant,
            device=asked.device,
            group=asked.group,
            days=asked.days,
            actor=user.name,
            now=_now(),
        )
        return DdiTokenCreated(token=token, **_token_view(row).model_dump())


@router.get("/tokens")
def list_tokens(request: Request, user: TokenWriter) -> DdiTokens:
    """List DDI tokens, also those that have ended."""
    with registry_of(request).sessions() as session:
        return DdiTokens(tokens=[_token_view(row) for row in tokens.tokens(session, user.tenant)])


@router.post("/tokens/{token_id}/rotate", status_code=status.HTTP_201_CREATED)
def rotate_token(request: Request, user: TokenWriter, token_id: str, asked: Rotation) -> DdiTokenCreated:
    """Make a token in place of another, which works on for a while."""
    grace = timedelta(hours=asked.grace_hours)
    with registry_of(request).sessions.begin() as session:
        token, row = tokens.rotate_token(session, user.tenant, token_id, grace=grace, actor=user.name, now=_now())
        return DdiTokenCreated(token=token, **_token_view(row).model_dump())


@router.post("/tokens/{token_id}/revoke")
def revoke_token(request: Request, user: TokenWriter, token_id: str) -> DdiTokenView:
    """Refuse the token from now on."""
    with registry_of(request).sessions.begin() as session:
        return _token_view(tokens.revoke_token(session, user.tenant, token_id, actor=user.name, now=_now()))


def _device_view(row: DdiDevice, device: Device) -> DdiDeviceView:
    return DdiDeviceView(
        id=device.id,
        name=row.controller_id,
        group=device.group,
        profile=device.profile,
        artifacts=row.artifacts,
        online=device.online,
        polled_at=row.polled_at,
        attributes=row.attributes,
    )


def _token_view(row: DdiToken) -> DdiTokenView:
    return DdiTokenView(
        id=row.sha256[: tokens.ID_CHARACTERS],
        device=row.device,
        group=row.group,
        created_by=row.created_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )


def _action_view(row: DdiAction) -> DdiActionView:
    return DdiActionView.model_validate(row, from_attributes=True)


def _now() -> datetime:
    return datetime.now(UTC)
