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
_FUNCTION: Final = re.compile(r"^[0-9a-f]+ <([^>+]+)>:\n((?:[^\n]+\n)*)", re.MULTILINE)
_CALL: Final = re.compile(r"R_ARM_THM_(?:CALL|JUMP24)\s+([A-Za-z_.$][\w.$]*)")
_PUSH: Final = re.compile(r"\s(?:push|stmdb)(?:\.w)?\s+(?:sp!, )?\{([^}]*)\}")
_VECTOR_PUSH: Final = re.compile(r"\s(?:vpush|vstmdb)\s+(?:sp!, )?\{([sd])(\d+)(?:-[sd](\d+))?\}")
_DOWN: Final = re.compile(r"\s(?:subw?(?:\.w)?\s+sp, (?:sp, )?#|[a-z0-9.]*\s[^\n\[]*\[sp, #-)(\d+)")


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


def with_assembly(calls: Calls, listing: str) -> Calls:
    """Return the calls with what assembly in C adds, of which the compiler knows nothing.

    Args:
        calls: by the compiler.
        listing: the same object file by `objdump -dr`, Thumb. A frame is at least the sum of what the function's instructions
            push, and whoever it branches to is called.
    """
    titles = {title.rpartition(":")[2]: title for title in calls.frames}
    frames, called = dict(calls.frames), {name: set(targets) for name, targets in calls.called.items()}
    for found in _FUNCTION.finditer(listing):
        title, body = titles.get(found[1], found[1]), found[2]
        known = frames.get(title, 0)
        frames[title] = None if known is None else max(known, _pushed(body))
        targets = {titles.get(call[1], call[1]) for call in _CALL.finditer(body)}
        called.setdefault(title, set()).update(targets - {title})
    return Calls(frames=frames, called={name: frozenset(targets) for name, targets in called.items()})


def _pushed(body: str) -> int:
    """Return how far a function's instructions move the stack down, all of them added up."""
    core = sum(4 * len(registers.split(",")) for registers in _PUSH.findall(body))
    vectors = sum(
        (int(last or first) - int(first) + 1) * (8 if kind == "d" else 4)
        for kind, first, last in _VECTOR_PUSH.findall(body)
    )
    return core + vectors + sum(map(int, _DOWN.findall(body)))


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
