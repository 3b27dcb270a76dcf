"""What every suite does alike: time two things in turn, show the figures, and judge them against their targets.

Both sides run in the same rounds, each first in every other round, and medians are compared: what else the machine does then
hits both. A verdict is never bent: a suite ends with status 1 where one target does not hold.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

BAR_CELLS = 24

console = Console(highlight=False)
if not console.is_terminal:
    console = Console(highlight=False, width=120)  # a log has room for a table


@dataclass(frozen=True, kw_only=True)
class Target:
    """One figure and its limit: `got` may not exceed it where `at_most`, and may not fall below it otherwise."""

    what: str
    got: float
    limit: float
    unit: str = ""
    at_most: bool = True

    @property
    def held(self) -> bool:
        """Whether the figure keeps its limit."""
        return self.got <= self.limit if self.at_most else self.got >= self.limit


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Durations of the same work done by both sides in the same rounds, in seconds."""

    ours: Sequence[float]
    peer: Sequence[float]

    @property
    def ratio(self) -> float:
        """Our median over the peer's."""
        return statistics.median(self.ours) / statistics.median(self.peer)


def alternate(ours: Callable[[], float], peer: Callable[[], float], *, rounds: int) -> Pair:
    """Let both sides work in turn, after one round that is not counted.

    Args:
        ours: does the work once and returns its duration in seconds (see `seconds_of`).
        peer: the same.
        rounds: how often each does it.
    """
    mine: list[float] = []
    theirs: list[float] = []
    for number in range(-1, rounds):
        sides = ((ours, mine), (peer, theirs))
        for work, kept in sides if number % 2 else reversed(sides):
            seconds = work()
            if number >= 0:
                kept.append(seconds)
    return Pair(ours=mine, peer=theirs)


def seconds_of(work: Callable[[], object]) -> float:
    """Return how long `work` takes, in seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def percentile(values: Sequence[float], share: float) -> float:
    """Return the least value that `share` (0..1) of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]


def bar(value: float, longest: float) -> str:
    """Return a bar of text, `BAR_CELLS` long where `value` is `longest`."""
    return "█" * max(1, round(BAR_CELLS * value / longest)) if value > 0 else ""


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; columns after the first are aligned right, but for bars."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 or not column else "right", no_wrap=not column)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console.print(table)


def verdict(suite: str, targets: Sequence[Target]) -> int:
    """Print every target and, as the last line, the verdict; return the exit status, 0 only if all targets held."""
    rows = [
        (t.what, f"{t.got:.3g} {t.unit}".strip(), f"{'≤' if t.at_most else '≥'} {t.limit:g} {t.unit}".strip(), _word(t))
        for t in targets
    ]
    show("targets", ("what", "measured", "target", "verdict"), rows)
    missed = [target.what for target in targets if not target.held]
    print(f"{suite}: {'MISSED: ' + ', '.join(missed) if missed else f'all {len(targets)} targets held'}")
    return 1 if missed else 0


def _word(target: Target) -> str:
    return "[green]held[/green]" if target.held else "[red]MISSED[/red]"
