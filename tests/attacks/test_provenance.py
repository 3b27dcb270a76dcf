"""Attacks on what is attested of a variant: by whoever stores and serves it, without the gate key or with an old one.

Each test first shows that the untouched set verifies: the control.
"""

import base64
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from modelfleet.converters.attest import Measured, attest
from modelfleet.converters.request import BuildRequest, BuiltFile
from modelfleet.hardware_profiles.profile import Precision, load_profiles
from modelfleet.signer.attested import Attested, verify_attestations
from modelfleet.signer.dsse import sign_envelope
from modelfleet.signer.errors import (
    DigestError,
    FormatError,
    GateFailedError,
    ScopeError,
    SignatureError,
    UnknownKeyError,
    UntrustedError,
)
from modelfleet.signer.keys import from_sslib, generate_key, key_id, load_signer, public_key
from modelfleet.signer.provenance import ProvenanceStatement, TestResultStatement
from modelfleet.signer.sign import encode_payload, sign_gate
from modelfleet.signer.statements import (
    IN_TOTO_PAYLOAD_TYPE,
    SOURCE_PAYLOAD_TYPE,
    GateStatement,
    PublicKey,
    TrustPolicy,
)

RESULTS = {
    "gate": {"accuracy": 0.97, "original_accuracy": 0.98, "samples": 360},
    "parity": {"max_error": 0.0},
    "benchmark": {"p95_ms": 1.5},
    "scan": {"nodes": 3},
    "limits": {"accuracy": 0.85},
    "versions": {"onnx": "1.18.0"},
}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class Worker:
    """A converter worker with its gate key, and the policy that names it."""

    folder: Path

    def __post_init__(self) -> None:
        self.uri = generate_key(self.folder / "gate.pem")
        self.key = load_signer(self.uri)
        public = public_key(self.uri)
        self.policy = self.policy_of({key_id(public): public})

    def policy_of(self, gates: dict[str, PublicKey]) -> TrustPolicy:
        return TrustPolicy(tenant="acme", epoch=1, directors={}, approvers={}, publishers={}, gates=gates)

    def attest(self, *, version: str = "1.0.0", source: str = "source", model: str = "model") -> dict[str, bytes]:
        request = BuildRequest(
            tenant="acme",
            model="digits",
            version=version,
            profile=load_profiles()["linux-cpu-int8"],
            source=self.folder / "source.onnx",
            golden=self.folder / "golden.npz",
            gate_key_uri=self.uri,
        )
        files = (
            BuiltFile(name="model.onnx", path=self.folder / "x", sha256=digest(model), length=1, role="model"),
            BuiltFile(name="golden.npz", path=self.folder / "y", sha256=digest("golden"), length=1, role="golden"),
        )
        measured = Measured(
            precision=Precision("int8"),
            files=files,
            source_sha256=digest(source),
            golden_sha256=digest("golden set"),
            results=dict(RESULTS),
            started_at=datetime.now(UTC),
        )
        made = attest(request, measured)
        return {"gate": made.gate_envelope} | {each.name: each.envelope for each in made.attestations}

    def verify(self, envelopes: dict[str, bytes]) -> Attested:
        return verify_attestations(envelopes, self.policy)

    def sign(self, statement: msgspec.Struct) -> bytes:
        return sign_envelope(encode_payload(statement), IN_TOTO_PAYLOAD_TYPE, self.key)


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(tmp_path)


def payload(envelope: bytes, kind):
    return msgspec.json.decode(base64.b64decode(msgspec.json.decode(envelope)["payload"]), type=kind)


def test_the_control_says_what_was_measured(worker: Worker) -> None:
    found = worker.verify(worker.attest())
    assert found.tests == ("accuracy", "benchmark", "parity", "scan")
    assert found.files == {"model.onnx": digest("model"), "golden.npz": digest("golden")}
    assert found.gate.source_sha256 == digest("source")


@pytest.mark.parametrize("name", ["gate", "provenance", "parity", "scan"])
def test_an_attestation_is_signed_by_somebody_else(worker: Worker, tmp_path: Path, name: str) -> None:
    good = worker.attest()
    worker.verify(good)
    (tmp_path / "thief").mkdir()
    forged = Worker(tmp_path / "thief").attest()
    with pytest.raises(UnknownKeyError):
        worker.verify({**good, name: forged[name]})


def test_another_key_stands_in_the_policy_under_the_gates_id(worker: Worker, tmp_path: Path) -> None:
    good = worker.attest()
    other = from_sslib(load_signer(generate_key(tmp_path / "other.pem")).public_key)
    (own,) = worker.policy.gates
    with pytest.raises(FormatError, match="expected a key with the id"):
        verify_attestations(good, worker.policy_of({own: other}))
    worker.verify(good)


def test_the_payload_is_exchanged_under_the_signature(worker: Worker) -> None:
    good = worker.attest()
    other = msgspec.json.decode(worker.attest(model="evil")["provenance"])
    mine = msgspec.json.decode(good["provenance"])
    with pytest.raises(SignatureError):
        worker.verify({**good, "provenance": msgspec.json.encode({**mine, "payload": other["payload"]})})


@pytest.mark.parametrize(
    ("name", "change", "refusal"),
    [
        ("provenance", {"version": "2.0.0"}, ScopeError),
        ("provenance", {"model": "other"}, DigestError),
        ("provenance", {"source": "other"}, DigestError),
        ("parity", {"model": "other"}, DigestError),
        ("scan", {"source": "other"}, DigestError),
        ("gate", {"version": "2.0.0"}, ScopeError),
    ],
)
def test_a_genuine_attestation_of_another_build_is_mixed_in(
    worker: Worker, name: str, change: dict[str, str], refusal: type[UntrustedError]
) -> None:
    good = worker.attest()
    worker.verify(good)
    with pytest.raises(refusal):
        worker.verify({**good, name: worker.attest(**change)[name]})


def test_a_second_gate_statement_is_mixed_in(worker: Worker) -> None:
    good = worker.attest()
    with pytest.raises(FormatError, match="got 2 and 1"):
        worker.verify({**good, "more": worker.attest(version="2.0.0")["gate"]})


def test_a_gate_that_failed_is_passed_off_as_one_that_passed(worker: Worker) -> None:
    good = worker.attest()
    worker.verify(good)
    gate = payload(good["gate"], GateStatement)
    failed = msgspec.structs.replace(gate, predicate=msgspec.structs.replace(gate.predicate, passed=False))
    with pytest.raises(GateFailedError):
        worker.verify({**good, "gate": sign_gate(failed, worker.key)})
    parity = payload(good["parity"], TestResultStatement)
    result = msgspec.structs.replace(parity.predicate, result="FAILED", passed_tests=(), failed_tests=("parity",))
    with pytest.raises(GateFailedError, match="parity: expected PASSED, got FAILED"):
        worker.verify({**good, "parity": worker.sign(msgspec.structs.replace(parity, predicate=result))})


def test_provenance_hides_what_went_in(worker: Worker) -> None:
    good = worker.attest()
    provenance = payload(good["provenance"], ProvenanceStatement)
    definition = msgspec.structs.replace(provenance.predicate.build_definition, resolved_dependencies=())
    predicate = msgspec.structs.replace(provenance.predicate, build_definition=definition)
    with pytest.raises(DigestError):
        worker.verify({**good, "provenance": worker.sign(msgspec.structs.replace(provenance, predicate=predicate))})


def test_another_kind_of_statement_is_passed_off_as_an_attestation(worker: Worker) -> None:
    good = worker.attest()
    source = sign_envelope(encode_payload(payload(good["gate"], GateStatement)), SOURCE_PAYLOAD_TYPE, worker.key)
    with pytest.raises(FormatError):
        worker.verify({**good, "gate": source})
    unknown = msgspec.structs.replace(payload(good["parity"], TestResultStatement), predicate_type="https://evil/v1")
    with pytest.raises(FormatError, match="got 'https://evil/v1'"):
        worker.verify({**good, "parity": worker.sign(unknown)})


def test_another_tenants_gate_statement_is_refused(worker: Worker) -> None:
    good = worker.attest()
    worker.policy = msgspec.structs.replace(worker.policy, tenant="other")
    with pytest.raises(ScopeError):
        worker.verify(good)
