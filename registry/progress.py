"""How a build looks while it runs, on a terminal's standard error."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

_STYLE = {"READY": "green", "FAILED": "red"}


@contextmanager
def build_progress() -> Generator[Callable[[Mapping[str, Any]], None]]:
    """Yield a function that takes a version with its variants and shows a line for each."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        waiting = progress.add_task("waiting for a worker", total=1)
        tasks: dict[str, TaskID] = {}

        def tell(found: Mapping[str, Any]) -> None:
            for each in found.get("waiting", ()):
                if each["profile"] not in tasks:
                    progress.update(waiting, visible=False)
                    tasks[each["profile"]] = progress.add_task(each["profile"], total=1)
                progress.update(tasks[each["profile"]], description=f"{each['profile']}: {each['reason']}")
            for variant in found["variants"]:
                name, state = variant["profile"], variant["state"]
                if state == "BUILDING":
                    state = variant.get("stage") or state
                if name not in tasks:
                    progress.update(waiting, visible=False)
                    tasks[name] = progress.add_task(name, total=1)
                style = _STYLE.get(state, "default")
                done = variant["state"] != "BUILDING"
                progress.update(tasks[name], description=f"{name}: [{style}]{state}[/]", completed=int(done))

        yield tell
