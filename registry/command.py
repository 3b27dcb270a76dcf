"""What every command that speaks to a server shares: its options, its exit statuses, and how it shows rows.

Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 not trusted, 4 the server cannot be reached.
"""

import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, ParamSpec, TypeVar, cast

import click

from modelfleet.registry.client import ApiClient
from modelfleet.registry.errors import ApiError, ClientError, RegistryError, ServerUnreachableError
from modelfleet.signer import command as signer_command
from modelfleet.signer.command import REFUSED, UNTRUSTED, USAGE, json_option
from modelfleet.signer.errors import SignerError

__all__ = ["REFUSED", "UNREACHABLE", "UNTRUSTED", "USAGE", "ListByDefault", "api_options", "end_with", "show"]

UNREACHABLE = 4
DEFAULT_URL = "http://127.0.0.1:8080"

P = ParamSpec("P")
R = TypeVar("R")


class ListByDefault(click.Group):
    """A group of commands that runs `list` where none of them is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `list` before arguments that name no command."""
        named = bool(args) and (args[0] in self.commands or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if named else ["list", *args])


def api_options(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command `--url`, `--token` and `--json`; it is called with `client: ApiClient` and `as_json: bool`.

    Errors of the client, the registry, the signer and of files end the program with their exit status and one clear
    message.
    """

    @click.option("--url", envvar="MODELFLEET_URL", default=DEFAULT_URL, show_default=True, help="The server.")
    @click.option("--token", envvar="MODELFLEET_TOKEN", help="API token; better in MODELFLEET_TOKEN than here.")
    @json_option
    @functools.wraps(command)
    def with_client(*args: Any, url: str, token: str | None, as_json: bool, **kwargs: Any) -> R:
        try:
            return command(*args, client=ApiClient(url, token), as_json=as_json, **kwargs)
        except (ClientError, RegistryError, SignerError) as error:
            end_with(error, as_json)
        except OSError as error:
            if error.filename is None:  # not about a file that was named, such as a pipe that closed
                raise
            end_with(ClientError(f"{error.filename}: {error.strerror}"), as_json)

    return with_client


def end_with(error: Exception, as_json: bool) -> NoReturn:
    """Print the error on standard error and end with its exit status."""
    if as_json:
        problem = (
            error.problem if isinstance(error, ApiError) else {"title": type(error).__name__, "detail": str(error)}
        )
        click.echo(json.dumps(problem), err=True)
    else:
        click.echo(f"Error: {error}", err=True)
    sys.exit(exit_status(error))


def exit_status(error: Exception) -> int:
    """Return the exit status that stands for the error."""
    if isinstance(error, ApiError):
        return UNTRUSTED if error.untrusted else REFUSED
    return UNREACHABLE if isinstance(error, ServerUnreachableError) else signer_command.exit_status(error)


def show(value: object, as_json: bool, columns: Sequence[str]) -> None:
    """Print one row or a list of rows: as JSON whole, or as a table of `columns`.

    Args:
        value: a JSON object, or a list of them.
        as_json: print all of it as JSON.
        columns: keys to show; `a.b` reaches into an object and is headed `b`, a key that is not there is an empty cell.
    """
    if as_json:
        click.echo(json.dumps(value, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*(column.rpartition(".")[2] for column in columns))
    rows = cast("list[Mapping[str, Any]]", value if isinstance(value, list) else [value])
    for row in rows:
        table.add_row(*(_cell(row, column) for column in columns))
    # A pipe gets full lines: nothing is cut where nobody looks at a screen.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _cell(row: Mapping[str, Any], column: str) -> str:
    value: Any = row
    for key in column.split("."):
        value = cast("Mapping[str, Any]", value).get(key) if isinstance(value, Mapping) else None
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        each = cast("dict[str, Any]", value)
        if not any(isinstance(found, dict | list) for found in each.values()):
            return ", ".join(f"{name} {found}" for name, found in each.items())
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
