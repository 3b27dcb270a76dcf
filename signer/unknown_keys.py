"""Keys of a kind that this version does not know: they stay in the metadata as they are, and verify nothing.

TUF lets a repository name keys of a coming kind beside those that today's clients understand. Python-tuf refuses the
whole file for one of them; here such a key is kept, so that the signed bytes stay what they were, and never counts.
"""

import contextlib
import threading
from collections.abc import Generator
from typing import Any

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import KEY_FOR_TYPE_AND_SCHEME  # pyright: ignore[reportPrivateImportUsage]

from modelfleet.signer.keys import Key, Signature

MAX_NAME_CHARACTERS = 64

_table = threading.RLock()
"""Held while python-tuf's table of kinds is longer than it was."""


class UnknownKey(Key):
    """A key that this version cannot verify with."""

    @classmethod
    def from_dict(cls, keyid: str, key_dict: dict[str, Any]) -> "UnknownKey":
        """Return the key with all its fields."""
        keytype, scheme, keyval = cls._from_dict(key_dict)
        return cls(keyid, keytype, scheme, keyval, key_dict)

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` took."""
        return self._to_dict()

    def verify_signature(self, signature: Signature, data: bytes) -> None:
        """Raise: nothing can be said about a signature of this kind."""
        raise UnverifiedSignatureError(
            f"key {self.keyid[:12]}: no way to verify {self.keytype[:40]}/{self.scheme[:40]} ({len(data)} bytes,"
            f" signature of {signature.keyid[:12]}): upgrade this program"
        )


@contextlib.contextmanager
def unknown_keys_admitted(metadata: object) -> Generator[None]:
    """Make python-tuf keep the keys of unknown kinds that `metadata`, an already parsed JSON value, names, in this block.

    Nothing stays behind: what a stranger sends must not use up what the repository's own metadata needs.
    """
    with _table:
        kinds = _unknown_kinds(metadata)
        KEY_FOR_TYPE_AND_SCHEME.update(dict.fromkeys(kinds, UnknownKey))
        try:
            yield
        finally:
            for kind in kinds:
                del KEY_FOR_TYPE_AND_SCHEME[kind]


def _unknown_kinds(metadata: object) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for key in _keys(metadata):
        keytype, scheme = key.get("keytype"), key.get("scheme")
        if isinstance(keytype, str) and isinstance(scheme, str):
            found.add((keytype, scheme))
    return {kind for kind in found if max(map(len, kind)) <= MAX_NAME_CHARACTERS} - KEY_FOR_TYPE_AND_SCHEME.keys()


def _keys(metadata: object) -> list[dict[str, object]]:
    signed = _member(metadata, "signed")
    found: list[dict[str, object]] = []
    for holder in (signed, _member(signed, "delegations")):
        keys = _member(holder, "keys")
        found += [key for key in keys.values() if isinstance(key, dict)]  # pyright: ignore[reportUnknownVariableType]
    return found


def _member(value: object, name: str) -> dict[str, object]:
    found = value.get(name) if isinstance(value, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return found if isinstance(found, dict) else {}  # pyright: ignore[reportUnknownVariableType]
