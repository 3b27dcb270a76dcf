"""The attacks of the TUF specification (section 1.5.2) by who holds some of a repository's keys, on the agent's client."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import msgspec
import pytest
from securesystemslib.signer import KEY_FOR_TYPE_AND_SCHEME  # pyright: ignore[reportPrivateImportUsage]

from modelfleet.agent_client.errors import MetadataRefusedError
from modelfleet.signer.desired import Release
from modelfleet.signer.errors import (
    DigestError,
    ExpiredError,
    ReplayError,
    SignatureError,
    UntrustedError,
)
from modelfleet.signer.keys import CryptoSigner
from modelfleet.signer.manifest import Manifest, ManifestFile, encode_manifest
from modelfleet.signer.metadata import Root, TargetFile, Targets, parse_metadata
from modelfleet.signer.names import sha256_of
from modelfleet.signer.sign import sign_gate, sign_source
from tests.attacks.forge import Forger, manifest_of, nothing, take_over
from tests.attacks.machine import Machine
from tests.unit.agent_client.fleet import Fleet, now, send

DAY = timedelta(days=1)
FAR = 2**40


@pytest.fixture
def release(fleet: Fleet) -> Release:
    """A release that is signed, served and approved."""
    return fleet.release("1.0.0")


def named(manifest: Manifest, release: Release) -> Release:
    """Return the release with another manifest's digest and length."""
    data = encode_manifest(manifest)
    return msgspec.structs.replace(release, sha256=sha256_of(data), length=len(data))


# Arbitrary install


def test_arbitrary_install_of_a_manifest_signed_by_a_strangers_key(
    machine: Machine, fleet: Fleet, forger: Forger, release: Release
) -> None:
    assert machine.verify(release).version == "1.0.0"
    evil = b'{"format": "1.0"}'
    forger.renew(
        forger.bin_of(release.path),
        lambda signed: signed.targets.update({release.path: TargetFile.from_data(release.path, evil, ["sha256"])}),
        signers=[CryptoSigner.generate_ecdsa()],
    )
    with pytest.raises(SignatureError):
        machine.trust.refresh()
        machine.trust.manifest(release.path)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "root"])
def test_arbitrary_metadata_signed_by_a_strangers_key(role: str, machine: Machine, forger: Forger) -> None:
    forger.renew(role)
    machine.trust.refresh()
    stranger = CryptoSigner.generate_ecdsa()
    forger.renew(role, (lambda root: take_over(root, stranger)) if role == "root" else nothing, signers=[stranger])
    if role == "root":
        forger.renew("targets", signers=[stranger])
    with pytest.raises(SignatureError):
        machine.trust.refresh()


# Extraneous dependencies


def test_extraneous_dependency_in_a_manifest(machine: Machine, fleet: Fleet, release: Release) -> None:
    """A file more in the manifest, signed into the bin even, is not what was approved."""
    assert machine.verify(release).version == "1.0.0"
    honest = manifest_of(fleet, release)
    extra = ManifestFile(name="backdoor.so", sha256="b" * 64, length=100, role="extra")
    longer = msgspec.structs.replace(honest, files=(*honest.files, extra))
    fleet.sign_target(release.path, encode_manifest(longer))
    with pytest.raises(DigestError):
        machine.verify(release)
    with pytest.raises(UntrustedError, match="approvals by 1 persons, got 0"):
        machine.verify(named(longer, release))


def test_extraneous_dependency_that_no_gate_attested(tmp_path: Path) -> None:
    """The signer puts no manifest into a bin with a file more than the gates have seen."""
    from modelfleet.signer.release import check_release
    from tests.unit.signer import samples

    keys = samples.Keys(**{name: samples.new_key() for name in samples.Keys.__dataclass_fields__})
    manifest = samples.manifest()
    source, gate = sign_source(samples.source(), keys.publisher), sign_gate(samples.gate(manifest), keys.gate)
    assert check_release(encode_manifest(manifest), source, [gate], keys.policy(), {}) == manifest
    extra = ManifestFile(name="backdoor.so", sha256="b" * 64, length=100, role="extra")
    longer = msgspec.structs.replace(manifest, files=(*manifest.files, extra))
    with pytest.raises(DigestError, match="name all 3 files"):
        check_release(encode_manifest(longer), source, [gate], keys.policy(), {})


def test_extraneous_target_outside_its_bin(machine: Machine, fleet: Fleet, forger: Forger, release: Release) -> None:
    """A bin that names a path which hashes into another bin says nothing about it."""
    assert machine.verify(release).version == "1.0.0"
    right = forger.bin_of(release.path)
    wrong = next(f"releases-{n}" for n in range(4) if f"releases-{n}" != right)
    target = forger.load(right).signed.targets[release.path]
    forger.renew(wrong, lambda signed: signed.targets.update({release.path: target}))
    forger.renew(right, lambda signed: signed.targets.pop(release.path))
    with pytest.raises(SignatureError, match="got none"):
        machine.verify(release)


# Fast-forward


@pytest.mark.parametrize("role", ["timestamp", "snapshot"])
def test_fast_forward_and_recovery_by_a_new_key(role: str, machine: Machine, forger: Forger, tmp_path: Path) -> None:
    """A stolen key signs a version far ahead; what is honest is below it until the root names another key."""
    machine.trust.refresh()
    honest = forger.saved(tmp_path / "honest")
    forger.renew(role, version=FAR)
    machine.trust.refresh()
    ahead = forger.saved(tmp_path / "ahead")
    forger.restore(honest)
    with pytest.raises(ReplayError):
        machine.trust.refresh()
    machine.lose("cache")
    with pytest.raises(ReplayError):
        machine.trust.refresh()
    forger.rotate(role)
    if role == "snapshot":
        forger.rotate("timestamp")  # it named the snapshot far ahead
    forger.renew(role)
    machine.trust.refresh()
    assert machine.floors.record.roles[role].version < FAR
    shutil.copy(ahead / "timestamp.json", forger.folder / "timestamp.json")
    with pytest.raises(UntrustedError):
        machine.trust.refresh()


def test_fast_forward_of_a_bin_and_recovery_by_a_new_key(
    machine: Machine, fleet: Fleet, forger: Forger, release: Release, tmp_path: Path
) -> None:
    machine.verify(release)
    honest = forger.saved(tmp_path / "honest")
    forger.renew(forger.bin_of(release.path), version=FAR)
    machine.verify(release)
    forger.restore(honest)
    machine.lose("cache")
    with pytest.raises((ReplayError, MetadataRefusedError)):
        machine.verify(release)
    new = CryptoSigner.generate_ecdsa()
    forger.keys["releases"] = [new]

    def replace_key(signed: Targets) -> None:
        assert signed.delegations is not None and signed.delegations.succinct_roles is not None
        signed.delegations.keys = {new.public_key.keyid: new.public_key}
        signed.delegations.succinct_roles.keyids = [new.public_key.keyid]

    forger.renew("targets", replace_key)
    for number in range(4):
        forger.renew(f"releases-{number}")
    for role in ("snapshot", "timestamp"):  # they led to the bin far ahead
        forger.rotate(role)
        forger.renew(role)
    assert machine.verify(release).version == "1.0.0"


# Freeze


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", "releases"])
def test_freeze_on_expired_metadata(
    role: str, machine: Machine, fleet: Fleet, forger: Forger, release: Release
) -> None:
    role = forger.bin_of(release.path) if role == "releases" else role
    forger.renew(role)
    assert machine.verify(release).version == "1.0.0"
    forger.renew(role, expires=now() - timedelta(seconds=1))
    with pytest.raises((ExpiredError, MetadataRefusedError), match="expire"):
        machine.verify(release)


def test_freeze_by_replaying_a_timestamp_until_it_expires(machine: Machine, fleet: Fleet, release: Release) -> None:
    assert machine.verify(release).version == "1.0.0"
    machine.clock = lambda: now() + timedelta(hours=23)
    assert machine.verify(release).version == "1.0.0"
    machine.clock = lambda: now() + timedelta(hours=25)
    with pytest.raises(MetadataRefusedError, match="expire"):
        machine.verify(release)


def test_freeze_by_answering_that_nothing_changed(machine: Machine, fleet: Fleet, release: Release) -> None:
    """A mirror that says 304 to whatever it is asked holds a device no longer than the timestamp that it has."""
    assert machine.verify(release).version == "1.0.0"

    def unchanged(request: BaseHTTPRequestHandler) -> bool:
        if request.path.endswith("timestamp.json"):
            send(request, b"", 304)
        return request.path.endswith("timestamp.json")

    fleet.server.fault = unchanged
    machine.trust.refresh()
    machine.clock = lambda: now() + timedelta(hours=25)
    with pytest.raises(ExpiredError):
        machine.trust.refresh()


def test_freeze_by_the_registry_ends_when_the_targets_expire(machine: Machine, forger: Forger) -> None:
    """Snapshot and timestamp keys together can sign an old state for ever; what the offline keys signed ends."""
    machine.trust.refresh()
    forger.renew("snapshot", expires=now() + 500 * DAY)
    forger.renew("timestamp", expires=now() + 500 * DAY)
    machine.clock = lambda: now() + 179 * DAY
    machine.trust.refresh()
    machine.clock = lambda: now() + 181 * DAY
    with pytest.raises(ExpiredError, match="targets"):
        machine.trust.refresh()


def test_freeze_by_setting_the_devices_clock_back(machine: Machine, fleet: Fleet, forger: Forger) -> None:
    """The director's signed time holds up a clock that somebody turned back."""
    machine.trust.refresh()
    machine.is_assigned()
    forger.renew("timestamp", expires=now() - timedelta(seconds=30))
    machine.clock = lambda: datetime(2021, 1, 1, tzinfo=UTC)
    machine.restart()
    with pytest.raises(ExpiredError):
        machine.trust.refresh()
    forger.renew("timestamp")
    machine.trust.refresh()


# Mix and match


def test_mix_and_match_of_an_old_bin_under_a_new_snapshot(
    machine: Machine, fleet: Fleet, forger: Forger, release: Release
) -> None:
    """The snapshot names the bin by version: yesterday's bytes under today's name do not pass."""
    role = forger.bin_of(release.path)
    assert machine.verify(release).version == "1.0.0"
    old = forger.file(role).read_bytes()
    forger.renew(role)
    new = forger.file(role).read_bytes()
    forger.file(role).write_bytes(old)
    with pytest.raises(MetadataRefusedError, match="as it was named"):
        machine.verify(release)
    forger.file(role).write_bytes(new)
    assert machine.verify(release).version == "1.0.0"


def test_mix_and_match_of_another_bins_bytes(machine: Machine, fleet: Fleet, forger: Forger, release: Release) -> None:
    """All bins are signed by one key: one that stands under another's name leads to no target of that name."""
    assert machine.verify(release).version == "1.0.0"
    role = forger.bin_of(release.path)
    other = next(f"releases-{n}" for n in range(4) if f"releases-{n}" != role)
    forger.renew(role)
    version = forger.load(role).signed.version
    forger.renew(other, version=version)
    shutil.copy(forger.file(other), forger.file(role))
    with pytest.raises(SignatureError, match="got none"):
        machine.verify(release)


def test_mix_and_match_of_an_old_snapshot_under_a_new_timestamp(machine: Machine, forger: Forger) -> None:
    forger.renew("snapshot")
    machine.trust.refresh()
    old = forger.file("snapshot").read_bytes()
    forger.renew("snapshot")
    new = forger.file("snapshot").read_bytes()
    forger.file("snapshot").write_bytes(old)
    with pytest.raises(ReplayError, match="as it was named"):
        machine.trust.refresh()
    forger.file("snapshot").write_bytes(new)
    machine.trust.refresh()


# Rollback


def roll_back(role: str, fleet: Fleet, forger: Forger, before: Path) -> None:
    """Serve the role as it was `before`, under fresh metadata above it, as far as its keys go."""
    if role == "root":
        forger.file("root").unlink()
    elif role == "timestamp":
        shutil.copy(before / "timestamp.json", forger.folder / "timestamp.json")
    elif role == "snapshot":
        old = Forger(fleet.keys, before).load("timestamp").signed.snapshot_meta
        forger.renew("timestamp", lambda signed: setattr(signed, "snapshot_meta", old))
    else:
        old = Forger(fleet.keys, before).load("snapshot").signed.meta[f"{role}.json"]
        forger.renew("snapshot", lambda signed: signed.meta.update({f"{role}.json": old}))


@pytest.mark.parametrize("wiped", ["nothing", "cache", "floors"])
@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", "releases"])
def test_rollback(
    role: str, wiped: str, machine: Machine, fleet: Fleet, forger: Forger, release: Release, tmp_path: Path
) -> None:
    """Below what it has accepted the device does not go, also when either of its two memories was wiped."""
    role = forger.bin_of(release.path) if role == "releases" else role
    before = forger.saved(tmp_path / "before")
    forger.renew(role)
    assert machine.verify(release).version == "1.0.0"
    after = forger.saved(tmp_path / "after")
    roll_back(role, fleet, forger, before)
    machine.lose(wiped)
    if role == "root" and wiped != "cache":
        assert machine.verify(release).version == "1.0.0", "the newer root is in the cache: hiding it changes nothing"
    else:
        with pytest.raises((ReplayError, MetadataRefusedError), match="version"):
            machine.verify(release)
    if role == "root":
        forger.restore(after)
    for _ in range(2):  # beyond what was rolled back
        forger.renew(role)
    assert machine.verify(release).version == "1.0.0"


def test_rollback_by_the_snapshot_key_alone(machine: Machine, forger: Forger, release: Release, tmp_path: Path) -> None:
    """Without the timestamp's key: another snapshot under the number that the timestamp names."""
    role = forger.bin_of(release.path)
    old = forger.load("snapshot").signed.meta[f"{role}.json"]
    forger.renew(role)
    assert machine.verify(release).version == "1.0.0"
    named = (forger.folder / "timestamp.json").read_bytes()
    version = forger.load("snapshot").signed.version
    forger.renew("snapshot", lambda signed: signed.meta.update({f"{role}.json": old}), version=version)
    (forger.folder / "timestamp.json").write_bytes(named)
    machine.lose("cache")
    with pytest.raises(MetadataRefusedError, match=role):
        machine.verify(release)
    for _ in range(2):
        forger.renew(role)
    assert machine.verify(release).version == "1.0.0"


def test_rollback_to_a_root_with_a_key_that_was_revoked_since(machine: Machine, forger: Forger) -> None:
    """Hiding the newer root, a mirror brings back no key."""
    old = forger.keys["timestamp"]
    machine.trust.refresh()
    forger.rotate("timestamp")
    forger.renew("timestamp")
    machine.trust.refresh()
    forger.file("root").unlink()
    forger.renew("timestamp", signers=old)
    with pytest.raises(SignatureError):
        machine.trust.refresh()


def test_a_mirror_uses_up_the_kinds_of_keys_that_can_be_learned(fleet: Fleet) -> None:
    """Metadata that nobody signed leaves nothing behind: keys of a coming kind are admitted as before."""

    def with_kinds(*kinds: str) -> bytes:
        root = json.loads(fleet.keys.root_json.read_bytes())
        for kind in kinds:
            root["signed"]["keys"][kind] = {"keytype": kind, "scheme": "s", "keyval": {"public": ""}}
        return json.dumps(root).encode()

    parse_metadata(with_kinds("coming-1"), Root)
    for first in range(0, 300, 60):
        parse_metadata(with_kinds(*(f"junk-{number}" for number in range(first, first + 60))), Root)
    assert "coming-2" in parse_metadata(with_kinds("coming-2"), Root).signed.keys
    assert not [kind for kind in KEY_FOR_TYPE_AND_SCHEME if kind[1] == "s"]
