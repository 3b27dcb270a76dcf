"""The route of the tenant's trust: who signs what, and what expires when."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Request

from modelfleet.policies.roles import Permission
from modelfleet.registry.auth import UserIdentity, registry_of, require
from modelfleet.registry.views import View
from modelfleet.signer.expiry import Level

router = APIRouter(prefix="/v1/trust", tags=["trust"])


class KeyView(View):
    """A key, by its id; `person` is an approver's."""

    keyid: str
    person: str | None


class RoleView(View):
    """A role: its keys, how many of them must sign, and for signed metadata its version and end."""

    role: str
    keys: list[KeyView]
    threshold: int
    version: int | None
    expires: datetime | None
    days_left: float | None
    level: Level


class ExpiryView(View):
    """When something ends; `level` is ok, warning or critical, `remedy` what to do."""

    kind: str
    name: str
    expires: datetime
    days_left: float
    level: Level
    remedy: str


class TrustView(View):
    """The tenant's trust; `level` is the worst of `expiries`, which come soonest first."""

    tenant: str
    epoch: int
    revoked: list[str]
    minimum_counter: dict[str, int]
    roles: list[RoleView]
    expiries: list[ExpiryView]
    level: Level


@router.get("/status")
def trust_status(
    request: Request, _reader: Annotated[UserIdentity, Depends(require(Permission.TRUST_READ))]
) -> TrustView:
    """Say who signs what, how many must, and until when it holds."""
    return TrustView.model_validate(registry_of(request).trust.status(datetime.now(UTC)))
