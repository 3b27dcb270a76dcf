"""The work on a slot of this machine: files on its disk, bytes over its transport, measurements by its runtimes."""

from pathlib import Path

from modelfleet.agent_client import install
from modelfleet.agent_client.benchmark import measure_variant
from modelfleet.agent_client.counters import Counts, read_counts, remove_counts
from modelfleet.agent_client.device import Device
from modelfleet.agent_client.local_build import build_here, build_of, have_built, is_built, prove, sweep
from modelfleet.agent_client.protocol import Bench
from modelfleet.agent_client.record import Goal
from modelfleet.agent_client.slots import Directory, Pointer, SlotStore, slot_folder, verify_directory, verify_manifest
from modelfleet.agent_client.work import Counted, Look
from modelfleet.signer.desired import Limits
from modelfleet.signer.manifest import Manifest, ManifestFile


def on_disk(root: Path, slot: str, device: Device) -> tuple[SlotStore, "DiskWork"]:
    """Return store and work of a slot in the agent's folder `root`."""
    store = SlotStore(slot_folder(root, slot), device.disk)
    return store, DiskWork(store, device)


class DiskWork:
    """`Work` on a slot's folder; each act stands in a module of its own."""

    def __init__(self, store: SlotStore, device: Device) -> None:
        self._store = store
        self._device = device
        self._counters = store.folder / "counters"

    def verify(self, goal: Goal, *, accepted_before: bool) -> tuple[Manifest, bytes]:
        """See `install.verify`."""
        return install.verify(self._device, goal, accepted_before=accepted_before)

    def require_compatible(self, manifest: Manifest) -> None:
        """See `install.require_compatible`."""
        install.require_compatible(self._device, manifest)

    def prepare(self, manifest: Manifest) -> list[ManifestFile]:
        """Give back what a crash left, and make room; see `Work`."""
        sweep(self._store.folder, self._device.disk)
        install.require_space(self._device, self._store, manifest)
        return self._store.missing(manifest, self._store.prepare(manifest))

    def fetch(self, missing: list[ManifestFile], look: Look) -> None:
        """See `install.fetch`."""
        install.fetch(self._device, self._idle, missing, lambda _length: look())

    def fetch_key(self, manifest: Manifest, sha256: str) -> None:
        """See `install.fetch_key`."""
        install.fetch_key(self._device, self._store, self._idle, manifest, sha256)

    def complete(self, manifest: bytes) -> None:
        """See `SlotStore.complete`."""
        self._store.complete(self._idle, manifest)

    def build(self, manifest: Manifest, counted: Counted, look: Look) -> None:
        """See `local_build.build_here`."""
        build = build_of(self._device.builds, manifest)
        folder = self._idle
        if build is None or is_built(build, folder, manifest, proved=False):
            return
        counted(lambda: build_here(build, folder, manifest, self._device.disk, look))

    def prove(self, manifest: Manifest, limits: Limits) -> Bench:
        """See `local_build.prove`."""
        return prove(self._device, self._idle, manifest, limits)

    def measure_active(self, pointer: Pointer, limits: Limits) -> Bench:
        """Verify and measure what is active; see `measure_variant`."""
        folder = self._store.path(pointer.directory)
        manifest = verify_directory(folder, pointer.sha256)
        return measure_variant(folder, manifest, self._device.openers, limits, self._device.alive)

    def have_built(self, directory: Directory, sha256: str, limits: Limits, counted: Counted) -> bool:
        """See `local_build.have_built`."""
        folder = self._store.path(directory)
        return have_built(self._device, folder, verify_manifest(folder, sha256), limits, counted)

    def counts(self, activation: int) -> Counts:
        """See `read_counts`."""
        return read_counts(self._counters, activation)

    def forget_counts(self, *, before: int) -> None:
        """See `remove_counts`."""
        remove_counts(self._counters, before)

    @property
    def _idle(self) -> Path:
        return self._store.path(self._store.idle())
