"""Hostile HTTP, both ways: what a server answers to a device, and what is posted to the service's routes."""

import contextlib
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings

from modelfleet.agent_client.errors import TransferError
from modelfleet.agent_client.http_client import Deadlines, HttpClient
from modelfleet.agent_client.outbox import Outbox
from modelfleet.agent_client.poll import Poller
from modelfleet.agent_client.storage import Disk
from modelfleet.signer.errors import DigestError, UntrustedError
from tests.attacks.service import Service, running_service
from tests.fuzz.hostile import hostile
from tests.fuzz.test_parsers import BOUNDED
from tests.unit.registry.conftest import template  # noqa: F401  # a fixture

DATA = bytes(range(256)) * 8
SHA256 = hashlib.sha256(DATA).hexdigest()
QUICK = Deadlines(connect_seconds=1.0, stall_seconds=0.3, total_seconds=0.6, bytes_per_second=1e9)
LONGEST_SECONDS = 3.0
HEAD = f'HTTP/1.1 200 OK\r\nETag: "{SHA256}"\r\nContent-Length: {len(DATA)}\r\n\r\n'.encode()
REST = f"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 100-{len(DATA) - 1}/{len(DATA)}\r\n".encode()
ANSWERS = (
    HEAD + DATA,
    REST + f"Content-Length: {len(DATA) - 100}\r\n\r\n".encode() + DATA[100:],
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n800\r\n" + DATA + b"\r\n0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 304 Not Modified\r\n\r\n",
    b'HTTP/1.1 200 OK\r\nContent-Length: 33\r\n\r\n{"assignment": {}, "group": null}',
)


class Liar:
    """A server that answers every request by `answer`, as it stands, and closes."""

    def __init__(self) -> None:
        self.answer = b""
        self._socket = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(1.0)
                    connection.recv(65536)
                    connection.sendall(self.answer)


@pytest.fixture
def liar() -> Iterator[Liar]:
    made = Liar()
    yield made
    made.close()


def test_whatever_a_server_answers_only_signed_bytes_become_a_file(liar: Liar, tmp_path: Path) -> None:
    path, part = tmp_path / "model.onnx", tmp_path / "model.onnx.part"

    @BOUNDED
    @given(hostile(ANSWERS[:5]))
    def check(answer: bytes) -> None:
        liar.answer = answer
        path.unlink(missing_ok=True)
        part.write_bytes(DATA[:100])
        client = HttpClient(deadlines=QUICK)
        started = time.monotonic()
        with contextlib.suppress(TransferError, DigestError):
            client.fetch_file(f"{liar.url}/blob", path, sha256=SHA256, length=len(DATA))
        client.close()
        assert not path.exists() or path.read_bytes() == DATA
        assert not part.exists() or part.stat().st_size <= len(DATA)
        assert time.monotonic() - started < LONGEST_SECONDS

    check()


def test_whatever_a_server_answers_a_poll_ends_with_a_documented_error(liar: Liar, tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox", Disk())

    @BOUNDED
    @given(hostile(ANSWERS))
    def check(answer: bytes) -> None:
        liar.answer = answer
        client = HttpClient(deadlines=QUICK)
        poller = Poller(
            client,
            liar.url,
            deliver_assignment=lambda _: None,
            deliver_group=lambda _: None,
            outbox=outbox,
            seconds=0.0,
        )
        started = time.monotonic()
        with contextlib.suppress(TransferError, UntrustedError):
            poller.poll(0.0, [])
        client.close()
        assert time.monotonic() - started < LONGEST_SECONDS

    check()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[Service]:  # noqa: F811
    with running_service(tmp_path_factory.mktemp("service"), template) as made:
        yield made


BODIES = {
    "/v1/enroll": {"token": "t", "csr": "c", "profile": "linux-cpu-float", "facts": {"cpu_count": 1}, "agent": "0.1"},
    "/v1/groups": {"name": "shops"},
    "/v1/device-tokens": {"group": "lab", "uses": 1, "days": 1},
    "/v1/rollouts": {
        "model": "ui/detector",
        "version": "1.0.0",
        "slot": "detector",
        "groups": ["lab"],
        "plan": {"alpha": 0.01},
    },
    "/v1/rollouts/none/approvals": {"envelope": "{}"},
    "/v1/device/messages": {"messages": [{"topic": "mf/v1/acme/d/x/report", "payload": "{}"}]},
    "/v1/versions": {"card": "x"},
}


@pytest.mark.parametrize("route", BODIES)
def test_whatever_is_posted_the_service_refuses_it_without_an_error_of_its_own(route: str, service: Service) -> None:
    by = service.devices[0] if "device/" in route else None

    @settings(BOUNDED, max_examples=1 + BOUNDED.max_examples // 6)  # a request takes 20 ms
    @given(hostile((json.dumps(BODIES[route]).encode(),)))
    def check(body: bytes) -> None:
        answer = service.post(route, body, by=by, role="" if by else "admin")
        assert answer.status_code < 500, (body, answer.text[:300])

    check()
