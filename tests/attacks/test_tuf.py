"""The attacks of the TUF specification's section 1.5.2, and their kin, on the agent's own client over real HTTP."""

import gzip
import json
import shutil
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import msgspec
import pytest

from modelfleet.agent_client.errors import MetadataRefusedError, TransferError
from modelfleet.agent_client.fetch import Deadlines
from modelfleet.signer.ceremony import create_repository, encode_policy
from modelfleet.signer.desired import Release
from modelfleet.signer.errors import (
    DigestError,
    ExpiredError,
    FormatError,
    ReplayError,
    ScopeError,
    SignatureError,
    UntrustedError,
)
from modelfleet.signer.keys import CryptoSigner
from modelfleet.signer.manifest import Manifest, ManifestFile, encode_manifest, parse_manifest
from modelfleet.signer.metadata import TargetFile, Targets
from modelfleet.signer.names import sha256_of
from modelfleet.signer.sign import sign_gate, sign_source
from modelfleet.signer.statements import POLICY_PATH
from tests.attacks.forge import Forger, manifest_of, nothing, take_over
from tests.attacks.machine import Machine
from tests.unit.agent_client.fleet import TENANT, Fleet, now, send

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


# Endless data


class Endless:
    """Answers the requests whose path ends so with data that never ends; counts what was taken."""

    def __init__(self, tail: str) -> None:
        self.tail, self.sent = tail, 0

    def __call__(self, request: BaseHTTPRequestHandler) -> bool:
        if not request.path.endswith(self.tail):
            return False
        request.close_connection = True
        try:
            request.send_response(200)
            request.end_headers()
            for _ in range(4096):
                self.sent += 65536  # before: the device may hang up within the first piece
                request.wfile.write(b" " * 65536)
        except OSError:
            pass  # the device has hung up
        return True


MOST_BYTES = 24 * 1024 * 1024
"""The largest cap, and what the kernel's buffers hold on top; 256 MiB were on offer."""


@pytest.mark.parametrize("file", ["2.root.json", "timestamp.json", "2.snapshot.json", "2.targets.json"])
def test_endless_metadata(file: str, machine: Machine, fleet: Fleet, forger: Forger) -> None:
    machine.trust.refresh()
    forger.renew("targets")
    fleet.server.fault = endless = Endless(file)
    with pytest.raises((UntrustedError, TransferError)):
        machine.trust.refresh(seconds=5)
    assert 0 < endless.sent < MOST_BYTES
    fleet.server.fault = lambda _: False
    machine.trust.refresh()


def test_endless_target(machine: Machine, fleet: Fleet, release: Release) -> None:
    machine.trust.refresh()
    fleet.server.fault = endless = Endless("manifest.json")
    with pytest.raises(TransferError, match="at most"):
        machine.trust.manifest(release.path)
    assert 0 < endless.sent < MOST_BYTES
    fleet.server.fault = lambda _: False
    assert len(machine.trust.manifest(release.path)[0]) == release.length


def test_endless_blob(machine: Machine, fleet: Fleet, release: Release) -> None:
    fleet.server.fault = endless = Endless(release.approvals[0])
    with pytest.raises(TransferError, match="at most"):
        machine.trust.blob(release.approvals[0])
    assert 0 < endless.sent < MOST_BYTES
    fleet.server.fault = lambda _: False
    assert machine.trust.blob(release.approvals[0]) == fleet.server.blobs[release.approvals[0]]


def test_endless_model_file(machine: Machine, fleet: Fleet, release: Release, tmp_path: Path) -> None:
    manifest = machine.verify(release)
    entry = manifest.file("model.onnx")
    fleet.server.fault = endless = Endless(entry.sha256)
    with pytest.raises(DigestError, match="got more"):
        machine.fetch(manifest, tmp_path / "slot")
    assert 0 < endless.sent < MOST_BYTES
    assert (tmp_path / "slot" / "model.onnx.part").stat().st_size <= entry.length
    fleet.server.fault = lambda _: False
    machine.fetch(manifest, tmp_path / "slot")
    assert (tmp_path / "slot" / "model.onnx").stat().st_size == entry.length


def test_endless_data_packed_small(machine: Machine, fleet: Fleet) -> None:
    """Ten kilobytes of gzip that unpack to ten megabytes: no more is ever unpacked than was asked for."""
    machine.trust.refresh()
    bomb = gzip.compress(b" " * 10 * 1024 * 1024)

    def packed(request: BaseHTTPRequestHandler) -> bool:
        if not request.path.endswith("timestamp.json"):
            return False
        request.send_response(200)
        request.send_header("Content-Encoding", "gzip")
        request.send_header("Content-Length", str(len(bomb)))
        request.end_headers()
        request.wfile.write(bomb)
        return True

    fleet.server.fault = packed
    tracemalloc.start()
    try:
        with pytest.raises(DigestError, match="unpacked"):
            machine.trust.refresh()
        assert tracemalloc.get_traced_memory()[1] < 2 * 1024 * 1024
    finally:
        tracemalloc.stop()
    fleet.server.fault = lambda _: False
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


# Malicious mirror


@pytest.mark.parametrize("tail", ["timestamp.json", "snapshot.json", "targets.json", "policy.json", "manifest.json"])
def test_malicious_mirror_that_flips_one_bit(tail: str, machine: Machine, fleet: Fleet, release: Release) -> None:
    """Wherever it bends a file, nothing is installed; once it is honest again, the device goes on."""
    shares = [number / 9 for number in range(1, 9)]
    flipped = 0

    def mirror(share: float) -> Callable[[BaseHTTPRequestHandler], bool]:
        def fault(request: BaseHTTPRequestHandler) -> bool:
            nonlocal flipped
            if not request.path.endswith(tail):
                return False
            data = bytearray(served(fleet, request.path))
            data[int(len(data) * share)] ^= 1
            flipped += 1
            send(request, bytes(data))
            return True

        return fault

    for share in shares:
        fleet.server.fault = mirror(share)
        shutil.rmtree(machine.root / "trust")
        machine.restart()
        with pytest.raises(UntrustedError):
            machine.trust.refresh()
            machine.trust.manifest(release.path)
    assert flipped >= len(shares)
    fleet.server.fault = lambda _: False
    assert machine.verify(release).version == "1.0.0"


def served(fleet: Fleet, path: str) -> bytes:
    """What an honest server answers."""
    kind, _, name = path.partition(f"/tuf/{TENANT}/")[2].partition("/")
    return ({"metadata": fleet.keys.metadata_dir, "targets": fleet.keys.targets_dir}[kind] / name).read_bytes()


def test_malicious_mirror_that_redirects_without_end(machine: Machine, fleet: Fleet, release: Release) -> None:
    assert machine.verify(release).version == "1.0.0"

    def redirect(request: BaseHTTPRequestHandler) -> bool:
        request.send_response(302)
        request.send_header("Location", request.path)
        request.send_header("Content-Length", "0")
        request.end_headers()
        return True

    fleet.server.fault = redirect
    with pytest.raises(TransferError, match="redirects"):
        machine.trust.refresh(seconds=3)


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
    with pytest.raises(ReplayError, match="as it was named"):
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


# Slow retrieval


def one_byte_a_second(tail: str) -> Callable[[BaseHTTPRequestHandler], bool]:
    def fault(request: BaseHTTPRequestHandler) -> bool:
        if not request.path.endswith(tail):
            return False
        request.close_connection = True
        request.send_response(200)
        request.send_header("Content-Length", "100")
        request.end_headers()
        try:
            for _ in range(5):
                request.wfile.write(b"{")
                time.sleep(1)
        except OSError:
            pass  # the device has hung up
        return True

    return fault


def within(seconds: float, act: Callable[[], object]) -> None:
    """The act ends as a failed transfer, no later than its deadline and a little."""
    started = time.monotonic()
    with pytest.raises(TransferError):
        act()
    assert time.monotonic() - started < seconds + 1.0


def test_slow_retrieval_of_metadata(machine: Machine, fleet: Fleet) -> None:
    machine.trust.refresh()
    fleet.server.fault = one_byte_a_second("timestamp.json")
    within(1.3, lambda: machine.trust.refresh(seconds=1.3))
    fleet.server.fault = lambda _: False
    machine.trust.refresh()


def test_slow_retrieval_of_a_target(machine: Machine, fleet: Fleet, release: Release) -> None:
    machine.trust.refresh()
    machine.http.deadlines = Deadlines(stall_seconds=4.0, total_seconds=1.3)
    fleet.server.fault = one_byte_a_second("manifest.json")
    within(1.3, lambda: machine.trust.manifest(release.path))
    fleet.server.fault = lambda _: False
    assert machine.verify(release).version == "1.0.0"


def test_slow_retrieval_of_a_model_file(machine: Machine, fleet: Fleet, release: Release, tmp_path: Path) -> None:
    manifest = machine.verify(release)
    machine.http.deadlines = Deadlines(stall_seconds=4.0, total_seconds=1.3, bytes_per_second=1e9)
    fleet.server.fault = one_byte_a_second(manifest.file("model.onnx").sha256)
    within(1.3, lambda: machine.fetch(manifest, tmp_path / "slot"))
    fleet.server.fault = lambda _: False
    shutil.rmtree(tmp_path / "slot")
    machine.fetch(manifest, tmp_path / "slot")


# Wrong target's bytes


def test_wrong_targets_bytes_for_a_manifest(machine: Machine, fleet: Fleet, release: Release) -> None:
    """Another signed manifest of this tenant in its place."""
    other = fleet.release("1.1.0", seed=2)
    assert machine.verify(release).version == "1.0.0"
    theirs = next(fleet.keys.targets_dir.rglob(f"{other.sha256}.*")).read_bytes()
    next(fleet.keys.targets_dir.rglob(f"{release.sha256}.*")).write_bytes(theirs)
    with pytest.raises(DigestError):
        machine.trust.manifest(release.path)


def test_wrong_targets_bytes_for_an_approval(machine: Machine, fleet: Fleet, release: Release) -> None:
    other = fleet.release("1.1.0", seed=2)
    assert machine.verify(release).version == "1.0.0"
    fleet.server.blobs[release.approvals[0]] = fleet.server.blobs[other.approvals[0]]
    with pytest.raises(DigestError):
        machine.trust.blob(release.approvals[0])


def test_wrong_targets_bytes_for_a_model_file(machine: Machine, fleet: Fleet, release: Release, tmp_path: Path) -> None:
    """The model of another signed version, of the very same length."""
    other = machine.verify(fleet.release("1.1.0", seed=2))
    manifest = machine.verify(release)
    machine.fetch(manifest, tmp_path / "honest")
    fleet.server.blobs[manifest.file("model.onnx").sha256] = fleet.server.blobs[other.file("model.onnx").sha256]
    with pytest.raises(DigestError):
        machine.fetch(manifest, tmp_path / "slot")
    assert not (tmp_path / "slot" / "model.onnx").exists()


# Path tricks

TRICKS = {
    "parent": "..",
    "self": ".",
    "empty": "",
    "backslash": "a\\b",
    "percent": "%2e%2e",
    "newline": "a\n",
    "nul": "a\x00",
    "escape": "a\x1b[2J",
    "absolute": "/etc",
    "hidden": ".ssh",
    "drive": "c:",
    "space": "a b",
    "unicode": "a\u2024\u2024",
}


@pytest.mark.parametrize("part", TRICKS.values(), ids=TRICKS.keys())
def test_path_trick_in_a_manifests_path(part: str, machine: Machine, fleet: Fleet) -> None:
    """At publish: no manifest is read, and so none is signed, whose path would hold such a part."""
    honest = manifest_of(fleet, fleet.release("1.0.0"))
    parse_manifest(encode_manifest(honest))
    for field, value in (("model", f"digits/{part}"), ("model", part), ("version", part), ("profile", part)):
        with pytest.raises(FormatError):
            parse_manifest(encode_manifest(msgspec.structs.replace(honest, **{field: value})))
        with pytest.raises(FormatError):
            _ = msgspec.structs.replace(honest, **{field: value}).path


@pytest.mark.parametrize("part", TRICKS.values(), ids=TRICKS.keys())
def test_path_trick_in_a_file_name_that_everybody_signed(part: str, machine: Machine, fleet: Fleet) -> None:
    """On the device: neither the releases key nor an approver can make it write outside of the slot."""
    honest = fleet.release("1.0.0", seed=2)
    assert machine.verify(honest).version == "1.0.0"
    manifest = manifest_of(fleet, honest)
    bent = json.loads(encode_manifest(manifest))
    bent["files"][0]["name"] = bent["entry"] = f"{part}/evil" if part in ("..", "/etc") else part
    data = json.dumps(bent).encode()
    fleet.sign_target(honest.path, data)
    release = msgspec.structs.replace(
        honest, sha256=sha256_of(data), length=len(data), approvals=(fleet.approve(manifest, sha256_of(data)),)
    )
    with pytest.raises(FormatError):
        machine.verify(release)


@pytest.mark.parametrize("part", TRICKS.values(), ids=TRICKS.keys())
def test_path_trick_in_a_target_name(part: str, machine: Machine, fleet: Fleet) -> None:
    """On the device: the director cannot make it ask for a path that is no manifest's."""
    machine.is_assigned()
    release = fleet.release("1.0.0")
    fleet.stable = release
    machine.hears(fleet.group_document())
    asked = len(fleet.server.requests)
    for path in (f"models/digits/{part}/linux-cpu-float/manifest.json", f"{part}/manifest.json", f"models/{part}"):
        fleet.stable = msgspec.structs.replace(release, path=path)
        with pytest.raises(FormatError):
            machine.hears(fleet.group_document())
    assert len(fleet.server.requests) == asked


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx.part"])
def test_path_trick_with_a_name_that_the_slot_itself_uses(name: str, fleet: Fleet) -> None:
    """`manifest.json` says that a slot's directory is complete, `.part` that a file is not."""
    honest = manifest_of(fleet, fleet.release("1.0.0"))
    parse_manifest(encode_manifest(honest))
    extra = ManifestFile(name=name, sha256="b" * 64, length=100, role="extra")
    bent = encode_manifest(honest).replace(b'"files":[', b'"files":[' + msgspec.json.encode(extra) + b",")
    with pytest.raises(FormatError, match="name"):
        parse_manifest(bent)


# Another tenant's


def test_another_tenants_repository(machine: Machine, fleet: Fleet, tmp_path: Path) -> None:
    machine.trust.refresh()
    other = create_repository(tmp_path / "umbrella", "umbrella", bits=2, approvers=["eve"], now=now())
    fleet.server.metadata_dir, fleet.server.targets_dir = other.metadata_dir, other.targets_dir
    with pytest.raises((SignatureError, ReplayError)):
        machine.trust.refresh()
    with pytest.raises(SignatureError):
        fresh(machine)


def fresh(machine: Machine) -> None:
    shutil.rmtree(machine.root / "trust")
    machine.restart()
    machine.trust.refresh()


def test_another_tenants_policy_under_the_same_offline_keys(machine: Machine, fleet: Fleet, forger: Forger) -> None:
    """One operator may hold the targets keys of two tenants: a policy is only its own tenant's."""
    machine.trust.refresh()
    policy = fleet.keys.repository().policy()
    serve_policy(fleet, forger, encode_policy(msgspec.structs.replace(policy, epoch=2)))
    machine.trust.refresh()
    serve_policy(fleet, forger, encode_policy(msgspec.structs.replace(policy, epoch=3, tenant="umbrella")))
    with pytest.raises(ScopeError):
        machine.trust.refresh()
    assert machine.trust.policy().epoch == 2


def serve_policy(fleet: Fleet, forger: Forger, data: bytes) -> None:
    target = TargetFile.from_data(POLICY_PATH, data, ["sha256"])
    (fleet.keys.targets_dir / target.get_prefixed_paths()[0]).write_bytes(data)
    forger.renew("targets", lambda signed: signed.targets.update({POLICY_PATH: target}))


def test_another_tenants_manifest(machine: Machine, fleet: Fleet) -> None:
    """Signed by this tenant's releases key and approved by this tenant's people, yet another tenant's by its own words."""
    assert machine.verify(fleet.release("1.0.0")).tenant == TENANT
    with pytest.raises(ScopeError, match="umbrella"):
        machine.verify(fleet.release("1.1.0", tenant="umbrella"))


def test_another_tenants_approver(machine: Machine, fleet: Fleet, tmp_path: Path) -> None:
    other = create_repository(tmp_path / "umbrella", "umbrella", bits=1, approvers=["anna"], now=now())
    assert machine.verify(fleet.release("1.0.0")).tenant == TENANT
    fleet.keys.approver_keys["anna"] = other.approver_keys["anna"]
    with pytest.raises(UntrustedError, match="UnknownKeyError"):
        machine.verify(fleet.release("1.1.0", seed=2))
