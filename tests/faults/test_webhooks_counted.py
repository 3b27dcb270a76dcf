"""Webhooks under `kill -9`, counted at a real receiver: nothing is lost, and what comes twice can be told by its id.

A delivery cannot be exactly once: whoever dies between the receiver's answer and its own note has to send again. What is promised
is counted here: the same id, the same body, and not more often than there were deaths.
"""

import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from modelfleet.registry.tables import Base, Tenant
from modelfleet.rollout.tables import WebhookDelivery
from modelfleet.rollout.webhooks import outbox
from modelfleet.rollout.webhooks.send import AT_ONCE, LEASE, Sender
from modelfleet.rollout.webhooks.signature import WebhookKey, verify
from modelfleet.service.database import open_database, session_factory
from tests.waiting import until

TENANT, EVENTS = "acme", 40
START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class Receiver(ThreadingHTTPServer):
    """Keeps what arrives whole, and kills the sender on its n-th delivery: it was sent, and nobody has noted that.

    Attributes:
        got: headers and body, in order of arrival. to_kill: the sender's process, once it is known. left: deliveries until then.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.lock = threading.Lock()
        self.known = threading.Event()
        self.to_kill = 0
        self.left = -1
        self.open = 0

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.lock:
            self.open += 1
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        super().process_request_thread(request, client_address)
        with self.lock:
            self.open -= 1

    def wait_until_idle(self) -> None:
        """Return when everything that was sent before is taken: connections are accepted in their order."""
        probe = HTTPConnection("127.0.0.1", self.server_address[1], timeout=60)
        probe.request("GET", "/")
        probe.getresponse().read()
        probe.close()
        until(lambda: self.open == 0)

    def arm(self, process: int, after: int) -> None:
        self.to_kill, self.left = process, after
        self.known.set()

    def take(self, headers: dict[str, str], body: bytes) -> None:
        self.known.wait(60)
        with self.lock:
            self.got.append((headers, body))
            self.left -= 1
            if self.left == 0:
                os.kill(self.to_kill, signal.SIGKILL)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of senders that died before the answer."""


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        body = self.rfile.read(length)
        if len(body) < length:  # its sender died on the way
            return
        self.server.take({name.lower(): value for name, value in self.headers.items()}, body)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def sender(url: str, key: Path, now: datetime) -> int:
    """Send whatever is due in a process of its own, and return its id."""
    child = os.fork()
    if child == 0:
        try:
            logging.disable()
            sending = Sender(session_factory(open_database(url)), TENANT, WebhookKey(key), private=True)
            while sending.send_due(now):
                pass
            os._exit(0)
        finally:
            os._exit(1)
    return child


def killed(receiver: Receiver, process: int, after: int) -> None:
    receiver.arm(process, after)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status), "expected the sender to be killed, it ended by itself"
    receiver.left = -1
    receiver.wait_until_idle()
    receiver.known.clear()


def test_no_webhook_is_lost_under_kills_and_each_repeat_is_one_of_a_death(tmp_path: Path, receiver: Receiver) -> None:
    url, key = f"sqlite:///{tmp_path / 'fleet.db'}", tmp_path / "webhooks.key"
    engine = open_database(url)
    Base.metadata.create_all(engine)
    sessions = session_factory(engine)
    with sessions.begin() as session:
        session.add(Tenant(name=TENANT, created_at=START))
        asked = outbox.EndpointRequest(url=f"http://127.0.0.1:{receiver.server_address[1]}/")
        outbox.add_endpoint(session, TENANT, asked, actor="root", now=START)
    with sessions.begin() as session:
        for number in range(EVENTS):
            outbox.enqueue(session, TENANT, "rollout.halt", {"number": number}, START)
    engine.dispose()

    now, deaths = START, (1, 6, AT_ONCE, 9, 2)
    for after in deaths:
        killed(receiver, sender(url, key, now), after)
        now += LEASE + timedelta(seconds=1)
    receiver.known.set()
    last = [sender(url, key, now) for _ in range(2)]  # side by side: neither sends what the other does
    assert [os.waitpid(process, 0)[1] for process in last] == [0, 0]

    receiver.wait_until_idle()
    with sessions() as session:
        endpoint = outbox.endpoints(session, TENANT)[0]
        rows = {row.id: row for row in session.scalars(select(WebhookDelivery))}
        secret = WebhookKey(key).secret(endpoint.id, endpoint.generation)
    arrived = Counter(headers["webhook-id"] for headers, _ in receiver.got)
    repeats = arrived.total() - EVENTS
    assert (len(rows), {row.state for row in rows.values()}) == (EVENTS, {outbox.DELIVERED})
    assert arrived.keys() == rows.keys()
    assert all(body == rows[headers["webhook-id"]].body.encode() for headers, body in receiver.got)
    assert all(verify(secret, headers, body, _sent_at(headers)) for headers, body in receiver.got)
    assert len(deaths) <= repeats <= len(deaths) * AT_ONCE  # those of which a death left no note, and no others
    assert all(count <= rows[name].attempts for name, count in arrived.items())
    assert max(arrived.values()) <= 1 + len(deaths)


def _sent_at(headers: dict[str, str]) -> datetime:
    return datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
