"""The signer's own check: for each rule, the release that passes and the one change that is refused."""

import pytest

from modelfleet.signer.errors import (
    DigestError,
    FormatError,
    GateFailedError,
    ReplayError,
    RevokedError,
    ScopeError,
    SignatureError,
    UnknownKeyError,
)
from modelfleet.signer.manifest import Manifest, encode_manifest
from modelfleet.signer.release import Counters, check_release
from modelfleet.signer.sign import sign_gate, sign_source
from modelfleet.signer.statements import GateSubject, TrustPolicy
from tests.unit.signer.samples import Keys, gate, manifest, source


def check(
    keys: Keys,
    of: Manifest | None = None,
    *,
    said: bytes | None = None,
    gates: tuple[bytes, ...] | None = None,
    policy: TrustPolicy | None = None,
    counters: Counters | None = None,
) -> Manifest:
    described = of or manifest()
    return check_release(
        encode_manifest(described),
        sign_source(source(), keys.publisher) if said is None else said,
        (sign_gate(gate(described), keys.gate),) if gates is None else gates,
        policy or keys.policy(),
        counters or {},
    )


def test_passes_what_publisher_and_gate_vouch_for(keys: Keys) -> None:
    assert check(keys) == manifest()


def test_refuses_a_source_that_no_publisher_signed(keys: Keys) -> None:
    for someone in (keys.stranger, keys.gate, keys.director, keys.anna):
        with pytest.raises(UnknownKeyError):
            check(keys, said=sign_source(source(), someone))


def test_refuses_a_variant_that_no_gate_signed(keys: Keys) -> None:
    for someone in (keys.stranger, keys.publisher, keys.director):
        with pytest.raises(UnknownKeyError):
            check(keys, gates=(sign_gate(gate(), someone),))
    with pytest.raises(SignatureError, match="got none"):
        check(keys, gates=())


def test_refuses_when_one_of_several_gates_does_not_hold(keys: Keys) -> None:
    good, failed = (sign_gate(gate(passed=passed), keys.gate) for passed in (True, False))
    check(keys, gates=(good, good))
    with pytest.raises(GateFailedError):
        check(keys, gates=(good, failed))


def test_refuses_a_manifest_of_another_tenant(keys: Keys) -> None:
    with pytest.raises(ScopeError):
        check(keys, manifest(tenant="umbrella"))


@pytest.mark.parametrize("changes", [{"model": "faces"}, {"version": "1.0.1"}, {"channel": "preview"}])
def test_refuses_a_manifest_of_another_publication(changes: dict[str, str], keys: Keys) -> None:
    with pytest.raises(ScopeError):
        check(keys, manifest(**changes))


@pytest.mark.parametrize("changes", [{"tenant": "umbrella"}, {"model": "faces"}])
def test_refuses_a_source_statement_of_something_else(changes: dict[str, str], keys: Keys) -> None:
    with pytest.raises(ScopeError):
        check(keys, said=sign_source(source(**changes), keys.publisher))


def test_refuses_a_manifest_built_from_another_source(keys: Keys) -> None:
    with pytest.raises(DigestError, match="source"):
        check(keys, manifest(source_sha256="9" * 64))


@pytest.mark.parametrize(
    "changes",
    [
        {"tenant": "umbrella"},
        {"model": "faces"},
        {"version": "1.0.1"},
        {"profile": "linux-cpu-int8"},
        {"precision": "int8"},
    ],
)
def test_refuses_gates_that_speak_of_another_variant(changes: dict[str, str], keys: Keys) -> None:
    with pytest.raises(ScopeError):
        check(keys, gates=(sign_gate(gate(**changes), keys.gate),))


@pytest.mark.parametrize("changes", [{"source_sha256": "9" * 64}, {"golden_sha256": "9" * 64}])
def test_refuses_gates_that_ran_on_other_data(changes: dict[str, str], keys: Keys) -> None:
    with pytest.raises(DigestError):
        check(keys, gates=(sign_gate(gate(**changes), keys.gate),))


def test_refuses_gates_that_do_not_name_exactly_the_manifests_files(keys: Keys) -> None:
    subjects = gate().subject
    other = GateSubject(name=subjects[0].name, digest={"sha256": "9" * 64})
    extra = GateSubject(name="extra.bin", digest={"sha256": "9" * 64})
    for found in ((subjects[0],), (other, *subjects[1:]), (*subjects, extra), (*subjects, subjects[0])):
        with pytest.raises(DigestError, match="all 2 files"):
            check(keys, gates=(sign_gate(gate(subject=found), keys.gate),))


def test_the_release_counter_grows_with_each_new_version(keys: Keys) -> None:
    check(keys, counters={"digits": {"0.9.0": 0}, "faces": {"7.0.0": 70}})
    for highest in (1, 2):
        with pytest.raises(ReplayError, match=f"counter > {highest}, got 1"):
            check(keys, counters={"digits": {"0.9.0": highest}})


def test_another_profile_of_a_signed_version_keeps_its_counter(keys: Keys) -> None:
    later = manifest(profile="linux-cpu-int8", precision="int8")
    check(keys, later, counters={"digits": {"1.0.0": 1, "1.1.0": 2}})
    with pytest.raises(ReplayError, match=r"counter 7 of 1\.0\.0, got 1"):
        check(keys, later, counters={"digits": {"1.0.0": 7}})


def test_refuses_what_the_policy_revokes(keys: Keys) -> None:
    from modelfleet.signer.names import sha256_of

    with pytest.raises(RevokedError):
        check(keys, policy=keys.policy(revoked=(sha256_of(encode_manifest(manifest())),)))
    with pytest.raises(RevokedError):
        check(keys, policy=keys.policy(minimum_counter={"digits": 2}))


def test_refuses_bytes_that_are_no_manifest(keys: Keys) -> None:
    with pytest.raises(FormatError):
        check_release(b"{}", sign_source(source(), keys.publisher), (), keys.policy(), {})
