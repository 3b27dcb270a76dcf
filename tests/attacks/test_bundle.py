"""Bundles in hostile hands: whoever carries the medium can bend every byte of it, but not sign.

The table of contents is not signed: these attackers write it anew, so that what refuses is what is signed, or the reader.
"""

import json
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fastapi.testclient import TestClient

from modelfleet.agent_client.apply import OfflineAgent, Outcome
from modelfleet.agent_client.bundle import FolderBundle, open_bundle
from modelfleet.agent_client.errors import AgentError
from modelfleet.agent_client.protocol import DeviceState, Report, device_topic, encode
from modelfleet.agent_client.slots import read_pointer
from modelfleet.policies.offline import MAX_VALIDITY
from modelfleet.rollout.tables import DeviceSlot
from modelfleet.signer.ceremony import update_policy
from modelfleet.signer.desired import Release
from modelfleet.signer.errors import UntrustedError
from modelfleet.signer.keys import CryptoSigner, generate_key, load_signer
from modelfleet.signer.offline import (
    BLOCK_BYTES,
    END,
    INDEX_NAME,
    assignment_name,
    blob_name,
    group_document_name,
    padding,
    tar_header,
)
from modelfleet.signer.sign import sign_assignment, sign_group, sign_report
from tests.attacks.forge import Forger
from tests.unit.agent_client.bundles import archive_of, make_bundle, reindex
from tests.unit.agent_client.fleet import GROUP, PROFILE, SLOT, TENANT, Device, Fleet, make_device, make_fleet, now
from tests.unit.rollout.offline import make_office

OTHER = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def device(fleet: Fleet, tmp_path: Path) -> Device:
    """An enrolled device; its agent does not run."""
    return make_device(fleet, tmp_path / "device")


@pytest.fixture
def bundle(fleet: Fleet, device: Device, tmp_path: Path) -> Path:
    """A bundle, honestly made, that brings the device to digits 1.0.0."""
    return bundle_of(fleet, device, tmp_path / "bundle", release_on_trial(fleet, "1.0.0", padding=300_000))


def release_on_trial(fleet: Fleet, version: str, **changes: Any) -> Release:
    release = fleet.release(version, **changes)
    fleet.candidates = (fleet.candidate(release, rollout=f"r-{version}"),)
    return release


def bundle_of(fleet: Fleet, device: Device, folder: Path, *releases: Release, **changes: Any) -> Path:
    return make_bundle(fleet, folder, [device.id], releases, **changes)


def apply(device: Device, path: Path) -> Outcome:
    opened = open_bundle(path)
    try:
        return OfflineAgent(device.root, opened).apply(threading.Event())
    finally:
        opened.close()


def accepts(device: Device, path: Path) -> bool:
    """The control: without the attack, the device takes the bundle."""
    return apply(device, path).ok and installed(device) is not None


def installed(device: Device) -> str | None:
    pointer = read_pointer(device.root / "slots" / SLOT)
    return None if pointer is None else pointer.version


def refusal(device: Device, path: Path) -> str:
    """Return which class of error the device refuses the bundle with; nothing is installed."""
    before = installed(device)
    try:
        outcome = apply(device, path)
    except (UntrustedError, AgentError) as error:
        kind = type(error).__name__
    else:
        errors = [slot.error.kind for slot in outcome.slots if slot.error is not None]
        assert errors, f"accepted: {outcome}"
        kind = errors[0]
    assert installed(device) == before
    return kind


def rewrite(folder: Path, device: Device, *, expires_in: timedelta = timedelta(days=30)) -> Path:
    """Write the table of contents anew, for this device and for long."""
    reindex(folder, [device.id], now(), now() + expires_in)
    return folder


def model_in(folder: Path) -> Path:
    """Return the model's file, the longest blob."""
    return max((folder / "blobs").iterdir(), key=lambda path: path.stat().st_size)


def copied(folder: Path, name: str) -> Path:
    return Path(shutil.copytree(folder, folder.with_name(name)))


# The content of the bundle is bent


def test_tampered_model_file(bundle: Path, device: Device, fleet: Fleet, tmp_path: Path) -> None:
    model = model_in(bundle)
    good = model.read_bytes()
    model.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert refusal(device, rewrite(bundle, device)) == "DigestError"
    assert not list((device.root / "slots").rglob("model.onnx*")), "they never got the file's name"
    other = make_device(fleet, tmp_path / "other")
    assert accepts(other, bundle_of(fleet, other, tmp_path / "control", fleet.candidates[0].release))


def test_endless_model_file(bundle: Path, device: Device, fleet: Fleet, tmp_path: Path) -> None:
    """No more is copied than was signed, whatever lies on the medium."""
    with model_in(bundle).open("ab") as file:
        file.truncate(64 * 1024 * 1024)
    copied_bytes: list[int] = []
    opened = open_bundle(rewrite(bundle, device))
    outcome = OfflineAgent(device.root, opened, on_bytes=copied_bytes.append).apply(threading.Event())
    opened.close()
    assert outcome.slots[0].error is not None
    assert outcome.slots[0].error.kind == "DigestError"
    assert sum(path.stat().st_size for path in (device.root / "slots").rglob("*") if path.is_file()) < 1024 * 1024
    assert max(copied_bytes, default=0) < 1024 * 1024
    other = make_device(fleet, tmp_path / "other")
    assert accepts(other, bundle_of(fleet, other, tmp_path / "control", fleet.candidates[0].release))


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_metadata_signed_by_the_carrier(fleet: Fleet, device: Device, bundle: Path, tmp_path: Path, role: str) -> None:
    forger = Forger(fleet.keys, bundle / "metadata")
    forger.renew(role, signers=[CryptoSigner.generate_ecdsa()])
    assert refusal(device, rewrite(bundle, device)) == "SignatureError"
    other = make_device(fleet, tmp_path / "other")
    honest = bundle_of(fleet, other, tmp_path / "control", fleet.candidates[0].release)
    Forger(fleet.keys, honest / "metadata").renew(role)
    assert accepts(other, rewrite(honest, other)), "signed anew by the role's own key, it is taken"


@pytest.mark.parametrize("which", ["assignment", "group"])
def test_desired_state_signed_by_the_carrier(
    fleet: Fleet, device: Device, bundle: Path, tmp_path: Path, which: str
) -> None:
    control = copied(bundle, "control")
    own = load_signer(generate_key(tmp_path / "carrier.pem"))
    if which == "assignment":
        forged = sign_assignment(fleet.assignment(device.id), own)
        (bundle / assignment_name(device.id)).write_bytes(forged)
    else:
        forged = sign_group(fleet.group_document(), own)
        (bundle / group_document_name(GROUP, PROFILE)).write_bytes(forged)
    assert refusal(device, rewrite(bundle, device)) == "UnknownKeyError"
    assert accepts(device, control)


def test_bundle_without_approvals(fleet: Fleet, device: Device, tmp_path: Path) -> None:
    """Director and signer are stolen: without the people, nothing is installed."""
    release = release_on_trial(fleet, "1.0.0", approved=False)
    assert refusal(device, bundle_of(fleet, device, tmp_path / "bundle", release)) == "ApprovalError"
    approved = release_on_trial(fleet, "1.1.0", seed=2)
    assert accepts(device, bundle_of(fleet, device, tmp_path / "approved", approved))


def test_bundle_with_a_revoked_release(fleet: Fleet, device: Device, tmp_path: Path) -> None:
    release = release_on_trial(fleet, "1.0.0")
    update_policy(fleet.keys.data_dir, TENANT, lambda p: msgspec.structs.replace(p, revoked=(release.sha256,)), now())
    assert refusal(device, bundle_of(fleet, device, tmp_path / "bundle", release)) == "RevokedError"
    other = release_on_trial(fleet, "1.1.0", seed=2)
    assert accepts(device, bundle_of(fleet, device, tmp_path / "other", other))


# Old bundles


def test_expired_bundle_under_a_new_table_of_contents(fleet: Fleet, device: Device, tmp_path: Path) -> None:
    release = release_on_trial(fleet, "1.0.0")
    old = bundle_of(fleet, device, tmp_path / "old", release, made=now() - timedelta(days=31))
    assert refusal(device, rewrite(old, device)) == "ExpiredError"
    assert accepts(device, bundle_of(fleet, device, tmp_path / "new", release))


def test_expired_documents_beside_fresh_metadata(fleet: Fleet, device: Device, tmp_path: Path) -> None:
    """The timestamp of a newer bundle starts no update on documents that have expired."""
    release = release_on_trial(fleet, "1.0.0")
    old = bundle_of(fleet, device, tmp_path / "old", release, made=now() - timedelta(days=31))
    mixed = bundle_of(fleet, device, tmp_path / "new", release)
    control = copied(mixed, "control")
    mix_documents(old, mixed, device)
    assert not apply(device, rewrite(mixed, device)).ok
    assert installed(device) is None
    assert accepts(device, control)


def test_downgrade_by_an_old_bundle(fleet: Fleet, device: Device, tmp_path: Path) -> None:
    """It has not expired, and TUF's cache is wiped: the floors refuse it."""
    old, new = old_and_new(fleet, device, tmp_path)
    assert accepts(device, new)
    shutil.rmtree(device.root / "trust" / "metadata")
    assert refusal(device, rewrite(old, device)) == "ReplayError"
    assert installed(device) == "1.1.0"
    assert accepts(device, new), "what it has seen, it takes again"


def test_downgrade_by_old_documents_beside_new_metadata(fleet: Fleet, device: Device, tmp_path: Path) -> None:
    old, new = old_and_new(fleet, device, tmp_path)
    assert accepts(device, new)
    control = copied(new, "control")
    mix_documents(old, new, device)
    assert refusal(device, rewrite(new, device)) == "ReplayError"
    assert installed(device) == "1.1.0"
    assert accepts(device, control)


def test_freeze_by_the_metadata_of_an_old_bundle(fleet: Fleet, device: Device, tmp_path: Path) -> None:
    """Beside the documents that the device has now: a revocation since would stay hidden."""
    old, new = old_and_new(fleet, device, tmp_path)
    assert accepts(device, new)
    control = copied(new, "control")
    shutil.rmtree(new / "metadata")
    shutil.copytree(old / "metadata", new / "metadata")
    shutil.rmtree(device.root / "trust" / "metadata")
    assert refusal(device, rewrite(new, device)) == "ReplayError"
    assert accepts(device, control)


def test_freeze_of_a_device_that_was_online_since(fleet: Fleet, device: Device, tmp_path: Path) -> None:
    """The online metadata was signed one version above: the long timestamp of a medium holds nobody who has seen that."""
    release = release_on_trial(fleet, "1.0.0")
    made = bundle_of(fleet, device, tmp_path / "bundle", release)
    control = make_device(fleet, tmp_path / "control")
    assert accepts(control, bundle_of(fleet, control, tmp_path / "other", release))
    device.start()
    assignment = sign_assignment(fleet.assignment(device.id), fleet.director)
    group = sign_group(fleet.group_document(), fleet.director)
    device.agent.inbox(device_topic(TENANT, device.id, "desired"), assignment)
    device.hears(group)
    device.waits_for("COMMITTED", "1.0.0")
    device.stop()
    (made / assignment_name(device.id)).write_bytes(assignment)
    (made / group_document_name(GROUP, PROFILE)).write_bytes(group)
    assert refusal(device, rewrite(made, device)) == "ReplayError"


def old_and_new(fleet: Fleet, device: Device, folder: Path) -> tuple[Path, Path]:
    """Return a bundle of 1.0.0, and a newer one that moves on to 1.1.0."""
    first = release_on_trial(fleet, "1.0.0")
    old = bundle_of(fleet, device, folder / "old", first)
    fleet.stable = first
    return old, bundle_of(fleet, device, folder / "new", first, release_on_trial(fleet, "1.1.0", seed=2))


def mix_documents(source: Path, target: Path, device: Device) -> None:
    for name in (assignment_name(device.id), group_document_name(GROUP, PROFILE)):
        shutil.copy(source / name, target / name)


# Somebody else's bundles


def test_another_devices_bundle(fleet: Fleet, device: Device, bundle: Path) -> None:
    """Its assignment is put under this device's name."""
    control = copied(bundle, "control")
    foreign = sign_assignment(fleet.assignment(OTHER), fleet.director)
    (bundle / assignment_name(device.id)).write_bytes(foreign)
    assert refusal(device, rewrite(bundle, device)) == "ScopeError"
    assert accepts(device, control)


def test_another_groups_document(fleet: Fleet, device: Device, bundle: Path) -> None:
    control = copied(bundle, "control")
    foreign = fleet.group_document(scope=f"g/other/{PROFILE}")
    (bundle / group_document_name(GROUP, PROFILE)).write_bytes(sign_group(foreign, fleet.director))
    assert refusal(device, rewrite(bundle, device)) == "ScopeError"
    assert accepts(device, control)


def test_another_tenants_bundle(fleet: Fleet, device: Device, bundle: Path, tmp_path: Path) -> None:
    """A whole fleet of the same tenant's name, under other root keys."""
    (tmp_path / "foreign").mkdir()
    foreign = make_fleet(tmp_path / "foreign")
    try:
        theirs = bundle_of(foreign, device, tmp_path / "theirs", release_on_trial(foreign, "9.9.9", seed=9))
        assert refusal(device, theirs) == "SignatureError"
        assert accepts(device, bundle)
    finally:
        foreign.server.stop()


# The medium is bent


@pytest.mark.parametrize("where", ["blob", "folder", "index"])
def test_link_in_a_folder(bundle: Path, device: Device, tmp_path: Path, where: str) -> None:
    """A link would make the agent, who may read everything, read what its carrier may not."""
    target = {"blob": model_in(bundle), "folder": bundle / "blobs", "index": bundle / INDEX_NAME}[where]
    aside = tmp_path / "aside"
    target.rename(aside)
    target.symlink_to(aside)
    assert refusal(device, bundle) == "FormatError"
    target.unlink()
    aside.rename(target)
    assert accepts(device, bundle)


def test_pipe_in_a_folder(bundle: Path, device: Device, tmp_path: Path) -> None:
    """Opening it would wait for ever."""
    model = model_in(bundle)
    model.rename(tmp_path / "aside")
    os.mkfifo(model)
    assert refusal(device, bundle) == "FormatError"
    model.unlink()
    (tmp_path / "aside").rename(model)
    assert accepts(device, bundle)


HOSTILE_NAMES = [
    "../escape",
    "blobs/../../escape",
    "/etc/passwd",
    "blobs/" + "a" * 63,
    "blobs/" + "A" * 64,
    "blobs//" + "a" * 64,
    "metadata/../blobs/" + "a" * 64,
    "assignments/..json",
    "blobs/" + "a" * 64 + "\n",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_path_trick_in_an_archive(bundle: Path, device: Device, name: str) -> None:
    archive = archive_of(bundle)
    good = archive.read_bytes()
    entry = tarfile.TarInfo(name)
    entry.size = 5
    member = entry.tobuf(tarfile.USTAR_FORMAT) + b"bytes" + bytes(padding(5))
    archive.write_bytes(good[: -len(END)] + member + END)
    assert refusal(device, archive) == "FormatError"
    archive.write_bytes(good)
    assert accepts(device, archive)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_path_trick_in_the_table_of_contents(bundle: Path, device: Device, name: str) -> None:
    index = bundle / INDEX_NAME
    good = index.read_bytes()
    value = json.loads(good)
    value["files"].append({"name": name, "length": 5, "sha256": "a" * 64})
    index.write_text(json.dumps(value))
    assert refusal(device, bundle) == "FormatError"
    index.write_bytes(good)
    assert accepts(device, bundle)


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
        b"x",
        b"L",
        b"S",
    ],
)
def test_no_plain_file_in_an_archive(bundle: Path, device: Device, kind: bytes) -> None:
    """Links, devices, pipes, folders; extended headers, whose declared size other readers take into memory."""
    archive = archive_of(bundle)
    good = archive.read_bytes()
    entry = tarfile.TarInfo(blob_name("a" * 64))
    entry.type, entry.linkname = kind, "/etc/passwd" if kind in (tarfile.LNKTYPE, tarfile.SYMTYPE) else ""
    archive.write_bytes(good[: -len(END)] + entry.tobuf(tarfile.USTAR_FORMAT) + END)
    assert refusal(device, archive) == "FormatError"
    archive.write_bytes(good)
    assert accepts(device, archive)


def test_huge_declared_size(bundle: Path, device: Device) -> None:
    """A file of 8 GiB is announced, and is not there."""
    archive = archive_of(bundle)
    good = archive.read_bytes()
    announced = tar_header(blob_name("a" * 64), 8**11 - 1)
    archive.write_bytes(good[: -len(END)] + announced + END)
    assert refusal(device, archive) == "BundleError"
    archive.write_bytes(good)
    assert accepts(device, archive)


@pytest.mark.parametrize(
    "field",
    [b"-0000000001\0", b"99999999999\0", b"\x80" + b"\xff" * 11, b" 0000000001\0"],
    ids=["negative", "not-octal", "binary", "blank"],
)
def test_size_that_is_no_number(bundle: Path, device: Device, field: bytes) -> None:
    """Negative, beyond octal, binary: a size that moves the reader back or far away."""
    archive = archive_of(bundle)
    good = archive.read_bytes()
    header = bytearray(tar_header(blob_name("a" * 64), 1))
    header[124:136] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    archive.write_bytes(good[: -len(END)] + bytes(header) + bytes(BLOCK_BYTES) + END)
    assert refusal(device, archive) == "FormatError"
    archive.write_bytes(good)
    assert accepts(device, archive)


def test_file_twice_in_an_archive(bundle: Path, device: Device) -> None:
    """What one reader checks would not be what another one takes."""
    archive = archive_of(bundle)
    good = archive.read_bytes()
    name = assignment_name(device.id)
    data = (bundle / name).read_bytes()
    archive.write_bytes(good[: -len(END)] + tar_header(name, len(data)) + data + bytes(padding(len(data))) + END)
    assert refusal(device, archive) == "FormatError"
    archive.write_bytes(good)
    assert accepts(device, archive)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
def test_truncated_archive(bundle: Path, device: Device, share: float) -> None:
    archive = archive_of(bundle)
    good = archive.read_bytes()
    archive.write_bytes(good[: int((len(good) - len(END)) * share)])
    assert refusal(device, archive) == "BundleError"
    assert not (device.root / "trust").exists(), "it was told before anything began"
    archive.write_bytes(good)
    assert accepts(device, archive)


def test_huge_small_file(bundle: Path, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more of a document is held than a document may have."""
    control = copied(bundle, "control")
    with (bundle / assignment_name(device.id)).open("ab") as file:
        file.truncate(256 * 1024 * 1024)
    reindex_without_hashing(bundle)
    read: list[int] = []
    pieces = FolderBundle.pieces

    def counting(self: FolderBundle, name: str) -> Iterator[bytes]:
        for piece in pieces(self, name):
            read.append(len(piece))
            yield piece

    monkeypatch.setattr(FolderBundle, "pieces", counting)
    assert refusal(device, bundle) == "FormatError"
    assert sum(read) < 8 * 1024 * 1024
    assert accepts(device, control)


def reindex_without_hashing(folder: Path) -> None:
    value = json.loads((folder / INDEX_NAME).read_bytes())
    for file in value["files"]:
        file["length"] = (folder / file["name"]).stat().st_size
    (folder / INDEX_NAME).write_text(json.dumps(value))


# The way back, and the server


def test_forged_report_on_the_medium(fleet: Fleet, tmp_path: Path) -> None:
    """Whoever carries the medium says that a device has committed: unsigned, or under a key of their own."""
    with make_office(fleet, tmp_path / "office") as office:
        device = office.enrol(tmp_path / "device")
        client = TestClient(office.app, headers={"Authorization": f"Bearer {office.tokens['ada']}"})
        said = encode(Report(device=device.id, boot=1, seq=1, slot=SLOT, state=DeviceState.COMMITTED))
        carrier = load_signer(generate_key(tmp_path / "carrier.pem"))
        own = load_signer(f"file:{device.root / 'key.pem'}")

        def taken(payload: bytes) -> dict[str, int]:
            message = {"topic": device_topic(TENANT, device.id, "report"), "payload": payload.decode()}
            return client.post("/v1/bundles/reports", json={"messages": [message]}).json()

        unsigned = encode(Report(device=device.id, boot=1, seq=1, slot=SLOT, state=DeviceState.DOWNLOADING))
        assert taken(unsigned) == {"accepted": 0, "unsigned": 1, "refused": 0}
        assert taken(sign_report(said, carrier)) == {"accepted": 0, "unsigned": 0, "refused": 1}
        with office.registry.sessions() as session:
            assert session.get(DeviceSlot, (device.id, SLOT)) is None
        assert taken(sign_report(said, own)) == {"accepted": 1, "unsigned": 0, "refused": 0}


def test_freeze_without_end(fleet: Fleet, tmp_path: Path) -> None:
    """Nobody makes a bundle that holds for longer than the policy allows."""
    with make_office(fleet, tmp_path / "office") as office:
        office.enrol(tmp_path / "device")
        client = TestClient(office.app, headers={"Authorization": f"Bearer {office.tokens['ada']}"})
        longest = int(MAX_VALIDITY.total_seconds())
        asked = {"group": GROUP, "valid_for_seconds": longest + 1}
        assert client.post("/v1/bundles", json=asked).status_code == 422
        assert client.post("/v1/bundles", json={**asked, "valid_for_seconds": longest}).status_code == 200
