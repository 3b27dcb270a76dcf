"""Columns that a million devices fill, in few bytes on PostgreSQL; on SQLite, which small fleets use, they stay readable.

Python sees hexadecimal digits, lists of counts and plain dictionaries on both. What ingest sends as JSON (`rows.bound_for`)
reaches PostgreSQL's `bytea` in its text form: a backslash, an x, hexadecimal digits.
"""

from collections.abc import Sequence
from typing import Any, cast

import msgspec
from sqlalchemy import JSON, LargeBinary, String, TypeDecorator
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeEngine

MEASURED = (
    "samples",
    "p50_ms",
    "p95_ms",
    "p99_ms",
    "load_ms",
    "peak_memory_bytes",
    "accuracy",
    "mismatch_share",
)
"""The fields of `protocol.Bench` in the order in which they are stored: new ones come last."""


class Compact(TypeDecorator[Any]):
    """A value that PostgreSQL holds as bytes, and SQLite as `plain` does."""

    impl = LargeBinary
    cache_ok = True

    def plain(self) -> TypeEngine[Any]:
        """Return the type on SQLite."""
        return JSON(none_as_null=True)

    def pack(self, value: Any) -> bytes:
        """Return the bytes of a value."""
        raise NotImplementedError

    def unpack(self, stored: bytes) -> Any:
        """Return the value of such bytes."""
        raise NotImplementedError

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the type on this database."""
        return dialect.type_descriptor(LargeBinary() if dialect.name == "postgresql" else self.plain())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """Return what is stored of a value."""
        return value if value is None or dialect.name != "postgresql" else self.pack(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """Return the value that is stored."""
        return value if value is None or dialect.name != "postgresql" else self.unpack(bytes(value))

    def as_json(self, value: Any) -> str | None:
        """Return the value as JSON takes it to a column of PostgreSQL's."""
        return None if value is None else "\\x" + self.pack(value).hex()


class Digest(Compact):
    """A sha256 in hexadecimal digits: 32 bytes."""

    cache_ok = True

    def plain(self) -> TypeEngine[Any]:
        """Return the type on SQLite."""
        return String(64)

    def pack(self, value: str) -> bytes:
        """Return the digest's bytes."""
        return bytes.fromhex(value)

    def unpack(self, stored: bytes) -> str:
        """Return the digest's digits."""
        return stored.hex()

    def as_json(self, value: str | None) -> str | None:
        """Return the digits, which are what PostgreSQL reads."""
        return None if value is None else "\\x" + value


class Counts(Compact):
    """Counts, none below 0: each as a varint of 7 bits a byte, low bits first, the high bit set on all but the last."""

    cache_ok = True

    def pack(self, value: Sequence[int]) -> bytes:
        """Return the varints."""
        packed = bytearray()
        for each in value:
            count = each
            while count > 127:
                packed.append(count & 127 | 128)
                count >>= 7
            packed.append(count)
        return bytes(packed)

    def unpack(self, stored: bytes) -> list[int]:
        """Return the counts."""
        found: list[int] = []
        count = shift = 0
        for byte in stored:
            count |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                found.append(count)
                count = shift = 0
        return found


class Measured(Compact):
    """What a device measured of a variant, field -> figure: an array of the figures in msgpack, without their names."""

    cache_ok = True

    def pack(self, value: dict[str, Any]) -> bytes:
        """Return the array."""
        return msgspec.msgpack.encode([value.get(name) for name in MEASURED])

    def unpack(self, stored: bytes) -> dict[str, Any]:
        """Return the figures by name; those of fields that were not known yet are missing."""
        return dict(zip(MEASURED, cast("list[Any]", msgspec.msgpack.decode(stored)), strict=False))
