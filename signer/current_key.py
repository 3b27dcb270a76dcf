"""An online key that may be rotated while the service runs: `keys.json` is looked at before every signature."""

import os
import threading
from pathlib import Path
from typing import Any

from modelfleet.signer.errors import KeyUriError
from modelfleet.signer.key_book import book_path, read_book, resolved
from modelfleet.signer.keys import Key, Signature, Signer, load_signer


class CurrentSigner(Signer):
    """Signs with the key that `keys.json` names for a role at that moment; safe among threads.

    Args:
        role: a field of `KeyBook` that holds one URI, such as `snapshot`.

    Raises:
        KeyUriError: the key cannot be opened.
    """

    def __init__(self, data_dir: Path, role: str) -> None:
        self._data_dir, self._role = data_dir, role
        self._lock = threading.Lock()
        self._seen: tuple[int, int] | None = None
        self._uri = ""
        self._signer: Signer | None = None
        self._current()

    @property
    def public_key(self) -> Key:
        """The public half of the present key."""
        return self._current().public_key

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: Key, secrets_handler: Any = None) -> "CurrentSigner":  # noqa: ARG003
        """Refuse: this signer is named by a folder and a role, not by one URI."""
        raise KeyUriError(f"expected a data folder and a role, got {priv_key_uri[:80]!r}")

    def sign(self, payload: bytes) -> Signature:
        """Return the present key's signature over `payload`."""
        return self._current().sign(payload)

    def _current(self) -> Signer:
        with self._lock:
            seen = self._book_as_seen()
            if self._signer is None or seen != self._seen:
                uri = resolved(str(getattr(read_book(self._data_dir), self._role)), self._data_dir)
                if self._signer is None or uri != self._uri:
                    self._signer, self._uri = load_signer(uri), uri
                self._seen = seen
            return self._signer

    def _book_as_seen(self) -> tuple[int, int] | None:
        try:
            found = os.stat(book_path(self._data_dir))  # noqa: PTH116
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns
