"""Whatever bytes come, a parser returns or raises its documented error, soon; what was signed is never read as another thing."""

import ast
import base64
import contextlib
import os
import time

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelfleet.rollout.ingest.intake import read
from modelfleet.signer.desired import GROUP_PAYLOAD_TYPE
from modelfleet.signer.dsse import verify_envelope
from modelfleet.signer.errors import UntrustedError
from modelfleet.signer.metadata import Root, Snapshot, Targets, Timestamp, parse_metadata
from modelfleet.signer.trust import trusted_root
from tests.fuzz.hostile import hostile
from tests.fuzz.parsers import (
    CONTRACTS,
    DEVICE,
    NOT_HOSTILE,
    PARSERS,
    REPOSITORY,
    Parser,
    director,
    metadata,
    signed_report,
)

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "500"))
LONGEST_SECONDS = 2.0
FOLDERS = (
    "agent_client",
    "benchmarks",
    "converters",
    "hardware_profiles",
    "policies",
    "registry",
    "rollout",
    "service",
    "signer",
)
BOUNDED = settings(
    max_examples=EXAMPLES,
    derandomize="FUZZ_EXAMPLES"
    not in os.environ,  # the same inputs in every run of CI; others where one looks for more
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)


@pytest.mark.parametrize("parser", PARSERS, ids=str)
def test_only_the_documented_error_leaves(parser: Parser) -> None:
    seeds = parser.seeds()

    @BOUNDED
    @given(hostile(seeds))
    def check(data: bytes) -> None:
        started = time.perf_counter()
        with contextlib.suppress(*parser.errors):
            parser.call(data)
        assert time.perf_counter() - started < LONGEST_SECONDS

    check()


@pytest.mark.parametrize("parser", [parser for parser in PARSERS if parser.seeds()], ids=str)
def test_a_seed_is_no_noise(parser: Parser) -> None:
    """One valid input at least is read, or gets as far as being refused for what it says."""
    for seed in parser.seeds():
        try:
            parser.call(seed)
        except parser.errors as error:
            assert "not strict JSON" not in str(error) and "PEM" not in str(error), error


@BOUNDED
@given(hostile((CONTRACTS.joinpath("signer/group.envelope.json").read_bytes(),)))
def test_a_damaged_envelope_is_never_another_document(data: bytes) -> None:
    signed = base64.b64decode(
        msgspec.json.decode(CONTRACTS.joinpath("signer/group.envelope.json").read_bytes())["payload"]
    )
    try:
        payload, _ = verify_envelope(data, GROUP_PAYLOAD_TYPE, director())
    except UntrustedError:
        return
    assert payload == signed


@BOUNDED
@given(st.data())
def test_a_damaged_report_is_never_another_signed_report(drawn: st.DataObject) -> None:
    envelope, pem = signed_report()
    true, _ = read("report", envelope, DEVICE, [pem])
    data = drawn.draw(hostile((envelope,)))
    try:
        found, signed = read("report", data, DEVICE, [pem])
    except UntrustedError:
        return
    assert not signed or found == true


@BOUNDED
@given(st.data())
def test_a_damaged_root_is_never_another_root(drawn: st.DataObject) -> None:
    true = parse_metadata(metadata()["root"], Root).signed
    try:
        found = trusted_root(drawn.draw(hostile((metadata()["root"],))))
    except UntrustedError:
        return
    assert found.to_dict() == true.to_dict()


@pytest.mark.parametrize("kind", [Timestamp, Snapshot, Targets], ids=lambda kind: kind.type)
def test_damaged_metadata_is_never_signed(kind: type[Timestamp | Snapshot | Targets]) -> None:
    from modelfleet.signer.metadata import require_signed

    root = trusted_root(metadata()["root"])
    true = parse_metadata(metadata()[kind.type], kind)

    @BOUNDED
    @given(hostile((metadata()[kind.type],)))
    def check(data: bytes) -> None:
        try:
            found = parse_metadata(data, kind)
            require_signed(root, kind.type, found)
        except UntrustedError:
            return
        assert found.signed.to_dict() == true.signed.to_dict()

    require_signed(root, kind.type, true)
    check()


def named_as_parsers() -> set[str]:
    """Return every function of the product that is named as one that reads bytes."""
    found = set[str]()
    for folder in FOLDERS:
        for path in sorted((REPOSITORY / folder).glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef) and (node.name.startswith("parse_") or node.name == "decode"):
                    found.add(f"{folder}.{path.stem}.{node.name}")
    return found


def test_every_parser_is_in_the_table() -> None:
    known = {parser.function for parser in PARSERS} | set(NOT_HOSTILE)
    missing = named_as_parsers() - known
    assert not missing, f"add a row to tests/fuzz/parsers.py for {sorted(missing)}"


def test_every_row_names_a_function() -> None:
    import importlib

    for name in {parser.function for parser in PARSERS}:
        module, _, function = name.rpartition(".")
        assert callable(getattr(importlib.import_module(f"modelfleet.{module}"), function)), name
