"""What a folder may hold after a power cut: a model of the disk, fed with the recorded calls of an update.

The disk promises only what POSIX does: what was written is there once the file was fsynced, and what was named, renamed
or removed once the folder was. Until then each change of a name may have come to the disk or not, in any order, and each
written file may hold its old bytes, its new ones, zeros, or half of each.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

RECORD_OPTIONS = ["-xx", "-s", "16777216"]
"""What strace needs besides, so that its log holds every byte."""
_LINE = re.compile(r"(?P<call>\w+)\((?P<arguments>.*)\) += (?P<result>\d+)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_OPENED = re.compile(r"^\d+<((?:\\x[0-9a-f]{2})*)>")

Content = Literal["old", "new", "zeros", "torn"]
CONTENTS: tuple[Content, ...] = ("old", "new", "zeros", "torn")


@dataclass(eq=False)
class File:
    """A file: its bytes now, and those that are on the disk for sure. A folder is a file of no bytes."""

    data: bytes = b""
    synced: bytes = b""
    folder: bool = False
    link: str = ""

    def after(self, content: Content) -> bytes:
        """Return what the file may hold after the cut."""
        if self.data == self.synced:
            return self.data
        half = len(self.data) // 2
        return {
            "old": self.synced,
            "new": self.data,
            "zeros": bytes(len(self.data)),
            "torn": self.data[:half] + bytes(len(self.data) - half),
        }[content]


@dataclass(frozen=True)
class Naming:
    """A change of the names in a folder: `gone` is named no more, `path` names `file` from now on."""

    folder: str
    gone: str = ""
    path: str = ""
    file: File | None = None


Names = dict[str, File]
State = dict[str, bytes | str | None]
"""Path below the root -> bytes, a link's target, or None for a folder."""


@dataclass
class Disk:
    """The device's folder, `root`, in the model."""

    root: str
    names: Names = field(default_factory=dict[str, File])
    synced: Names = field(default_factory=dict[str, File])
    pending: list[Naming] = field(default_factory=list[Naming])

    @classmethod
    def of(cls, folder: Path, root: Path) -> "Disk":
        """Return the disk that holds `folder` for sure, to follow an update that was recorded in `root`."""
        disk = cls(str(root))
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(folder))
            data = path.read_bytes() if path.is_file() else b""
            link = str(path.readlink()) if path.is_symlink() else ""
            disk.names[name] = File(data=data, synced=data, folder=path.is_dir(), link=link)
        disk.synced = dict(disk.names)
        return disk

    def do(self, line: str) -> bool:
        """Follow one call of the log, and return whether it changed anything."""
        parsed = _LINE.match(line)
        if parsed is None:
            return False
        paths = [self._below(text) for text in _TEXT.findall(parsed["arguments"])]
        opened = _OPENED.match(parsed["arguments"])
        place = self._below(opened[1]) if opened is not None else None
        call = parsed["call"]
        if call in ("write", "fsync", "fdatasync", "ftruncate"):
            return place is not None and self._do_opened(call, place, parsed["arguments"])
        if not paths or any(path is None for path in paths):
            return False
        return self._do_named(call, [path for path in paths if path is not None], parsed["arguments"])

    def states(self) -> Iterator[State]:
        """Yield what the folder may hold if the power is cut now."""
        for kept in _selections(self.pending):
            names = dict(self.synced)
            for naming in kept:
                names.pop(naming.gone, None)
                if naming.file is not None:
                    names[naming.path] = naming.file
            for content in CONTENTS:
                yield _state(names, content)

    def _below(self, text: str) -> str | None:
        path = bytes.fromhex(text.replace("\\x", "")).decode(errors="replace")
        if path == self.root:
            return "."
        return path.removeprefix(f"{self.root}/") if path.startswith(f"{self.root}/") else None

    def _do_opened(self, call: str, path: str, arguments: str) -> bool:
        if call == "fsync" and (path == "." or self.names[path].folder):
            self._sync_folder(path)
            return True
        file = self.names[path]
        if call == "write":
            text = _TEXT.findall(arguments)[0]
            file.data += bytes.fromhex(text.replace("\\x", ""))
        elif call == "ftruncate":
            file.data = file.data[: int(arguments.rpartition(", ")[2])]
        else:
            file.synced = file.data
        return True

    def _do_named(self, call: str, paths: list[str], arguments: str) -> bool:
        path = paths[-1]
        if call == "openat":
            return self._open(path, arguments)
        if call == "unlink":
            self._name(Naming(_folder(path), gone=path))
        elif call == "mkdir":
            self._name(Naming(_folder(path), path=path, file=File(folder=True)))
        elif call == "link":
            self._name(Naming(_folder(path), path=path, file=self.names[paths[0]]))
        elif call == "rename" and _folder(paths[0]) == _folder(path):
            self._name(Naming(_folder(path), gone=paths[0], path=path, file=self.names[paths[0]]))
        elif call == "rename":
            self._name(Naming(_folder(path), path=path, file=self.names[paths[0]]))
            self._name(Naming(_folder(paths[0]), gone=paths[0]))
        elif call not in ("chmod", "fchmod"):
            raise AssertionError(f"the model of the disk does not know {call}")
        return True

    def _open(self, path: str, arguments: str) -> bool:
        if not re.search(r"O_CREAT|O_TRUNC", arguments):
            return False
        if path not in self.names:
            self._name(Naming(_folder(path), path=path, file=File()))
        elif "O_TRUNC" in arguments:
            self.names[path].data = b""
        return True

    def _name(self, naming: Naming) -> None:
        self.pending.append(naming)
        self.names.pop(naming.gone, None)
        if naming.file is not None:
            self.names[naming.path] = naming.file

    def _sync_folder(self, folder: str) -> None:
        for naming in self.pending:
            if naming.folder == folder:
                self.synced.pop(naming.gone, None)
                if naming.file is not None:
                    self.synced[naming.path] = naming.file
        self.pending = [naming for naming in self.pending if naming.folder != folder]


def digest_of(state: State, below: str = "") -> str:
    """Return what tells one state from another, in the part of the folder that begins with `below`."""
    digest = hashlib.sha256()
    for path in sorted(state):
        if path.startswith(below):
            digest.update(f"{path}\0{state[path]!r}\0".encode())
    return digest.hexdigest()


def materialise(state: State, root: Path) -> Path:
    """Make the folder `root` hold that state, and return it."""
    root.mkdir(parents=True)
    for path in sorted(state):
        content, place = state[path], root / path
        if not place.parent.is_dir():  # the folder's own name was lost
            continue
        if content is None:
            place.mkdir()
        elif isinstance(content, str):
            place.symlink_to(content)
        else:
            place.write_bytes(content)
    (root / "key.pem").chmod(0o600)
    return root


def _selections(pending: list[Naming]) -> Iterable[list[Naming]]:
    """Return which changes of names survive: none, all, all but one, one alone."""
    yield []
    yield pending
    if len(pending) > 1:
        for place in range(len(pending)):
            yield pending[:place] + pending[place + 1 :]
            yield [pending[place]]


def _state(names: Names, content: Content) -> State:
    return {path: None if file.folder else file.link or file.after(content) for path, file in names.items()}


def _folder(path: str) -> str:
    return path.rpartition("/")[0] or "."
