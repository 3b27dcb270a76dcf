"""Hostile bytes: noise, and valid inputs that are damaged, cut, spliced, stretched, or altered inside their structure."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

TOKENS = (
    b"\x00", b"\xff", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"null", b"NaN", b"-Infinity", b"1e999", b"-0",
    b"9" * 40, b"1e-999999999", b'"\\ud800"', b"\xed\xa0\x80", b"[" * 2000, b'{"a":' * 2000, b"\n", b"\r\n\r\n", b"../",
    b"%2e%2e", b"A" * 5000, b"\x80\x80\x80\x80\x10", b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"PK\x05\x06", b"\'\'\'",
    b"=" * 65, b"\xe2\x80\xae",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**30, 0.5, 1e308, -0.0, "", "a", "é", "\x00", "../..",
    "a" * 3000, "9999-12-31T23:59:59.999999Z", "0001-01-01T00:00:00Z", "2026-01-01T00:00:00+23:59", "2026-02-30T00:00:00Z",
    "1.0", "2.0", "999.0", [], {}, [[]], {"": None}, {"a": {}}, [None] * 50,
)  # fmt: skip


def hostile(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Return a strategy of inputs that are like one of `seeds`, but not it."""
    noise = st.binary(max_size=200)
    if not seeds:
        return noise
    damaged = st.builds(damage, st.sampled_from(seeds), st.integers(0, 2**32))
    return st.one_of(damaged, damaged, damaged, noise)


def damage(seed: bytes, number: int) -> bytes:
    """Return the seed, damaged in the way of that number."""
    chance = random.Random(number)
    value = _json(seed)
    if value is not None and chance.random() < 0.5:
        for _ in range(chance.randint(1, 3)):
            value = _altered(value, chance)
        return json.dumps(value).encode()
    data = bytearray(seed)
    for _ in range(chance.randint(1, 4)):
        chance.choice(WAYS)(data, chance)
    return bytes(data)


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _altered(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.85:
        found: dict[str, Any] = dict(value)  # pyright: ignore[reportUnknownArgumentType]
        name = chance.choice(list(found))
        way = chance.random()
        if way < 0.15:
            del found[name]
        elif way < 0.25:
            found[name + chance.choice("xX_ \x00")] = found.pop(name)
        else:
            found[name] = _altered(found[name], chance)
        return found
    if isinstance(value, list) and value and chance.random() < 0.85:
        items: list[Any] = list(value)  # pyright: ignore[reportUnknownArgumentType]
        place = chance.randrange(len(items))
        way = chance.random()
        if way < 0.2:
            del items[place]
        elif way < 0.4:
            items += [items[place]] * chance.choice((1, 100))
        else:
            items[place] = _altered(items[place], chance)
        return items
    return chance.choice(VALUES)


def _flip(data: bytearray, chance: random.Random) -> None:
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randint(0, len(data)) :]


def _remove(data: bytearray, chance: random.Random) -> None:
    start = chance.randint(0, len(data))
    del data[start : start + chance.choice((1, 2, 8, 64))]


def _insert(data: bytearray, chance: random.Random) -> None:
    start = chance.randint(0, len(data))
    data[start:start] = chance.choice(TOKENS)


def _repeat(data: bytearray, chance: random.Random) -> None:
    start = chance.randint(0, len(data))
    piece = data[start : start + chance.choice((1, 4, 32, 200))]
    data[start:start] = piece * chance.choice((1, 2, 50))


def _overwrite(data: bytearray, chance: random.Random) -> None:
    start = chance.randint(0, len(data))
    token = chance.choice(TOKENS)[:16]
    data[start : start + len(token)] = token


WAYS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip,
    _flip,
    _cut,
    _remove,
    _insert,
    _repeat,
    _overwrite,
)
