"""Routes of webhooks: who is told of events, what was sent, and what came of it."""

from datetime import UTC, datetime
from typing import Annotated, cast

from fastapi import APIRouter, Depends, Query, Request, status
from pydantic import BaseModel, ConfigDict, Field

from modelfleet.policies.roles import Permission
from modelfleet.registry.auth import UserIdentity, registry_of, require
from modelfleet.registry.problems import add_problem
from modelfleet.registry.small_body import Body, SmallBodyRoute
from modelfleet.rollout import errors
from modelfleet.rollout.tables import WebhookDelivery
from modelfleet.rollout.webhooks import outbox
from modelfleet.rollout.webhooks.signature import WebhookKey

add_problem(errors.WebhookInputError, 422, "Not a webhook as asked")
add_problem(errors.WebhookNotFoundError, 404, "No such webhook")
add_problem(
    errors.WebhookKeyError,
    503,
    "The webhooks' key is damaged",
    detail="the operator finds the cause in the server's log",
)

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], route_class=SmallBodyRoute)

Reader = Annotated[UserIdentity, Depends(require(Permission.WEBHOOKS_READ))]
Writer = Annotated[UserIdentity, Depends(require(Permission.WEBHOOKS_WRITE))]


class NewWebhook(Body):
    """Who is to be told of what: patterns of event types, `rollout.*` for every transition of a rollout."""

    url: str = Field(max_length=1024)
    events: list[str] = Field(default=["rollout.*"], max_length=outbox.MAX_EVENTS)


class WebhookView(BaseModel):
    """An endpoint; its secret is shown when it is made or rotated, and never again."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    url: str
    events: list[str]
    created_by: str
    created_at: datetime


class WebhookWithSecret(WebhookView):
    """An endpoint and the secret with which its receiver verifies (`whsec_...`, Standard Webhooks)."""

    secret: str


class Webhooks(BaseModel):
    """Endpoints, the oldest first."""

    webhooks: list[WebhookView]


class DeliveryView(BaseModel):
    """One event on its way to an endpoint; `error` is why the last attempt failed, `next_at` when it is tried (again)."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    event: str
    state: str
    attempts: int
    error: str | None
    created_at: datetime
    next_at: datetime | None
    delivered_at: datetime | None


class Deliveries(BaseModel):
    """An endpoint's deliveries, the newest first."""

    deliveries: list[DeliveryView]


@router.post("", status_code=status.HTTP_201_CREATED)
def create_webhook(request: Request, user: Writer, asked: NewWebhook) -> WebhookWithSecret:
    """Add an endpoint; the answer shows its secret this once."""
    wanted = outbox.EndpointRequest(url=asked.url, events=asked.events)
    with registry_of(request).sessions.begin() as session:
        row = outbox.add_endpoint(session, user.tenant, wanted, actor=user.name, now=_now())
        return _with_secret(request, row)


@router.get("")
def list_webhooks(request: Request, user: Reader) -> Webhooks:
    """List endpoints."""
    with registry_of(request).sessions() as session:
        found = outbox.endpoints(session, user.tenant)
        return Webhooks(webhooks=[WebhookView.model_validate(row) for row in found])


@router.delete("/{webhook_id}", status_code=status.HTTP_204_NO_CONTENT)
def remove_webhook(request: Request, user: Writer, webhook_id: str) -> None:
    """Send nothing to an endpoint any more."""
    with registry_of(request).sessions.begin() as session:
        outbox.remove_endpoint(session, user.tenant, webhook_id, actor=user.name, now=_now())


@router.post("/{webhook_id}/rotate")
def rotate_webhook(request: Request, user: Writer, webhook_id: str) -> WebhookWithSecret:
    """Give an endpoint another secret; what is sent from now on is signed by it."""
    with registry_of(request).sessions.begin() as session:
        return _with_secret(
            request, outbox.rotate_secret(session, user.tenant, webhook_id, actor=user.name, now=_now())
        )


@router.post("/{webhook_id}/test", status_code=status.HTTP_202_ACCEPTED)
def try_webhook(request: Request, user: Writer, webhook_id: str) -> DeliveryView:
    """Send an endpoint a `webhook.test`; `deliveries` says what came of it."""
    with registry_of(request).sessions.begin() as session:
        found = outbox.try_endpoint(session, user.tenant, webhook_id, actor=user.name, now=_now())
        return _delivery(found)


@router.get("/{webhook_id}/deliveries")
def list_deliveries(
    request: Request, user: Reader, webhook_id: str, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> Deliveries:
    """List an endpoint's deliveries."""
    with registry_of(request).sessions() as session:
        found = outbox.deliveries(session, user.tenant, webhook_id, limit)
        return Deliveries(deliveries=[_delivery(row) for row in found])


@router.post("/deliveries/{delivery_id}/retry", status_code=status.HTTP_202_ACCEPTED)
def retry_delivery(request: Request, user: Writer, delivery_id: str) -> DeliveryView:
    """Try a delivery again from its first attempt on."""
    with registry_of(request).sessions.begin() as session:
        found = outbox.send_again(session, user.tenant, delivery_id, actor=user.name, now=_now())
        return _delivery(found)


def _delivery(row: WebhookDelivery) -> DeliveryView:
    shown = DeliveryView.model_validate(row)
    return shown if shown.state == outbox.PENDING else shown.model_copy(update={"next_at": None})


def _with_secret(request: Request, row: object) -> WebhookWithSecret:
    shown = WebhookView.model_validate(row)
    key = cast("WebhookKey", request.app.state.webhook_key)
    generation = cast("int", getattr(row, "generation", 1))
    return WebhookWithSecret(**shown.model_dump(), secret=key.secret(shown.id, generation))


def _now() -> datetime:
    return datetime.now(UTC)
