"""Build on the device what could not be sent: between VERIFYING and BENCHMARKING, for runtimes that have a `LocalBuild`.

Upholds: what is built lies in the slot's directory under a name that no manifest can have, and goes when the directory receives
another variant. It is opened only as its pin says (`benchmarks.runtimes.local_build`), and by applications only once this
device's own benchmark has proved it. A pin is removed before, and written after, the bytes it stands for, so that a power cut
leaves none, or a whole one: then nothing is opened, and it is built again.
"""

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from modelfleet.agent_client.benchmark import measure_variant
from modelfleet.agent_client.confined import last_line, run_confined
from modelfleet.agent_client.device import Device
from modelfleet.agent_client.errors import BenchmarkError, LocalBuildError
from modelfleet.agent_client.protocol import Bench
from modelfleet.agent_client.slots import digest_of
from modelfleet.agent_client.storage import Disk
from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.runtimes.local_build import (
    BUILT_NAME,
    PIN_NAME,
    UNPROVED_NAME,
    LocalBuild,
    Pin,
    open_built,
    pinned_bytes,
    read_pin,
    refusal_path,
)
from modelfleet.signer.desired import Limits
from modelfleet.signer.manifest import Manifest

WORK_NAME: Final = "build"
"""The folder beside a slot's two directories where building goes on; emptied before and after."""
SPACE_FACTOR: Final = 3
"""An engine holds the weights and compiled code; while it is written, the one before it may still be there."""

MAX_REFUSAL_BYTES: Final = 64 * 1024


class _Refusal(msgspec.Struct, frozen=True):
    refused: str


def build_of(builds: Mapping[str, LocalBuild], manifest: Manifest) -> LocalBuild | None:
    """Return how the variant is built here, None where it is opened as it came."""
    build = builds.get(manifest.runtime)
    return build if build is not None and build.wants(manifest.entry) else None


def space_bytes(builds: Mapping[str, LocalBuild], manifest: Manifest) -> int:
    """Return the space that building takes beside the variant's files, 0 where nothing is built."""
    if build_of(builds, manifest) is None:
        return 0
    return SPACE_FACTOR * sum(entry.length for entry in manifest.files if entry.role != "golden")


def reasons_against_build(builds: Mapping[str, LocalBuild], manifest: Manifest) -> list[str]:
    """Return why this variant may not be built here, in words; empty: it may, or is not built at all."""
    if manifest.confidential and build_of(builds, manifest) is not None:
        return [
            f"confidential: expected a variant that is opened in memory, got one of {manifest.runtime} that is built on disk"
        ]
    return []


def sweep(slot: Path, disk: Disk) -> None:
    """Give back the space of a building that a crash or a power cut left in the slot's folder."""
    if (slot / WORK_NAME).is_dir():
        shutil.rmtree(slot / WORK_NAME)
        disk.sync_folder(slot)


def is_built(build: LocalBuild, folder: Path, manifest: Manifest, *, proved: bool) -> bool:
    """Whether the directory holds what was built of the variant, undamaged, by the tools that are here now.

    Args:
        proved: whether only what this device has proved counts.
    """
    entry = folder / manifest.entry
    for name in (PIN_NAME,) if proved else (PIN_NAME, UNPROVED_NAME):
        pin = read_pin(folder / name)
        if pin is not None:
            try:
                pinned_bytes(pin, build, entry)
            except MeasureError:
                return False
            return True
    return False


def build_here(build: LocalBuild, folder: Path, manifest: Manifest, disk: Disk, look: Callable[[], None]) -> None:
    """Build the variant in `folder`, a verified directory of a slot, and pin the result as unproved.

    Args:
        look: called often meanwhile; what it raises ends the building.

    Raises:
        BenchmarkError: the builder refuses it on this device. LocalBuildError: it did not end; it may another time.
        OSError: the disk refuses.
    """
    what, entry, work = f"{manifest.model} {manifest.version}", folder / manifest.entry, folder.parent / WORK_NAME
    out = work / BUILT_NAME.removeprefix(".")
    try:
        tools, limits = build.tools(entry), build.limits(entry)
        _require_gpu_is_back(folder, tools.gpu)
        _forget(folder, disk)
        _empty(work, disk)
        command = build.command(entry, out)
        status = run_confined(command, stderr=work / "stderr", look=look, **msgspec.to_builtins(limits))
        _require_built(status, out, what)
        pin = Pin(
            sha256=digest_of(out),
            length=out.stat().st_size,
            order_sha256=manifest.file(manifest.entry).sha256,
            tools=tools,
        )
        out.chmod(0o444)
        disk.move(out, folder / BUILT_NAME)
        disk.write(folder / UNPROVED_NAME, msgspec.json.encode(pin), mode=0o444)  # last: now it may be opened
    except MeasureError as error:
        raise BenchmarkError(f"{what} on this device: {error}") from error
    except LocalBuildError as error:
        raise LocalBuildError(f"{what} on this device: building: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def prove(device: Device, folder: Path, manifest: Manifest, limits: Limits) -> Bench:
    """Measure the variant, built here or not (errors as `measure_variant`).

    Where it was built here, applications may open it once it holds.
    """
    build = build_of(device.builds, manifest)
    if build is None:
        return measure_variant(folder, manifest, device.openers, limits, device.alive)
    unproved = (folder / UNPROVED_NAME).exists()
    opener = partial(open_built, build, pin_name=UNPROVED_NAME if unproved else PIN_NAME)
    bench = measure_variant(folder, manifest, {**device.openers, manifest.runtime: opener}, limits, device.alive)
    if unproved:
        device.disk.move(folder / UNPROVED_NAME, folder / PIN_NAME)
    return bench


def have_built(
    device: Device, folder: Path, manifest: Manifest, limits: Limits, counted: Callable[[Callable[[], None]], None]
) -> bool:
    """Build and prove the variant again where its tools have changed since, or what was built is damaged; whether it was needed.

    Args:
        counted: does what may take the process down, and remembers that it began.

    Raises:
        BenchmarkError, LocalBuildError, OSError: as `build_here` and `prove`.
    """
    build = build_of(device.builds, manifest)
    if build is None or is_built(build, folder, manifest, proved=True):
        return False
    counted(lambda: build_here(build, folder, manifest, device.disk, device.look))
    prove(device, folder, manifest, limits)
    return True


def _require_gpu_is_back(folder: Path, gpu: str) -> None:
    """Keep an engine whose GPU does not answer just now: a driver that comes up late must not cost it."""
    pin = read_pin(folder / PIN_NAME) or read_pin(folder / UNPROVED_NAME)
    if pin is not None and pin.tools.gpu and not gpu:
        raise LocalBuildError(f"expected the GPU {pin.tools.gpu}, got none: does NVIDIA's driver run?")


def _forget(folder: Path, disk: Disk) -> None:
    for name in (PIN_NAME, UNPROVED_NAME, BUILT_NAME):  # the pin first: what it stands for goes after it
        if (folder / name).exists():
            disk.remove(folder / name)


def _empty(work: Path, disk: Disk) -> None:
    if work.exists():
        shutil.rmtree(work)
    disk.make_folder(work)


def _require_built(status: int, out: Path, what: str) -> None:
    reason = _refusal(refusal_path(out))
    if reason:
        raise BenchmarkError(f"{what} on this device: building: {reason}"[:1024])
    if status != 0 or not out.is_file() or out.stat().st_size == 0:
        raise LocalBuildError(f"expected a file, got status {status}: {last_line(out.with_name('stderr'))}")


def _refusal(path: Path) -> str:
    """Return why the builder refuses, "" where it does not say so whole: a full disk cuts a reason off, and is none."""
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_REFUSAL_BYTES), type=_Refusal).refused
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
