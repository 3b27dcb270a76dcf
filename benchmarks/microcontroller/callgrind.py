"""Instructions of one call on this machine, by Valgrind's callgrind: the portable C as the host's compiler makes it."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from modelfleet.benchmarks.errors import MeasureError, RuntimeMissingError
from modelfleet.benchmarks.microcontroller.measure import Call, header_of

FLAGS: Final = ("-std=c99", "-O2", "-g0", "-fno-inline-functions-called-once")
SECONDS: Final = 300.0
MAIN: Final = """#include <stdint.h>
#include "measured.h"
int main(void) {
    return (int)measured_call(0);
}
"""


def host_instructions(call: Call, sample: Sequence[bytes]) -> int:
    """Return how many instructions the call takes here for a sample.

    Raises:
        RuntimeMissingError: there is no compiler, or no Valgrind.
        MeasureError: it does not build, fails, or callgrind says no figure.
    """
    for tool in ("cc", "valgrind"):
        if shutil.which(tool) is None:
            raise RuntimeMissingError(f"{tool} is not installed (Debian: apt-get install gcc valgrind)")
    with tempfile.TemporaryDirectory(prefix="modelfleet-callgrind-") as name:
        folder = Path(name)
        (folder / "measured.h").write_text(header_of(call, [sample], empty=False), encoding="utf-8")
        (folder / "main.c").write_text(MAIN, encoding="utf-8")
        include = [f"-I{each}" for each in (folder, *call.include)]
        program = folder / "program"
        _run(["cc", *FLAGS, *include, str(folder / "main.c"), *map(str, call.sources), "-o", str(program), "-lm"])
        counted = ["--toggle-collect=measured_call*", f"--callgrind-out-file={folder / 'out'}"]
        said = _run(["valgrind", "--tool=callgrind", *counted, str(program)])
    found = re.search(r"Collected : (\d+)", said)
    if found is None:
        raise MeasureError(f"callgrind: expected a count, got {said[-500:]!r}")
    return int(found[1])


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise MeasureError(f"{command[0]}: expected an end within {SECONDS:g} s, got none") from error
    if done.returncode != 0:
        raise MeasureError(f"{command[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stderr
