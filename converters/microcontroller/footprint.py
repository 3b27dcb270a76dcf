"""What code takes of flash and stack, by a compiler: the profile's cross compiler where it is installed, else this machine's.

Flash is all that has to lie in it beside the weights: instructions, read-only data, and what is linked of libm and of the
compiler's runtime. The stack is that of the deepest chain of calls below the run function (`call_graph`).
"""

import platform
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.converters.microcontroller.call_graph import read_calls, stack_bytes, with_assembly
from modelfleet.converters.microcontroller.compiler import run_tool
from modelfleet.converters.microcontroller.emitting.description import SOURCE
from modelfleet.converters.microcontroller.generate import Footprint, Generated
from modelfleet.hardware_profiles.microcontroller import Microcontroller, Toolchain

COMPILE: Final = ("-std=c99", "-O2", "-ffreestanding", "-ffunction-sections", "-fdata-sections")
LINK: Final = ("-nostartfiles", "-Wl,--gc-sections", "-Wl,-e,model_run")
NO_LIBC: Final = ("-nostdlib", "-lgcc")
NEWLIB: Final = ("--specs=nano.specs", "--specs=nosys.specs", "-lm")
_OBJECT, _LINKED, _CALLS = "model.o", "model.elf", "model.ci"


@dataclass(frozen=True, kw_only=True)
class _Tools:
    """prefix: of the programs' names; flags: for the processor; exact: they are the chip's own."""

    prefix: str
    flags: tuple[str, ...]
    exact: bool


def footprint(generated: Generated, chip: Microcontroller) -> Footprint:
    """Return what the code takes.

    Raises:
        MeasureError: the chip's own compiler refuses the code, or finds no bound for its stack.
    """
    cross = _Tools(prefix=str(chip.toolchain), flags=chip.cpu_flags, exact=True)
    if chip.toolchain and shutil.which(f"{cross.prefix}gcc") is not None:
        return _by(cross, generated)
    try:
        return _by(_Tools(prefix="", flags=(), exact=False), generated)
    except MeasureError:  # no GCC on this machine: the lowerings' own figures
        return generated.estimated()


def _by(tools: _Tools, generated: Generated) -> Footprint:
    with tempfile.TemporaryDirectory(prefix="modelfleet-footprint-") as name:
        folder = Path(name)
        for file, data in generated.code(generated.estimated()).items():
            (folder / file).write_bytes(data)
        gcc = f"{tools.prefix}gcc"
        run_tool([gcc, *tools.flags, *COMPILE, "-fcallgraph-info=su", "-c", SOURCE, "-o", _OBJECT], folder)
        calls = read_calls((folder / _CALLS).read_text(encoding="utf-8"))
        sized = _OBJECT
        if tools.prefix == Toolchain.ARM:
            calls = with_assembly(calls, run_tool([f"{tools.prefix}objdump", "-dr", _OBJECT], folder))
            sized = _linked(tools, folder, math=generated.text.needs_math)
        text, data = run_tool([f"{tools.prefix}size", sized], folder).splitlines()[1].split()[:2]
        version = run_tool([gcc, "-dumpfullversion"], folder).strip()
    return Footprint(
        stack_bytes=stack_bytes(calls, "model_run"),
        code_bytes=int(text) + int(data),
        by=" ".join([gcc if tools.exact else f"gcc for {platform.machine()}", version, "-O2", *tools.flags]),
        exact=tools.exact and (sized == _LINKED or not generated.text.needs_math),
    )


def _linked(tools: _Tools, folder: Path, *, math: bool) -> str:
    """Return the linked file, or the object where math.h is used and the cross compiler came without newlib."""
    command = [f"{tools.prefix}gcc", *tools.flags, *LINK, _OBJECT, "-o", _LINKED]
    try:
        run_tool([*command, *(NEWLIB if math else NO_LIBC)], folder)
    except MeasureError:
        if not math:
            raise
        return _OBJECT
    return _LINKED
