"""C compilers: which one is here, and running it with its words as the error."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from modelfleet.benchmarks.errors import MeasureError, RuntimeMissingError

HOST_COMPILERS: Final = ("cc", "gcc", "clang")
TIMEOUT_SECONDS: Final = 300.0
MAX_WORDS: Final = 1500


def host_compiler() -> str:
    """Return the path of this machine's C compiler (RuntimeMissingError: none; says what to install)."""
    found = next(filter(None, map(shutil.which, HOST_COMPILERS)), None)
    if found is None:
        raise RuntimeMissingError(
            "expected a C compiler (cc, gcc or clang) to prove the code with, got none: install gcc (Debian, Ubuntu: "
            "apt-get install gcc libc6-dev; macOS: xcode-select --install)"
        )
    return found


def run_tool(command: Sequence[str], folder: Path) -> str:
    """Run a compiler or one of its tools in a folder and return what it said.

    Raises:
        MeasureError: it is not there, refused the code, or did not end in time.
    """
    environment = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    environment["TMPDIR"] = os.environ.get("TMPDIR", tempfile.gettempdir())
    try:
        ended = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MeasureError(f"{Path(command[0]).name}: expected it to compile the code, got {error}") from error
    said = ended.stdout.decode("utf-8", "replace")
    if ended.returncode != 0:
        raise MeasureError(f"{Path(command[0]).name} refuses the code (status {ended.returncode}): {said[:MAX_WORDS]}")
    return said
