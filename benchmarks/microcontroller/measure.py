"""What C code costs on a board: flash, RAM, stack and instructions of one call, and what it answers."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.microcontroller.board import FOLDER, Board, build, run, sizes

ALIGNMENT: Final = 16
STACK_BYTES: Final = 64 << 10
"""Painted before the calls: what is deeper is not seen."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """How C code is called once.

    sources: C files; header: included before the call; statement: C that reads `input_0`, `input_1`, ... (`const void *`),
    writes `output_0`, ... (`void *`), may use `workspace` (`void *`, 16-aligned, workspace_bytes long) and sets `answer`
    (uint32_t, 0: fine). workspace_bytes: a C expression. output_bytes: of each output. include: folders of further headers.
    """

    sources: Sequence[Path]
    header: str
    statement: str
    output_bytes: Sequence[int]
    workspace_bytes: str = "0"
    include: Sequence[Path] = ()


def model_call(folder: Path, *, inputs: int, output_bytes: Sequence[int]) -> Call:
    """Return the call of a converted model: model.h, model.c and weights.c in `folder`, and how many inputs it has."""
    given = [f"input_{number}" for number in range(inputs)]
    made = [f"output_{number}" for number in range(len(output_bytes))]
    return Call(
        sources=[folder / "model.c", folder / "weights.c"],
        header="model.h",
        statement=f"answer = (uint32_t)model_run({', '.join(['model_weights', 'workspace', *given, *made])});",
        output_bytes=output_bytes,
        workspace_bytes="MODEL_WORKSPACE_BYTES",
        include=[folder],
    )


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Figures of code on a board, over those of the same program without it.

    flash_bytes: code and constants; static_bytes: data and bss, without workspace, inputs and outputs; stack_bytes: the deepest;
    instructions: of each sample; outputs: of each sample, a bytes object per output; io_bytes: of all inputs and outputs;
    workspace_bytes: what the caller lends.
    """

    flash_bytes: int
    static_bytes: int
    workspace_bytes: int
    stack_bytes: int
    io_bytes: int
    instructions: tuple[int, ...]
    outputs: tuple[tuple[bytes, ...], ...]

    @property
    def ram_bytes(self) -> int:
        """All RAM: static, workspace, stack, inputs and outputs."""
        return self.static_bytes + self.workspace_bytes + self.stack_bytes + self.io_bytes


def measure(
    call: Call, board: Board, samples: Sequence[Sequence[bytes]], *, timeout_seconds: float = 120.0
) -> Measurement:
    """Build the code for the board, call it once for every sample, and return what that cost.

    Args:
        call: the code.
        board: where it runs.
        samples: each the bytes of all inputs in order; at least one sample.
        timeout_seconds: of the emulator.

    Raises:
        RuntimeMissingError: compiler or emulator is not installed.
        MeasureError: it does not build, does not end, or answers other than 0.
    """
    with tempfile.TemporaryDirectory(prefix="modelfleet-board-") as name:
        folder = Path(name)
        full = _program(call, board, samples, folder / "full", empty=False)
        empty = _program(call, board, samples, folder / "empty", empty=True)
        flash_bytes, static_bytes = (a - b for a, b in zip(sizes(full), sizes(empty), strict=True))
        said = run(board, full, timeout_seconds=timeout_seconds).splitlines()
        without = run(board, empty, timeout_seconds=timeout_seconds).splitlines()
    instructions, outputs = list[int](), list[tuple[bytes, ...]]()
    for line, idle in zip(said[2:], without[2:], strict=True):
        ticks, answer, data = line.split(" ")
        if int(answer, 16) != 0:
            raise MeasureError(f"expected the call to answer 0, got {int(answer, 16)}")
        instructions.append(int((int(ticks, 16) - int(idle.split(" ")[0], 16)) * board.instructions_per_tick))
        outputs.append(_parts(bytes.fromhex(data), call.output_bytes))
    return Measurement(
        flash_bytes=flash_bytes,
        static_bytes=static_bytes,
        workspace_bytes=_number(said[1]),
        stack_bytes=_number(said[0]),
        io_bytes=sum(len(data) for data in samples[0]) + sum(call.output_bytes),
        instructions=tuple(instructions),
        outputs=tuple(outputs),
    )


def _number(line: str) -> int:
    return int(line.split(" ")[1], 16)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _parts(data: bytes, lengths: Sequence[int]) -> tuple[bytes, ...]:
    parts, offset = list[bytes](), 0
    for length in lengths:
        parts.append(data[offset : offset + length])
        offset += _padded(length)
    return tuple(parts)


def _program(call: Call, board: Board, samples: Sequence[Sequence[bytes]], folder: Path, *, empty: bool) -> Path:
    """Build the measuring program, or the one to compare with: the same without the call, its samples and its workspace."""
    folder.mkdir()
    (folder / "measured.h").write_text(header_of(call, samples, empty=empty), encoding="utf-8")
    sources = [FOLDER / "measured.c"] if empty else [FOLDER / "measured.c", *call.sources]
    return build(board, sources, folder / "program.elf", [folder, *call.include])


def header_of(call: Call, samples: Sequence[Sequence[bytes]], *, empty: bool) -> str:
    """Return `measured.h`: samples, outputs, workspace, and `measured_call` (empty: without the call itself)."""
    aligned = f"__attribute__((aligned({ALIGNMENT})))"
    output_bytes = sum(map(_padded, call.output_bytes))
    lines = [f"#define SAMPLES {len(samples)}u", f"#define STACK_BYTES {STACK_BYTES}u", f'#include "{call.header}"']
    lines += [f"#define OUTPUT_BYTES {output_bytes}u", f"#define WORKSPACE_BYTES ({call.workspace_bytes})"]
    lines += [f"static uint8_t measured_outputs[SAMPLES][OUTPUT_BYTES] {aligned};"]
    lines += [f"static uint8_t measured_workspace[WORKSPACE_BYTES + {ALIGNMENT}] {aligned};"]
    for number in range(len(samples[0])):
        rows = ",\n".join("{" + ",".join(map(str, sample[number])) + "}" for sample in samples)
        length = _padded(len(samples[0][number]))
        lines.append(f"static const uint8_t samples_{number}[SAMPLES][{length}] {aligned} = {{{rows}}};")
    lines += ["__attribute__((noinline)) static uint32_t measured_call(uint32_t sample) {", "    uint32_t answer = 0;"]
    given = {"workspace": "measured_workspace"}
    given |= {f"input_{number}": f"samples_{number}[sample]" for number in range(len(samples[0]))}
    offset = 0
    for number, size in enumerate(call.output_bytes):
        given[f"output_{number}"] = f"measured_outputs[sample] + {offset}"
        offset += _padded(size)
    # The assembly keeps them where nothing else would, so that both programs have them.
    for name, expression in given.items():
        lines.append(f"    {'const ' if name.startswith('input') else ''}void *{name} = {expression};")
        lines.append(f'    __asm__ volatile("" : "+r"({name}) : : "memory");')
    lines += ["" if empty else f"    {call.statement}", "    return answer;", "}"]
    return "\n".join(lines) + "\n"
