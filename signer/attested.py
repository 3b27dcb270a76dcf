"""Whether a variant's attestations hold together: signed by gate keys, about the same files, from the same source, all passed."""

from collections.abc import Mapping
from dataclasses import dataclass

from modelfleet.signer.attestations import verify_gate
from modelfleet.signer.dsse import verify_envelope
from modelfleet.signer.errors import DigestError, FormatError, GateFailedError, ScopeError
from modelfleet.signer.parse import parse_json, parse_struct
from modelfleet.signer.provenance import (
    BUILD_TYPE,
    GOLDEN_NAME,
    PROVENANCE_PREDICATE_TYPE,
    SOURCE_NAME,
    TEST_RESULT_PREDICATE_TYPE,
    ProvenanceStatement,
    TestResultStatement,
)
from modelfleet.signer.statements import (
    GATE_PREDICATE_TYPE,
    IN_TOTO_PAYLOAD_TYPE,
    IN_TOTO_STATEMENT_TYPE,
    GatePredicate,
    GateStatement,
    GateSubject,
    TrustPolicy,
)


@dataclass(frozen=True, kw_only=True)
class Attested:
    """What the attestations of one variant say together: `files` maps a name to its sha256, `tests` are those that passed."""

    gate: GatePredicate
    files: Mapping[str, str]
    provenance: ProvenanceStatement
    tests: tuple[str, ...]


def verify_attestations(envelopes: Mapping[str, bytes], policy: TrustPolicy) -> Attested:
    """Return what the envelopes attest.

    Args:
        envelopes: name -> DSSE envelope: one gate statement, one provenance, and any number of test results.
        policy: names the gate keys.

    Raises:
        SignatureError: one is not signed by a gate key. FormatError: one is of another kind, or one is missing.
        ScopeError, DigestError: they speak of different variants, files or sources. GateFailedError: a test did not pass.
    """
    gates: list[GateStatement] = []
    provenances: list[ProvenanceStatement] = []
    results: dict[str, TestResultStatement] = {}
    for name, envelope in sorted(envelopes.items()):
        payload, _ = verify_envelope(envelope, IN_TOTO_PAYLOAD_TYPE, policy.gates)
        match _predicate_type(payload):
            case kind if kind == GATE_PREDICATE_TYPE:
                gates.append(verify_gate(envelope, policy))
            case kind if kind == PROVENANCE_PREDICATE_TYPE:
                provenances.append(parse_struct(payload, ProvenanceStatement))
            case kind if kind == TEST_RESULT_PREDICATE_TYPE:
                results[name] = parse_struct(payload, TestResultStatement)
            case kind:
                raise FormatError(f"{name}: expected provenance, a gate statement or a test result, got {kind[:80]!r}")
    if (len(gates), len(provenances)) != (1, 1):
        raise FormatError(f"expected one gate statement and one provenance, got {len(gates)} and {len(provenances)}")
    _require_passed(gates[0], results)
    _require_provenance(gates[0], provenances[0])
    for name, result in results.items():
        _require_subject(name, result, gates[0])
    return Attested(
        gate=gates[0].predicate,
        files=_digests(gates[0].subject),
        provenance=provenances[0],
        tests=tuple(sorted(test for result in results.values() for test in result.predicate.passed_tests)),
    )


def _predicate_type(payload: bytes) -> str:
    value = parse_json(payload, max_bytes=len(payload))
    kinds = (value.get("_type"), value.get("predicateType")) if isinstance(value, dict) else (None, None)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if kinds[0] != IN_TOTO_STATEMENT_TYPE or not isinstance(kinds[1], str):
        raise FormatError("expected an in-toto v1 statement")
    return kinds[1]


def _digests(subjects: tuple[GateSubject, ...]) -> dict[str, str]:
    return {subject.name: subject.digest.get("sha256", "") for subject in subjects}


def _require_passed(gate: GateStatement, results: Mapping[str, TestResultStatement]) -> None:
    if not gate.predicate.passed:
        raise GateFailedError(f"{gate.predicate.model} {gate.predicate.version} did not pass its gates")
    for name, result in results.items():
        if result.predicate.result != "PASSED" or result.predicate.failed_tests:
            raise GateFailedError(f"{name}: expected PASSED, got {result.predicate.result}")


def _require_provenance(gate: GateStatement, provenance: ProvenanceStatement) -> None:
    definition, said = provenance.predicate.build_definition, gate.predicate
    if definition.build_type != BUILD_TYPE:
        raise FormatError(f"provenance: expected a build of {BUILD_TYPE}, got {definition.build_type[:80]!r}")
    asked = definition.external_parameters
    expected = (said.tenant, said.model, said.version, said.profile, said.precision)
    found = (asked.tenant, asked.model, asked.version, asked.profile, asked.precision)
    if found != expected:
        raise ScopeError(f"provenance: expected that of {expected}, got that of {found}")
    if _digests(provenance.subject) != _digests(gate.subject):
        raise DigestError("provenance: expected the files that the gates speak of, got others")
    inputs = {each.name: each.digest.get("sha256") for each in definition.resolved_dependencies if each.digest}
    sources = (said.source_sha256, said.golden_sha256)
    if (asked.source_sha256, asked.golden_sha256) != sources or (
        inputs.get(SOURCE_NAME),
        inputs.get(GOLDEN_NAME),
    ) != sources:
        raise DigestError("provenance: expected the source and golden set that the gates speak of, got others")


def _require_subject(name: str, result: TestResultStatement, gate: GateStatement) -> None:
    about = _digests(result.subject)
    if about not in (_digests(gate.subject), {SOURCE_NAME: gate.predicate.source_sha256}):
        raise DigestError(f"{name}: expected a test of the variant's files or of its source, got one of others")
