"""Routes of users."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Request, status
from pydantic import BaseModel, Field

from modelfleet.policies.roles import Permission, Role
from modelfleet.registry import people
from modelfleet.registry.auth import UserIdentity, current_user, registry_of, require
from modelfleet.registry.small_body import Body, SmallBodyRoute
from modelfleet.registry.views import UserCreated, UserView

router = APIRouter(prefix="/v1", tags=["people"], route_class=SmallBodyRoute)

UserReader = Annotated[UserIdentity, Depends(require(Permission.USERS_READ))]
UserWriter = Annotated[UserIdentity, Depends(require(Permission.USERS_WRITE))]


class NewUser(Body):
    """A user to make."""

    name: str = Field(min_length=1, max_length=128, pattern=r"^[^\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*$")
    role: Role


class Users(BaseModel):
    """Users by name."""

    users: list[UserView]


class Me(BaseModel):
    """Who the token belongs to."""

    name: str
    role: Role
    tenant: str


@router.get("/whoami")
def whoami(user: Annotated[UserIdentity, Depends(current_user)]) -> Me:
    """Say who the token belongs to; any user may ask."""
    return Me(name=user.name, role=Role(user.role), tenant=user.tenant)


@router.get("/users")
def list_users(request: Request, user: UserReader) -> Users:
    """List users."""
    with registry_of(request).sessions() as session:
        return Users(users=[UserView.model_validate(row) for row in people.users(session, user.tenant)])


@router.post("/users", status_code=status.HTTP_201_CREATED)
def create_user(request: Request, user: UserWriter, asked: NewUser) -> UserCreated:
    """Make a user; the answer shows the API token this once."""
    with registry_of(request).sessions.begin() as session:
        now = datetime.now(UTC)
        row, token = people.make_user(session, user.tenant, name=asked.name, role=asked.role, actor=user.name, now=now)
        return UserCreated(**UserView.model_validate(row).model_dump(), token=token)


@router.post("/users/{name}/disable")
def disable_user(request: Request, user: UserWriter, name: str) -> UserView:
    """Refuse the user's token from now on."""
    with registry_of(request).sessions.begin() as session:
        row = people.disable_user(session, user.tenant, name, actor=user.name, now=datetime.now(UTC))
        return UserView.model_validate(row)


@router.post("/users/{name}/enable")
def enable_user(request: Request, user: UserWriter, name: str) -> UserView:
    """Accept the user's token again."""
    with registry_of(request).sessions.begin() as session:
        row = people.enable_user(session, user.tenant, name, actor=user.name, now=datetime.now(UTC))
        return UserView.model_validate(row)


@router.post("/users/{name}/token")
def new_token(request: Request, user: UserWriter, name: str) -> UserCreated:
    """Make a new API token, shown this once; the former one ends."""
    with registry_of(request).sessions.begin() as session:
        row, token = people.new_token(session, user.tenant, name, actor=user.name, now=datetime.now(UTC))
        return UserCreated(**UserView.model_validate(row).model_dump(), token=token)
