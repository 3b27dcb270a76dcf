"""`modelfleet convert`: try a model out on a profile, on this machine, without a registry."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import click

from modelfleet.hardware_profiles.errors import ProfileError
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision, Prefer, load_profile, load_profiles

if TYPE_CHECKING:
    from modelfleet.converters.candidate import Candidate
    from modelfleet.converters.local import LocalRequest, LocalResult

REFUSED, USAGE, CANCELLED = 1, 2, 130
STEPS = {
    "convert": "converting",
    "prove": "proving its answers",
    "benchmark": "measuring it",
    "rank": "finding the layers that suffer most",
}
"""Step of a choice -> what is happening."""
_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


@click.command()
@click.argument("model", type=_FILE)
@click.option("--profile", "profile_name", required=True, help="A hardware profile by name, or its .toml file.")
@click.option("--golden", type=_FILE, help="Golden set (.npz); without it only float precisions can be proved.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="A folder for the variant, empty or absent."
)
@click.option(
    "--prefer", type=click.Choice([each.value for each in Prefer]), help="Instead of the profile's own preference."
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice([each.value for each in Precision]),
    metavar="PRECISION",
    help="Try only this one of the profile's; repeat for more.",
)
@click.option(
    "--report", "report_file", type=click.Path(dir_okay=False, path_type=Path), help="Write an HTML report here."
)
@click.option("--seconds", type=click.FloatRange(1), default=1800, show_default=True, help="For all of it.")
@click.option("--json", "as_json", is_flag=True, help="Print the proof as JSON.")
def convert(
    model: Path,
    profile_name: str,
    golden: Path | None,
    out: Path | None,
    prefer: str | None,
    precisions: tuple[str, ...],
    report_file: Path | None,
    seconds: float,
    as_json: bool,
) -> None:
    """Convert MODEL (ONNX) for a hardware profile, and prove that it gives the original's answers.

    Tries the precisions that the profile allows, shows how each did, and picks the one that the profile prefers of those that
    hold tolerance, limits and accuracy. Its files and proof.json go to --out. Needs no server and signs nothing. Without
    --golden, random inputs stand in: they prove a float variant's answers, and nothing about accuracy.

    Exit status: 0 a variant holds, 1 none does, 2 wrong usage, 130 cancelled; then nothing is left behind.

    Example: modelfleet convert digits.onnx --profile raspberry-pi-5 --golden golden.npz --prefer smallest --out ./variant
    """
    from modelfleet.converters.local import LocalRequest

    try:
        profile = load_profile(Path(profile_name)) if profile_name.endswith(".toml") else _named(profile_name)
    except ProfileError as error:
        raise click.BadParameter(str(error), param_hint="--profile") from error
    if report_file is not None and not os.access(report_file.absolute().parent, os.W_OK):
        raise click.BadParameter(
            f"expected a folder that can be written, got {report_file.parent}", param_hint="--report"
        )
    request = LocalRequest(
        model=model,
        profile=profile,
        golden=golden,
        out=out,
        prefer=None if prefer is None else Prefer(prefer),
        precisions=tuple(Precision(each) for each in precisions),
        seconds=seconds,
    )
    result = _converted(request, as_json)
    if report_file is not None:
        _write_report(result, report_file)
    _show(result, request, as_json)
    if result.choice.chosen is None:
        sys.exit(REFUSED)


def _named(name: str) -> HardwareProfile:
    profiles = load_profiles()
    if name not in profiles:
        raise ProfileError(f"expected one of {', '.join(sorted(profiles))}, or a .toml file, got {name!r}")
    return profiles[name]


def _converted(request: "LocalRequest", as_json: bool) -> "LocalResult":
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from modelfleet.benchmarks.errors import GoldenSetError
    from modelfleet.converters.errors import ConvertersError
    from modelfleet.converters.local import convert_here
    from modelfleet.converters.request import Progress as Step

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("starting")

            def show(step: Step) -> None:
                progress.update(task, description=f"{request.profile.name}, {step.precision}: {STEPS[step.step]}")

            with _cancelled_by_sigterm():
                return convert_here(request, show)
    except (ConvertersError, GoldenSetError, OSError) as error:  # such as a full disk
        _end(error, as_json)
    except KeyboardInterrupt:
        click.echo("Cancelled: nothing is left behind.", err=True)
        sys.exit(CANCELLED)


@contextlib.contextmanager
def _cancelled_by_sigterm() -> Generator[None]:
    """End the work in order on SIGTERM as on Ctrl-C."""
    before = signal.signal(signal.SIGTERM, _cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _cancel(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _end(error: Exception, as_json: bool) -> NoReturn:
    if as_json:
        told = {"title": type(error).__name__, "detail": str(error), "node": getattr(error, "node", "")}
        click.echo(json.dumps(told), err=True)
    else:
        click.echo(f"Error: {_printable(str(error))}", err=True)
    sys.exit(REFUSED)


def _write_report(result: "LocalResult", path: Path) -> None:
    from modelfleet.converters.local import page_of
    from modelfleet.converters.report import render

    try:
        path.write_text(render(page_of(result)), encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from error


def _show(result: "LocalResult", request: "LocalRequest", as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(result.proof, indent=2))
        return
    _show_table(result.candidates)
    chosen = result.choice.chosen
    if request.golden is None:
        click.echo("Proved on random inputs, since no golden set was given: nothing is known of accuracy.")
    if chosen is None:
        click.echo(f"No precision holds for {result.profile.name}.", err=True)
    else:
        where = f": {request.out}" if request.out is not None else "; it is not kept without --out"
        click.echo(f"{chosen.precision} for {result.profile.name}{where}")


def _printable(text: str) -> str:
    """Return the text without control characters: names in a model come from whoever made it, and steer no terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _show_table(candidates: "Sequence[Candidate]") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from modelfleet.converters.report import COLUMNS

    shown = {name: column for name, column in COLUMNS.items() if any(column(row) for row in candidates)}
    table = Table(box=box.SIMPLE_HEAD)
    for name in shown:
        right = name not in ("precision", "verdict", "reason")
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "reason")
    for row in candidates:
        style = "bold" if row.verdict == "chosen" else "dim" if row.verdict != "held" else ""
        table.add_row(*(Text(_printable(column(row))) for column in shown.values()), style=style)
    # A pipe gets full lines: nothing is cut where nobody looks at a screen.
    Console(width=None if sys.stdout.isatty() else 240).print(table)


COMMANDS: Sequence[click.Command] = (convert,)
