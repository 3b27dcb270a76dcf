"""What each part of the server gets by itself, and what it does not: registry, director, signer, broker, worker, publisher."""

from pathlib import Path

import msgspec
import pytest

from modelfleet.agent_client.errors import BytesRefusedError
from modelfleet.signer.desired import Release
from modelfleet.signer.errors import (
    ApprovalError,
    DigestError,
    SignatureError,
    UnknownKeyError,
    UntrustedError,
)
from modelfleet.signer.manifest import encode_manifest
from modelfleet.signer.metadata import TargetFile
from modelfleet.signer.names import sha256_of
from modelfleet.signer.release import check_release
from modelfleet.signer.sign import sign_approval, sign_gate, sign_group, sign_source
from tests.attacks.forge import manifest_of
from tests.attacks.machine import Machine
from tests.attacks.thief import Thief
from tests.unit.agent_client.fleet import PROFILE
from tests.unit.signer import samples


def poisoned(thief: Thief, release: Release) -> bytes:
    """Another manifest of the same path."""
    manifest = manifest_of(thief.fleet, release)
    return encode_manifest(msgspec.structs.replace(manifest, parameters={"threshold": "0"}))


def test_registry_alone_names_no_manifest(thief: Thief, victim: Machine) -> None:
    """Snapshot and timestamp keys, store and database: a bin that it signs itself is not the releases key's."""
    release = thief.fleet.release("1.0.0")
    assert victim.verify(release).version == "1.0.0"
    evil = poisoned(thief, release)
    target = TargetFile.from_data(release.path, evil, ["sha256"])
    (thief.fleet.keys.targets_dir / target.get_prefixed_paths()[0]).write_bytes(evil)
    thief.forger.renew(
        thief.forger.bin_of(release.path),
        lambda signed: signed.targets.update({release.path: target}),
        signers=[thief.keys["service/snapshot.pem"], thief.keys["service/timestamp.pem"]],
    )
    with pytest.raises(SignatureError):
        victim.verify(release)


def test_registry_alone_swaps_the_bytes(thief: Thief, victim: Machine, tmp_path: Path) -> None:
    """The store is its own: what it puts under a digest is still not that digest."""
    release = thief.fleet.release("1.0.0")
    manifest = victim.verify(release)
    victim.fetch(manifest, tmp_path / "honest")
    entry = manifest.file("model.onnx")
    thief.fleet.server.blobs[entry.sha256] = b"\x00" * entry.length
    with pytest.raises(BytesRefusedError):
        victim.fetch(manifest, tmp_path / "slot")
    thief.fleet.server.blobs[release.approvals[0]] = b"{}"
    with pytest.raises(BytesRefusedError):
        victim.verify(release)


@pytest.mark.parametrize(
    "key", ["service/snapshot.pem", "service/timestamp.pem", "signer/releases.pem", "worker/gate.pem"]
)
def test_registry_signer_or_worker_alone_directs_nobody(key: str, thief: Thief, victim: Machine) -> None:
    document = thief.fleet.group_document()
    with pytest.raises(UnknownKeyError):
        victim.documents.accept_group(sign_group(document, thief.keys[key]))
    victim.hears(document)


def test_director_alone_names_what_is_not_signed(thief: Thief, victim: Machine) -> None:
    """A release of its own invention is in no bin; another digest under a path that is, is not what the bin says."""
    honest = thief.fleet.release("1.0.0")
    assert victim.verify(honest).version == "1.0.0"
    with pytest.raises(SignatureError, match="got none"):
        victim.verify(msgspec.structs.replace(honest, path=honest.path.replace("1.0.0", "9.9.9")))
    evil = poisoned(thief, honest)
    with pytest.raises(DigestError):
        victim.verify(msgspec.structs.replace(honest, sha256=sha256_of(evil), length=len(evil)))


def test_director_alone_gets_an_older_approved_release(thief: Thief, victim: Machine) -> None:
    """What it does get, until the policy revokes: any release that people approved for this group, at once."""
    old, _new = thief.fleet.release("1.0.0"), thief.fleet.release("1.1.0", seed=2)
    assert victim.verify(old).version == "1.0.0"
    with pytest.raises(ApprovalError):
        victim.verify(msgspec.structs.replace(old, approvals=()))


def test_registry_and_director_together(thief: Thief, victim: Machine) -> None:
    """Document, snapshot, timestamp, store: the manifest of their own is in no bin that the releases key signed."""
    honest = thief.fleet.release("1.0.0")
    assert victim.verify(honest).version == "1.0.0"
    evil = poisoned(thief, honest)
    target = TargetFile.from_data(honest.path, evil, ["sha256"])
    (thief.fleet.keys.targets_dir / target.get_prefixed_paths()[0]).write_bytes(evil)
    thief.forger.renew(
        thief.forger.bin_of(honest.path),
        lambda signed: signed.targets.update({honest.path: target}),
        signers=[thief.keys[f"service/{name}.pem"] for name in ("director", "snapshot", "timestamp")],
    )
    named = msgspec.structs.replace(honest, sha256=sha256_of(evil), length=len(evil))
    thief.fleet.stable = named
    victim.hears(thief.fleet.group_document())
    with pytest.raises(SignatureError):
        victim.verify(named)


def test_signer_alone_replaces_no_release(thief: Thief, victim: Machine) -> None:
    """The releases key puts another manifest under a path: desired state and approvals still mean the first."""
    release = thief.fleet.release("1.0.0")
    assert victim.verify(release).version == "1.0.0"
    thief.fleet.sign_target(release.path, poisoned(thief, release))
    with pytest.raises(DigestError):
        victim.verify(release)


def test_broker_alone(thief: Thief, victim: Machine) -> None:
    """It can send what it has heard, to whomever, in any order: the device stays at the newest of its own."""
    fleet = thief.fleet
    heard = [sign_group(fleet.group_document(), fleet.director) for _ in range(3)]
    heard += [sign_group(fleet.group_document(scope=f"g/{name}/{PROFILE}"), fleet.director) for name in ("a", "b")]
    newest = fleet.group_document()
    victim.hears(newest)
    for envelope in [*heard, b"", b"{}", heard[0][:-1], heard[0] + b" x", heard[1].replace(b"A", b"B", 1)]:
        with pytest.raises(UntrustedError):
            victim.documents.accept_group(envelope)
        with pytest.raises(UntrustedError):
            victim.documents.accept_assignment(envelope)
    assert victim.documents.group == newest
    later = fleet.group_document()
    assert victim.hears(later) == later


def test_approvers_keys_alone(thief: Thief, victim: Machine) -> None:
    """k approvers without the server: no bin names what they approve, and no document does."""
    honest = thief.fleet.release("1.0.0")
    assert victim.verify(honest).version == "1.0.0"
    evil = poisoned(thief, honest)
    own = msgspec.structs.replace(honest, sha256=sha256_of(evil), length=len(evil))
    with pytest.raises(UnknownKeyError):
        thief.fleet.stable = own
        victim.documents.accept_group(sign_group(thief.fleet.group_document(), thief.person("anna")))
    with pytest.raises(DigestError):
        victim.verify(thief.approved_by(own, sign_approval(thief.approval(own), thief.person("anna"))))


@pytest.fixture(scope="module")
def roles() -> samples.Keys:
    return samples.Keys(**{name: samples.new_key() for name in samples.Keys.__dataclass_fields__})


def test_publisher_alone(roles: samples.Keys) -> None:
    """CI's key vouches for bytes; without a worker that measured them there is no variant."""
    data, source = encode_manifest(samples.manifest()), sign_source(samples.source(), roles.publisher)
    for gates in ([], [sign_gate(samples.gate(), roles.publisher)]):
        with pytest.raises(SignatureError):
            check_release(data, source, gates, roles.policy(), {})
    check_release(data, source, [sign_gate(samples.gate(), roles.gate)], roles.policy(), {})


def test_worker_alone(roles: samples.Keys) -> None:
    """The gate's key vouches for a variant; the source must be the publisher's."""
    data, gate = encode_manifest(samples.manifest()), sign_gate(samples.gate(), roles.gate)
    with pytest.raises(UnknownKeyError):
        check_release(data, sign_source(samples.source(), roles.gate), [gate], roles.policy(), {})
    other = sign_source(samples.source(source_sha256="9" * 64), roles.publisher)
    with pytest.raises(DigestError):
        check_release(data, other, [gate], roles.policy(), {})
    check_release(data, sign_source(samples.source(), roles.publisher), [gate], roles.policy(), {})
