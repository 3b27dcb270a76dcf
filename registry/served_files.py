"""Small signed files as they go over the wire: read once, packed once, and told apart by their digest.

The entity tag is weak, and of the plain bytes: the same file travels packed or not, as the client asks (RFC 9110, 8.8.3).
"""

import gzip
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from modelfleet.signer.metadata import etag_of

MAX_CACHED_BYTES = 32 * 1024 * 1024
MAX_FILE_BYTES = 1024 * 1024
"""A file that is longer is read and packed each time; the snapshot of 16,384 bins has 600 KB."""
LEAST_PACKED_BYTES = 512
PACKING_LEVEL = 9

_CODING = re.compile(r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*(?:;\s*[qQ]\s*=\s*([01](?:\.\d{0,3})?)\s*)?")


@dataclass(frozen=True, kw_only=True)
class ServedFile:
    """One file: its bytes, the same packed where that is shorter, and its entity tag."""

    plain: bytes
    packed: bytes | None
    etag: str

    @property
    def size(self) -> int:
        """How many bytes of memory it holds."""
        return len(self.plain) + len(self.packed or b"")


class ServedFiles:
    """The files asked for last, in memory; a file that was replaced is read again. Safe among threads."""

    def __init__(self) -> None:
        self._files: OrderedDict[Path, tuple[tuple[int, int, int], ServedFile]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def read(self, path: Path) -> ServedFile | None:
        """Return the file, None where there is none."""
        try:
            status = path.stat()
            known = (status.st_ino, status.st_mtime_ns, status.st_size)
            with self._lock:
                found = self._files.get(path)
                if found is not None and found[0] == known:
                    self._files.move_to_end(path)
                    return found[1]
            served = _serve(path.read_bytes())
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        if served.size <= MAX_FILE_BYTES:
            self._keep(path, known, served)
        return served

    def _keep(self, path: Path, known: tuple[int, int, int], served: ServedFile) -> None:
        with self._lock:
            former = self._files.pop(path, None)
            self._files[path] = known, served
            self._bytes += served.size - (former[1].size if former is not None else 0)
            while self._bytes > MAX_CACHED_BYTES:
                _, (_, oldest) = self._files.popitem(last=False)
                self._bytes -= oldest.size


def accepts_gzip(accept_encoding: str | None) -> bool:
    """Whether a client with this header may be answered in gzip (RFC 9110, 12.5.3)."""
    weights: dict[str, float] = {}
    for part in (accept_encoding or "").split(","):
        found = _CODING.fullmatch(part)
        if found is not None:
            weights[found[1].lower()] = float(found[2] or 1)
    return weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0))) > 0.0


def _serve(data: bytes) -> ServedFile:
    packed = gzip.compress(data, PACKING_LEVEL, mtime=0) if len(data) >= LEAST_PACKED_BYTES else data
    return ServedFile(plain=data, packed=packed if len(packed) < len(data) else None, etag=etag_of(data))
