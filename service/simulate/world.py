"""What is true in the simulated world: kinds of devices, how releases behave on them, chance, and the clock."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from packaging.specifiers import SpecifierSet

from modelfleet.hardware_profiles.facts import DeviceFacts
from modelfleet.hardware_profiles.profile import HardwareProfile
from modelfleet.service.errors import ServiceError
from modelfleet.service.simulate.faults import Faults
from modelfleet.service.simulate.scheduler import Scheduler

SLOT = "main"


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How a release behaves: accuracy on its golden set, share of errors in use, latency against the kind's own."""

    accuracy: float = 0.95
    error_share: float = 0.002
    latency_factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of device: a hardware profile, its share of the fleet, and how it works.

    bandwidth: median of what it downloads, bytes a second, log-normal over the devices. latency_ms: median of an inference.
    benchmark_seconds: how long it measures a variant. per_minute: inferences.
    """

    profile: str
    share: float
    bandwidth: float = 1_250_000.0
    latency_ms: float = 20.0
    benchmark_seconds: float = 8.0
    per_minute: float = 20.0


@dataclass(frozen=True, kw_only=True)
class World:
    """What all devices of a simulation share.

    Attributes:
        behaviours: manifest digest -> how it behaves.
        rng: all chance of the fleet; the same seed gives the same run, in virtual time.
    """

    scheduler: Scheduler
    kinds: Mapping[str, Kind]
    faults: Faults
    rng: np.random.Generator
    facts: Mapping[str, DeviceFacts]
    profiles: Mapping[str, HardwareProfile]
    behaviours: dict[str, Behaviour] = field(default_factory=dict[str, Behaviour])
    on_crash: Callable[[], None] = lambda: None

    def chance(self, rate: float) -> bool:
        """Whether what has this rate happens now."""
        return rate > 0.0 and self.rng.random() < rate


def parse_mix(text: str, known: Mapping[str, object]) -> dict[str, float]:
    """Return profile -> share of `PROFILE=SHARE,...`; shares are scaled to a sum of 1, and are equal where none is given.

    Raises:
        ServiceError: no such profile, or no share above 0.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name not in known:
            raise ServiceError(f"--profile-mix: expected profiles of {', '.join(sorted(known))}, got {name!r}")
        try:
            found[name] = float(value or 1.0)
        except ValueError:
            found[name] = 0.0
        if not found[name] > 0.0:
            raise ServiceError(f"--profile-mix {name}: expected a share above 0, got {value!r}")
    total = sum(found.values())
    return {name: share / total for name, share in found.items()}


def facts_for(profile: HardwareProfile) -> DeviceFacts:
    """Return what a machine of that profile says of itself: just what the profile asks for, and a runtime that is new enough."""
    requires = profile.requires
    return DeviceFacts(
        arch=requires.arch[0],
        os=requires.os[0],
        memory_bytes=max(requires.memory_bytes, profile.limits.memory_bytes),
        cores=max(requires.cores, 1),
        board=requires.board,
        gpu=requires.gpu,
        runtimes={profile.runtime.value: _version(requires.runtime_version)},
    )


def _version(wanted: str) -> str:
    """Return a version that the specifier admits: the one that it pins, or a very new one."""
    pinned = [each.version.removesuffix(".*") for each in SpecifierSet(wanted) if each.operator == "=="]
    return pinned[0] if pinned else "99.0"
