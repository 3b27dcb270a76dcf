"""Progress of a simulation: a live table on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table

from modelfleet.service.simulate.outcome import shown_seconds
from modelfleet.service.simulate.watching import Watch

if TYPE_CHECKING:
    from modelfleet.service.simulate.simulation import Progress

FRAME_SECONDS = 0.25
LINE_SECONDS = 10.0
BAR = 30


@contextmanager
def shown_progress(console: Console, *, quiet: bool = False) -> Generator["Progress"]:
    """Yield what a simulation calls as time passes."""
    if quiet:
        yield lambda _watch: None
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            yield _rarely(FRAME_SECONDS, lambda watch, rate: live.update(table_of(watch, rate), refresh=True))
    else:
        yield _rarely(LINE_SECONDS, lambda watch, rate: console.print(line_of(watch, rate), highlight=False))


def line_of(watch: Watch, rate: float) -> str:
    """Return where the simulation stands, in one line."""
    counts = {state.value: count for state, count in watch.ledger.states.items() if count > 0}
    states = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda each: -each[1]))
    return f"{shown_seconds(watch.now)}: {watch.state or 'starting'}; {states}; {rate:,.0f} messages/s"


def table_of(watch: Watch, rate: float) -> Table:
    """Return where the simulation stands, as a table with bars."""
    table = Table(title=f"{shown_seconds(watch.now)}  {watch.state or 'starting'}  {rate:,.0f} messages/s", box=None)
    table.add_column("state")
    table.add_column("devices", justify="right")
    table.add_column("")
    total = max(1, len(watch.fleet.devices))
    for state, count in sorted(watch.ledger.states.items(), key=lambda each: -each[1]):
        if count > 0:
            table.add_row(state.value, f"{count:,}", "█" * max(1, round(BAR * count / total)))
    sample = watch.ledger.samples[-1] if watch.ledger.samples else None
    for profile, values in sample.e_values.items() if sample is not None else ():
        assert sample is not None
        worst = max(values, key=lambda name: values[name])
        limit = sample.limits[profile]
        table.add_row(profile, sample.verdicts[profile], f"{worst}: log e {values[worst]:.1f} of {limit:.1f}")
    return table


def _rarely(seconds: float, show: Callable[[Watch, float], None]) -> "Progress":
    """Return what calls `show`, with the messages a second since, at most that often."""
    last = {"due": 0.0, "at": time.monotonic(), "messages": 0.0}

    def progress(watch: Watch) -> None:
        now = time.monotonic()
        if now >= last["due"]:
            rate = (watch.messages - last["messages"]) / max(now - last["at"], 1e-9)
            last.update(due=now + seconds, at=now, messages=watch.messages)
            show(watch, rate)

    return progress
