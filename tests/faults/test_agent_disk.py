"""A disk that is full, fails or rots: the model that runs goes on running, and the update comes when the disk is well."""

import errno
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from modelfleet.agent_client import open_model
from modelfleet.agent_client.storage import Disk
from tests.unit.agent_client.fleet import SLOT, Device, Fleet, make_device, make_fleet

IMAGE = np.ones((1, 4), dtype=np.float32)


class FailingDisk(Disk):
    """A real disk that refuses every write while `error` is set."""

    def __init__(self) -> None:
        self.error = 0

    def write(self, path: Path, data: bytes, *, mode: int = 0o644) -> None:
        if self.error:
            raise OSError(self.error, "injected")
        super().write(path, data, mode=mode)

    def sync_file(self, path: Path) -> None:
        if self.error:
            raise OSError(self.error, "injected")
        super().sync_file(path)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = make_fleet(tmp_path)
    yield made
    made.server.stop()


@pytest.fixture
def device(fleet: Fleet, tmp_path: Path) -> Iterator[Device]:
    made = make_device(fleet, tmp_path / "device", disk=FailingDisk())
    made.start()
    fleet.candidates = (fleet.candidate(fleet.release("1.0.0")),)
    made.told()
    made.waits_for("COMMITTED", "1.0.0")
    fleet.stable = fleet.candidates[0].release
    yield made
    made.stop()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=["full", "failing"])
def test_a_disk_that_refuses_stops_only_the_update(error: int, fleet: Fleet, device: Device) -> None:
    fleet.candidates = (fleet.candidate(fleet.release("1.1.0", seed=2), rollout="r2"),)
    disk = device.options["disk"]
    disk.error = error
    device.told()
    time.sleep(1.0)
    with open_model(SLOT, root=device.root) as model:
        model.run({"image": IMAGE})
        assert model.version == "1.0.0"
    disk.error = 0  # nobody tells the device again
    device.waits_for("COMMITTED", "1.1.0", seconds=20)


def test_a_full_disk_is_found_before_anything_is_fetched(fleet: Fleet, device: Device) -> None:
    from modelfleet.signer.manifest import ManifestFile

    huge = ManifestFile(name="model.onnx", sha256="a" * 64, length=2**52, role="model")
    golden = ManifestFile(name="golden.npz", sha256="b" * 64, length=10, role="golden")
    fleet.candidates = (fleet.candidate(fleet.release("1.1.0", files=(huge, golden)), rollout="r2"),)
    device.told()
    device.waits_for("FAILED", "1.0.0")
    report = device.waits_for_report("FAILED")
    assert report.error is not None and report.error.kind == "NoSpaceError"
    assert not any(path.endswith("a" * 64) for path, _ in fleet.server.requests)


def test_bit_rot_in_the_active_directory_is_repaired_at_the_next_start(fleet: Fleet, device: Device) -> None:
    device.stop()
    path = next((device.root / "slots" / SLOT).glob("[ab]/model.onnx"))
    path.chmod(0o644)
    path.write_bytes(b"\x00" * path.stat().st_size)
    device.start()
    device.waits_for_refusal("DigestError")
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            with open_model(SLOT, root=device.root) as model:
                model.run({"image": IMAGE})
                return
        except Exception:
            time.sleep(0.1)
    raise AssertionError("the slot was not repaired")


@pytest.mark.parametrize("name", ["record.json", "active.json"])
def test_a_rotten_record_or_pointer_is_made_anew(name: str, fleet: Fleet, device: Device) -> None:
    device.stop()
    (device.root / "slots" / SLOT / name).write_bytes(b"\x00" * 20)
    device.start()
    device.told()
    device.waits_for_refusal("StorageError")
    with open_model(SLOT, root=device.root) as model:
        model.run({"image": IMAGE})
        assert model.version == "1.0.0"
    fleet.candidates = (fleet.candidate(fleet.release("1.1.0", seed=2), rollout="r2"),)
    device.told()
    device.waits_for("COMMITTED", "1.1.0")
