"""The acts of an update on a simulated device: the time they take, what they find, and how they fail."""

from pathlib import Path

from modelfleet.agent_client import install
from modelfleet.agent_client.benchmark import missed
from modelfleet.agent_client.counters import Counts
from modelfleet.agent_client.device import Device
from modelfleet.agent_client.errors import BenchmarkError, IncompatibleReleaseError, NoSpaceError
from modelfleet.agent_client.protocol import Bench
from modelfleet.agent_client.record import Goal, release_key
from modelfleet.agent_client.slots import Directory, Pointer
from modelfleet.agent_client.work import Counted, Look, Store, Work, Workshop
from modelfleet.policies.compatibility import manifest_incompatibilities
from modelfleet.service.simulate.believed import Shelf
from modelfleet.service.simulate.machine import Machine, PowerCutError
from modelfleet.service.simulate.traffic import UNKNOWN
from modelfleet.signer.desired import Limits
from modelfleet.signer.manifest import Manifest, ManifestFile
from modelfleet.signer.names import sha256_of

VERIFY_SECONDS = 0.2
HASH_BYTES_PER_SECOND = 200e6
SAMPLES = 500


def in_memory(machine: Machine, shelf: Shelf) -> Workshop:
    """Return what makes store and work of a slot of that machine."""

    def workshop(_root: Path, _slot: str, device: Device) -> tuple[Store, Work]:
        return machine.store, SimulatedWork(machine, shelf, device)

    return workshop


class SimulatedWork:
    """`Work` on a machine in memory."""

    __slots__ = ("_device", "_machine", "_manifest", "_sha256", "_shelf")

    def __init__(self, machine: Machine, shelf: Shelf, device: Device) -> None:
        self._machine, self._shelf, self._device = machine, shelf, device
        self._manifest: Manifest | None = None
        self._sha256 = ""

    def verify(self, goal: Goal, *, accepted_before: bool) -> tuple[Manifest, bytes]:
        """Do what the agent does; its answer is remembered for all devices that are steered alike."""
        self._machine.act(VERIFY_SECONDS, network=True)
        now = self._device.trust.now()
        key = (
            release_key(goal.release),
            *self._device.documents.steered_by(),
            str(accepted_before),
            f"{now:%F %H}",
        )
        found = self._shelf.verified.get(key)
        if found is None:
            found = self._shelf.verified[key] = install.verify(self._device, goal, accepted_before=accepted_before)
        self._manifest, self._sha256 = found[0], goal.release.sha256
        return found

    def require_compatible(self, manifest: Manifest) -> None:
        """Ask the policy, as the agent does."""
        _, name = self._device.documents.steered_by()
        key = (self._sha256, name)
        reasons = self._shelf.incompatibilities.get(key)
        if reasons is None:  # devices of one profile have the same facts (`World.facts`)
            reasons = manifest_incompatibilities(manifest, self._device.profiles[name], self._device.facts)
            self._shelf.incompatibilities[key] = reasons
        if reasons:
            raise IncompatibleReleaseError(f"{manifest.model} {manifest.version}: {'; '.join(reasons)}")

    def prepare(self, manifest: Manifest) -> list[ManifestFile]:
        """Make room; no space is there before somebody frees some, where the disk is full."""
        if self._machine.world.scheduler.now() < self._machine.space_at:
            raise NoSpaceError("no space left on the device; free some, the active model is untouched")
        missing = sum(entry.length for entry in manifest.files) - self._machine.store.received(self._sha256)
        return list(manifest.files) if missing > 0 else []

    def fetch(self, missing: list[ManifestFile], look: Look) -> None:
        """Spend the time that the bytes take; what has come stays, and is not fetched again."""
        machine, scheduler = self._machine, self._machine.world.scheduler
        length = sum(entry.length for entry in missing)
        held, began = machine.store.received(self._sha256), scheduler.now()
        try:
            machine.act((length - held) / machine.bandwidth, look, network=True)
        finally:
            got = held + int((scheduler.now() - began) * machine.bandwidth)
            machine.store.receive(self._sha256, min(got, length))

    def fetch_key(self, manifest: Manifest, sha256: str) -> None:
        """Simulated variants are in the clear."""

    def complete(self, manifest: bytes) -> None:
        """Spend the time of hashing every file."""
        assert self._manifest is not None
        self._machine.spend(sum(entry.length for entry in self._manifest.files) / HASH_BYTES_PER_SECOND)
        self._machine.store.complete(sha256_of(manifest))

    def build(self, manifest: Manifest, counted: Counted, look: Look) -> None:
        """Nothing is built on simulated devices."""

    def prove(self, manifest: Manifest, limits: Limits) -> Bench:
        """Spend the time of a benchmark, and judge what it finds as the agent does."""
        machine = self._machine
        if machine.ailments.crash_loop:
            machine.spend(machine.kind.benchmark_seconds / 2)
            raise PowerCutError
        machine.spend(machine.kind.benchmark_seconds)
        bench = self._measured(self._sha256)
        misses = missed(bench, manifest, limits)
        if misses:
            raise BenchmarkError(
                f"{manifest.model} {manifest.version} on this device: {'; '.join(misses)}", bench=bench
            )
        return bench

    def measure_active(self, pointer: Pointer, limits: Limits) -> Bench:  # noqa: ARG002
        """Spend the time of a benchmark of what runs; `limits` were its own when it was installed."""
        self._machine.spend(self._machine.kind.benchmark_seconds)
        return self._measured(pointer.sha256)

    def have_built(self, directory: Directory, sha256: str, limits: Limits, counted: Counted) -> bool:  # noqa: ARG002
        """Nothing is built on simulated devices."""
        return False

    def counts(self, activation: int) -> Counts:
        """Return what applications have counted of what is active."""
        pointer = self._machine.store.pointer()
        return self._machine.traffic.counts() if pointer and pointer.activation == activation else Counts()

    def forget_counts(self, *, before: int) -> None:
        """Only those of the present activation are kept."""

    def _measured(self, sha256: str) -> Bench:
        world, kind = self._machine.world, self._machine.kind
        behaviour = world.behaviours.get(sha256, UNKNOWN)
        wrong = self._machine.ailments.wrong_answers
        p50 = kind.latency_ms * behaviour.latency_factor * float(world.rng.lognormal(0.0, 0.05))
        return Bench(
            samples=SAMPLES,
            p50_ms=round(p50, 3),
            p95_ms=round(p50 * 1.5, 3),
            p99_ms=round(p50 * 1.8, 3),
            load_ms=round(p50 * 20, 3),
            peak_memory_bytes=50_000_000,
            accuracy=round(behaviour.accuracy * SAMPLES) / SAMPLES,
            mismatch_share=0.5 if wrong else 0.0,
        )
