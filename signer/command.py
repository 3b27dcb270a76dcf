"""What the commands about keys share: their options, their exit statuses, and where passphrases come from."""

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

import click

from modelfleet.signer.errors import KeyUriError, PlanError, SignerError, UntrustedError
from modelfleet.signer.key_book import CeremonyResult, locate
from modelfleet.signer.passphrase import PASSPHRASE_VARIABLE, Secrets, ask_passphrase, passphrase_file

REFUSED, USAGE, UNTRUSTED = 1, 2, 3

P = ParamSpec("P")
R = TypeVar("R")


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """End the program with one clear message and its exit status where the signer package refuses."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (SignerError, OSError) as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(exit_status(error))

    return run


def exit_status(error: Exception) -> int:
    """Return the exit status that stands for the error."""
    if isinstance(error, UntrustedError):
        return UNTRUSTED
    return USAGE if isinstance(error, KeyUriError | PlanError) else REFUSED


def data_options(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command `--data` and `--tenant`."""
    command = click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="MODELFLEET_DATA",
        default=Path("var/modelfleet"),
        show_default=True,
        help="Data folder (MODELFLEET_DATA).",
    )(command)
    return click.option(
        "--tenant", envvar="MODELFLEET_TENANT", default="default", show_default=True, help="Tenant (MODELFLEET_TENANT)."
    )(command)


passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Opens encrypted key files; else {PASSPHRASE_VARIABLE}, else you are asked.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
socket_option = click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path),
    help="Socket of a signer process started again with the new releases key; without it the bins are signed here.",
)


def absolute(uris: Sequence[str]) -> tuple[str, ...]:
    """Return URIs whose `file:` paths are absolute: what is given is relative to where the command runs."""
    return tuple(
        f"file:{Path(uri.removeprefix('file:')).absolute()}" if uri.startswith("file:") else uri for uri in uris
    )


def no_passphrase(_uri: str) -> None:
    """Leave a new key file in the clear."""


def known(secret: str) -> Secrets:
    """Return what answers with a passphrase that is known already."""
    return lambda _uri: secret


def secrets_of(file: Path | None, otherwise: Secrets = ask_passphrase) -> Secrets:
    """Return where passphrases come from: the file where there is one."""
    return passphrase_file(file) if file is not None else otherwise


def opened(data: Path, tenant: str) -> CeremonyResult:
    """Return the tenant's folders (PlanError: there is no such fleet)."""
    paths = locate(data, tenant)
    if not paths.metadata_dir.is_dir():
        raise PlanError(f"expected the fleet of tenant {tenant!r} in {data}, found none: check --data and --tenant")
    return paths
