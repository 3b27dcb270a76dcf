"""Instructions of one call on this machine, by Valgrind's callgrind: the portable C as the host's compiler makes it."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.microcontroller.board import run_tool
from modelfleet.benchmarks.microcontroller.measure import Call, header_of

FLAGS: Final = ("-std=c99", "-O2", "-g0", "-fno-inline-functions-called-once")
SECONDS: Final = 300.0
PACKAGES: Final = "gcc valgrind"
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
    with tempfile.TemporaryDirectory(prefix="modelfleet-callgrind-") as name:
        folder = Path(name)
        (folder / "measured.h").write_text(header_of(call, [sample], empty=False), encoding="utf-8")
        (folder / "main.c").write_text(MAIN, encoding="utf-8")
        include = [f"-I{each}" for each in (folder, *call.include)]
        program = folder / "program"
        sources = [str(folder / "main.c"), *map(str, call.sources)]
        run_tool(["cc", *FLAGS, *include, *sources, "-o", str(program), "-lm"], PACKAGES, SECONDS)
        counted = ["--toggle-collect=measured_call*", f"--callgrind-out-file={folder / 'out'}"]
        said = run_tool(["valgrind", "--tool=callgrind", *counted, str(program)], PACKAGES, SECONDS)
    found = re.search(r"Collected : (\d+)", said)
    if found is None:
        raise MeasureError(f"callgrind: expected a count, got {said[-500:]!r}")
    return int(found[1])
