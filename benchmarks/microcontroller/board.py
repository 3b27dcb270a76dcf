"""Boards that QEMU emulates, and a program built for one and run on it."""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

from modelfleet.benchmarks.errors import MeasureError, RuntimeMissingError

FOLDER: Final = Path(__file__).parent
COMPILER: Final = "arm-none-eabi-gcc"
EMULATOR: Final = "qemu-system-arm"
FLAGS: Final = ("-std=c99", "-O2", "-ffreestanding", "-ffunction-sections", "-fdata-sections", "-mthumb")
LINK: Final = ("-nostartfiles", "-Wl,--gc-sections", "--specs=nano.specs", "--specs=nosys.specs", "-lm")
COMPILE_SECONDS: Final = 120.0


@dataclass(frozen=True, kw_only=True)
class Board:
    """machine: QEMU's name; cpu: flags of the compiler; flash_bytes, ram_bytes: what it has; instructions_per_tick: of SysTick,
    where QEMU lets one instruction take 1 ns of emulated time (`-icount shift=0`).
    """  # noqa: D205

    name: str
    machine: str
    cpu: tuple[str, ...]
    flash_bytes: int
    ram_bytes: int
    instructions_per_tick: Fraction


BOARDS: Final[Mapping[str, Board]] = {
    board.name: board
    for board in (
        Board(
            name="cortex-m4",
            machine="mps2-an386",
            cpu=("-mcpu=cortex-m4", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard"),
            flash_bytes=4 << 20,
            ram_bytes=4 << 20,
            instructions_per_tick=Fraction(40),  # SysTick at 25 MHz
        ),
        Board(
            name="cortex-m7",
            machine="mps2-an500",
            cpu=("-mcpu=cortex-m7", "-mfpu=fpv5-sp-d16", "-mfloat-abi=hard"),
            flash_bytes=4 << 20,
            ram_bytes=4 << 20,
            instructions_per_tick=Fraction(40),  # SysTick at 25 MHz
        ),
        Board(
            name="cortex-m55",
            machine="mps3-an547",
            cpu=("-mcpu=cortex-m55", "-mfloat-abi=hard"),
            flash_bytes=512 << 10,
            ram_bytes=512 << 10,
            instructions_per_tick=Fraction(125, 4),  # SysTick at 32 MHz
        ),
    )
}
"""Name -> board."""


def build(board: Board, sources: Sequence[Path], program: Path, include: Sequence[Path] = ()) -> Path:
    """Compile and link C sources, which have `board_main`, with the board's start; returns `program`, an ELF file.

    Raises:
        RuntimeMissingError: there is no cross compiler.
        MeasureError: it does not compile, or does not fit the board; the message is the compiler's.
    """
    command = [COMPILER, *board.cpu, *FLAGS, f"-I{FOLDER}", *(f"-I{folder}" for folder in include)]
    command += [str(FOLDER / "start.c"), *map(str, sources), "-o", str(program), f"-T{FOLDER / 'board.ld'}", *LINK]
    command += [f"-Wl,--defsym=flash_bytes={board.flash_bytes}", f"-Wl,--defsym=ram_bytes={board.ram_bytes}"]
    run_tool(command, "gcc-arm-none-eabi libnewlib-arm-none-eabi", COMPILE_SECONDS)
    return program


def run(board: Board, program: Path, *, timeout_seconds: float = 120.0) -> str:
    """Run an ELF file on the board and return what it printed.

    Raises:
        RuntimeMissingError: there is no emulator.
        MeasureError: it did not end by itself in time, or not with status 0.
    """
    command = [EMULATOR, "-M", board.machine, "-icount", "shift=0", "-nographic", "-monitor", "none", "-serial", "none"]
    command += ["-semihosting-config", "enable=on,target=native", "-kernel", str(program)]
    return run_tool(command, "qemu-system-arm", timeout_seconds)


def sizes(program: Path) -> tuple[int, int]:
    """Return (flash, static RAM) of an ELF file in bytes: text and data, data and bss."""
    text = run_tool(["arm-none-eabi-size", str(program)], "gcc-arm-none-eabi", COMPILE_SECONDS)
    code, data, bss = (int(number) for number in text.splitlines()[1].split()[:3])
    return code + data, data + bss


def run_tool(command: Sequence[str], packages: str, timeout_seconds: float) -> str:
    """Run a program of Debian's `packages` and return what it said, on standard error where it said nothing else.

    Raises:
        RuntimeMissingError: it is not installed.
        MeasureError: it did not end in time, or not with status 0.
    """
    tool = command[0]
    if shutil.which(tool) is None:
        raise RuntimeMissingError(f"{tool} is not installed (Debian: apt-get install {packages})")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise MeasureError(f"{tool}: expected an end within {timeout_seconds:g} s, got none") from error
    if done.returncode != 0:
        raise MeasureError(f"{tool} ended with {done.returncode}: {(done.stderr or done.stdout)[-2000:]}")
    return done.stdout or done.stderr
