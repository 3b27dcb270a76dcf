"""What keeps a process from starting, told in one line that says what to do, with the exit status of every command.

Exit status: 1 refused or failed, 2 wrong usage or setting, 3 not trusted. With `MODELFLEET_DEBUG=1` the traceback comes first.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager

import click
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError

from modelfleet.registry.errors import RegistryError
from modelfleet.rollout.errors import RolloutError
from modelfleet.service.database import first_line
from modelfleet.service.errors import ServiceError, SettingsError
from modelfleet.signer import command
from modelfleet.signer.command import REFUSED, USAGE
from modelfleet.signer.errors import SignerError

DEBUG_VARIABLE = "MODELFLEET_DEBUG"


@contextmanager
def one_line(*, as_json: bool) -> Generator[None]:
    """End the program with one line on standard error, and its exit status, where what is within raises."""
    try:
        yield
    except click.ClickException:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, a person reads it
        if os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
            traceback.print_exception(error)
        said = explain(error)
        shown = json.dumps({"title": type(error).__name__, "detail": said}) if as_json else f"Error: {said}"
        click.echo(shown, err=True)
        sys.exit(exit_status(error))


def explain(error: Exception) -> str:
    """Return one line: what is wrong, and what to do about it."""
    for kind, explanation in _EXPLANATIONS:
        if isinstance(error, kind):
            return " ".join(explanation(error).split())
    said = " ".join(str(error).split())
    return f"unexpected {type(error).__name__}: {said} (set {DEBUG_VARIABLE}=1 to see where it comes from)"


def exit_status(error: Exception) -> int:
    """Return the exit status that stands for the error."""
    if isinstance(error, SettingsError | ValidationError):
        return USAGE
    return command.exit_status(error) if isinstance(error, SignerError) else REFUSED


def _of_settings(error: Exception) -> str:
    assert isinstance(error, ValidationError)
    faults = [
        f"MODELFLEET_{'_'.join(map(str, fault['loc'])).upper()}: {_lower(fault['msg'])}, got {str(fault['input'])[:80]!r}"
        for fault in error.errors()
    ]
    return "; ".join(faults)


def _of_file(error: Exception) -> str:
    assert isinstance(error, OSError)
    if error.filename is None:
        return f"{error} (set {DEBUG_VARIABLE}=1 to see where it comes from)"
    return f"{error.filename}: {error.strerror}: check that it is there, and that this user may use it"


def _of_database(error: Exception) -> str:
    assert isinstance(error, DBAPIError)
    return f"the database refused: {first_line(error)}; check MODELFLEET_DATABASE_URL, and what its user may do"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


_EXPLANATIONS: tuple[tuple[type[Exception], Callable[[Exception], str]], ...] = (
    (ValidationError, _of_settings),
    (ServiceError, str),
    (SignerError, str),
    (RolloutError, str),
    (RegistryError, str),
    (DBAPIError, _of_database),
    (OSError, _of_file),
)
