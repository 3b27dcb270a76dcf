from pathlib import Path

import pytest

from modelfleet.agent_client.slots import Pointer, SlotStore, read_pointer, verify_directory
from modelfleet.agent_client.storage import Disk
from modelfleet.signer.errors import DigestError
from modelfleet.signer.manifest import (
    Manifest,
    ManifestFile,
    ManifestLimits,
    Tensor,
    Tolerance,
    encode_manifest,
)
from modelfleet.signer.names import sha256_of


def variant(version: str, model: bytes, golden: bytes = b"golden") -> tuple[Manifest, dict[str, bytes]]:
    files = {"model.onnx": model, "golden.npz": golden}
    manifest = Manifest(
        tenant="acme",
        model="digits",
        version=version,
        channel="stable",
        profile="linux-cpu-float",
        runtime="onnxruntime",
        precision="float",
        counter=1,
        source_sha256=sha256_of(model),
        files=tuple(
            ManifestFile(
                name=name, sha256=sha256_of(data), length=len(data), role="model" if "model" in name else "golden"
            )
            for name, data in files.items()
        ),
        entry="model.onnx",
        golden="golden.npz",
        inputs=(Tensor(name="image", dtype="float32", shape=(None, 4)),),
        outputs=(Tensor(name="scores", dtype="float32", shape=(None, 3)),),
        limits=ManifestLimits(latency_ms=100.0, memory_bytes=1),
        tolerance=Tolerance(rtol=0, atol=0),
    )
    return manifest, files


def put(store: SlotStore, manifest: Manifest, files: dict[str, bytes], activation: int) -> str:
    """Install and activate, as the agent does; return the manifest's digest."""
    directory = store.idle()
    folder = store.prepare(manifest)
    for entry in store.missing(manifest, folder):
        (folder / entry.name).write_bytes(files[entry.name])
    store.complete(folder, encode_manifest(manifest))
    digest = sha256_of(encode_manifest(manifest))
    store.activate(
        Pointer(directory=directory, activation=activation, sha256=digest, version=manifest.version, latency_ms=1.0)
    )
    return digest


@pytest.fixture
def store(tmp_path: Path) -> SlotStore:
    return SlotStore(tmp_path / "classifier", Disk())


def test_the_two_directories_take_turns_and_the_former_stays_whole(store: SlotStore) -> None:
    first = put(store, *variant("1.0.0", b"one"), 1)
    second = put(store, *variant("1.1.0", b"two"), 2)
    pointer = store.pointer()
    assert pointer is not None and (pointer.directory, pointer.sha256) == ("b", second)
    assert store.holds(first) == "a"


def test_a_directory_is_incomplete_until_every_file_is_right(store: SlotStore) -> None:
    manifest, _ = variant("1.0.0", b"one")
    folder = store.prepare(manifest)
    (folder / "model.onnx").write_bytes(b"one")
    (folder / "golden.npz").write_bytes(b"wrong!")
    with pytest.raises(DigestError, match=r"golden\.npz"):
        store.complete(folder, encode_manifest(manifest))
    assert store.holds(sha256_of(encode_manifest(manifest))) is None


def test_refilling_a_directory_makes_it_incomplete_first(store: SlotStore) -> None:
    first = put(store, *variant("1.0.0", b"one"), 1)
    put(store, *variant("1.1.0", b"two"), 2)
    store.prepare(variant("1.2.0", b"three")[0])
    assert store.holds(first) is None


def test_what_is_active_is_never_touched_by_preparing(store: SlotStore) -> None:
    first = put(store, *variant("1.0.0", b"one"), 1)
    store.prepare(variant("1.1.0", b"two")[0])
    assert verify_directory(store.path("a"), first).version == "1.0.0"


def test_files_that_the_active_directory_holds_are_not_fetched_again(store: SlotStore) -> None:
    put(store, *variant("1.0.0", b"one"), 1)
    manifest, _ = variant("1.1.0", b"two")
    folder = store.prepare(manifest)
    assert [entry.name for entry in store.missing(manifest, folder)] == ["model.onnx"]


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "manifest.json"])
def test_a_flipped_bit_is_found_before_a_directory_is_used(name: str, store: SlotStore) -> None:
    digest = put(store, *variant("1.0.0", b"one"), 1)
    path = store.path("a") / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(data))
    with pytest.raises(DigestError):
        verify_directory(store.path("a"), digest)


def test_another_manifest_about_the_same_files_is_not_the_accepted_one(store: SlotStore) -> None:
    manifest, files = variant("1.0.0", b"one")
    digest = put(store, manifest, files, 1)
    path = store.path("a") / "manifest.json"
    path.chmod(0o644)
    path.write_bytes(encode_manifest(variant("9.0.0", b"one")[0]))
    with pytest.raises(DigestError, match=digest):
        verify_directory(store.path("a"), digest)


def test_files_are_read_only_once_verified(store: SlotStore) -> None:
    put(store, *variant("1.0.0", b"one"), 1)
    assert {path.stat().st_mode & 0o777 for path in store.path("a").iterdir()} == {0o444}


def test_a_cleared_slot_has_no_model(store: SlotStore) -> None:
    put(store, *variant("1.0.0", b"one"), 1)
    store.clear()
    assert read_pointer(store.folder) is None
