"""Hostile bytes: too long, too deep, of another kind, ambiguous, or with signatures that only look like enough."""

import base64
import dataclasses
import itertools
import json
import select
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from modelfleet.agent_client.protocol import DeviceState, Metrics, encode, parse_metrics, parse_report, parse_status
from modelfleet.signer.attestations import Wish, verify_approval, verify_gate, verify_report, verify_source
from modelfleet.signer.desired import (
    ASSIGNMENT_PAYLOAD_TYPE,
    GROUP_PAYLOAD_TYPE,
    Assignment,
    GroupDocument,
    group_scope,
)
from modelfleet.signer.dsse import sign_envelope, verify_envelope
from modelfleet.signer.errors import (
    ApprovalError,
    DigestError,
    FormatError,
    SignatureError,
    UnknownKeyError,
    UntrustedError,
)
from modelfleet.signer.keys import Signer
from modelfleet.signer.manifest import encode_manifest, parse_manifest
from modelfleet.signer.metadata import Timestamp, parse_metadata, sign_metadata
from modelfleet.signer.sign import encode_payload, sign_group
from modelfleet.signer.statements import (
    APPROVAL_PAYLOAD_TYPE,
    IN_TOTO_PAYLOAD_TYPE,
    REPORT_PAYLOAD_TYPE,
    SOURCE_PAYLOAD_TYPE,
    Approver,
    TrustPolicy,
)
from modelfleet.signer.trust import parse_policy
from modelfleet.signer.verify import Floors, accept_document, count_approvals
from modelfleet.signer.wire import parse_request
from tests.attacks.forge import Forger
from tests.attacks.machine import Machine
from tests.attacks.service import Service
from tests.unit.agent_client.fleet import Fleet
from tests.unit.signer import samples
from tests.unit.signer.samples import DEVICE, GROUP, NOW, PROFILE, TENANT

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
MEGABYTES = 10 * 1024 * 1024
QUICK_SECONDS = 1.0
"""Far above what a refusal takes, far below what parsing or walking such a payload would."""

EVERYTHING = samples.new_key()
"""One key that is director, approver, publisher, gate and device at once: then only the payload type tells them apart."""
OTHER = samples.new_key()


def policy(**changes: object) -> TrustPolicy:
    keys = samples.keyed(EVERYTHING)
    approvers = {
        key.public_key.keyid: Approver(person=person, key=samples.public(key))
        for person, key in (("anna", EVERYTHING), ("ben", OTHER))
    }
    made = TrustPolicy(tenant=TENANT, epoch=1, directors=keys, approvers=approvers, publishers=keys, gates=keys)
    return msgspec.structs.replace(made, **changes)


# Long and deep


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
        assert time.monotonic() - started < 10 * QUICK_SECONDS
    assert service.rows() == before
    device = service.devices[0]
    message = {"topic": device.topic("report"), "payload": encode(device.report(DeviceState.PROBATION)).decode()}
    answer = service.post("/v1/device/messages", json.dumps({"messages": [message]}).encode(), by=device)
    assert answer.json() == {"accepted": 1}


# Of another kind


def believe(envelope: bytes, kind: type[Any] = GroupDocument, scope: str = group_scope(GROUP, PROFILE)) -> object:
    """The device's decision on a document, with no floors yet."""
    return accept_document(envelope, kind, tenant=TENANT, scope=scope, policy=policy(), floors=Floors())


WISH = Wish(tenant=TENANT, group=GROUP, profile=PROFILE, release=samples.release())
TYPES: Mapping[str, str] = {
    "group document": GROUP_PAYLOAD_TYPE,
    "assignment": ASSIGNMENT_PAYLOAD_TYPE,
    "source": SOURCE_PAYLOAD_TYPE,
    "gate": IN_TOTO_PAYLOAD_TYPE,
    "approval": APPROVAL_PAYLOAD_TYPE,
    "report": REPORT_PAYLOAD_TYPE,
}
VERIFIERS: Mapping[str, Callable[[bytes], object]] = {
    "group document": believe,
    "assignment": lambda data: believe(data, Assignment),
    "source": lambda data: verify_source(data, policy()),
    "gate": lambda data: verify_gate(data, policy()),
    "approval": lambda data: verify_approval(data, WISH, policy(), NOW),
    "report": lambda data: parse_report(verify_report(data, samples.public(EVERYTHING))),
}


def chameleon() -> bytes:
    """One payload that is a valid statement of every kind, since unknown fields are allowed."""
    report = {"device": DEVICE, "boot": 1, "seq": 10, "slot": "classifier", "state": "COMMITTED"}
    statements = (samples.assignment(), samples.source(), samples.gate(), samples.approval(), samples.group())
    fields = report | {name: value for each in statements for name, value in msgspec.to_builtins(each).items()}
    return msgspec.json.encode(fields)


PAIRS = list(itertools.permutations(TYPES, 2))


@pytest.mark.parametrize(("signed", "wanted"), PAIRS, ids=[" as ".join(pair) for pair in PAIRS])
def test_payload_type_confusion(signed: str, wanted: str) -> None:
    """Signed as one kind it is believed as that kind alone, also where one key may sign both."""
    envelope = sign_envelope(chameleon(), TYPES[signed], EVERYTHING)
    VERIFIERS[signed](envelope)
    with pytest.raises(FormatError, match="payloadType"):
        VERIFIERS[wanted](envelope)
    relabelled = json.loads(envelope) | {"payloadType": TYPES[wanted]}
    with pytest.raises(SignatureError):
        VERIFIERS[wanted](json.dumps(relabelled).encode())


@pytest.mark.parametrize(("role", "other"), [("timestamp", "snapshot"), ("snapshot", "targets"), ("targets", "root")])
def test_type_confusion_of_tuf_roles(role: str, other: str, machine: Machine, forger: Forger) -> None:
    """Metadata of one role under the name of another, signed by the keys of both."""
    machine.trust.refresh()
    forger.renew("targets")
    place, honest = forger.file(role), forger.file(role).read_bytes()
    theirs = forger.load(other)
    signers = [signer for name in (role, other) for signer in forger.keys[name]]
    place.write_bytes(sign_metadata(theirs, signers))
    with pytest.raises(UntrustedError):
        machine.trust.refresh()
    place.write_bytes(honest)
    machine.trust.refresh()


# Ambiguous


def envelope_of(payload: bytes) -> bytes:
    return sign_envelope(payload, GROUP_PAYLOAD_TYPE, EVERYTHING)


AMBIGUOUS: Mapping[str, Callable[[bytes], bytes]] = {
    "duplicate key": lambda data: data.replace(b'"seq":10', b'"seq":10,"seq":11'),
    "duplicate key, escaped": lambda data: data.replace(b'"seq":10', b'"seq":10,"\\u0073eq":11'),
    "duplicate key, deep": lambda data: data[:-1] + b',"padding":{"a":1,"a":2}}',
    "NaN": lambda data: data[:-1] + b',"padding":NaN}',
    "Infinity": lambda data: data[:-1] + b',"padding":[-Infinity]}',
    "float out of range": lambda data: data[:-1] + b',"padding":1e999}',
    "integer out of range": lambda data: data[:-1] + b',"padding":9007199254740993}',
    "lone surrogate": lambda data: data[:-1] + b',"padding":"\\ud800"}',
    "surrogates in the wrong order": lambda data: data[:-1] + b',"padding":"\\udc00\\ud800"}',
    "surrogate as UTF-8": lambda data: data[:-1] + b',"padding":"\xed\xa0\x80"}',
    "overlong UTF-8": lambda data: data[:-1] + b',"padding":"\xc0\xaf"}',
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "trailing bytes": lambda data: data + b" {}",
    "comment": lambda data: data[:-1] + b"/* */}",
    "trailing comma": lambda data: data[:-1] + b",}",
    "control character": lambda data: data[:-1] + b',"padding":"\x01"}',
    "single quotes": lambda data: data.replace(b'"', b"'"),
    "cut short": lambda data: data[:-1],
    "nothing": lambda _: b"",
}


@pytest.mark.parametrize("bend", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_ambiguous_json(bend: Callable[[bytes], bytes]) -> None:
    """What two parsers could read in two ways is refused, inside of a valid signature and around it."""
    valid = encode_payload(samples.group())
    believe(envelope_of(valid))
    assert bend(valid) != valid
    with pytest.raises(FormatError):
        believe(envelope_of(bend(valid)))
    around = envelope_of(valid)
    if bend(around) != around:
        with pytest.raises(FormatError):
            believe(bend(around))


def test_duplicate_payload_in_an_envelope() -> None:
    """One parser verifies the first, another acts on the second."""
    honest, evil = envelope_of(encode_payload(samples.group())), encode_payload(samples.group(seq=99))
    believe(honest)
    both = honest[:-1] + b',"payload":"' + base64.b64encode(evil) + b'"}'
    with pytest.raises(FormatError, match="duplicate"):
        believe(both)


BASE64: Mapping[str, Callable[[str], str]] = {
    "unused bits": lambda text: text.rstrip("=")[:-1] + next_letter(text.rstrip("=")[-1]) + "=" * text.count("="),
    "no padding": lambda text: text.rstrip("="),
    "too much padding": lambda text: text + "=",
    "newline": lambda text: text[:8] + "\n" + text[8:],
    "space": lambda text: text + " ",
    "other alphabet": lambda text: "-_" + text[2:],
    "rubbish between": lambda text: text[:4] + "*" + text[4:],
}


def next_letter(letter: str) -> str:
    """The letter whose lowest bit differs: where it is padding's, the bytes are the same."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return letters[letters.index(letter) ^ 1]


@pytest.mark.parametrize("bend", BASE64.values(), ids=BASE64.keys())
def test_base64_malleability(bend: Callable[[str], str]) -> None:
    """One signed payload has one envelope: other spellings of the same bytes are refused."""
    payload = encode_payload(samples.group(must_understand=()))
    payload += b" " * (-len(payload) % 3 + 1)  # so that its base64 ends with padding
    valid = json.loads(envelope_of(payload))
    believe(json.dumps(valid).encode())
    assert valid["payload"].endswith("=")
    with pytest.raises(FormatError, match="base64"):
        believe(json.dumps(valid | {"payload": bend(valid["payload"])}).encode())
    signature = valid["signatures"][0]
    padded = signature["sig"] if signature["sig"].endswith("=") else None
    if padded is not None or bend is not BASE64["no padding"]:
        other = bend(signature["sig"])
        with pytest.raises((FormatError, SignatureError)):
            believe(json.dumps(valid | {"signatures": [signature | {"sig": other}]}).encode())


def test_ecdsa_malleability() -> None:
    """(r, n - s) is a signature too: the envelope that carries it is not the one that the release names."""
    envelope = samples.approved_by(EVERYTHING)
    release = samples.approved(samples.release(), envelope)
    wish = dataclasses.replace(WISH, release=release)
    assert count_approvals([envelope], wish, policy(), NOW) == {"anna"}
    value = json.loads(envelope)
    r, s = decode_dss_signature(base64.b64decode(value["signatures"][0]["sig"]))
    value["signatures"][0]["sig"] = base64.b64encode(encode_dss_signature(r, P256_ORDER - s)).decode()
    twin = json.dumps(value, separators=(",", ":")).encode()
    assert verify_approval(twin, wish, policy(), NOW) == {"anna"}
    with pytest.raises(DigestError):
        count_approvals([twin], wish, policy(), NOW)
    with pytest.raises(ApprovalError, match="by 2 persons, got 1"):
        both = dataclasses.replace(wish, release=samples.approved(release, envelope, twin))
        count_approvals([envelope, twin], both, policy(approvals_required=2), NOW)


# Signatures that only look like enough


def signatures_of(*signers: Signer) -> dict[str, Any]:
    """A group document's envelope, as JSON."""
    return json.loads(sign_envelope(encode_payload(samples.group()), GROUP_PAYLOAD_TYPE, *signers))


def verified(value: dict[str, Any], *, threshold: int = 1) -> frozenset[str]:
    keys = samples.keyed(EVERYTHING, OTHER)
    return verify_envelope(json.dumps(value).encode(), GROUP_PAYLOAD_TYPE, keys, threshold=threshold)[1]


def test_missing_signatures() -> None:
    envelope = signatures_of(EVERYTHING)
    verified(envelope)
    with pytest.raises(SignatureError, match="no signature"):
        verified(envelope | {"signatures": []})
    for bent in (
        {name: value for name, value in envelope.items() if name != "signatures"},
        envelope | {"signatures": 7},
    ):
        with pytest.raises(FormatError):
            verified(bent)
    with pytest.raises(FormatError):
        verified(envelope | {"signatures": [envelope["signatures"][0] | {"sig": ""}]})


def test_duplicate_signatures_of_one_key() -> None:
    """A key counts once, however often its signature is there."""
    both = signatures_of(EVERYTHING, OTHER)
    assert len(verified(both, threshold=2)) == 2
    one = both["signatures"][0]
    with pytest.raises(FormatError, match="one signature per key"):
        verified(both | {"signatures": [one, one]}, threshold=2)
    with pytest.raises(SignatureError, match="expected 2 valid"):
        verified(both | {"signatures": [one]}, threshold=2)


def test_one_key_under_two_ids() -> None:
    """A policy that lists one key twice would let it sign for two."""
    honest = policy()
    assert parse_policy(msgspec.json.encode(honest)) == honest
    key = samples.public(EVERYTHING)
    twice = msgspec.structs.replace(honest, approvers=honest.approvers | {"f" * 64: Approver(person="eve", key=key)})
    with pytest.raises(FormatError, match="id"):
        parse_policy(msgspec.json.encode(twice))
    relabelled = signatures_of(EVERYTHING)
    relabelled["signatures"].append(relabelled["signatures"][0] | {"keyid": "f" * 64})
    keys = samples.keyed(EVERYTHING) | {"f" * 64: key}
    with pytest.raises(FormatError, match="id"):
        verify_envelope(json.dumps(relabelled).encode(), GROUP_PAYLOAD_TYPE, keys, threshold=2)


def test_key_id_of_one_key_with_the_signature_of_another() -> None:
    both = signatures_of(EVERYTHING, OTHER)
    assert len(verified(both, threshold=2)) == 2
    first, second = both["signatures"]
    swapped = [first | {"sig": second["sig"]}, second | {"sig": first["sig"]}]
    with pytest.raises(SignatureError):
        verified(both | {"signatures": swapped})
    with pytest.raises(SignatureError):
        verified(both | {"signatures": [first, second | {"sig": first["sig"]}]}, threshold=2)


def test_signature_by_a_strangers_key() -> None:
    stranger = samples.new_key()
    verified(signatures_of(EVERYTHING, stranger))
    with pytest.raises(UnknownKeyError):
        verified(signatures_of(stranger))
    with pytest.raises(SignatureError, match="expected 2 valid"):
        verified(signatures_of(EVERYTHING, stranger), threshold=2)


def test_signature_over_other_bytes() -> None:
    honest = signatures_of(EVERYTHING)
    verified(honest)
    other = base64.b64encode(encode_payload(samples.group(seq=11))).decode()
    with pytest.raises(SignatureError):
        verified(honest | {"payload": other})


def test_more_signatures_than_anybody_needs() -> None:
    """Each costs a verification: beyond 16 the envelope is refused before the first."""
    envelope = signatures_of(EVERYTHING)
    entry = envelope["signatures"][0]
    many = [entry | {"keyid": f"{number:064x}"} for number in range(15)]
    verified(envelope | {"signatures": [entry, *many]})
    with pytest.raises(FormatError):
        verified(envelope | {"signatures": [entry, *many, entry | {"keyid": "e" * 64}]})


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
