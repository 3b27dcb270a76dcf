"""Envelopes of another kind, ambiguous ones, and signatures that only look like enough."""

import base64
import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from modelfleet.agent_client.protocol import parse_report
from modelfleet.signer.attestations import Wish, verify_approval, verify_gate, verify_report, verify_source
from modelfleet.signer.desired import (
    ASSIGNMENT_PAYLOAD_TYPE,
    GROUP_PAYLOAD_TYPE,
    Assignment,
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
from modelfleet.signer.metadata import sign_metadata
from modelfleet.signer.sign import encode_payload
from modelfleet.signer.statements import (
    APPROVAL_PAYLOAD_TYPE,
    IN_TOTO_PAYLOAD_TYPE,
    REPORT_PAYLOAD_TYPE,
    SOURCE_PAYLOAD_TYPE,
    Approver,
)
from modelfleet.signer.trust import parse_policy
from modelfleet.signer.verify import count_approvals
from tests.attacks.everything import EVERYTHING, OTHER, believe, policy
from tests.attacks.forge import Forger
from tests.attacks.machine import Machine
from tests.unit.signer import samples
from tests.unit.signer.samples import DEVICE, GROUP, NOW, PROFILE, TENANT

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


# Of another kind


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
