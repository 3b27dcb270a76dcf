"""How a variant was built and what was measured of it, as the public in-toto predicates say such things.

SLSA provenance v1 (slsa.dev/spec/v1.0/provenance) tells what went in; in-toto test results v0.1
(github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md) tell what each gate found. The converter worker signs
them beside its gate statement, with the gate key. What a build type and its parameters mean stands in docs/embedding.md.
"""

from typing import Annotated, Final, Literal

import msgspec

from modelfleet.signer.desired import Moment
from modelfleet.signer.names import ModelName, Name, SemVer, Sha256
from modelfleet.signer.statements import IN_TOTO_STATEMENT_TYPE, GateSubject

PROVENANCE_PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
TEST_RESULT_PREDICATE_TYPE: Final = "https://in-toto.io/attestation/test-result/v0.1"
BUILD_TYPE: Final = "urn:modelfleet:build:variant:v1"
BUILDER_ID: Final = "urn:modelfleet:builder:converter-worker:v1"
SOURCE_NAME: Final = "source.onnx"
GOLDEN_NAME: Final = "golden.npz"

Subjects = Annotated[tuple[GateSubject, ...], msgspec.Meta(min_length=1, max_length=256)]


class Resource(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """In-toto's resource descriptor: a file by its digest, or a package by its URL (`pkg:pypi/onnx@1.18.0`)."""

    name: str
    uri: str = ""
    digest: dict[str, str] = {}


class BuildParameters(msgspec.Struct, frozen=True, kw_only=True):
    """SLSA's external parameters: all that whoever published and configured the version has asked for."""

    tenant: Name
    model: ModelName
    version: SemVer
    profile: Name
    precision: Name
    source_sha256: Sha256
    golden_sha256: Sha256


class BuildDefinition(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What was built, from what; internal_parameters are the profile and the gate as they stood on the worker."""

    build_type: str = BUILD_TYPE
    external_parameters: BuildParameters
    internal_parameters: dict[str, object]
    resolved_dependencies: tuple[Resource, ...]


class Builder(msgspec.Struct, frozen=True, kw_only=True):
    """Who built it; `version` is the worker's own."""

    id: str = BUILDER_ID
    version: dict[str, str] = {}


class RunMetadata(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One run of the builder."""

    invocation_id: str
    started_on: Moment
    finished_on: Moment


class RunDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Which run of which builder."""

    builder: Builder
    metadata: RunMetadata


class ProvenancePredicate(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """SLSA provenance v1."""

    build_definition: BuildDefinition
    run_details: RunDetails


class ProvenanceStatement(msgspec.Struct, frozen=True, kw_only=True):
    """In-toto Statement v1 with SLSA provenance; its subjects are all files of the variant."""

    type: str = msgspec.field(name="_type", default=IN_TOTO_STATEMENT_TYPE)
    subject: Subjects
    predicate_type: str = msgspec.field(name="predicateType", default=PROVENANCE_PREDICATE_TYPE)
    predicate: ProvenancePredicate


class TestResultPredicate(msgspec.Struct, frozen=True, kw_only=True):
    """In-toto's test result; `figures` is an extension field, with what was measured."""

    __test__ = False

    result: Literal["PASSED", "WARNED", "FAILED"]
    configuration: tuple[Resource, ...]
    passed_tests: tuple[str, ...] = msgspec.field(name="passedTests", default=())
    warned_tests: tuple[str, ...] = msgspec.field(name="warnedTests", default=())
    failed_tests: tuple[str, ...] = msgspec.field(name="failedTests", default=())
    figures: dict[str, object] = msgspec.field(name="modelfleet_figures", default_factory=dict[str, object])


class TestResultStatement(msgspec.Struct, frozen=True, kw_only=True):
    """In-toto Statement v1 with a test result; its subjects are the files that the test was about."""

    __test__ = False

    type: str = msgspec.field(name="_type", default=IN_TOTO_STATEMENT_TYPE)
    subject: Subjects
    predicate_type: str = msgspec.field(name="predicateType", default=TEST_RESULT_PREDICATE_TYPE)
    predicate: TestResultPredicate
