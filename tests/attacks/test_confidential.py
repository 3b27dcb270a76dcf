"""Confidential versions: whoever holds ciphertext, disks, databases or other devices' keys reads no model.

First a device against a server that bends ciphertext and keys; then the real registry, its store, and who may ask for a key.
"""

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from modelfleet.agent_client.confidential import open_variant
from modelfleet.agent_client.errors import ModelError
from modelfleet.agent_client.identity import device_token, encryption_key_path
from modelfleet.agent_client.model import OPENERS, open_model
from modelfleet.agent_client.slots import verify_directory
from modelfleet.registry.data_keys import data_key, variant_scope
from modelfleet.registry.errors import KekError
from modelfleet.registry.tables import DataKey, Group, Tenant
from modelfleet.registry.tables import Device as DeviceRow
from modelfleet.signer.desired import BUCKETS
from modelfleet.signer.errors import DecryptionError, DigestError, FormatError
from modelfleet.signer.manifest import encode_manifest, parse_manifest
from modelfleet.signer.names import sha256_of
from modelfleet.signer.parse import parse_struct
from modelfleet.signer.release import check_release
from modelfleet.signer.segments import HEADER_BYTES, SEGMENT_BYTES, decrypted
from modelfleet.signer.sign import sign_gate, sign_source
from tests.attacks.confidential_service import (
    OPEN,
    SAMPLE,
    SECRET,
    ConfidentialFleet,
    confidential_fleet,
    shows,
)
from tests.attacks.forge import manifest_of
from tests.attacks.vault import SEGMENTS, Vault, context_of, sealed
from tests.servers import program
from tests.unit.agent_client.fleet import SLOT, Device, Fleet, make_device, now
from tests.unit.signer import samples
from tests.waiting import until

KEY, CONTEXT = bytes(range(32)), context_of("model.onnx", version="1.0.0")
IMAGE = {"image": np.ones((1, 4), dtype=np.float32)}


@pytest.fixture(scope="module")
def plain() -> bytes:
    """Three segments and a piece, no two alike."""
    return os.urandom(3 * SEGMENT_BYTES + 999)


@pytest.fixture(scope="module")
def ciphertext(plain: bytes) -> bytes:
    return sealed(plain, KEY, CONTEXT)


def segments(ciphertext: bytes) -> list[bytes]:
    """Return the segments; the first comes with the header."""
    return [ciphertext[start : start + SEGMENT_BYTES] for start in range(0, len(ciphertext), SEGMENT_BYTES)]


def read(parts: bytes | list[bytes], *, key: bytes = KEY, context: bytes = CONTEXT) -> bytes:
    import io

    data = parts if isinstance(parts, bytes) else b"".join(parts)
    return b"".join(decrypted(io.BytesIO(data), key, context))


# --- ciphertext -----------------------------------------------------------------------------------------------------


def test_the_last_segments_are_cut_off(plain: bytes, ciphertext: bytes) -> None:
    assert read(ciphertext) == plain
    parts = segments(ciphertext)
    for kept in (parts[:1], parts[:2], parts[:3]):
        with pytest.raises(DecryptionError):
            read(kept)


def test_the_file_is_cut_off_within_a_segment(plain: bytes, ciphertext: bytes) -> None:
    assert read(ciphertext) == plain
    for length in (0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 15, SEGMENT_BYTES - 1, len(ciphertext) - 1):
        with pytest.raises(DecryptionError):
            read(ciphertext[:length])


def test_segments_change_places(plain: bytes, ciphertext: bytes) -> None:
    first, second, third, last = segments(ciphertext)
    assert read([first, second, third, last]) == plain
    with pytest.raises(DecryptionError, match="segment 1"):
        read([first, third, second, last])


def test_a_segment_is_repeated(plain: bytes, ciphertext: bytes) -> None:
    first, second, third, last = segments(ciphertext)
    assert read([first, second, third, last]) == plain
    for parts in ([first, second, second, third, last], [first, second, third, last, last]):
        with pytest.raises(DecryptionError):
            read(parts)


def test_a_segment_is_left_out(plain: bytes, ciphertext: bytes) -> None:
    first, second, third, last = segments(ciphertext)
    assert read([first, second, third, last]) == plain
    with pytest.raises(DecryptionError, match="segment 1"):
        read([first, third, last])


def test_a_middle_segment_poses_as_the_last_and_the_last_as_a_middle_one(plain: bytes, ciphertext: bytes) -> None:
    first, second, third, last = segments(ciphertext)
    assert read([first, second, third, last]) == plain
    with pytest.raises(DecryptionError, match="segment 2"):
        read([first, second, third])  # whole segments: only the flag in the nonce says that more was there
    with pytest.raises(DecryptionError, match="segment 3"):
        read([first, second, third, last.ljust(SEGMENT_BYTES, b"\0"), last])


def test_bytes_are_appended_after_a_full_last_segment() -> None:
    plain = os.urandom(SEGMENT_BYTES - HEADER_BYTES - 16)
    full = sealed(plain, KEY, CONTEXT)
    assert read(full) == plain
    for more in (b"x", b"x" * 16, b"x" * SEGMENT_BYTES):
        with pytest.raises(DecryptionError):
            read(full + more)


def test_a_segment_comes_from_another_file_of_the_same_variant(plain: bytes, ciphertext: bytes) -> None:
    other = segments(sealed(plain, KEY, context_of("golden.npz", version="1.0.0")))
    mine = segments(ciphertext)
    assert read(mine) == plain
    for place in range(4):
        with pytest.raises(DecryptionError):
            read([*mine[:place], other[place], *mine[place + 1 :]])


@pytest.mark.parametrize(
    "context",
    [
        context_of("golden.npz", version="1.0.0"),
        context_of("model.onnx", version="1.0.1"),
        context_of("model.onnx", version="1.0.0", model="faces"),
    ],
)
def test_the_whole_file_poses_as_another(context: bytes, plain: bytes, ciphertext: bytes) -> None:
    assert read(ciphertext) == plain
    with pytest.raises(DecryptionError):
        read(ciphertext, context=context)


def test_another_data_key_is_tried(plain: bytes, ciphertext: bytes) -> None:
    assert read(ciphertext) == plain
    with pytest.raises(DecryptionError):
        read(ciphertext, key=bytes(32))


# --- a device, and a server that bends what it sends ------------------------------------------------------------------


def runs(device: Device) -> str:
    with device.agent.open_model(SLOT) as model:
        model.run(IMAGE)
        return model.version


def started(fleet: Fleet, device: Device) -> Vault:
    """A vault whose 1.0.0 the device runs."""
    vault = Vault(fleet)
    fleet.stable = vault.release("1.0.0")
    device.told()
    device.waits_for("PROBATION", "1.0.0")
    assert runs(device) == "1.0.0"
    return vault


def test_a_signed_manifest_names_ciphertext_whose_segments_changed_places(fleet: Fleet, device: Device) -> None:
    vault = started(fleet, device)

    def swapped(name: str, data: bytes) -> bytes:
        if name != "model.onnx":
            return data
        first, second, third, *rest = segments(data)
        return b"".join([first, third, second, *rest])

    fleet.stable = vault.release("1.1.0", seed=2, padding=SEGMENTS, tamper=swapped)
    device.told()
    assert "segment 1" in device.waits_for_refusal("DecryptionError")
    assert runs(device) == "1.0.0"
    fleet.stable = vault.release("1.1.1", seed=2, padding=SEGMENTS)  # the same, untouched
    device.told()
    device.waits_for("PROBATION", "1.1.1")


def test_the_ciphertext_holds_another_model_than_the_gates_have_seen(fleet: Fleet, device: Device) -> None:
    vault = started(fleet, device)
    fleet.stable = vault.release("1.1.0", seed=2, plain_says=lambda data: sha256_of(data + b"seen by the gates"))
    device.told()
    assert "expected plain sha256" in device.waits_for_refusal("DigestError")
    assert runs(device) == "1.0.0"
    fleet.stable = vault.release("1.1.1", seed=2)
    device.told()
    device.waits_for("PROBATION", "1.1.1")


def test_ciphertext_is_changed_on_the_way(fleet: Fleet, device: Device) -> None:
    vault = started(fleet, device)
    fleet.stable = vault.release("1.1.0", seed=2)
    digest = manifest_of(fleet, fleet.stable).file("model.onnx").sha256
    blob = fleet.server.blobs[digest]
    fleet.server.blobs[digest] = blob[:-1] + bytes([blob[-1] ^ 1])
    device.told()
    device.waits_for_refusal("DigestError")
    assert runs(device) == "1.0.0"
    fleet.stable = vault.release("1.1.1", seed=2)
    device.told()
    device.waits_for("PROBATION", "1.1.1")


def test_the_key_that_is_handed_out_opens_something_else(fleet: Fleet, device: Device) -> None:
    vault = started(fleet, device)
    vault.hands_out = lambda who, manifest: vault.wrapped(who, manifest, key=bytes(32))
    fleet.stable = vault.release("1.1.0", seed=2)
    device.told()
    device.waits_for_refusal("DecryptionError")
    assert runs(device) == "1.0.0"
    assert not (device.root / "slots" / SLOT / "b" / ".key").exists()
    vault.hands_out = None  # it was no fault of the release: with the right key it installs
    device.waits_for("PROBATION", "1.1.0", seconds=30)


def test_the_key_of_another_device_is_handed_out(fleet: Fleet, device: Device, tmp_path: Path) -> None:
    vault = started(fleet, device)
    other = make_device(fleet, tmp_path / "other")
    vault.hands_out = lambda _who, manifest: vault.wrapped(other.id, manifest)
    fleet.stable = vault.release("1.1.0", seed=2)
    device.told()
    assert "expected one for device" in device.waits_for_refusal("DecryptionError")
    assert runs(device) == "1.0.0"
    vault.hands_out = None
    device.waits_for("PROBATION", "1.1.0", seconds=30)


def test_the_key_of_another_manifest_is_handed_out(fleet: Fleet, device: Device) -> None:
    vault = started(fleet, device)
    old = fleet.stable
    assert old is not None
    fleet.stable = new = vault.release("1.1.0", seed=2)

    def renamed(who: str, _manifest: str) -> bytes:  # as the server that relabels it would
        return json.dumps({**json.loads(vault.wrapped(who, old.sha256)), "manifest_sha256": new.sha256}).encode()

    vault.hands_out = renamed
    device.told()
    assert "expected one for device" in device.waits_for_refusal("DecryptionError")
    assert runs(device) == "1.0.0"
    vault.hands_out = None
    device.waits_for("PROBATION", "1.1.0", seconds=30)


def test_an_agent_that_cannot_decrypt_refuses_the_manifest(fleet: Fleet, device: Device) -> None:
    """Else it would open bytes that no gate has seen: those whose digest stands where the plain one used to."""
    vault = started(fleet, device)
    assert vault.keys
    data = (device.root / "slots" / SLOT / "a" / "manifest.json").read_bytes()
    manifest = parse_manifest(data)
    with pytest.raises(FormatError, match=r"expected format 1\.x"):
        parse_struct(data, type(manifest))  # what an agent of format 1 does
    with pytest.raises(FormatError, match="format"):
        parse_manifest(data.replace(b'"format":"2.0"', b'"format":"1.0"'))


def test_a_disk_is_stolen_without_the_key_file(fleet: Fleet, device: Device, tmp_path: Path) -> None:
    """And with the key file of a device of the thief's own."""
    started(fleet, device)
    other = make_device(fleet, tmp_path / "other")
    stolen = tmp_path / "stolen"
    shutil.copytree(device.root, stolen)
    with open_model(SLOT, root=stolen) as model:
        assert model.version == "1.0.0"
    encryption_key_path(stolen).unlink()
    with pytest.raises(ModelError, match=r"encryption\.pem"):
        open_model(SLOT, root=stolen)
    shutil.copyfile(encryption_key_path(other.root), encryption_key_path(stolen))
    with pytest.raises(ModelError, match="expected one for device"):
        open_model(SLOT, root=stolen)


def test_keys_are_readable_by_the_agents_user_alone(fleet: Fleet, device: Device) -> None:
    started(fleet, device)
    directory = device.root / "slots" / SLOT / "a"
    assert (directory / ".key").stat().st_mode & 0o777 == 0o600
    assert encryption_key_path(device.root).stat().st_mode & 0o777 == 0o600
    assert (directory / "model.onnx").stat().st_mode & 0o777 == 0o444


def test_the_wrapped_key_rots_on_the_disk(fleet: Fleet, device: Device) -> None:
    """The slot counts as damaged, and is made whole again from the server."""
    vault = started(fleet, device)
    device.stop()
    key = device.root / "slots" / SLOT / "a" / ".key"
    key.write_bytes(key.read_bytes().replace(b'"wrapped":"B', b'"wrapped":"C'))
    with pytest.raises(ModelError, match="wrapped key"):
        open_model(SLOT, root=device.root)
    device.start()
    device.told()
    until(lambda: len(vault.asked) == 2, 20.0, shown=device.agent.status)
    device.waits_for("PROBATION", "1.0.0")
    assert runs(device) == "1.0.0"


def test_the_server_is_gone_and_the_device_boots_and_goes_back(fleet: Fleet, device: Device) -> None:
    """No attack works by silence: a way back needs neither network nor a new key."""
    vault = started(fleet, device)
    old, new = fleet.stable, vault.release("1.1.0", seed=2)
    fleet.candidates = (fleet.candidate(new),)
    device.told()
    device.waits_for("PROBATION", "1.1.0")
    asked = len(vault.asked)
    vault.closed = True
    fleet.server.blobs.clear()
    device.stop()
    device.start()
    fleet.candidates, fleet.stable = (), old
    device.told()
    device.waits_for("ROLLED_BACK", "1.0.0")
    assert runs(device) == "1.0.0"
    assert len(vault.asked) == asked


# --- the signer -------------------------------------------------------------------------------------------------------


def test_the_registry_has_a_plain_digest_signed_that_no_gate_has_seen() -> None:
    keys = samples.Keys(**{name: samples.new_key() for name in samples.Keys.__dataclass_fields__})
    files = tuple(
        replace_file(file, sha256=sha256_of(b"sealed" + file.name.encode()), plain_sha256=file.sha256)
        for file in samples.manifest().files
    )
    seen = samples.manifest(files=files, format="2.0")
    gate = sign_gate(samples.gate(samples.manifest()), keys.gate)
    source = sign_source(samples.source(), keys.publisher)
    assert check_release(encode_manifest(seen), source, (gate,), keys.policy(), {}) == seen
    swapped = (replace_file(files[0], sha256=files[0].sha256, plain_sha256="9" * 64), *files[1:])
    with pytest.raises(DigestError, match="gates"):
        check_release(
            encode_manifest(samples.manifest(files=swapped, format="2.0")), source, (gate,), keys.policy(), {}
        )


def test_the_registry_gets_a_bundle_that_vouches_for_bytes_no_gate_has_seen() -> None:
    """An ISV believes the bundle alone: it must name what the gates have seen, never the digests of ciphertext."""
    from modelfleet.signer.bundle import sign_bundle

    plain, signer = samples.manifest(), samples.new_key()
    files = tuple(replace_file(file, sha256="8" * 64, plain_sha256=file.sha256) for file in plain.files)
    bundle = json.loads(sign_bundle(samples.manifest(files=files, format="2.0"), signer))
    control = json.loads(sign_bundle(plain, signer))
    assert bundle["dsseEnvelope"]["payload"] == control["dsseEnvelope"]["payload"]


def replace_file(file, *, sha256: str, plain_sha256: str):
    from modelfleet.signer.manifest import ManifestFile
    from modelfleet.signer.segments import ciphertext_length

    length = file.length if file.confidential else ciphertext_length(file.length)
    plain_length = file.plain_length if file.confidential else file.length
    return ManifestFile(
        name=file.name,
        sha256=sha256,
        length=length,
        role=file.role,
        plain_sha256=plain_sha256,
        plain_length=plain_length,
    )


# --- the registry -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[ConfidentialFleet]:
    """The whole fleet; tests add devices to it and change nothing else."""
    with confidential_fleet(tmp_path_factory.mktemp("confidential"), template) as made:
        yield made


def test_a_confidential_model_answers_as_the_plain_one(secret: ConfidentialFleet) -> None:
    with (
        secret.agents["lab"].agent.open_model(SLOT) as sealed_one,
        secret.agents["shop"].agent.open_model(SLOT) as plain_one,
    ):
        assert np.array_equal(sealed_one.run(SAMPLE)["scores"], plain_one.run(SAMPLE)["scores"])
        assert sealed_one.digest == secret.variant(SECRET).manifest_sha256
    manifests = secret.manifest(SECRET), secret.manifest(OPEN)
    assert [manifest.confidential for manifest in manifests] == [True, False]
    model = [manifest.file("model.onnx") for manifest in manifests]
    assert model[0].plain_sha256 == model[1].sha256


def test_the_store_is_stolen(secret: ConfidentialFleet) -> None:
    fleet, open_files = secret.registry, {file.sha256 for file in secret.manifest(OPEN).files}
    version = secret.version(OPEN)
    public = open_files | {version.source_sha256, version.golden_sha256}
    found: set[str] = set()
    for run in secret.known.values():
        found |= {Path(name).name for name in shows(run, fleet.blobs)}
    assert found == public  # all that shows is the plain model's own, each of them: the scan finds what is there
    hidden = secret.version(SECRET)
    assert {hidden.source_blob, hidden.golden_blob}.isdisjoint({None, *public})


def test_plaintext_is_left_in_the_servers_work_folder_or_database(secret: ConfidentialFleet) -> None:
    fleet = secret.registry
    for run in secret.known.values():
        assert shows(run, fleet.blobs)
        assert shows(run, fleet.registry.work_dir) == []
        assert shows(run, fleet.folder / "data") == []
        assert [name for name in shows(run, fleet.folder) if "registry.db" in name] == []


def test_a_devices_disk_is_stolen(secret: ConfidentialFleet) -> None:
    lab, shop = (secret.agents[group].root for group in ("lab", "shop"))
    for name, run in secret.known.items():
        assert shows(run, lab) == []
        if name.startswith("built"):
            assert shows(run, shop) == [f"slots/{SLOT}/a/{name.removeprefix('built ')}"]


def test_plaintext_is_written_while_a_model_is_opened(secret: ConfidentialFleet, tmp_path: Path) -> None:
    """Every write of a process that opens the model is looked at: the plaintext goes to memory alone."""
    log, run = tmp_path / "writes", secret.known["built model.onnx"]
    command = [program("strace"), "-f", "-y", "-xx", "-s", "2000000", "-o", str(log)]
    command += ["-e", "trace=write,pwrite64,writev,pwritev,pwritev2,sendto,sendmsg"]
    opening = f"from modelfleet.agent_client.model import open_model; open_model({SLOT!r}).run"
    environment = {**os.environ, "MODELFLEET_AGENT_ROOT": str(secret.agents["lab"].root)}
    subprocess.run([*command, sys.executable, "-c", opening], check=True, env=environment, timeout=60)
    written = "".join(f"\\x{byte:02x}" for byte in run)
    lines = [line for line in log.read_text().splitlines() if written in line]
    assert lines
    assert all("/memfd:" in bytes.fromhex(_path_of(line)).decode() for line in lines), lines


def _path_of(line: str) -> str:
    """Return the hexadecimal name of the file that an strace line writes to: `write(7<\\x2f...>, ...`."""
    return line.partition("<")[2].partition(">")[0].replace("\\x", "")


def test_an_unknown_stranger_asks_for_a_key(secret: ConfidentialFleet, tmp_path: Path) -> None:
    identity = secret.enrol(tmp_path / "d", "lab")
    digest = secret.variant(SECRET).manifest_sha256 or ""
    assert secret.asks_for_key(tmp_path / "d", identity, digest).status_code == 200
    stranger = ec.generate_private_key(ec.SECP256R1())
    for device in (identity.device, str(uuid.uuid4())):
        headers = {"Authorization": f"Bearer {device_token(device, stranger)}"}
        answer = secret.registry.anonymous.get(f"/v1/device/keys/{digest}", headers=headers)
        assert answer.status_code == 401
    assert secret.registry.anonymous.get(f"/v1/device/keys/{digest}").status_code == 401
    for role in ("admin", "publisher"):  # people have no keys either
        assert secret.registry.as_(role).get(f"/v1/device/keys/{digest}").status_code == 401


def test_a_device_of_another_group_asks_for_a_key(secret: ConfidentialFleet, tmp_path: Path) -> None:
    digest = secret.variant(SECRET).manifest_sha256 or ""
    inside, outside = secret.enrol(tmp_path / "in", "lab"), secret.enrol(tmp_path / "out", "office")
    assert secret.asks_for_key(tmp_path / "in", inside, digest).status_code == 200
    answer = secret.asks_for_key(tmp_path / "out", outside, digest)
    assert answer.status_code == 403
    assert "does not name" in answer.json()["detail"]
    assert secret.actions(f"device/{outside.device}")[-1] == "device-key.refuse"
    assert secret.actions(variant_scope(SECRET, "1.0.0", "linux-cpu-float"))[-1] == "device-key.send"


def test_a_revoked_device_asks_for_a_key(secret: ConfidentialFleet, tmp_path: Path) -> None:
    digest = secret.variant(SECRET).manifest_sha256 or ""
    identity = secret.enrol(tmp_path / "d", "lab")
    assert secret.asks_for_key(tmp_path / "d", identity, digest).status_code == 200
    with secret.registry.sessions.begin() as session:
        session.get_one(DeviceRow, identity.device).revoked_at = now()
    assert secret.asks_for_key(tmp_path / "d", identity, digest).status_code == 401


def test_a_bundle_is_made_for_a_revoked_device(secret: ConfidentialFleet, tmp_path: Path) -> None:
    """A person who takes keys along on a drive gets none for it either."""
    from modelfleet.registry.errors import ForbiddenError
    from modelfleet.rollout.desired.device_keys import wrapped_key

    digest, identity = secret.variant(SECRET).manifest_sha256 or "", secret.enrol(tmp_path / "d", "lab")
    registry = secret.registry.registry
    assert wrapped_key(registry, identity.device, digest, actor="alice", now=now())
    with secret.registry.sessions.begin() as session:
        session.get_one(DeviceRow, identity.device).revoked_at = now()
    with pytest.raises(ForbiddenError, match="revoked"):
        wrapped_key(registry, identity.device, digest, actor="alice", now=now())


def test_a_device_of_another_tenant_asks_for_a_key(secret: ConfidentialFleet, tmp_path: Path) -> None:
    digest = secret.variant(SECRET).manifest_sha256 or ""
    identity = secret.enrol(tmp_path / "d", "lab")
    assert secret.asks_for_key(tmp_path / "d", identity, digest).status_code == 200
    with secret.registry.sessions.begin() as session:
        session.add(Tenant(name="umbrella", created_at=now()))
        session.flush()
        session.add(Group(tenant="umbrella", name="lab", created_at=now()))
        session.get_one(DeviceRow, identity.device).tenant = "umbrella"
    assert secret.asks_for_key(tmp_path / "d", identity, digest).status_code == 401


def test_a_key_is_asked_for_that_a_candidate_names_for_other_buckets() -> None:
    from modelfleet.rollout.desired.device_keys import named_manifests

    release, device = samples.release(), samples.DEVICE
    assert named_manifests(samples.group(None, samples.candidate(release)), None, device) == {release.sha256}
    beyond = samples.candidate(release, from_bucket=BUCKETS - 1)
    assert named_manifests(samples.group(None, beyond), None, device) == frozenset()
    stable = samples.release(samples.manifest(version="0.9.0"))
    pinned = samples.assignment(pins={"classifier": stable})
    assert named_manifests(samples.group(release), pinned, device) == {stable.sha256}


def test_what_one_device_was_given_is_opened_by_another(secret: ConfidentialFleet, tmp_path: Path) -> None:
    """Two devices of one group, with the same right: each key opens on its own device."""
    from modelfleet.agent_client.confidential import unwrap_for

    digest = secret.variant(SECRET).manifest_sha256 or ""
    roots = tmp_path / "one", tmp_path / "two"
    keys = [secret.asks_for_key(root, secret.enrol(root, "lab"), digest).content for root in roots]
    assert unwrap_for(roots[0], keys[0], digest) == unwrap_for(roots[1], keys[1], digest)
    with pytest.raises(DecryptionError):
        unwrap_for(roots[1], keys[0], digest)


def test_the_database_is_stolen_without_the_key_encryption_key(secret: ConfidentialFleet, tmp_path: Path) -> None:
    registry = secret.registry.registry
    scope = variant_scope(SECRET, "1.0.0", "linux-cpu-float")
    key = data_key(registry, scope)
    assert len(secret.rows()) == 2
    assert [path for path in secret.registry.folder.glob("registry.db*") if key in path.read_bytes()] == []
    with pytest.raises(KekError):
        data_key(replace(registry, kek_uri=f"file:{tmp_path / 'none.json'}"), scope)
    from modelfleet.registry.kek import FileKek

    FileKek(tmp_path / "own.json").make()
    with pytest.raises(KekError):
        data_key(replace(registry, kek_uri=f"file:{tmp_path / 'own.json'}"), scope)


def test_wrapped_data_keys_are_exchanged_in_the_database(secret: ConfidentialFleet) -> None:
    """Else whoever writes the database could have devices given the key of the source."""
    registry, scope = secret.registry.registry, variant_scope(SECRET, "1.0.0", "linux-cpu-float")
    key = data_key(registry, scope)
    rows = {row.scope: row.wrapped for row in secret.rows()}
    other = next(name for name in rows if name != scope)

    def put(wrapped: str) -> None:
        with secret.registry.sessions.begin() as session:
            session.get_one(DataKey, ("acme", scope)).wrapped = wrapped

    put(rows[other])
    try:
        with pytest.raises(KekError, match="does not open"):
            data_key(registry, scope)
    finally:
        put(rows[scope])
    assert data_key(registry, scope) == key


def test_the_device_key_of_a_slot_is_read_from_another_folder(secret: ConfidentialFleet, tmp_path: Path) -> None:
    """A variant's directory copied into another device's slot opens there as little."""
    source = secret.agents["lab"].root / "slots" / SLOT / "a"
    digest = secret.variant(SECRET).manifest_sha256 or ""
    manifest = verify_directory(source, digest)
    assert open_variant(source, manifest, digest, OPENERS["onnxruntime"]).run(SAMPLE)
    secret.enrol(tmp_path / "d", "lab")
    stolen = tmp_path / "d" / "slots" / SLOT / "a"
    shutil.copytree(source, stolen)
    with pytest.raises(DecryptionError, match="expected one for device"):
        open_variant(stolen, verify_directory(stolen, digest), digest, OPENERS["onnxruntime"])


# --- a bundle on a drive ----------------------------------------------------------------------------------------------


def test_a_drive_with_a_bundle_is_stolen(secret: ConfidentialFleet, tmp_path: Path) -> None:
    """The device that it is for installs from it without a network; the thief, also one with a device, reads nothing."""
    import threading

    from modelfleet.agent_client.apply import OfflineAgent
    from modelfleet.agent_client.bundle import open_bundle
    from modelfleet.agent_client.confidential import unwrap_for
    from modelfleet.rollout.bundles.archive import write_archive
    from modelfleet.rollout.bundles.making import BundleRequest, prepare

    mine, thief = secret.enrol(tmp_path / "mine", "lab"), secret.enrol(tmp_path / "thief", "lab")
    direction = secret.controller.direction
    asked = BundleRequest(devices=(mine.device,), group=None, valid_for=timedelta(days=2))
    bundle = prepare(direction, asked, actor="alice", now=now())
    drive, digest = tmp_path / "drive", secret.variant(SECRET).manifest_sha256 or ""
    drive.mkdir()
    (drive / "bundle.tar").write_bytes(b"".join(write_archive(bundle, secret.registry.registry.store)))
    for run in secret.known.values():
        assert shows(run, drive) == []
    opened = open_bundle(drive / "bundle.tar")
    wrapped = b"".join(opened.pieces(f"keys/{mine.device}/{digest}"))
    assert opened.length(f"keys/{thief.device}/{digest}") is None
    with pytest.raises(DecryptionError):
        unwrap_for(tmp_path / "thief", wrapped, digest)
    outcome = OfflineAgent(tmp_path / "mine", bundle=opened).apply(threading.Event())
    opened.close()
    assert outcome.ok, outcome
    with open_model(SLOT, root=tmp_path / "mine") as model:
        assert model.digest == digest
        assert model.run(SAMPLE)
    assert secret.actions(variant_scope(SECRET, "1.0.0", "linux-cpu-float")).count("device-key.send") >= 2
