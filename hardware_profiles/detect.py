"""Look at this machine, and say which profiles it fits. Nothing is assumed that the machine does not say itself."""

import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from packaging.specifiers import SpecifierSet

from modelfleet.hardware_profiles.facts import DeviceFacts
from modelfleet.hardware_profiles.profile import RUNTIME_DISTRIBUTIONS, HardwareProfile, Runtime

_ARCH: Final[Mapping[str, str]] = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64", "armv8l": "aarch64"}

_SERIAL_PLACES = ("proc/device-tree/serial-number", "sys/class/dmi/id/product_serial", "sys/class/dmi/id/board_serial")
_NO_SERIAL = frozenset(
    {"", "none", "not specified", "default string", "to be filled by o.e.m.", "system serial number", "not applicable"}
)
"""What boards say that were given none."""


def detect(root: Path = Path("/")) -> DeviceFacts:
    """Return the facts of this machine.

    Args:
        root: where `proc` and `sys` are found.
    """
    return DeviceFacts(
        arch=normalised_arch(platform.machine()),
        os=normalised_os(platform.system(), os.environ),
        memory_bytes=_memory_bytes(root),
        cores=_cores(),
        cpu_model=_cpu_model(root),
        board=_board(root),
        gpu=_gpu(root),
        runtimes=installed_runtimes(),
    )


def detect_serial(root: Path = Path("/")) -> str | None:
    """Return the serial number that firmware gives this machine, or None; DMI tells it to root only.

    Args:
        root: where `proc` and `sys` are found.
    """
    for place in _SERIAL_PLACES:
        try:
            found = (root / place).read_bytes().decode("ascii").strip("\0 \n")
        except (OSError, UnicodeDecodeError):
            continue
        if found and found.isprintable() and len(found) <= 128 and found.strip("0").lower() not in _NO_SERIAL:
            return found
    return None


def normalised_arch(machine: str) -> str:
    """Return one name per instruction set: `x86_64`, `aarch64`; others as the kernel names them, in lower case."""
    machine = machine.lower()
    return _ARCH.get(machine, machine)


def normalised_os(system: str, environment: Mapping[str, str]) -> str:
    """Return one name per system: `linux`, `darwin`, `android`, `ios`; others in lower case.

    Args:
        system: as `platform.system` says it.
        environment: Android's shells set ANDROID_ROOT; there Python before 3.13 calls the system Linux.
    """
    system = system.lower()
    if system == "linux" and environment.get("ANDROID_ROOT"):
        return "android"
    return "ios" if system == "ipados" else system


def installed_runtimes() -> dict[str, str]:
    """Return runtime -> version of what is installed, read from package metadata: no runtime is imported."""
    found: dict[str, str] = {}
    for runtime, distributions in RUNTIME_DISTRIBUTIONS.items():
        for distribution in distributions:
            try:
                found.setdefault(runtime.value, version(distribution))
            except PackageNotFoundError:
                continue
    return found


def mismatches(profile: HardwareProfile, facts: DeviceFacts) -> list[str]:
    """Return what of the profile this device does not have, each as `what: expected ..., got ...`; empty: it fits."""
    requires = profile.requires
    checks = {
        "arch": (facts.arch in requires.arch, f"one of {[*requires.arch]}", facts.arch),
        "os": (facts.os in requires.os, f"one of {[*requires.os]}", facts.os),
        "memory_bytes": (
            facts.memory_bytes >= requires.memory_bytes,
            f">= {requires.memory_bytes}",
            facts.memory_bytes,
        ),
        "cores": (facts.cores >= requires.cores, f">= {requires.cores}", facts.cores),
        "board": (requires.board in facts.board, f"a {requires.board!r}", repr(facts.board)),
        "gpu": (requires.gpu in facts.gpu, f"a {requires.gpu!r}", repr(facts.gpu)),
        "runtime": (
            _has_runtime(profile.runtime, requires.runtime_version, facts),
            f"{profile.runtime} {requires.runtime_version}".rstrip(),
            facts.runtimes.get(profile.runtime, "none installed"),
        ),
    }
    return [f"{what}: expected {expected}, got {got}" for what, (fits, expected, got) in checks.items() if not fits]


def matching(facts: DeviceFacts, profiles: Mapping[str, HardwareProfile]) -> list[str]:
    """Return the names of the profiles that a device with these facts fits, sorted."""
    return sorted(name for name, profile in profiles.items() if not mismatches(profile, facts))


def _has_runtime(runtime: Runtime, wanted: str, facts: DeviceFacts) -> bool:
    installed = facts.runtimes.get(runtime)
    return installed is not None and SpecifierSet(wanted).contains(installed, prereleases=True)


def _memory_bytes(root: Path) -> int:
    found = re.search(r"^MemTotal:\s+(\d+) kB$", _read(root / "proc/meminfo"), re.MULTILINE)
    total = int(found[1]) * 1024 if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read(root / "sys/fs/cgroup/memory.max").strip()  # cgroup v2: a container has what it was given
    return min(total, int(limit)) if limit.isdigit() else total


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model(root: Path) -> str:
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    return (found[1].strip() if found else _board(root) or platform.processor())[:256]


def _board(root: Path) -> str:
    # Device trees hold C strings: the name ends with a NUL.
    return _read(root / "proc/device-tree/model").rstrip("\x00").strip()[:256]


def _gpu(root: Path) -> str:
    # NVIDIA's kernel driver says "Model: \t\t NVIDIA H100"; one file a GPU, and the first stands for all.
    for path in sorted(root.glob("proc/driver/nvidia/gpus/*/information")):
        found = re.search(r"^Model:\s*(.+)$", _read(path), re.MULTILINE)
        if found:
            return found[1].strip()[:256]
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
