"""Small programs whose answers are known, and C built from them."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from modelfleet.converters.microcontroller.emitting.description import ENTRY
from modelfleet.converters.microcontroller.generate import Generated, generate_program
from modelfleet.converters.microcontroller.host import FLAGS, HostSession
from modelfleet.converters.microcontroller.ir import Array, Dense, Program, Requantization, Tensor, View, requantize
from modelfleet.converters.microcontroller.lowering import Target

STRICT = ("-Wall", "-Wextra", "-Wconversion", "-Wpedantic", "-Werror", "-std=c99")


def dense(random: np.random.Generator, name: str, source: str, target: str, depth: int, channels: int) -> Dense:
    return Dense(
        name=name,
        inputs=(source,),
        outputs=(target,),
        weights=random.integers(-127, 128, (channels, depth)).astype(np.int8),
        bias=random.integers(-500, 500, channels).astype(np.int32),
        requantization=Requantization(
            multiplier=random.integers(1 << 20, 1 << 22, channels).astype(np.int32), shift=2, zero_point=3
        ),
    )


def two_layers(*, seed: int = 0, names: Sequence[str] = ("x", "h", "v", "y"), title: str = "toy") -> Program:
    """Dense(12 -> 20), View, Dense(20 -> 5), on one row of int8."""
    random = np.random.default_rng(seed)
    x, h, v, y = names
    tensors = {x: (1, 12), h: (1, 20), v: (20,), y: (5,)}
    return Program(
        name=title,
        inputs=(x,),
        outputs=(y,),
        tensors={name: Tensor(name=name, dtype="int8", shape=shape) for name, shape in tensors.items()},
        operators=(
            dense(random, f"first {x}", x, h, 12, 20),
            View(name="view", inputs=(h,), outputs=(v,)),
            dense(random, f"second {y}", v, y, 20, 5),
        ),
    )


def answer_of(program: Program, x: Array) -> Array:
    """Return what `two_layers` answers, computed by numpy."""
    value = x.reshape(-1)
    for operator in program.operators:
        if isinstance(operator, Dense):
            sums = operator.weights.astype(np.int32) @ value.astype(np.int32) + operator.bias
            value = requantize(sums, operator.requantization)
    return value


def generated(program: Program | None = None, target: Target | None = None) -> Generated:
    return generate_program(program or two_layers(), target or Target())


def write(made: Generated, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in made.files().items():
        (folder / name).write_bytes(data)
    return folder


def compiled(command: Sequence[str | Path], folder: Path) -> str:
    """Run a compiler or a program, and return what it said; it must succeed."""
    done = subprocess.run([str(word) for word in command], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def open_files(files: Mapping[str, bytes], folder: Path, *, flags: Sequence[str] = FLAGS) -> HostSession:
    """Write a variant's files into a folder and open them (errors as `HostSession`)."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return HostSession(folder / ENTRY, flags=flags)
