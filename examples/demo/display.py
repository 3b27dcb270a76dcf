"""What a person sees: one line per step, a live table while a rollout runs, and the final tables."""

import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

VERDICT_STYLES = {"COMPLETED": "green", "ROLLED_BACK": "yellow", "REFUSED": "green"}


class Display:
    """Prints the demo's steps and tables; `quiet` keeps only failures (for tests)."""

    def __init__(self, *, quiet: bool = False) -> None:
        width = None if sys.stdout.isatty() else 150  # a log file takes wide tables, a terminal says its own width
        self.console = Console(quiet=quiet, highlight=False, width=width)
        self._started = time.monotonic()

    def act(self, title: str) -> None:
        """Announce a part of the story."""
        self.console.print(f"\n[bold]{title}[/bold]")

    def note(self, text: str) -> None:
        """Say what was done, with the seconds since the start."""
        self.console.print(f"[dim]{time.monotonic() - self._started:6.1f} s[/dim]  {text}")

    @contextmanager
    def working(self, text: str) -> Generator[None]:
        """Show that something is going on."""
        with self.console.status(text):
            yield

    @contextmanager
    def rollout(self, title: str) -> Generator["RolloutView"]:
        """Show a rollout live: a bar per profile."""
        view = RolloutView(title)
        with Live(view.render(), console=self.console, refresh_per_second=8, transient=True) as live:
            view.attach(live)
            yield view

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table; known verdicts are coloured."""
        table = Table(title=title, title_justify="left", title_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text(str(cell), style=VERDICT_STYLES.get(str(cell), "")) for cell in row))
        self.console.print(table)


class RolloutView:
    """One bar per hardware profile of a running rollout."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._live: Live | None = None
        self._bars: dict[str, Any] = {}
        self._progress = Progress(
            TextColumn("  {task.fields[profile]:<18}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:>3.0f}/{task.total:.0f} devices  {task.fields[state]:<14} {task.fields[why]}"),
            TimeElapsedColumn(),
        )

    def attach(self, live: Live) -> None:
        """Draw into `live` from now on."""
        self._live = live

    def render(self) -> Group:
        """Return what is drawn."""
        return Group(Text(f"  {self._title}"), self._progress)

    def update(self, profiles: Sequence[Mapping[str, Any]]) -> None:
        """Show the newest state of every profile, as the API gives it."""
        for row in profiles:
            name = row["profile"]
            if name not in self._bars:
                self._bars[name] = self._progress.add_task("", total=1, profile=name, state="", why="")
            self._progress.update(
                self._bars[name],
                completed=row["devices"]["committed"],
                total=max(1, row["devices"]["total"]),
                state=row["verdict"],
                why=(row["waiting_for"] or row["reason"] or "")[:60],
            )
        if self._live is not None:
            self._live.update(self.render())
