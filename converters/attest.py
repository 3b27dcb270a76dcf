"""What the worker signs of a variant that passed: its gate statement, SLSA provenance, and a test result per gate.

The gate key is opened here and nowhere else, after everything was measured; models are never opened beside it.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import msgspec

from modelfleet.converters.request import Attestation, BuildRequest, BuiltFile
from modelfleet.hardware_profiles.profile import Precision
from modelfleet.signer.dsse import sign_envelope
from modelfleet.signer.keys import Signer, load_signer
from modelfleet.signer.provenance import (
    GOLDEN_NAME,
    PROVENANCE_PREDICATE_TYPE,
    SOURCE_NAME,
    TEST_RESULT_PREDICATE_TYPE,
    BuildDefinition,
    Builder,
    BuildParameters,
    ProvenancePredicate,
    ProvenanceStatement,
    Resource,
    RunDetails,
    RunMetadata,
    TestResultPredicate,
    TestResultStatement,
)
from modelfleet.signer.sign import encode_payload, sign_gate
from modelfleet.signer.statements import IN_TOTO_PAYLOAD_TYPE, GatePredicate, GateStatement, GateSubject


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One variant as it came out: its files, the inputs' digests, every figure, and when the run began."""

    precision: Precision
    files: tuple[BuiltFile, ...]
    source_sha256: str
    golden_sha256: str
    results: dict[str, Any]
    started_at: datetime


@dataclass(frozen=True, kw_only=True)
class Attested:
    """The signed gate statement, and the attestations beside it."""

    gate_envelope: bytes
    attestations: tuple[Attestation, ...]


def attest(request: BuildRequest, measured: Measured) -> Attested:
    """Return everything that the gate key says of this variant (SignerError: the key cannot be opened)."""
    gate = load_signer(request.gate_key_uri)
    provenance = _sign(_provenance(request, measured), gate)
    attestations = [Attestation(name="provenance", predicate_type=PROVENANCE_PREDICATE_TYPE, envelope=provenance)]
    for name, statement in _test_results(measured).items():
        envelope = _sign(statement, gate)
        attestations.append(Attestation(name=name, predicate_type=TEST_RESULT_PREDICATE_TYPE, envelope=envelope))
    return Attested(gate_envelope=sign_gate(_gate(request, measured), gate), attestations=tuple(attestations))


def _gate(request: BuildRequest, measured: Measured) -> GateStatement:
    return GateStatement(
        subject=_files(measured),
        predicate=GatePredicate(
            tenant=request.tenant,
            model=request.model,
            version=request.version,
            profile=request.profile.name,
            precision=measured.precision,
            source_sha256=measured.source_sha256,
            golden_sha256=measured.golden_sha256,
            passed=True,
            results=measured.results,
        ),
    )


def _provenance(request: BuildRequest, measured: Measured) -> ProvenanceStatement:
    definition = BuildDefinition(
        external_parameters=BuildParameters(
            tenant=request.tenant,
            model=request.model,
            version=request.version,
            profile=request.profile.name,
            precision=measured.precision,
            source_sha256=measured.source_sha256,
            golden_sha256=measured.golden_sha256,
        ),
        internal_parameters={
            "profile": msgspec.to_builtins(request.profile),
            "gate": msgspec.to_builtins(request.gate),
            "limits": msgspec.to_builtins(request.limits),
            "runs": request.runs,
        },
        resolved_dependencies=(*_inputs(measured), *_libraries(measured.results["versions"])),
    )
    details = RunDetails(
        builder=Builder(version={"modelfleet": version("modelfleet")}),
        metadata=RunMetadata(
            invocation_id=uuid.uuid4().urn, started_on=measured.started_at, finished_on=datetime.now(UTC)
        ),
    )
    predicate = ProvenancePredicate(build_definition=definition, run_details=details)
    return ProvenanceStatement(subject=_files(measured), predicate=predicate)


def _test_results(measured: Measured) -> dict[str, TestResultStatement]:
    results, files = measured.results, _files(measured)
    source, golden = _inputs(measured)
    gate, limits = results["gate"], results["limits"]
    speed = {**results["benchmark"], "batch": results.get("batch"), "limits": limits}
    found = {
        "parity": _passed("parity", files, (source, golden), results["parity"]),
        "benchmark": _passed("benchmark", files, (golden,), speed),
        "scan": _passed("scan", (GateSubject(name=SOURCE_NAME, digest=source.digest),), (), results["scan"]),
    }
    if gate["accuracy"] is not None:
        figures = {name: gate[name] for name in ("accuracy", "original_accuracy", "samples")}
        found["accuracy"] = _passed("accuracy", files, (golden,), {**figures, "limit": limits["accuracy"]})
    return found


def _passed(
    test: str, about: tuple[GateSubject, ...], configuration: tuple[Resource, ...], figures: Mapping[str, Any]
) -> TestResultStatement:
    predicate = TestResultPredicate(
        result="PASSED", configuration=configuration, passed_tests=(test,), figures=dict(figures)
    )
    return TestResultStatement(subject=about, predicate=predicate)


def _files(measured: Measured) -> tuple[GateSubject, ...]:
    return tuple(GateSubject(name=file.name, digest={"sha256": file.sha256}) for file in measured.files)


def _inputs(measured: Measured) -> tuple[Resource, Resource]:
    return (
        Resource(name=SOURCE_NAME, digest={"sha256": measured.source_sha256}),
        Resource(name=GOLDEN_NAME, digest={"sha256": measured.golden_sha256}),
    )


def _libraries(versions: Mapping[str, str]) -> list[Resource]:
    return [Resource(name=name, uri=f"pkg:pypi/{name}@{found}") for name, found in sorted(versions.items())]


def _sign(statement: msgspec.Struct, gate: Signer) -> bytes:
    return sign_envelope(encode_payload(statement), IN_TOTO_PAYLOAD_TYPE, gate)
