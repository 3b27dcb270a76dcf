"""Every parser of bytes that may come from somebody hostile: how to call it, valid inputs, and what may leave it.

A new parser is one more row. `test_every_parser_is_in_the_table` finds functions that are not here by their names.
"""

import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from modelfleet.agent_client import protocol
from modelfleet.agent_client.bundle import open_bundle, read_index
from modelfleet.agent_client.certificates import parse_certificate, signing_request
from modelfleet.agent_client.enroll import EnrolmentAnswer
from modelfleet.agent_client.errors import BundleError, StorageError
from modelfleet.agent_client.slots import Pointer
from modelfleet.agent_client.storage import encode_struct, read_struct
from modelfleet.benchmarks.errors import BenchmarksError
from modelfleet.benchmarks.golden import load_golden
from modelfleet.converters.errors import ScanError
from modelfleet.converters.walk import walk
from modelfleet.hardware_profiles.errors import FactsError, ProfileError
from modelfleet.hardware_profiles.facts import parse_facts
from modelfleet.hardware_profiles.profile import parse_profile
from modelfleet.policies.errors import GateFileError, PlanError
from modelfleet.policies.gates import parse_evidence, parse_gate
from modelfleet.policies.plan import parse_plan
from modelfleet.registry.audit_verify import verify_export
from modelfleet.registry.card import parse_card
from modelfleet.registry.certificates import parse_csr
from modelfleet.registry.errors import CardError, CsrError
from modelfleet.rollout.ingest.intake import read
from modelfleet.signer import wire
from modelfleet.signer.change import parse_change
from modelfleet.signer.checkpoint import parse_proof, verify_checkpoint, verify_proof
from modelfleet.signer.confidential import parse_wrapped_key
from modelfleet.signer.desired import GROUP_PAYLOAD_TYPE, Assignment, GroupDocument
from modelfleet.signer.dsse import verify_envelope
from modelfleet.signer.errors import DecryptionError, FormatError, UntrustedError
from modelfleet.signer.image import parse_header
from modelfleet.signer.keys import CryptoSigner, public_key_of_pem
from modelfleet.signer.manifest import parse_manifest
from modelfleet.signer.metadata import Root, Snapshot, Targets, Timestamp, parse_metadata
from modelfleet.signer.offline import BLOCK_BYTES, parse_index, read_tar_header, tar_header
from modelfleet.signer.parse import parse_canonical, parse_json, parse_struct
from modelfleet.signer.provenance import ProvenanceStatement, TestResultStatement
from modelfleet.signer.segments import decrypted
from modelfleet.signer.sign import sign_report
from modelfleet.signer.statements import Approval, GateStatement, PublicKey, Source
from modelfleet.signer.trust import parse_policy
from tests.unit.agent_client.fleet import golden_of, linear_model, now

CONTRACTS = Path(__file__).parent.parent / "contracts"
REPOSITORY = CONTRACTS.parent.parent
DEVICE = "6b1f0d5e-6a3f-4c53-9a50-0c8a7b6d5e4f"


@dataclass(frozen=True, kw_only=True)
class Parser:
    """A parser, by the name of its function; `seeds` makes valid inputs, `errors` are all that may leave it."""

    function: str
    call: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    seeds: Callable[[], Sequence[bytes]]
    about: str = ""

    def __str__(self) -> str:
        return f"{self.function} {self.about}".strip()


def contract(*names: str) -> Callable[[], Sequence[bytes]]:
    return lambda: [(CONTRACTS / name).read_bytes() for name in names]


@cache
def metadata() -> dict[str, bytes]:
    """The metadata of a new repository, by role."""
    from modelfleet.signer.ceremony import create_repository

    with tempfile.TemporaryDirectory() as folder:
        made = create_repository(Path(folder) / "data", "acme", bits=2, approvers=["anna"], now=now())
        files = {path.name: path.read_bytes() for path in made.metadata_dir.iterdir() if path.suffix == ".json"}
    return {name.removesuffix(".json").split(".")[-1]: data for name, data in files.items()}


@cache
def device_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@cache
def signed_report() -> tuple[bytes, str]:
    """A report that a device has signed, and the device's public key."""
    signer = CryptoSigner.generate_ecdsa()
    return sign_report((CONTRACTS / "protocol/report.json").read_bytes(), signer), signer.public_key.keyval["public"]


def certificate() -> bytes:
    from datetime import timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import NameOID

    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, DEVICE)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .serial_number(1)
        .public_key(device_key().public_key())
    )
    made = (
        builder.not_valid_before(now()).not_valid_after(now() + timedelta(days=1)).sign(device_key(), hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


def through_file(data: bytes) -> object:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return read_struct(Path(file.name), Pointer)


def through_bundle(data: bytes) -> object:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle.tar"
        path.write_bytes(data)
        bundle = open_bundle(path)
        try:
            return read_index(bundle)
        finally:
            bundle.close()


def archives() -> list[bytes]:
    index = b'{"format":"1.0","tenant":"acme","files":[]}'
    return [tar_header("bundle.json", len(index)) + index + bytes(-len(index) % BLOCK_BYTES) + bytes(2 * BLOCK_BYTES)]


@cache
def sealed() -> bytes:
    """A file in the segment format, by Tink's definition of it, with segments of 64 bytes."""
    salt, prefix = bytes(32), bytes(7)
    key = HKDF(algorithm=SHA256(), length=32, salt=salt, info=b"file").derive(bytes(32))
    header = bytes([40]) + salt + prefix
    return header + AESGCM(key).encrypt(prefix + bytes(4) + b"\x01", b"plain", None)


def director() -> dict[str, PublicKey]:
    key = msgspec.json.decode((CONTRACTS / "signer/director.pub.json").read_bytes(), type=PublicKey)
    from modelfleet.signer.keys import key_id

    return {key_id(key): key}


def of_object(data: bytes) -> dict[str, object]:
    """Return the JSON object, which is what a route hands on."""
    found = parse_json(data)
    if not isinstance(found, dict):
        raise FormatError("expected an object")
    return dict(found)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")


def audit_key() -> object:
    return public_key_of_pem((CONTRACTS / "audit/audit.pub").read_text())


def of_struct(kind: type[msgspec.Struct], *names: str) -> Parser:
    return Parser(
        function="signer.parse.parse_struct",
        about=kind.__name__,
        call=lambda data: parse_struct(data, kind),
        errors=(FormatError,),
        seeds=contract(*names),
    )


def report_bytes() -> bytes:
    return contract("protocol/report.json")()[0]


def as_the_long_way(data: bytes) -> object:
    """Whatever the short way lets through, the long one does too, to the same value."""
    found = parse_canonical(data, protocol.Report)
    assert found == parse_struct(data, protocol.Report)
    return found


def of_metadata(kind: type[Root | Timestamp | Snapshot | Targets]) -> Parser:
    return Parser(
        function="signer.metadata.parse_metadata",
        about=kind.type,
        call=lambda data: parse_metadata(data, kind),
        errors=(FormatError,),
        seeds=lambda: [metadata()[kind.type]],
    )


PARSERS: tuple[Parser, ...] = (
    Parser(
        function="signer.parse.parse_json", call=parse_json, errors=(FormatError,), seeds=contract("signer/group.json")
    ),
    Parser(
        function="signer.parse.parse_canonical",
        call=as_the_long_way,
        errors=(FormatError,),
        seeds=lambda: [*contract("protocol/report.json")(), protocol.encode(protocol.parse_report(report_bytes()))],
    ),
    *(of_metadata(kind) for kind in (Root, Timestamp, Snapshot, Targets)),
    of_struct(GroupDocument, "signer/group.json"),
    of_struct(Assignment, "signer/assignment.json"),
    of_struct(Source, "signer/source.json"),
    of_struct(Approval, "signer/approval.json"),
    of_struct(GateStatement, "signer/gate.json"),
    of_struct(ProvenanceStatement, "signer/provenance.json"),
    of_struct(TestResultStatement, "signer/test_result.json"),
    of_struct(protocol.HostStatus, "protocol/host.json"),
    of_struct(EnrolmentAnswer),
    Parser(
        function="signer.manifest.parse_manifest",
        call=parse_manifest,
        errors=(FormatError,),
        seeds=contract("signer/manifest.json", "confidential/manifest.json"),
    ),
    Parser(
        function="signer.trust.parse_policy",
        call=parse_policy,
        errors=(UntrustedError,),
        seeds=contract("signer/policy.json"),
    ),
    Parser(
        function="signer.dsse.verify_envelope",
        call=lambda data: verify_envelope(data, GROUP_PAYLOAD_TYPE, director()),
        errors=(UntrustedError,),
        seeds=contract("signer/group.envelope.json"),
    ),
    Parser(function="signer.change.parse_change", call=parse_change, errors=(UntrustedError,), seeds=list),
    Parser(
        function="signer.confidential.parse_wrapped_key",
        call=lambda data: parse_wrapped_key(data, manifest_sha256="0" * 64),
        errors=(UntrustedError,),
        seeds=contract("confidential/wrapped-key.json"),
    ),
    Parser(
        function="signer.checkpoint.parse_proof",
        call=lambda data: parse_proof(text(data)),
        errors=(FormatError,),
        seeds=contract("audit/record.tlog-proof"),
    ),
    Parser(
        function="signer.checkpoint.verify_proof",
        call=lambda data: verify_proof(text(data), audit_key()),  # pyright: ignore[reportArgumentType]
        errors=(UntrustedError,),
        seeds=contract("audit/record.tlog-proof"),
    ),
    Parser(
        function="signer.checkpoint.verify_checkpoint",
        call=lambda data: verify_checkpoint(data, audit_key()),  # pyright: ignore[reportArgumentType]
        errors=(UntrustedError,),
        seeds=contract("audit/checkpoint"),
    ),
    Parser(
        function="registry.audit_verify.verify_export",
        call=lambda data: verify_export(data.splitlines(keepends=True), audit_key()),  # pyright: ignore[reportArgumentType]
        errors=(UntrustedError,),
        seeds=contract("audit/export.jsonl"),
    ),
    Parser(
        function="signer.offline.parse_index",
        call=parse_index,
        errors=(FormatError,),
        seeds=lambda: [b'{"format":"1.0","tenant":"acme","files":[]}'],
    ),
    Parser(
        function="signer.offline.read_tar_header",
        call=read_tar_header,
        errors=(FormatError,),
        seeds=lambda: [tar_header("bundle.json", 1000), bytes(BLOCK_BYTES)],
    ),
    Parser(
        function="signer.segments.decrypted",
        call=lambda data: b"".join(decrypted(io.BytesIO(data), bytes(32), b"file", segment_bytes=64)),
        errors=(DecryptionError,),
        seeds=lambda: [sealed()],
    ),
    Parser(
        function="agent_client.bundle.open_bundle",
        call=through_bundle,
        errors=(UntrustedError, BundleError),
        seeds=archives,
    ),
    Parser(
        function="signer.image.parse_header",
        call=parse_header,
        errors=(FormatError,),
        seeds=contract("image/image.bin"),
    ),
    Parser(
        function="signer.wire.parse_request",
        call=wire.parse_request,
        errors=(FormatError,),
        seeds=lambda: [
            b'{"op":"status"}',
            b'{"op":"resign","before":"2026-01-01T00:00:00Z","published":{"bins-0":1},"limit":10}',
            b'{"op":"release","manifest":"e30=","source":"e30=","gates":["e30="],"targets":"e30=","policy":"e30="}',
            b'{"op":"image","manifest":"e30=","source":"e30=","gates":[],"targets":"e30=","policy":"e30=","group":"g","approvals":[]}',
        ],
    ),
    Parser(
        function="signer.wire.parse_reply",
        call=wire.parse_reply,
        errors=(FormatError,),
        seeds=lambda: [
            b'{"reply":"error","kind":"FormatError","message":"no"}',
            b'{"reply":"resign","bins":{"bins-0":"e30="}}',
            b'{"reply":"release","bins":{},"bundle":"e30="}',
        ],
    ),
    Parser(
        function="agent_client.protocol.parse_report",
        call=protocol.parse_report,
        errors=(FormatError,),
        seeds=contract("protocol/report.json", "protocol/report-least.json"),
    ),
    Parser(
        function="agent_client.protocol.parse_metrics",
        call=protocol.parse_metrics,
        errors=(FormatError,),
        seeds=contract("protocol/metrics.json"),
    ),
    Parser(
        function="agent_client.protocol.parse_status",
        call=protocol.parse_status,
        errors=(FormatError,),
        seeds=contract("protocol/status.json"),
    ),
    Parser(
        function="agent_client.protocol.parse_device_topic",
        call=lambda data: protocol.parse_device_topic(text(data)),
        errors=(),
        seeds=lambda: [f"mf/v1/acme/d/{DEVICE}/report".encode()],
    ),
    *(
        Parser(
            function="rollout.ingest.intake.read",
            about=kind,
            call=lambda data, kind=kind: read(kind, data, DEVICE, [signed_report()[1]]),
            errors=(UntrustedError,),
            seeds=lambda kind=kind: [signed_report()[0]] if kind == "report" else contract(f"protocol/{kind}.json")(),
        )
        for kind in ("report", "metrics", "status")
    ),
    Parser(
        function="agent_client.storage.read_struct",
        call=through_file,
        errors=(StorageError,),
        seeds=lambda: [
            encode_struct(Pointer(directory="a", activation=7, sha256="ab" * 32, version="1.0.0", latency_ms=100.0))
        ],
    ),
    Parser(
        function="agent_client.certificates.parse_certificate",
        call=lambda data: parse_certificate(text(data), "certificate.pem"),
        errors=(StorageError,),
        seeds=lambda: [certificate()],
    ),
    Parser(
        function="registry.certificates.parse_csr",
        call=lambda data: parse_csr(text(data)),
        errors=(CsrError,),
        seeds=lambda: [signing_request(device_key()).encode()],
    ),
    Parser(
        function="signer.keys.public_key_of_pem",
        call=lambda data: public_key_of_pem(text(data)),
        errors=(FormatError,),
        seeds=lambda: [signed_report()[1].encode()],
    ),
    Parser(
        function="registry.card.parse_card",
        call=parse_card,
        errors=(CardError,),
        seeds=lambda: [
            b'name = "ui/detector"\nversion = "1.0.0"\nchannel = "stable"\nlicense = "MIT"\nsummary = "s"\n'
            b'intended_use = "u"\nprofiles = ["linux-cpu-float"]\n[limits]\nlatency_ms = 10.0\n[parameters]\nthreshold = "0.5"\n'
        ],
    ),
    Parser(
        function="benchmarks.golden.load_golden",
        call=load_golden,
        errors=(BenchmarksError,),
        seeds=lambda: [golden_of(1)],
    ),
    Parser(function="converters.walk.walk", call=walk, errors=(ScanError,), seeds=lambda: [linear_model(1), *models()]),
    Parser(
        function="hardware_profiles.facts.parse_facts",
        call=lambda data: parse_facts(parse_json(data)),
        errors=(FactsError, FormatError),
        seeds=lambda: [
            b'{"machine":"x86_64","system":"Linux","cpu_count":2,"memory_bytes":1000,"runtimes":{"onnxruntime":"1.2"}}'
        ],
    ),
    Parser(
        function="hardware_profiles.profile.parse_profile",
        call=lambda data: parse_profile(text(data), "linux-cpu-float"),
        errors=(ProfileError,),
        seeds=lambda: [(REPOSITORY / "hardware_profiles/linux-cpu-float.toml").read_bytes()],
    ),
    Parser(
        function="policies.gates.parse_gate",
        call=lambda data: parse_gate(text(data)),
        errors=(GateFileError,),
        seeds=lambda: [path.read_bytes() for path in (REPOSITORY / "policies").glob("*gate*.toml")],
    ),
    Parser(
        function="policies.gates.parse_evidence",
        call=lambda data: parse_evidence(parse_json(data)),
        errors=(GateFileError, FormatError),
        seeds=lambda: [b'{"latency_p95_ms":1.0,"accuracy":0.9,"samples":10}'],
    ),
    Parser(
        function="policies.plan.parse_plan",
        about="TOML",
        call=lambda data: parse_plan(text(data)),
        errors=(PlanError,),
        seeds=lambda: [(REPOSITORY / "policies/default_plan.toml").read_bytes()],
    ),
    Parser(
        function="policies.plan.parse_plan",
        about="JSON",
        call=lambda data: parse_plan(of_object(data)),
        errors=(PlanError, FormatError),
        seeds=lambda: [b'{"stages":[0.05,0.25,1.0],"limits":{"latency_ms":100.0},"alpha":0.01}'],
    ),
)

NOT_HOSTILE = {
    "converters.request.decode": "written by this process's own child, or by the job queue",
    "converters.scan.parse_report": "plain values of this process's own child",
    "registry.cli.parse_args": "the command line",
    "registry.command.parse_args": "the command line",
    "rollout.cli_bundle.parse_args": "the command line",
    "rollout.command.parse_args": "the command line",
    "policies.offline.parse_duration": "the command line",
    "service.cli_keys.parse_pairs": "the command line",
    "service.initialise.parse_users": "the command line",
    "service.mosquitto.parse_listener": "the command line",
    "signer.cli_keys.parse_minimums": "the command line",
    "signer.key_token.parse_token_uri": "the operator's setting",
}
"""Functions with a parser's name whose input is ours or the operator's, and whose it is."""


def models() -> list[bytes]:
    """ONNX models with subgraphs, functions and attributes, for the walker."""
    import onnx
    import onnx.helper as oh
    from onnx import TensorProto

    inner = oh.make_graph(
        [oh.make_node("Identity", ["image"], ["chosen"])],
        "inner",
        [],
        [oh.make_tensor_value_info("chosen", TensorProto.FLOAT, None)],
    )
    node = oh.make_node("If", ["flag"], ["scores"], then_branch=inner, else_branch=inner)
    graph = oh.make_graph(
        [node],
        "choice",
        [
            oh.make_tensor_value_info("image", TensorProto.FLOAT, [None, 4]),
            oh.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [oh.make_tensor_value_info("scores", TensorProto.FLOAT, None)],
    )
    made: onnx.ModelProto = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=9)
    return [made.SerializeToString()]


__all__ = ["NOT_HOSTILE", "PARSERS", "Parser"]
