"""Strict parsing of hostile JSON: the only way bytes from outside become values.

Size and depth are capped before the parser runs; duplicate keys, NaN, Infinity, floats out of range, integers beyond
2**53 - 1, lone surrogates and trailing bytes are refused. Every refusal is a `FormatError`.
"""

import json
import math
import re
from itertools import accumulate
from typing import Any, NoReturn, TypeVar

import msgspec

from modelfleet.signer.errors import FormatError

MAX_BYTES = 64 * 1024
MAX_DEPTH = 16
MAX_INTEGER = 2**53 - 1  # RFC 8259 section 6: integers that every implementation agrees on

StructT = TypeVar("StructT", bound=msgspec.Struct)


def parse_json(data: bytes, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> object:
    """Return the JSON value of `data`, or refuse it.

    Args:
        max_bytes: refused before parsing when longer.
        max_depth: deepest nesting of arrays and objects.

    Raises:
        FormatError: not strict JSON, or beyond a cap.
    """
    if len(data) > max_bytes:
        raise FormatError(f"expected at most {max_bytes} bytes, got {len(data)}")
    _require_depth(data, max_depth)
    try:
        text = data.decode("utf-8")
        value: object = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_int=_bounded_integer,
            parse_float=_finite_float,
        )
        _require_no_surrogates(data, value)
        return value
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not strict JSON: {error}") from error


def parse_struct(
    data: bytes, kind: type[StructT], *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH
) -> StructT:
    """Return `data` as a `kind`; unknown fields are allowed, an unknown major `format` is not.

    Raises:
        FormatError: not strict JSON, not of this type, or of a major format newer than ours.
    """
    return convert(parse_json(data, max_bytes=max_bytes, max_depth=max_depth), kind)


def parse_canonical(
    data: bytes, kind: type[StructT], *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH
) -> StructT:
    """Return what `parse_struct` returns, several times sooner where `data` is exactly as we ourselves would write it.

    Bytes that come out the same when what was read is written again hold no duplicate key, no unknown field, no odd escape
    and nothing after the end; msgspec itself refuses numbers out of range and what is not UTF-8. All else goes the long way.

    Args:
        kind: a struct all of whose integers are bounded by their own types (`names.Count`), nested no deeper than `max_depth`,
            with no free-form field.

    Raises:
        FormatError: as `parse_struct`.
    """
    if len(data) <= max_bytes:
        try:
            found = _decoder(kind).decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass  # `parse_struct` says what is wrong
        else:
            if _ENCODER.encode(found) == data and getattr(found, "format", "1.0") == "1.0":
                return found
    return parse_struct(data, kind, max_bytes=max_bytes, max_depth=max_depth)


_ENCODER = msgspec.json.Encoder(order="deterministic")
_DECODERS: dict[type[msgspec.Struct], msgspec.json.Decoder[Any]] = {}


def _decoder(kind: type[StructT]) -> msgspec.json.Decoder[StructT]:
    return _DECODERS.setdefault(kind, _DECODERS.get(kind) or msgspec.json.Decoder(kind))


def convert(value: object, kind: type[StructT], *, majors: tuple[int, ...] = (1,)) -> StructT:
    """Return an already parsed JSON value as a `kind`, its major format checked.

    Raises:
        FormatError: a field is missing or of a wrong type, or the major format is not ours.
    """
    require_format(value, majors=majors)
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        raise FormatError(f"not a {kind.__name__}: {error}") from error


def require_format(value: object, *, majors: tuple[int, ...] = (1,)) -> None:
    """Refuse an object whose `format` field has another major number.

    Raises:
        FormatError: `format` is present and its major is none of `majors`.
    """
    found = value.get("format", f"{majors[0]}.0") if isinstance(value, dict) else f"{majors[0]}.0"  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if not isinstance(found, str) or found.split(".")[0] not in [str(major) for major in majors]:
        expected = " or ".join(f"{major}.x" for major in majors)
        raise FormatError(f"expected format {expected}, got {found!r}: upgrade this program")


# A string without its end runs to the end of the data, so that one pass suffices whatever comes.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # as signed bytes: one deeper, one back
_NO_STEPS = bytes(set(range(256)) - set(b"[{]}"))


def _require_depth(data: bytes, max_depth: int) -> None:
    if data.count(b"[") + data.count(b"{") <= max_depth:  # so few cannot nest deeper, wherever they stand
        return
    steps = _STRING.sub(b"", data).translate(_STEPS, _NO_STEPS)
    if max(accumulate(memoryview(steps).cast("b")), default=0) > max_depth:
        raise FormatError(f"expected nesting of at most {max_depth}, got more")


def _require_no_surrogates(data: bytes, value: object) -> None:
    if b"\\u" in data:  # only an escape can make one: the bytes are valid UTF-8
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # UnicodeEncodeError is a ValueError


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key in an object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _bounded_integer(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > MAX_INTEGER:
        raise ValueError("integer beyond 2**53 - 1")
    return int(text)


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("float out of range")
    return value
