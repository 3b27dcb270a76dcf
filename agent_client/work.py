"""What an update does to a slot's bytes, as the slot's state machine asks for it: two seams.

Above them is what decides, orders, retries and goes back; below them is what takes time and space: files, network, runtimes.
A real device works on its disk (`disk_work`); a simulated fleet keeps the same promises in memory.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from modelfleet.agent_client.counters import Counts
from modelfleet.agent_client.device import Device
from modelfleet.agent_client.protocol import Bench
from modelfleet.agent_client.record import Goal
from modelfleet.agent_client.slots import Directory, Pointer
from modelfleet.signer.desired import Limits
from modelfleet.signer.manifest import Manifest, ManifestFile

Look = Callable[[], None]
"""Called often while something goes on; what it raises ends the act."""

Counted = Callable[[Callable[[], None]], None]
"""Does what may take the process down, and remembers that it began."""


class Store(Protocol):
    """A slot's two directories and pointer: `SlotStore`."""

    def pointer(self) -> Pointer | None:
        """As `SlotStore.pointer`."""
        ...

    def holds(self, sha256: str) -> Directory | None:
        """As `SlotStore.holds`."""
        ...

    def check(self, directory: Directory, sha256: str) -> None:
        """As `SlotStore.check`."""
        ...

    def activate(self, pointer: Pointer) -> None:
        """As `SlotStore.activate`."""
        ...

    def clear(self) -> None:
        """As `SlotStore.clear`."""
        ...


class Work(Protocol):
    """The acts of an update, in the order in which they are done.

    Each raises what says how it ends: a class of `signer.errors`, `BenchmarkError` or `IncompatibleReleaseError` (reject),
    `TransferError`, `LocalBuildError`, `StorageError` or `OSError` (try again), or what `look` raises.
    """

    def verify(self, goal: Goal, *, accepted_before: bool) -> tuple[Manifest, bytes]:
        """Return the manifest that desired state, fresh metadata and k approvals agree on, parsed and as bytes."""
        ...

    def require_compatible(self, manifest: Manifest) -> None:
        """Return if this machine is of the profile, and can open the variant."""
        ...

    def prepare(self, manifest: Manifest) -> list[ManifestFile]:
        """Make the idle directory ready to receive the variant, and return the files that it lacks."""
        ...

    def fetch(self, missing: list[ManifestFile], look: Look) -> None:
        """Fetch the files into the idle directory."""
        ...

    def fetch_key(self, manifest: Manifest, sha256: str) -> None:
        """Have the wrapped key of a confidential variant beside its files."""
        ...

    def complete(self, manifest: bytes) -> None:
        """Verify every file of the idle directory and mark it complete."""
        ...

    def build(self, manifest: Manifest, counted: Counted, look: Look) -> None:
        """Have what this device must build for itself, where the runtime is of that kind."""
        ...

    def prove(self, manifest: Manifest, limits: Limits) -> Bench:
        """Measure what the idle directory holds; it holds every limit."""
        ...

    def measure_active(self, pointer: Pointer, limits: Limits) -> Bench:
        """Measure what is active; it holds every limit."""
        ...

    def have_built(self, directory: Directory, sha256: str, limits: Limits, counted: Counted) -> bool:
        """Build the complete variant of a directory again where its tools have changed since; whether that was needed."""
        ...

    def counts(self, activation: int) -> Counts:
        """Return what all processes counted of that activation."""
        ...

    def forget_counts(self, *, before: int) -> None:
        """Forget what was counted of older activations."""
        ...


Workshop = Callable[[Path, str, Device], tuple[Store, Work]]
"""Returns store and work of a slot, given the agent's folder and the slot's name."""
