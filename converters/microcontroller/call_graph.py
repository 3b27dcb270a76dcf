"""The deepest stack of a C function, from what GCC 10 and later writes with `-fcallgraph-info=su`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from modelfleet.benchmarks.errors import MeasureError

LIBRARY_STACK_BYTES: Final = 192
"""Of a function that is not in the file: newlib's expf, tanhf and their like take 16 to 136 bytes with what they call."""
_NODE: Final = re.compile(r'^node: \{ title: "([^"]*)" label: "([^"]*)"', re.MULTILINE)
_FRAME: Final = re.compile(r"\\n(\d+) bytes \(([a-z,]+)\)")
_EDGE: Final = re.compile(r'^edge: \{ sourcename: "([^"]*)" targetname: "([^"]*)"', re.MULTILINE)
_ASSEMBLY: Final = re.compile(r"_stack_(\d+)$")
"""A function of assembly alone says in its name what it takes: the compiler sees none of it."""
_INDIRECT: Final = "__indirect_call"


@dataclass(frozen=True, kw_only=True)
class Calls:
    """frames: function -> bytes of its own frame, None where it has no bound; absent: a library's. called: by each function."""

    frames: Mapping[str, int | None]
    called: Mapping[str, frozenset[str]]


def read_calls(text: str) -> Calls:
    """Return the calls of a `.ci` file."""
    frames: dict[str, int | None] = {}
    for title, label in _NODE.findall(text):
        found = _FRAME.search(label)
        if found is not None:
            told = _ASSEMBLY.search(title)
            frames[title] = int(found[1]) if found[2] in ("static", "dynamic,bounded") else None
            if told is not None:
                frames[title] = int(told[1])
    called: dict[str, set[str]] = {}
    for source, target in _EDGE.findall(text):
        called.setdefault(source, set()).add(target)
    return Calls(frames=frames, called={name: frozenset(targets) for name, targets in called.items()})


def stack_bytes(calls: Calls, function: str) -> int:
    """Return what the deepest chain of calls from `function` takes, its own frame included.

    A call through a pointer may reach every function of the file that makes no such call itself.

    Raises:
        MeasureError: there is no bound: recursion, a frame of a size that only the run knows.
    """
    return _Deepest(calls).below(function, ())


class _Deepest:
    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._known: dict[str, int] = {}

    def below(self, function: str, chain: tuple[str, ...]) -> int:
        if function in chain:
            raise MeasureError(f"{' -> '.join([*chain, function])}: expected calls with a bound of the stack, got none")
        if function == _INDIRECT:
            return self._any(chain)
        if function not in self._known:
            frame = self._calls.frames.get(function, LIBRARY_STACK_BYTES)
            if frame is None:
                raise MeasureError(f"{function}: expected a frame of a size known ahead, got one that varies")
            called = self._calls.called.get(function, frozenset())
            self._known[function] = frame + max((self.below(name, (*chain, function)) for name in called), default=0)
        return self._known[function]

    def _any(self, chain: tuple[str, ...]) -> int:
        """Return the deepest of all functions that a pointer may lead to: those that call through none themselves."""
        calling = {_INDIRECT}
        while more := {name for name, called in self._calls.called.items() if name not in calling and called & calling}:
            calling |= more
        leaves = sorted(set(self._calls.frames) - calling)
        if _INDIRECT in chain or not leaves:
            raise MeasureError(f"{' -> '.join(chain)}: expected a pointer to a function of the file, got none")
        return max(self.below(name, (*chain, _INDIRECT)) for name in leaves)
