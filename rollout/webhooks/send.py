"""Sending what the outbox holds: each delivery at least once, under one id, with longer and longer pauses between attempts.

A delivery is claimed by compare-and-set before it is sent, so that of several processes one sends it; whoever dies in between
leaves it to the next after a minute. Private and loopback addresses are refused unless they are allowed, and what the name
resolved to when that was checked is what is connected to: an endpoint's URL must not reach into the operator's network.
"""

import ipaddress
import logging
import random
import socket
import ssl
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast
from urllib.parse import urlsplit

import urllib3
from sqlalchemy import CursorResult, select, update
from sqlalchemy.orm import Session, sessionmaker
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from modelfleet.rollout.errors import WebhookDeliveryError
from modelfleet.rollout.tables import WebhookDelivery, WebhookEndpoint
from modelfleet.rollout.webhooks.outbox import DELIVERED, FAILED, PENDING
from modelfleet.rollout.webhooks.signature import WebhookKey, sign

PAUSES_SECONDS = (5, 60, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""After each failed attempt; after the last one a delivery is given up: three days in all (Standard Webhooks, retry schedule)."""
LEASE = timedelta(seconds=60)
TIMEOUT_SECONDS = 10.0
AT_ONCE = 4
"""Claimed together and sent side by side, so that none waits for its turn while its lease runs out."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """A delivery that is ours for a minute."""

    id: str
    url: str
    secret: str
    body: bytes
    attempts: int


class Sender:
    """Sends one tenant's deliveries.

    Args:
        private: whether endpoints may lie at private and loopback addresses.
        jitter: uniform in 0..1; spreads the pauses.
    """

    def __init__(
        self,
        sessions: sessionmaker[Session],
        tenant: str,
        key: WebhookKey,
        *,
        private: bool = False,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._sessions, self._tenant, self._key, self._private = sessions, tenant, key, private
        self._jitter = jitter

    def send_due(self, now: datetime) -> int:
        """Send what is due, `AT_ONCE` at most, and note at once what came of each; how many were sent."""
        claimed = [found for name in self._due(now) if (found := self._claim(name, now)) is not None]
        if not claimed:
            return 0
        with ThreadPoolExecutor(len(claimed), thread_name_prefix="webhook") as pool:
            for done in [pool.submit(self._deliver, each, now) for each in claimed]:
                done.result()
        return len(claimed)

    def _deliver(self, each: Claimed, now: datetime) -> None:
        self._note(each, self._send(each, now), now)

    def _due(self, now: datetime) -> Sequence[str]:
        query = select(WebhookDelivery.id).where(
            WebhookDelivery.tenant == self._tenant, WebhookDelivery.state == PENDING, WebhookDelivery.next_at <= now
        )
        with self._sessions() as session:
            return session.scalars(query.order_by(WebhookDelivery.next_at).limit(AT_ONCE)).all()

    def _claim(self, delivery: str, now: datetime) -> Claimed | None:
        """Take the delivery for a minute, unless somebody else has it."""
        with self._sessions.begin() as session:
            taken = session.execute(
                update(WebhookDelivery)
                .where(WebhookDelivery.id == delivery, WebhookDelivery.state == PENDING, WebhookDelivery.next_at <= now)
                .values(next_at=now + LEASE, attempts=WebhookDelivery.attempts + 1)
            )
            if cast("CursorResult[Any]", taken).rowcount != 1:
                return None
            row = session.get_one(WebhookDelivery, delivery, populate_existing=True)
            endpoint = session.get_one(WebhookEndpoint, row.endpoint)
            return Claimed(
                id=row.id,
                url=endpoint.url,
                secret=self._key.secret(endpoint.id, endpoint.generation),
                body=row.body.encode(),
                attempts=row.attempts,
            )

    def _send(self, each: Claimed, now: datetime) -> str | None:
        """Send it; why it did not arrive, or None."""
        try:
            post(each.url, each.body, sign(each.secret, each.id, now, each.body), private=self._private)
        except WebhookDeliveryError as error:
            return str(error)
        return None

    def _note(self, each: Claimed, error: str | None, now: datetime) -> None:
        with self._sessions.begin() as session:
            row = session.get_one(WebhookDelivery, each.id)
            row.error = error
            if error is None:
                row.state, row.delivered_at = DELIVERED, now
            elif each.attempts > len(PAUSES_SECONDS):
                row.state = FAILED
            else:
                pause = PAUSES_SECONDS[each.attempts - 1] * (0.9 + 0.2 * self._jitter())
                row.next_at = now + timedelta(seconds=pause)
        if error is not None:
            extra = {"delivery": each.id, "attempt": each.attempts, "error": error}
            log.warning("a webhook was not delivered", extra=extra)


def post(url: str, body: bytes, headers: dict[str, str], *, private: bool) -> None:
    """Post the body; follows no redirect and reads no answer but its status.

    Raises:
        WebhookDeliveryError: no answer in time, another status than 2xx, or an address that is not to be reached.
    """
    place = urlsplit(url)
    host = place.hostname or ""
    port = place.port or (443 if place.scheme == "https" else 80)
    connection = _connection(place.scheme, host, _address(host, port, private=private), port)
    target = (place.path or "/") + (f"?{place.query}" if place.query else "")
    said = {**headers, "host": place.netloc, "content-type": "application/json", "user-agent": "modelfleet-webhooks"}
    try:
        connection.request("POST", target, body=body, headers=said, preload_content=False)
        status = connection.getresponse().status
    except (HTTPError, OSError) as error:
        raise WebhookDeliveryError(f"no answer: {type(error).__name__}: {error}"[:500]) from error
    finally:
        connection.close()
    if not 200 <= status < 300:
        raise WebhookDeliveryError(f"expected a status 2xx, got {status}")


def _address(host: str, port: int, *, private: bool) -> str:
    """Return the address to connect to (WebhookDeliveryError: the name has none, or one that is not public)."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise WebhookDeliveryError(f"the name {host[:80]!r} cannot be resolved") from error
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not private and not ipaddress.ip_address(address.partition("%")[0]).is_global:
            raise WebhookDeliveryError(
                f"{host} is at {address}, which is not a public address: MODELFLEET_WEBHOOK_PRIVATE=true allows it"
            )
    return addresses[0]


def _connection(scheme: str, host: str, address: str, port: int) -> HTTPConnection:
    timeout = urllib3.Timeout(total=TIMEOUT_SECONDS).connect_timeout
    if scheme == "http":
        return HTTPConnection(address, port, timeout=timeout)
    return HTTPSConnection(
        address,
        port,
        timeout=timeout,
        server_hostname=host,
        assert_hostname=host,
        ssl_context=ssl.create_default_context(),
    )
