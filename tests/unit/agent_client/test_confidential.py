"""Confidential variants on the device: opened from memory, with or without files in memory, and nothing left behind."""

import contextlib
import errno
import os
from pathlib import Path

import numpy as np
import pytest

from modelfleet.agent_client import confidential
from modelfleet.agent_client.errors import ModelError
from modelfleet.agent_client.identity import encryption_key_path
from modelfleet.agent_client.model import open_model
from modelfleet.agent_client.slots import verify_directory
from modelfleet.agent_client.storage import Disk
from modelfleet.benchmarks.runtimes.onnxruntime import open_onnxruntime
from modelfleet.signer.errors import DigestError
from tests.attacks.vault import Vault
from tests.unit.agent_client.fleet import SLOT, Device, Fleet, linear_model, make_device, sha256_file

IMAGE = {"image": np.ones((1, 4), dtype=np.float32)}


def installed(fleet: Fleet, device: Device) -> tuple[Vault, Path, str]:
    """A vault, the active directory, and the manifest's digest."""
    vault = Vault(fleet)
    fleet.stable = vault.release("1.0.0")
    device.told()
    device.waits_for("PROBATION", "1.0.0")
    return vault, device.root / "slots" / SLOT / "a", fleet.stable.sha256


def open_files() -> list[str]:
    """What this process has open, by name."""
    found: list[str] = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return found


def test_a_runtime_gets_a_path_in_memory_that_is_gone_afterwards(fleet: Fleet, device: Device) -> None:
    _, folder, digest = installed(fleet, device)
    seen: list[Path] = []

    def opener(path: Path):
        seen.append(path)
        assert path.read_bytes() == linear_model(1)
        assert [name for name in open_files() if name.startswith("/memfd:model.onnx")]
        with pytest.raises(PermissionError), path.open("r+b") as file:  # sealed: what was verified is what is opened
            file.write(b"x")
        return open_onnxruntime(path)

    session = confidential.open_variant(folder, verify_directory(folder, digest), digest, opener)
    assert session.run(IMAGE)["scores"].shape == (1, 3)
    assert str(seen[0]).startswith("/proc/self/fd/")
    assert not [name for name in open_files() if name.startswith("/memfd:model.onnx")]


def test_where_no_file_lies_in_memory_the_runtime_gets_bytes(
    fleet: Fleet, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(fleet, device)
    with open_model(SLOT, root=device.root) as model:
        expected = model.run(IMAGE)["scores"]
    monkeypatch.setattr(confidential, "_LINUX", False)
    with open_model(SLOT, root=device.root) as model:
        assert np.array_equal(model.run(IMAGE)["scores"], expected)
    monkeypatch.setattr(confidential, "BYTES_OPENERS", {})
    assert "onnxruntime" in confidential.reasons_against(device.root, "onnxruntime")[0]
    with pytest.raises(ModelError, match="on this system"):
        open_model(SLOT, root=device.root)


def test_a_device_that_was_enrolled_without_an_encryption_key_says_so_and_keeps_its_model(
    fleet: Fleet, device: Device
) -> None:
    vault = Vault(fleet)
    fleet.stable = fleet.release("0.9.0")
    device.told()
    device.waits_for("PROBATION", "0.9.0")
    encryption_key_path(device.root).unlink()
    fleet.stable = vault.release("1.0.0", seed=2)
    device.told()
    assert "enrol it again" in device.waits_for_refusal("IncompatibleReleaseError")
    assert device.slot["version"] == "0.9.0"
    assert vault.asked == []


def test_a_server_that_gives_no_key_leaves_the_old_model_and_is_asked_again(fleet: Fleet, device: Device) -> None:
    vault, _, _ = installed(fleet, device)
    vault.closed = True
    fleet.stable = vault.release("1.1.0", seed=2)
    device.told()
    device.waits_for("FAILED", "1.0.0")
    assert "got HTTP 403: closed" in device.slot["error"]["message"]
    vault.closed = False
    device.waits_for("PROBATION", "1.1.0", seconds=30)


def test_a_directory_without_its_key_is_not_whole(fleet: Fleet, device: Device) -> None:
    _, folder, digest = installed(fleet, device)
    assert verify_directory(folder, digest).confidential
    (folder / confidential.KEY_NAME).unlink()
    with pytest.raises(DigestError, match="wrapped key"):
        verify_directory(folder, digest)


class FullOnce(Disk):
    """Has no space for a wrapped key, the first time."""

    refused = False

    def write(self, path: Path, data: bytes, *, mode: int = 0o644) -> None:
        if path.name == confidential.KEY_NAME and not self.refused:
            self.refused = True
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(path, data, mode=mode)


def test_a_disk_too_full_for_the_key_delays_the_update_only(fleet: Fleet, tmp_path: Path) -> None:
    disk = FullOnce()
    device = make_device(fleet, tmp_path / "full", disk=disk)
    device.start()
    try:
        fleet.stable = fleet.release("0.9.0")
        device.told()
        device.waits_for("PROBATION", "0.9.0")
        fleet.stable = Vault(fleet).release("1.0.0", seed=2)
        device.told()
        device.waits_for("FAILED", "0.9.0")
        assert disk.refused
        device.waits_for("PROBATION", "1.0.0", seconds=30)
    finally:
        device.stop()


def test_the_next_version_replaces_the_key_with_its_own(fleet: Fleet, device: Device) -> None:
    vault, folder, _ = installed(fleet, device)
    keys = {sha256_file(folder / confidential.KEY_NAME)}
    for number, version in enumerate(("1.1.0", "1.2.0"), start=2):
        fleet.stable = vault.release(version, seed=number)
        device.told()
        device.waits_for("PROBATION", version)
        keys |= {sha256_file(path) for path in (folder.parent).glob(f"*/{confidential.KEY_NAME}")}
    assert len(keys) == 3
    assert len(list(folder.parent.glob(f"*/{confidential.KEY_NAME}"))) == 2


def test_an_application_follows_from_a_plain_model_to_a_confidential_one(fleet: Fleet, device: Device) -> None:
    vault = Vault(fleet)
    fleet.stable = fleet.release("0.9.0")
    device.told()
    device.waits_for("PROBATION", "0.9.0")
    with device.agent.open_model(SLOT) as model:
        assert model.run(IMAGE)
        fleet.stable = vault.release("1.0.0", seed=2)
        device.told()
        device.waits_for("PROBATION", "1.0.0")
        for _ in range(200):
            model.run(IMAGE)
            if model.version == "1.0.0":
                return
            model._opening and model._opening.join(1)  # pyright: ignore[reportPrivateUsage]
        raise AssertionError(model.version)
