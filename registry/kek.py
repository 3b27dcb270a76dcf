"""The key-encryption key: what wraps every data key before the database sees it. Named by URI, so that a KMS can hold it.

`file:` is a JSON file of AES-256 keys, mode 0600: one is the primary, which wraps; the others still unwrap, until a
rotation has wrapped everything anew. `awskms:` is a symmetric key of AWS KMS, which never leaves it and rotates there.
A wrapped key is text, `<key id>:<base64>`, and bound to its context: it opens as no other data key.
"""

import base64
import os
import secrets
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final, Protocol, cast

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from modelfleet.registry.errors import KekError
from modelfleet.signer.files import write_durably

_NONCE_BYTES: Final = 12
_MAX_FILE_BYTES: Final = 64 * 1024


class Kek(Protocol):
    """Wraps data keys."""

    def wrap(self, data_key: bytes, context: str) -> str:
        """Return the data key, wrapped by the key that is primary now.

        Raises:
            KekError: the key is not there, or its KMS does not answer.
        """
        ...

    def unwrap(self, wrapped: str, context: str) -> bytes:
        """Return the data key (KekError: wrapped by a key that is gone, or under another context)."""
        ...


class KekFile(msgspec.Struct, frozen=True, kw_only=True):
    """The file's content: key id -> base64 of 32 bytes."""

    format: str = "1.0"
    primary: str
    keys: dict[str, str]


class FileKek:
    """Keys in a file, read anew each time: a rotation by another process takes effect at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def wrap(self, data_key: bytes, context: str) -> str:
        """Wrap with the primary key; see `Kek.wrap`."""
        found = self._read()
        nonce = os.urandom(_NONCE_BYTES)
        sealed = nonce + self._cipher(found, found.primary).encrypt(nonce, data_key, context.encode())
        return f"{found.primary}:{base64.b64encode(sealed).decode()}"

    def unwrap(self, wrapped: str, context: str) -> bytes:
        """Unwrap with whichever key wrapped it; see `Kek.unwrap`."""
        name, _, text = wrapped.partition(":")
        cipher = self._cipher(self._read(), name)
        try:
            sealed = base64.b64decode(text, validate=True)
            return cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context.encode())
        except (InvalidTag, ValueError) as error:
            raise KekError(f"{context}: its data key does not open under the key {name} of {self.path}") from error

    def make(self) -> None:
        """Make the file with its first key (KekError: there is one; a key is never overwritten)."""
        if self.path.exists():
            raise KekError(f"expected no file at {self.path}, found one: rotate it instead")
        name = _new_name()
        self._write(KekFile(primary=name, keys={name: _new_key()}))

    def add(self) -> str:
        """Add a key, which wraps from now on, and return its id; the others still unwrap."""
        found, name = self._read(), _new_name()
        self._write(KekFile(primary=name, keys={**found.keys, name: _new_key()}))
        return name

    def drop(self, still_used: Collection[str]) -> list[str]:
        """Remove every key but the primary and those that are still used; return the ids of the removed."""
        found = self._read()
        kept = {name: key for name, key in found.keys.items() if name == found.primary or name in still_used}
        self._write(KekFile(primary=found.primary, keys=kept))
        return sorted(set(found.keys) - set(kept))

    def _read(self) -> KekFile:
        try:
            data = self.path.read_bytes()[:_MAX_FILE_BYTES]
            return msgspec.json.decode(data, type=KekFile)
        except OSError as error:
            raise KekError(
                f"no key-encryption key at {self.path} ({error.strerror}): make one with "
                "`modelfleet confidential rotate-kek`, or restore it from where you keep it"
            ) from error
        except msgspec.DecodeError as error:
            raise KekError(f"{self.path}: expected a file of key-encryption keys, got something else") from error

    def _write(self, content: KekFile) -> None:
        write_durably(self.path, msgspec.json.encode(content), mode=0o600)

    def _cipher(self, content: KekFile, name: str) -> AESGCM:
        key = content.keys.get(name)
        if key is None:
            raise KekError(f"{self.path}: expected the key {name[:40]!r}, it has {sorted(content.keys)}")
        return AESGCM(base64.b64decode(key))


class AwsKmsKek:
    """A symmetric key of AWS KMS, by its id, ARN or alias; credentials and region come from boto3's usual chain."""

    def __init__(self, key: str, client: Any | None = None) -> None:
        self._key = key
        self._made = client

    def wrap(self, data_key: bytes, context: str) -> str:
        """Have KMS encrypt it; see `Kek.wrap`."""
        answer = self._ask("encrypt", Plaintext=data_key, EncryptionContext={"modelfleet": context})
        return f"awskms:{base64.b64encode(answer['CiphertextBlob']).decode()}"

    def unwrap(self, wrapped: str, context: str) -> bytes:
        """Have KMS decrypt it; see `Kek.unwrap`."""
        blob = base64.b64decode(wrapped.partition(":")[2])
        return bytes(self._ask("decrypt", CiphertextBlob=blob, EncryptionContext={"modelfleet": context})["Plaintext"])

    def _ask(self, what: str, **asked: object) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError  # pyright: ignore[reportMissingTypeStubs]

        try:
            return getattr(self._client(), what)(KeyId=self._key, **asked)
        except (BotoCoreError, ClientError) as error:
            raise KekError(f"AWS KMS refused to {what} with {self._key}: {error}") from error

    def _client(self) -> Any:
        if self._made is None:
            import boto3  # pyright: ignore[reportMissingTypeStubs]

            connect = cast("Callable[..., Any]", boto3.client)  # pyright: ignore[reportUnknownMemberType]
            self._made = connect("kms")
        return self._made


def open_kek(uri: str) -> Kek:
    """Return the key-encryption key that the URI names: `file:/path/kek.json` or `awskms:<key id, ARN or alias>`.

    Raises:
        KekError: another scheme.
    """
    scheme, separator, rest = uri.partition(":")
    opener = OPENERS.get(scheme)
    if not separator or opener is None:
        raise KekError(f"expected the URI of a key-encryption key with a scheme of {sorted(OPENERS)}, got {uri[:80]!r}")
    return opener(rest)


OPENERS: Mapping[str, Callable[[str], Kek]] = {"file": lambda path: FileKek(Path(path)), "awskms": AwsKmsKek}
"""URI scheme -> what opens the rest."""


def key_of(wrapped: str) -> str:
    """Return the id of the key that wrapped this."""
    return wrapped.partition(":")[0]


def _new_name() -> str:
    return secrets.token_hex(8)


def _new_key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()
