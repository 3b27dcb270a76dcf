"""Routes of groups, devices, claim tokens, and a device's own enrolment."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response, status
from pydantic import BaseModel, ConfigDict, Field

from modelfleet.policies.roles import Permission
from modelfleet.registry import catalog, people
from modelfleet.registry.auth import UserIdentity, registry_of, require
from modelfleet.registry.claims import MAX_SERIALS, claim_tokens, make_claim_token, revoke_claim_token
from modelfleet.registry.enroll import Enrolled, Enrolment, enroll
from modelfleet.registry.small_body import Body, SmallBodyRoute
from modelfleet.registry.views import ClaimTokenCreated, ClaimTokenView, DeviceView, GroupView, claim_token_view

router = APIRouter(prefix="/v1", tags=["fleet"], route_class=SmallBodyRoute)

GroupReader = Annotated[UserIdentity, Depends(require(Permission.GROUPS_READ))]
GroupWriter = Annotated[UserIdentity, Depends(require(Permission.GROUPS_WRITE))]
DeviceReader = Annotated[UserIdentity, Depends(require(Permission.DEVICES_READ))]
TokenWriter = Annotated[UserIdentity, Depends(require(Permission.CLAIM_TOKENS_WRITE))]


class NewGroup(Body):
    """A group to make."""

    name: str


class NewClaimToken(Body):
    """A claim token to make: for `uses` devices of `group`, valid for `hours`; with `serials`, for these only, each once."""

    group: str
    uses: int | None = Field(default=None, ge=1, le=1_000_000)
    hours: float = Field(default=24, gt=0, le=24 * 366)
    serials: list[str] = Field(default=[], max_length=MAX_SERIALS)


class EnrolmentRequest(Body):
    """What a device asks with; `csr` is a PKCS#10 request in PEM, of a P-256 key."""

    model_config = ConfigDict(extra="ignore")  # a newer agent may say more

    token: str = Field(max_length=256)
    csr: str = Field(max_length=8192)
    profile: str = Field(max_length=64)
    facts: dict[str, Any]
    agent: str = Field(max_length=64, pattern=r"^[ -~]*$")
    encryption_key: str | None = Field(default=None, max_length=1024)
    serial: str | None = Field(default=None, max_length=256)


class Groups(BaseModel):
    """Groups by name."""

    groups: list[GroupView]


class ClaimTokens(BaseModel):
    """Claim tokens, those that expire last first."""

    claim_tokens: list[ClaimTokenView]


class Devices(BaseModel):
    """A page of devices by id; `next` is null on the last one."""

    devices: list[DeviceView]
    next: str | None


@router.get("/groups")
def list_groups(request: Request, user: GroupReader) -> Groups:
    """List groups."""
    with registry_of(request).sessions() as session:
        return Groups(groups=[GroupView.model_validate(row) for row in catalog.groups(session, user.tenant)])


@router.post("/groups", status_code=status.HTTP_201_CREATED)
def create_group(request: Request, user: GroupWriter, asked: NewGroup) -> GroupView:
    """Make a group."""
    with registry_of(request).sessions.begin() as session:
        row = people.make_group(session, user.tenant, name=asked.name, actor=user.name, now=datetime.now(UTC))
        return GroupView.model_validate(row)


@router.get("/devices", response_model=Devices)
def list_devices(
    request: Request,
    user: DeviceReader,
    group: str | None = None,
    profile: str | None = None,
    after: Annotated[str, Query(max_length=36)] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """List enrolled devices by id; the next page comes with `after` set to the answer's `next`."""
    with registry_of(request).sessions() as session:
        fields = tuple(DeviceView.model_fields)
        found = catalog.device_page(
            session, user.tenant, fields, group=group, profile=profile, after=after, limit=limit
        )
    following = found[-1]["id"] if len(found) == limit else None
    devices = Devices.model_validate({"devices": found, "next": following})
    # Valid already: FastAPI would validate the whole page again, and encode it on the event loop.
    return Response(devices.model_dump_json(), media_type="application/json")


@router.post("/claim-tokens", status_code=status.HTTP_201_CREATED)
def create_claim_token(request: Request, user: TokenWriter, asked: NewClaimToken) -> ClaimTokenCreated:
    """Make a claim token; the answer shows it this once."""
    with registry_of(request).sessions.begin() as session:
        token, row = make_claim_token(
            session,
            user.tenant,
            group=asked.group,
            uses=asked.uses,
            hours=asked.hours,
            serials=asked.serials,
            actor=user.name,
            now=datetime.now(UTC),
        )
        return ClaimTokenCreated(token=token, group=row.group, uses=row.uses_left, expires_at=row.expires_at)


@router.get("/claim-tokens")
def list_claim_tokens(request: Request, user: TokenWriter) -> ClaimTokens:
    """List claim tokens, also used and expired ones; of the tokens themselves only the start of their hash is known."""
    with registry_of(request).sessions() as session:
        return ClaimTokens(claim_tokens=[claim_token_view(row) for row in claim_tokens(session, user.tenant)])


@router.post("/claim-tokens/{token_id}/revoke")
def revoke_token(request: Request, user: TokenWriter, token_id: str) -> ClaimTokenView:
    """Let no further device enrol with the token; those that have stay."""
    with registry_of(request).sessions.begin() as session:
        row = revoke_claim_token(session, user.tenant, token_id, actor=user.name, now=datetime.now(UTC))
        return claim_token_view(row)


@router.post("/enroll")
def enroll_device(request: Request, asked: EnrolmentRequest) -> Enrolled:
    """Make the asking device one of the fleet; the claim token in the body is the credential."""
    return enroll(registry_of(request), Enrolment(**asked.model_dump()), datetime.now(UTC))
