"""A runtime whose variants the device builds for itself: built, proved and pinned there, or not opened at all."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelfleet.agent_client import Model, ModelError, open_model
from modelfleet.agent_client.benchmark import measure_variant
from modelfleet.agent_client.errors import BenchmarkError, LocalBuildError
from modelfleet.agent_client.local_build import build_here, is_built, space_bytes
from modelfleet.agent_client.protocol import DeviceState
from modelfleet.agent_client.record import Goal, SlotRecord
from modelfleet.agent_client.slot_state import MAX_BENCHMARKS
from modelfleet.agent_client.storage import Disk, encode_struct
from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.golden import GoldenSet, save_golden
from modelfleet.benchmarks.runtimes.local_build import (
    BUILT_NAME,
    PIN_NAME,
    UNPROVED_NAME,
    Limits,
    Tools,
    open_built,
    refusal_path,
)
from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession
from modelfleet.benchmarks.runtimes.table import LOCAL_BUILDS, PROVED_ON_DEVICE
from modelfleet.benchmarks.session import Session
from modelfleet.signer.desired import Limits as RolloutLimits
from modelfleet.signer.desired import Release
from modelfleet.signer.manifest import ManifestFile, encode_manifest
from modelfleet.signer.names import sha256_of
from tests.unit.agent_client.fleet import SLOT, Device, Fleet, golden_of, linear_model, make_device, now, send
from tests.unit.agent_client.test_slots import variant

ORDER = "recipe.json"
IMAGE = np.ones((1, 4), dtype=np.float32)
BUILDER = """
import json, os, shutil, sys, time
from pathlib import Path
entry, out, refused, log = map(Path, sys.argv[1:5])
order = json.loads(entry.read_bytes())
with log.open("a") as file:
    file.write("built\\n")
if order["act"] == "refuse":
    refused.write_text(json.dumps({"refused": "operator Frobnicate"}))
    sys.exit(1)
if order["act"] == "cut off":
    refused.write_text('{"refused": "opera')
    sys.exit(1)
if order["act"] == "talk":
    sys.stderr.write("x" * 900_000 + "\\nthe last words")
    sys.exit(3)
if order["act"] == "fork" and os.fork() == 0:
    log.with_name("child").write_text(f"{os.getpid()};")
    time.sleep(60)
if order["act"] == "hang":
    time.sleep(60)
if order["act"] == "grow":
    held = b"x" * 200_000_000
    time.sleep(60)
if order["act"] == "crash":
    os.abort()
if order["act"] == "large":
    out.write_bytes(b"x" * 3_000_000)
network = entry.with_name("model.onnx").read_bytes()
out.write_bytes(network if order["act"] == "copy" else network.replace(b"MatMul", b"MatMul"))
if order["act"] == "other":
    shutil.copyfile(order["network"], out)
if order["act"] == "fork":
    time.sleep(60)
"""


@dataclass
class CopyBuild:
    """A `LocalBuild` whose builder copies the ONNX network, and whose result ONNX Runtime runs."""

    folder: Path
    installed: Tools = field(default_factory=lambda: Tools(builder="copier", version="1.0", gpu="Toy (1.0)"))
    timeout_seconds: float = 20.0

    def wants(self, entry: str) -> bool:
        return entry == ORDER

    def limits(self, entry: Path) -> Limits:
        return Limits(timeout_seconds=self.timeout_seconds, memory_bytes=100_000_000, file_bytes=1_000_000)

    def tools(self, entry: Path) -> Tools:
        return self.installed

    def command(self, entry: Path, out: Path) -> Sequence[str]:
        return (sys.executable, "-c", BUILDER, str(entry), str(out), str(refusal_path(out)), str(self.log))

    def open(self, entry: Path, data: bytes, *, threads: int = 1) -> Session:
        return OnnxRuntimeSession(data, threads=threads)

    @property
    def log(self) -> Path:
        return self.folder / "builds.log"

    @property
    def times(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    def opener(self, path: Path, *, threads: int = 1) -> Session:
        return open_built(self, path, threads=threads) if self.wants(path.name) else OnnxRuntimeSession(path)

    def options(self) -> dict[str, Any]:
        return {"builds": {"onnxruntime": self}, "runtimes": {"onnxruntime": self.opener}}

    def model(self, root: Path) -> Model:
        return open_model(SLOT, root=root, openers={"onnxruntime": self.opener})


@pytest.fixture
def build(tmp_path: Path) -> CopyBuild:
    return CopyBuild(tmp_path)


@pytest.fixture
def device(fleet: Fleet, tmp_path: Path, build: CopyBuild) -> Iterator[Device]:
    made = make_device(fleet, tmp_path / "device", **build.options())
    made.start()
    yield made
    made.stop()


def order_release(fleet: Fleet, version: str, *, seed: int = 1, **order: str) -> Release:
    """Publish a variant that a device builds from its network."""
    network, golden = linear_model(seed), golden_of(seed)
    recipe = json.dumps({"act": "copy", **order}).encode()
    fleet.server.blobs[sha256_of(recipe)] = recipe
    files = {ORDER: ("model", recipe), "model.onnx": ("model", network), "golden.npz": ("golden", golden)}
    return fleet.release(
        version,
        seed=seed,
        entry=ORDER,
        files=tuple(
            ManifestFile(name=name, sha256=sha256_of(data), length=len(data), role=role)  # type: ignore[arg-type]
            for name, (role, data) in files.items()
        ),
    )


def wants(fleet: Fleet, device: Device, release: Release, rollout: str = "r1") -> None:
    fleet.candidates = (fleet.candidate(release, rollout=rollout),)
    device.told()


def active(device: Device) -> Path:
    folder = device.root / "slots" / SLOT
    return folder / json.loads((folder / "active.json").read_bytes())["directory"]


def test_builds_proves_and_runs_what_it_was_sent_an_order_for(fleet: Fleet, device: Device, build: CopyBuild) -> None:
    wants(fleet, device, order_release(fleet, "1.0.0"))
    device.waits_for("COMMITTED", "1.0.0")
    assert build.times == 1
    folder = active(device)
    pin = json.loads((folder / PIN_NAME).read_bytes())
    assert pin["sha256"] == sha256_of((folder / BUILT_NAME).read_bytes())
    assert pin["order_sha256"] == sha256_of((folder / ORDER).read_bytes())
    assert pin["tools"] == {"builder": "copier", "version": "1.0", "gpu": "Toy (1.0)"}
    assert not (folder / UNPROVED_NAME).exists() and not (folder.parent / "build").exists()
    with build.model(device.root) as model:
        assert model.run({"image": IMAGE})["scores"].shape == (1, 3)


def test_rejects_a_build_whose_answers_are_not_the_originals(fleet: Fleet, device: Device, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(linear_model(7))
    release = order_release(fleet, "1.0.0", act="other", network=str(other))
    wants(fleet, device, release)
    device.waits_for("REJECTED")
    assert "outputs beyond tolerance" in device.waits_for_refusal("BenchmarkError")
    assert not list((device.root / "slots").rglob(PIN_NAME))


def test_rejects_what_the_builder_refuses_and_names_the_reason(fleet: Fleet, device: Device, build: CopyBuild) -> None:
    wants(fleet, device, order_release(fleet, "1.0.0", act="refuse"))
    device.waits_for("REJECTED")
    assert "building: operator Frobnicate" in device.waits_for_refusal("BenchmarkError")


def test_an_overwritten_slot_loses_its_old_build(fleet: Fleet, device: Device, build: CopyBuild) -> None:
    first = order_release(fleet, "1.0.0")
    wants(fleet, device, first)
    device.waits_for("COMMITTED", "1.0.0")
    fleet.stable = first
    old = active(device)
    for number, version in enumerate(("1.1.0", "1.2.0"), start=2):
        wants(fleet, device, fleet.release(version, seed=number), rollout=f"r{number}")
        device.waits_for("COMMITTED", version)
        fleet.stable = fleet.candidates[0].release
    assert active(device) == old
    assert not [path for path in old.iterdir() if path.name.startswith(".built")]


def test_builds_again_after_a_start_with_other_tools_without_a_network(
    fleet: Fleet, tmp_path: Path, build: CopyBuild
) -> None:
    device = make_device(fleet, tmp_path / "device", **build.options())
    device.start()
    wants(fleet, device, order_release(fleet, "1.0.0"))
    device.waits_for("COMMITTED", "1.0.0")
    device.stop()
    build.installed = Tools(builder="copier", version="2.0", gpu="Toy (1.0)")
    with pytest.raises(ModelError, match=r"expected to be built by copier 2\.0"):
        build.model(device.root)
    fleet.server.fault = out_of_order
    device.start()
    try:
        assert eventually(lambda: json.loads((active(device) / PIN_NAME).read_bytes())["tools"]["version"] == "2.0")
        assert build.times == 2
        with build.model(device.root) as model:
            model.run({"image": IMAGE})
    finally:
        fleet.server.fault = lambda request: False
        device.stop()


def test_builds_again_after_a_start_that_finds_it_damaged(fleet: Fleet, tmp_path: Path, build: CopyBuild) -> None:
    device = make_device(fleet, tmp_path / "device", **build.options())
    device.start()
    wants(fleet, device, order_release(fleet, "1.0.0"))
    device.waits_for("COMMITTED", "1.0.0")
    device.stop()
    built = active(device) / BUILT_NAME
    built.chmod(0o644)
    built.write_bytes(built.read_bytes()[:-1] + b"?")
    with pytest.raises(ModelError, match=r"\.built: expected .* of sha256"):
        build.model(device.root)
    device.start()
    try:
        assert eventually(lambda: build.times == 2 and (active(device) / PIN_NAME).exists())
        with build.model(device.root) as model:
            model.run({"image": IMAGE})
    finally:
        device.stop()


def test_a_way_back_builds_again_what_other_tools_had_built(fleet: Fleet, tmp_path: Path, build: CopyBuild) -> None:
    device = make_device(fleet, tmp_path / "device", **build.options())
    device.start()
    first = order_release(fleet, "1.0.0")
    wants(fleet, device, first)
    device.waits_for("COMMITTED", "1.0.0")
    fleet.stable = first
    wants(fleet, device, order_release(fleet, "1.1.0", seed=2), rollout="r2")
    device.waits_for("COMMITTED", "1.1.0")
    device.stop()
    build.installed = Tools(builder="copier", version="2.0", gpu="Toy (1.0)")
    device.start()
    try:
        assert eventually(lambda: build.times == 3)  # the active one, mended
        fleet.candidates = ()
        device.told()
        device.waits_for("ROLLED_BACK", "1.0.0")
        assert build.times == 4
        with build.model(device.root) as model:
            assert model.version == "1.0.0"
            model.run({"image": IMAGE})
    finally:
        device.stop()


def test_a_build_that_took_the_agent_down_too_often_is_rejected(fleet: Fleet, tmp_path: Path, build: CopyBuild) -> None:
    device = make_device(fleet, tmp_path / "device", **build.options())
    folder = device.root / "slots" / SLOT
    folder.mkdir(parents=True)
    goal = Goal(release=order_release(fleet, "1.0.0"), seen_at=now())
    died = SlotRecord(state=DeviceState.VERIFYING, goal=goal, benchmarks=MAX_BENCHMARKS)
    (folder / "record.json").write_bytes(encode_struct(died))
    device.start()
    try:
        assert "expected a build that ends, got 3" in device.waits_for_refusal("BenchmarkError")
        device.waits_for("REJECTED")
    finally:
        device.stop()
    assert build.times == 0


def test_a_driver_that_comes_up_late_costs_no_build(fleet: Fleet, tmp_path: Path, build: CopyBuild) -> None:
    device = make_device(fleet, tmp_path / "device", **build.options())
    device.start()
    release = order_release(fleet, "1.0.0")
    wants(fleet, device, release)
    device.waits_for("COMMITTED", "1.0.0")
    fleet.stable = release
    device.stop()
    before = (active(device) / BUILT_NAME).read_bytes()
    build.installed = Tools(builder="copier", version="1.0", gpu="")
    device.start()
    try:
        assert "got none: does NVIDIA's driver run?" in device.waits_for_refusal("LocalBuildError")
    finally:
        device.stop()
    assert build.times == 1 and (active(device) / BUILT_NAME).read_bytes() == before


def test_a_driver_that_comes_up_late_rejects_nothing_and_spares_the_way_back(
    fleet: Fleet, tmp_path: Path, build: CopyBuild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelfleet.agent_client.reconcile.MEND_SECONDS", 0.1)
    device = make_device(fleet, tmp_path / "device", **build.options())
    device.start()
    first, second = order_release(fleet, "1.0.0"), order_release(fleet, "1.1.0", seed=2)
    for release in (first, second):
        wants(fleet, device, release, rollout=release.version)
        device.waits_for("COMMITTED", release.version)
        fleet.stable = release
    device.stop()
    slot, was = active(device).parent, active(device).name
    build.installed = Tools(builder="copier", version="2.0", gpu="")
    device.start()
    try:
        device.waits_for_refusal("LocalBuildError")
        wants(fleet, device, second, rollout="again")
        time.sleep(1.0)  # many tries
        assert build.times == 2 and active(device).name == was
        assert all((slot / name / PIN_NAME).exists() for name in "ab")
        build.installed = Tools(builder="copier", version="2.0", gpu="Toy (1.0)")
        assert eventually(lambda: json.loads((active(device) / PIN_NAME).read_bytes())["tools"]["version"] == "2.0")
        assert build.times == 3 and active(device).name == was
    finally:
        device.stop()


def test_builds_of_one_release_that_took_the_agent_down_are_not_held_against_another(
    fleet: Fleet, tmp_path: Path, build: CopyBuild
) -> None:
    device = make_device(fleet, tmp_path / "device", **build.options())
    folder = device.root / "slots" / SLOT
    folder.mkdir(parents=True)
    goal = Goal(release=order_release(fleet, "1.0.0"), seen_at=now())
    died = SlotRecord(state=DeviceState.VERIFYING, goal=goal, benchmarks=MAX_BENCHMARKS)
    (folder / "record.json").write_bytes(encode_struct(died))
    device.start()
    try:
        device.waits_for("REJECTED")
        wants(fleet, device, order_release(fleet, "1.1.0", seed=2))
        device.waits_for("COMMITTED", "1.1.0")
    finally:
        device.stop()


def test_what_a_crash_left_of_a_build_gives_its_space_back(fleet: Fleet, device: Device, build: CopyBuild) -> None:
    left = device.root / "slots" / SLOT / "build"
    left.mkdir(parents=True)
    (left / "built").write_bytes(b"x" * 1000)
    wants(fleet, device, fleet.release("1.0.0"))  # built of nothing: nobody else would remove it
    device.waits_for("COMMITTED", "1.0.0")
    assert not left.exists()


def out_of_order(request: BaseHTTPRequestHandler) -> bool:
    send(request, b"", 503)
    return True


def eventually(holds: Any, seconds: float = 15.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if holds():
                return True
        except OSError:
            pass
        time.sleep(0.02)
    return False


@dataclass
class Directory:
    """A verified directory of a slot, with no agent around it."""

    folder: Path
    manifest: Any

    def build(self, build: CopyBuild, disk: Disk | None = None) -> None:
        build_here(build, self.folder, self.manifest, disk or Disk(), lambda: None)


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return make_directory(tmp_path / "slots" / SLOT / "a")


def make_directory(folder: Path, act: str = "copy") -> Directory:
    folder.mkdir(parents=True)
    manifest, files = variant("1.0.0", linear_model(1))
    recipe = json.dumps({"act": act}).encode()
    files[ORDER] = recipe
    described = {
        **{name: getattr(manifest, name) for name in manifest.__struct_fields__},
        "entry": ORDER,
        "files": (
            *manifest.files,
            ManifestFile(name=ORDER, sha256=sha256_of(recipe), length=len(recipe), role="model"),
        ),
    }
    manifest = type(manifest)(**described)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "manifest.json").write_bytes(encode_manifest(manifest))
    return Directory(folder, manifest)


def test_what_is_built_is_not_opened_by_applications_before_it_is_proved(
    directory: Directory, build: CopyBuild
) -> None:
    directory.build(build)
    assert is_built(build, directory.folder, directory.manifest, proved=False)
    assert not is_built(build, directory.folder, directory.manifest, proved=True)
    with pytest.raises(MeasureError, match="got none: start the agent"):
        open_built(build, directory.folder / ORDER)
    assert open_built(build, directory.folder / ORDER, pin_name=UNPROVED_NAME).inputs[0].name == "image"


def test_a_build_of_another_order_is_refused(directory: Directory, build: CopyBuild) -> None:
    directory.build(build)
    (directory.folder / ORDER).write_bytes(json.dumps({"act": "other"}).encode())
    with pytest.raises(MeasureError, match="expected a build of the order"):
        open_built(build, directory.folder / ORDER, pin_name=UNPROVED_NAME)


def test_bytes_of_another_digest_are_refused(directory: Directory, build: CopyBuild) -> None:
    directory.build(build)
    built = directory.folder / BUILT_NAME
    data = built.read_bytes()
    built.chmod(0o644)
    built.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(MeasureError, match=r"\.built: expected .* of sha256"):
        open_built(build, directory.folder / ORDER, pin_name=UNPROVED_NAME)


def test_what_the_server_could_not_run_needs_the_originals_answers_to_be_proved_here(directory: Directory) -> None:
    golden = GoldenSet(inputs={"image": np.ones((8, 4), np.float32)}, expected={}, labels=np.zeros(8, np.int64))
    save_golden(golden, directory.folder / "golden.npz")
    described = {name: getattr(directory.manifest, name) for name in directory.manifest.__struct_fields__}
    manifest = type(directory.manifest)(**{**described, "entry": "model.onnx", "runtime": "tensorrt-rtx"})
    with pytest.raises(BenchmarkError, match=r"expected the original's answers of \['scores'\], got none"):
        measure_variant(directory.folder, manifest, {"tensorrt-rtx": OnnxRuntimeSession}, RolloutLimits())


@pytest.mark.parametrize(
    ("act", "said"),
    [
        ("hang", "expected an end within 1 s"),
        ("grow", "expected at most 100000000 bytes of memory"),
        ("crash", "got SIGABRT"),
        ("large", "File too large"),
        ("cut off", "expected a file, got status 1"),
        ("talk", "expected a file, got status 3: the last words"),
    ],
)
def test_a_builder_is_held_to_its_limits(act: str, said: str, tmp_path: Path, build: CopyBuild) -> None:
    directory = make_directory(tmp_path / "slots" / SLOT / "a", act)
    build.timeout_seconds = 1.0 if act == "hang" else 20.0
    with pytest.raises(LocalBuildError, match=said):
        directory.build(build)
    assert not (directory.folder.parent / "build").exists()
    assert not [path for path in directory.folder.iterdir() if path.name.startswith(".built")]


def test_a_builder_ends_when_its_agent_wants_something_else(directory: Directory, build: CopyBuild) -> None:
    (directory.folder / ORDER).write_bytes(json.dumps({"act": "hang"}).encode())

    def look() -> None:
        raise BenchmarkError("something newer")

    with pytest.raises(BenchmarkError, match="something newer"):
        build_here(build, directory.folder, directory.manifest, Disk(), look)


class PowerCut(BaseException):
    """The device is off: nothing that follows is done."""


class DyingDisk(Disk):
    """A real disk; the power is cut before its n-th act."""

    def __init__(self, left: int) -> None:
        self.left = left

    def _act(self) -> None:
        if self.left == 0:
            raise PowerCut
        self.left -= 1

    def write(self, path: Path, data: bytes, *, mode: int = 0o644) -> None:
        self._act()
        super().write(path, data, mode=mode)

    def move(self, source: Path, target: Path) -> None:
        self._act()
        super().move(source, target)

    def remove(self, path: Path) -> None:
        self._act()
        super().remove(path)

    def make_folder(self, path: Path) -> None:
        self._act()
        super().make_folder(path)


def test_a_power_cut_at_any_step_leaves_no_half_build_in_use(tmp_path: Path, build: CopyBuild) -> None:
    cuts = 0
    while True:
        directory = make_directory(tmp_path / f"{cuts}" / SLOT / "a")
        directory.build(build)  # of older tools: what is to be replaced
        (directory.folder / UNPROVED_NAME).rename(directory.folder / PIN_NAME)
        old, build.installed = build.installed, Tools(builder="copier", version=f"2.{cuts}", gpu="Toy (1.0)")
        try:
            directory.build(build, DyingDisk(cuts))
        except PowerCut:
            with pytest.raises(MeasureError):  # the new tools have nothing that is whole
                open_built(build, directory.folder / ORDER, pin_name=UNPROVED_NAME)
        else:
            break
        assert not is_built(build, directory.folder, directory.manifest, proved=False)
        directory.build(build)
        assert is_built(build, directory.folder, directory.manifest, proved=False)
        build.installed = old
        cuts += 1
    assert cuts == 5  # the old pin and build removed, the folder made, the new build named, its pin written


def test_a_directory_needs_room_for_what_is_built(directory: Directory, build: CopyBuild) -> None:
    model = sum(entry.length for entry in directory.manifest.files if entry.role != "golden")
    assert space_bytes({"onnxruntime": build}, directory.manifest) == 3 * model
    assert space_bytes({}, directory.manifest) == 0


def test_what_a_builder_has_started_ends_with_it(tmp_path: Path, build: CopyBuild) -> None:
    directory = make_directory(tmp_path / "slots" / SLOT / "a", "fork")
    child = build.folder / "child"

    def look() -> None:
        if child.exists() and child.read_text().endswith(";"):
            raise BenchmarkError("something newer")

    with pytest.raises(BenchmarkError, match="something newer"):
        build_here(build, directory.folder, directory.manifest, Disk(), look)
    assert eventually(lambda: not alive(int(child.read_text().rstrip(";"))))


def test_whatever_is_built_here_is_proved_here() -> None:
    assert set(LOCAL_BUILDS) <= PROVED_ON_DEVICE


def test_a_builder_ends_with_its_agent(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from modelfleet.agent_client.confined import run_confined\n"
        f"command = [sys.executable, '-c', {HELD!r}, {str(tmp_path / 'pid')!r}]\n"
        f"run_confined(command, stderr=Path({str(tmp_path / 'said')!r}), timeout_seconds=60, memory_bytes=2**30,"
        " file_bytes=2**20, look=lambda: None)\n"
    )
    agent = subprocess.Popen([sys.executable, "-c", program])
    assert eventually(lambda: (tmp_path / "pid").read_text().endswith(";"))
    builder = int((tmp_path / "pid").read_text().rstrip(";"))
    agent.kill()
    agent.wait()
    assert eventually(lambda: not alive(builder))


HELD = "import os, sys, time; open(sys.argv[1], 'w').write(f'{os.getpid()};'); time.sleep(60)"


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and was not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
