"""Endpoints, and what is to be sent to them: written in the transaction of the change that it tells of, or not at all."""

import fnmatch
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import select
from sqlalchemy.orm import Session

from modelfleet.registry import audit
from modelfleet.rollout.errors import WebhookInputError, WebhookNotFoundError
from modelfleet.rollout.states import Event
from modelfleet.rollout.tables import WebhookDelivery, WebhookEndpoint

MAX_ENDPOINTS = 32
MAX_EVENTS = 32
PENDING, DELIVERED, FAILED = "PENDING", "DELIVERED", "FAILED"
EVENTS = tuple(sorted(f"rollout.{event}" for event in Event))
"""Every type of event that is ever sent, beside `webhook.test`: a pattern that matches none would wait for ever."""
_EVENT = re.compile(r"[a-z*]+(?:[-.][a-z*]+)*")


@dataclass(frozen=True, kw_only=True)
class EndpointRequest:
    """An endpoint that somebody asks for; `events` are patterns of event types, such as `rollout.*`."""

    url: str
    events: Sequence[str] = ("rollout.*",)


def add_endpoint(
    session: Session, tenant: str, asked: EndpointRequest, *, actor: str, now: datetime
) -> WebhookEndpoint:
    """Add an endpoint to the session's transaction.

    Raises:
        WebhookInputError: the URL is none of https (or http), a pattern is none, or there are too many.
    """
    _require_url(asked.url)
    _require_events(asked.events)
    if len(endpoints(session, tenant)) >= MAX_ENDPOINTS:
        raise WebhookInputError(f"expected at most {MAX_ENDPOINTS} endpoints: remove one first")
    row = WebhookEndpoint(
        id=str(uuid.uuid4()),
        tenant=tenant,
        url=asked.url,
        events=sorted(set(asked.events)),
        generation=1,
        created_by=actor,
        created_at=now,
    )
    session.add(row)
    _note(session, row, "webhook.create", actor, now, {"url": row.url, "events": row.events})
    return row


def remove_endpoint(session: Session, tenant: str, endpoint: str, *, actor: str, now: datetime) -> None:
    """Send nothing to the endpoint any more (WebhookNotFoundError: there is none); what waited for it is given up."""
    row = find_endpoint(session, tenant, endpoint)
    row.removed_at = now
    waiting = select(WebhookDelivery).where(WebhookDelivery.endpoint == row.id, WebhookDelivery.state == PENDING)
    for delivery in session.scalars(waiting):
        delivery.state, delivery.error = FAILED, "the endpoint was removed"
    _note(session, row, "webhook.remove", actor, now, {"url": row.url})


def rotate_secret(session: Session, tenant: str, endpoint: str, *, actor: str, now: datetime) -> WebhookEndpoint:
    """Give the endpoint another secret from now on (WebhookNotFoundError: there is none)."""
    row = find_endpoint(session, tenant, endpoint)
    row.generation += 1
    _note(session, row, "webhook.rotate", actor, now, {"generation": row.generation})
    return row


def enqueue(session: Session, tenant: str, event: str, data: Mapping[str, Any], now: datetime) -> int:
    """Add a delivery to every endpoint that wants this type of event, in the session's transaction; how many.

    Args:
        event: the type, an action of the audit trail such as `rollout.halt`.
        data: JSON values; no secrets.
    """
    wanting = [row for row in endpoints(session, tenant) if wants(row.events, event)]
    if wanting:
        body = json.dumps({"type": event, "timestamp": now.isoformat(), "data": dict(data)}, default=str)
        for row in wanting:
            session.add(_delivery(row, event, body, now))
    return len(wanting)


def try_endpoint(session: Session, tenant: str, endpoint: str, *, actor: str, now: datetime) -> WebhookDelivery:
    """Send the endpoint a `webhook.test`, whatever it wants (WebhookNotFoundError: there is none)."""
    row = find_endpoint(session, tenant, endpoint)
    body = json.dumps({"type": "webhook.test", "timestamp": now.isoformat(), "data": {"asked_by": actor}})
    delivery = _delivery(row, "webhook.test", body, now)
    session.add(delivery)
    _note(session, row, "webhook.test", actor, now, {"delivery": delivery.id})
    return delivery


def send_again(session: Session, tenant: str, delivery: str, *, actor: str, now: datetime) -> WebhookDelivery:
    """Try a delivery again from its first attempt on (WebhookNotFoundError: there is none, or its endpoint is removed)."""
    row = session.get(WebhookDelivery, delivery)
    if row is None or row.tenant != tenant:
        raise WebhookNotFoundError(f"no delivery {delivery[:64]!r}: see `modelfleet webhooks deliveries`")
    endpoint = find_endpoint(session, tenant, row.endpoint)
    row.state, row.attempts, row.next_at, row.error = PENDING, 0, now, None
    _note(session, endpoint, "webhook.retry", actor, now, {"delivery": row.id})
    return row


def endpoints(session: Session, tenant: str) -> Sequence[WebhookEndpoint]:
    """Return the tenant's endpoints, the oldest first."""
    query = select(WebhookEndpoint).where(WebhookEndpoint.tenant == tenant, WebhookEndpoint.removed_at.is_(None))
    return session.scalars(query.order_by(WebhookEndpoint.created_at, WebhookEndpoint.id)).all()


def deliveries(session: Session, tenant: str, endpoint: str, limit: int) -> Sequence[WebhookDelivery]:
    """Return an endpoint's deliveries, the newest first (WebhookNotFoundError: there is no such endpoint)."""
    row = find_endpoint(session, tenant, endpoint)
    query = select(WebhookDelivery).where(WebhookDelivery.endpoint == row.id)
    return session.scalars(query.order_by(WebhookDelivery.created_at.desc(), WebhookDelivery.id).limit(limit)).all()


def find_endpoint(session: Session, tenant: str, endpoint: str) -> WebhookEndpoint:
    """Return the endpoint (WebhookNotFoundError: there is none in this tenant)."""
    row = session.get(WebhookEndpoint, endpoint)
    if row is None or row.tenant != tenant or row.removed_at is not None:
        raise WebhookNotFoundError(f"no webhook {endpoint[:64]!r}: see `modelfleet webhooks list`")
    return row


def wants(patterns: Sequence[str], event: str) -> bool:
    """Whether one of the patterns (`*` stands for anything) matches the type of event."""
    return any(fnmatch.fnmatchcase(event, pattern) for pattern in patterns)


def _delivery(row: WebhookEndpoint, event: str, body: str, now: datetime) -> WebhookDelivery:
    return WebhookDelivery(
        id=f"msg_{uuid.uuid4().hex}",
        tenant=row.tenant,
        endpoint=row.id,
        event=event,
        body=body,
        state=PENDING,
        attempts=0,
        created_at=now,
        next_at=now,
    )


def _require_url(url: str) -> None:
    try:
        found = urlsplit(url)
        usable = found.scheme in ("https", "http") and bool(found.hostname) and found.port != 0
    except ValueError:
        usable = False
    else:
        usable = usable and not found.username and not found.password and not found.fragment
    if not usable or len(url) > 1024:
        raise WebhookInputError(f"expected an https URL without a user name, got {url[:80]!r}")


def _require_events(events: Sequence[str]) -> None:
    if not 1 <= len(events) <= MAX_EVENTS:
        raise WebhookInputError(f"expected 1 to {MAX_EVENTS} patterns of events, such as rollout.*, got {len(events)}")
    for pattern in events:
        if len(pattern) > 64 or _EVENT.fullmatch(pattern) is None:
            raise WebhookInputError(f"expected a pattern such as rollout.* or rollout.roll-back, got {pattern[:80]!r}")
        if not any(wants([pattern], event) for event in EVENTS):
            raise WebhookInputError(f"{pattern} matches no event: expected some of {', '.join(EVENTS)}")


def _note(
    session: Session, row: WebhookEndpoint, action: str, actor: str, now: datetime, detail: Mapping[str, Any]
) -> None:
    audit.append(
        session, tenant=row.tenant, actor=actor, action=action, subject=f"webhook/{row.id}", detail=detail, now=now
    )
