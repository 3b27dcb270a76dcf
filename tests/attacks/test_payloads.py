"""Payloads of 10 MB, nested or endless, wherever bytes from outside become values: refused, and quickly."""

import json
import select
import socket
import time
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

import msgspec
import pytest

from modelfleet.agent_client.protocol import DeviceState, Metrics, encode, parse_metrics, parse_status
from modelfleet.signer.desired import (
    GROUP_PAYLOAD_TYPE,
)
from modelfleet.signer.dsse import sign_envelope, verify_envelope
from modelfleet.signer.errors import (
    FormatError,
)
from modelfleet.signer.manifest import encode_manifest, parse_manifest
from modelfleet.signer.metadata import Timestamp, parse_metadata
from modelfleet.signer.sign import encode_payload, sign_group
from modelfleet.signer.trust import parse_policy
from modelfleet.signer.wire import parse_request
from tests.attacks.everything import EVERYTHING, believe, policy
from tests.attacks.machine import Machine
from tests.attacks.service import Service
from tests.unit.agent_client.fleet import Fleet
from tests.unit.signer import samples
from tests.unit.signer.samples import NOW

MEGABYTES = 10 * 1024 * 1024
QUICK_SECONDS = 3.0
"""Far above what a refusal takes, far below what parsing or walking such a payload would."""


def oversized(valid: bytes) -> bytes:
    """The valid document with a field of 10 MB more."""
    return valid[:-1] + b',"padding":"' + b"x" * MEGABYTES + b'"}'


def nested(valid: bytes) -> bytes:
    """The valid document with a field that is nested as deep as its length allows."""
    depth = 20_000
    return valid[:-1] + b',"padding":' + b"[" * depth + b"]" * depth + b"}"


def nested_a_little(valid: bytes) -> bytes:
    """Deeper than anything of ours, and no trouble to any parser: the cap is ours."""
    return valid[:-1] + b',"padding":' + b"[" * 100 + b"]" * 100 + b"}"


def nested_objects(valid: bytes) -> bytes:
    depth = 5_000
    return valid[:-1] + b',"padding":' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"


BENT: Mapping[str, Callable[[bytes], bytes]] = {
    "10 MB": oversized,
    "10 MB of nothing": lambda _: b" " * MEGABYTES,
    "10 MB of brackets": lambda _: b"[" * MEGABYTES,
    "nested lists": nested,
    "nested objects": nested_objects,
    "nested a little": nested_a_little,
}

METRICS = (
    b'{"device":"0b6e1a2c-93a5-4c59-9d0e-5a3f0a3c7b11","boot":1,"seq":1,"slot":"a","activation":1,"sha256":"'
    + b"a" * 64
    + b'","n":1,"errors":0}'
)
READERS: Mapping[str, tuple[Callable[[bytes], object], bytes]] = {
    "envelope": (
        lambda data: verify_envelope(data, GROUP_PAYLOAD_TYPE, samples.keyed(EVERYTHING)),
        sign_group(samples.group(), EVERYTHING),
    ),
    "policy": (parse_policy, msgspec.json.encode(policy())),
    "manifest": (parse_manifest, encode_manifest(samples.manifest())),
    "metrics": (parse_metrics, METRICS),
    "status": (parse_status, b'{"state":"online"}'),
    "request to the signer": (parse_request, b'{"op":"status"}'),
}


def refused_quickly(read: Callable[[], object], *kinds: type[Exception]) -> None:
    started = time.monotonic()
    with pytest.raises(kinds or FormatError):
        read()
    assert time.monotonic() - started < QUICK_SECONDS


@pytest.mark.parametrize("bend", BENT.values(), ids=BENT.keys())
@pytest.mark.parametrize("reader", READERS)
def test_long_or_deep_payload(reader: str, bend: Callable[[bytes], bytes]) -> None:
    read, valid = READERS[reader]
    read(valid)
    refused_quickly(lambda: read(bend(valid)))


def test_long_or_deep_metadata(fleet: Fleet) -> None:
    """TUF metadata may be long; how deep it nests is still bounded before a parser recurses into it."""
    valid = (fleet.keys.metadata_dir / "timestamp.json").read_bytes()
    parse_metadata(valid, Timestamp)
    for bend in BENT.values():
        refused_quickly(lambda bend=bend: parse_metadata(bend(valid), Timestamp))


@pytest.mark.parametrize("bend", BENT.values(), ids=BENT.keys())
def test_long_or_deep_document_over_mqtt(bend: Callable[[bytes], bytes], machine: Machine, fleet: Fleet) -> None:
    machine.is_assigned()
    valid = sign_group(fleet.group_document(), fleet.director)
    refused_quickly(lambda: machine.documents.accept_group(bend(valid)))
    refused_quickly(lambda: machine.documents.accept_assignment(bend(valid)))
    machine.documents.accept_group(valid)


@pytest.mark.parametrize("bend", BENT.values(), ids=BENT.keys())
def test_long_or_deep_payload_inside_a_valid_signature(bend: Callable[[bytes], bytes]) -> None:
    """The director's own signature does not make a payload shallow, nor an envelope short."""
    valid = encode_payload(samples.group())
    believe(sign_envelope(valid, GROUP_PAYLOAD_TYPE, EVERYTHING))
    envelope = sign_envelope(bend(valid), GROUP_PAYLOAD_TYPE, EVERYTHING)
    refused_quickly(lambda: believe(envelope))


@pytest.mark.parametrize("kind", ["report", "metrics", "status"])
def test_long_or_deep_message_at_ingest(kind: str, service: Service) -> None:
    """They are dropped and counted; the next message of the batch is taken."""
    device = service.devices[0]
    good = device.topic("report"), encode(device.report(DeviceState.PROBATION))
    metrics = Metrics(device=device.id, boot=1, seq=1, slot="a", activation=1, sha256="a" * 64, n=1, errors=0)
    valid = {"report": good[1], "metrics": encode(metrics), "status": b'{"state":"online"}'}[kind]
    ingest = service.controller.ingest
    assert ingest.accept([(device.topic(kind), valid)], NOW) == 1
    for bend in BENT.values():
        started = time.monotonic()
        assert ingest.accept([(device.topic(kind), bend(valid)), good], NOW) == 1
        assert time.monotonic() - started < QUICK_SECONDS
    assert ingest.dropped["FormatError"] == len(BENT)
    assert service.state_of(device) == "PROBATION"


ROUTES = {
    "enrol": "/v1/enroll",
    "make a group": "/v1/groups",
    "draft a rollout": "/v1/rollouts",
    "approve": "/v1/rollouts/none/approvals",
    "report": "/v1/device/messages",
    "carried reports": "/v1/bundles/reports",
    "publish": "/v1/versions",
    "no route": "/v1/none",
}


UNREAD = (ROUTES["publish"], ROUTES["no route"])
"""What asks for a credential, or for nothing, before it reads a body."""


@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES.keys())
def test_long_or_deep_http_body(route: str, service: Service) -> None:
    """A refusal, never a 500 and never a hung worker; the service answers the next request."""
    by = service.devices[0] if "device" in route else None
    before = service.rows()
    for bend in BENT.values():
        started = time.monotonic()
        body = bend(b'{"messages":[]}')
        answer = service.post(route, body, by=by, role="" if by else "admin")
        assert 400 <= answer.status_code < 500, answer.text[:300]
        if len(body) > MEGABYTES and route not in UNREAD:
            assert answer.status_code == 413
        assert time.monotonic() - started < 3 * QUICK_SECONDS
    assert service.rows() == before
    device = service.devices[0]
    message = {"topic": device.topic("report"), "payload": encode(device.report(DeviceState.PROBATION)).decode()}
    answer = service.post("/v1/device/messages", json.dumps({"messages": [message]}).encode(), by=device)
    assert answer.json() == {"accepted": 1}


@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES.keys())
def test_endless_http_body_of_somebody_unknown(route: str, service: Service) -> None:
    """Without a credential, and without a length: the service hangs up, and has held only a little of it."""
    sent = send_without_end(service.url, route)
    assert sent < MEGABYTES, f"the service took {sent} bytes of a stranger's request"


def send_without_end(url: str, path: str) -> int:
    """Post chunks until the other side answers or hangs up; return how many bytes it took."""
    place = urlsplit(url)
    assert place.hostname is not None and place.port is not None
    chunk, sent = b"10000\r\n" + b" " * 65536 + b"\r\n", 0
    with socket.create_connection((place.hostname, place.port), timeout=5) as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        line.sendall(head.encode())
        try:
            while sent < 8 * MEGABYTES and not select.select([line], [], [], 0)[0]:
                line.sendall(chunk)
                sent += len(chunk)
        except OSError:
            pass
    return sent
