"""A device's disk and slots, in memory: they outlive the agent's process as the real ones do, and nothing else does."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from modelfleet.agent_client.slots import Directory, Pointer
from modelfleet.agent_client.storage import Disk
from modelfleet.signer.errors import DigestError

StructT = TypeVar("StructT", bound=msgspec.Struct)


class MemoryDisk(Disk):
    """Keeps the agent's records as they are: they are frozen, so that nobody changes what was written."""

    __slots__ = ("_files",)

    def __init__(self) -> None:
        self._files: dict[str, msgspec.Struct] = {}

    def keep(self, path: Path, value: msgspec.Struct) -> None:
        """See `Disk.keep`."""
        self._files[str(path)] = value

    def kept(self, path: Path, kind: type[StructT]) -> StructT | None:
        """See `Disk.kept`."""
        found = self._files.get(str(path))
        return found if isinstance(found, kind) else None

    def exists(self, path: Path) -> bool:
        """See `Disk.exists`."""
        return str(path) in self._files

    def names(self, folder: Path) -> list[str]:
        """See `Disk.names`."""
        above = f"{folder}/"
        return sorted({name[len(above) :].split("/", 1)[0] for name in self._files if name.startswith(above)})

    def discard(self, path: Path) -> None:
        """See `Disk.discard`."""
        self._files.pop(str(path), None)

    def make_folder(self, path: Path) -> None:
        """Folders need not be made here."""


class MemoryStore:
    """A slot's two directories and pointer; a directory holds a whole variant, or some bytes of one (`Store`).

    Args:
        on_change: told what is active from now on, as an application sees it.
    """

    __slots__ = ("_active", "_held", "_on_change", "_partial", "installs")

    def __init__(self, on_change: Callable[[Pointer | None], None]) -> None:
        self._on_change = on_change
        self._active: Pointer | None = None
        self._held: dict[Directory, str] = {}
        self._partial: tuple[str, int] = ("", 0)
        self.installs: dict[str, int] = {}
        """Manifest digest -> how often its files were written whole."""

    def pointer(self) -> Pointer | None:
        """See `SlotStore.pointer`."""
        return self._active

    def holds(self, sha256: str) -> Directory | None:
        """See `SlotStore.holds`."""
        idle = self._idle()
        return idle if self._held.get(idle) == sha256 else None

    def check(self, directory: Directory, sha256: str) -> None:
        """See `SlotStore.check`."""
        if self._held.get(directory) != sha256:
            raise DigestError(f"{directory}: expected manifest {sha256}, got {self._held.get(directory, 'none')}")

    def activate(self, pointer: Pointer) -> None:
        """See `SlotStore.activate`."""
        self._active = pointer
        self._on_change(pointer)

    def clear(self) -> None:
        """See `SlotStore.clear`."""
        self._active = None
        self._on_change(None)

    def received(self, sha256: str) -> int:
        """Return how many bytes of that variant lie in the idle directory, from an earlier try."""
        return self._partial[1] if self._partial[0] == sha256 else 0

    def receive(self, sha256: str, length: int) -> None:
        """Have so many bytes of the variant in the idle directory, which holds no other from here on."""
        self._held.pop(self._idle(), None)
        self._partial = (sha256, length)

    def complete(self, sha256: str) -> None:
        """Have the variant whole in the idle directory."""
        idle = self._idle()
        if self._held.get(idle) != sha256:
            self.installs[sha256] = self.installs.get(sha256, 0) + 1
        self._held[idle] = sha256
        self._partial = ("", 0)

    def _idle(self) -> Directory:
        return "b" if self._active is not None and self._active.directory == "a" else "a"
