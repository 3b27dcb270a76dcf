"""Where the secret that opens a private key comes from: the environment, a file, or a person at the terminal.

Never the command line: every user of the machine can read that.
"""

import getpass
import os
import sys
from collections.abc import Callable
from pathlib import Path

from modelfleet.signer.errors import KeyUriError

PASSPHRASE_VARIABLE = "MODELFLEET_PASSPHRASE"  # noqa: S105  # a variable's name
PIN_VARIABLE = "MODELFLEET_PIN"

Secrets = Callable[[str], str]
"""Takes a key's URI and returns the passphrase that opens it (KeyUriError: there is none to be had)."""


def ask_passphrase(uri: str) -> str:
    """Return the passphrase of `uri` from `MODELFLEET_PASSPHRASE`, or ask for it.

    Raises:
        KeyUriError: the variable is not set, and there is no terminal to ask at.
    """
    return os.environ.get(PASSPHRASE_VARIABLE) or _ask(f"Passphrase of {uri}: ", f"set {PASSPHRASE_VARIABLE}")


def ask_new_passphrase(uri: str) -> str:
    """Return the passphrase for a new key at `uri`, asked for twice at a terminal (KeyUriError as `ask_passphrase`)."""
    if given := os.environ.get(PASSPHRASE_VARIABLE):
        return given
    hint = f"set {PASSPHRASE_VARIABLE}, or give --passphrase-file"
    first = _ask(f"New passphrase for {uri}: ", hint)
    if first != _ask("Once more: ", hint):
        raise KeyUriError("expected the same passphrase twice, got two: nothing was made")
    return first


def passphrase_file(path: Path) -> Secrets:
    """Return what answers with the first line of the file, whichever key is asked for.

    Raises:
        KeyUriError: the file cannot be read, or its first line is empty.
    """
    secret = first_line(path)
    return lambda _uri: secret


def ask_pin(uri: str) -> str:
    """Return the PIN of a token from `MODELFLEET_PIN`, or ask for it (KeyUriError as `ask_passphrase`)."""
    hint = f"set {PIN_VARIABLE}, or give the URI a pin-source"
    return os.environ.get(PIN_VARIABLE) or _ask(f"PIN for {uri}: ", hint)


def first_line(path: Path) -> str:
    """Return the first line of a file that holds a secret.

    Raises:
        KeyUriError: it cannot be read, or that line is empty.
    """
    try:
        text = path.read_text().partition("\n")[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise KeyUriError(f"expected a secret in the first line of {path}: {error}") from error
    if not text:
        raise KeyUriError(f"expected a secret in the first line of {path}, got an empty line")
    return text


def _ask(question: str, hint: str) -> str:
    if not sys.stdin.isatty():
        raise KeyUriError(f"{question.rstrip(': ')}: there is no terminal to ask at: {hint}")
    answer = getpass.getpass(question)
    if not answer:
        raise KeyUriError(f"{question.rstrip(': ')}: expected one, got nothing")
    return answer
