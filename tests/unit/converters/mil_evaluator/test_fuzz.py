"""Whatever lies in a package, reading and running it answers or raises MilError."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelfleet.converters.mil_evaluator.errors import MilError
from modelfleet.converters.mil_evaluator.program import MilProgram
from tests.fuzz.hostile import damage
from tests.unit.converters.mil_evaluator.packages import mb, save

X = np.linspace(-2, 2, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6).astype(np.float32)
INDEX = np.array([1, 0], np.int32)
FILES = ("Manifest.json", "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin")
MUTATIONS = 60


def _program(x: Any, index: Any) -> Any:
    rng = np.random.default_rng(0)
    weight, slope = rng.normal(size=(4, 3, 3, 3)).astype(np.float32), rng.normal(size=(16, 16)).astype(np.float32)
    y = mb.max_pool(
        x=mb.conv(x=x, weight=weight, pad_type="same"), kernel_sizes=[3, 3], strides=[2, 2], pad_type="valid"
    )
    flat = mb.linear(x=mb.reshape(x=y, shape=[2, -1]), weight=slope)
    picked = mb.gather(x=mb.pad(x=flat, pad=[0, 0, 1, 2]), indices=index, axis=0)
    part = mb.slice_by_index(x=picked, begin=[0, 1], end=[2, 9])
    chosen = mb.cond(
        pred=mb.greater(x=mb.reduce_max(x=index), y=0),
        _true_fn=lambda: mb.exp(x=part),
        _false_fn=lambda: mb.relu(x=part),
    )
    best, places = mb.topk(x=mb.softmax(x=chosen, axis=1), k=3, axis=1)
    return mb.tile(x=best, reps=[1, 2]), places, mb.fill(shape=mb.shape(x=best), value=2.0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(_program, {"x": X, "index": INDEX}, tmp_path_factory.mktemp("p"))


def _attempts(saved: Path, name: str, folder: Path) -> Iterator[Path]:
    package = folder / "hostile.mlpackage"
    shutil.copytree(saved, package)
    whole = (saved / name).read_bytes()
    for number in range(MUTATIONS):
        yield _write(package, name, damage(whole, number))
    chance = random.Random(7)
    for _ in range(MUTATIONS):  # one byte: mostly still a package, with one size, name or number changed
        changed = bytearray(whole)
        changed[chance.randrange(len(changed))] = chance.choice((0, 1, 2, 127, 128, 255, chance.randrange(256)))
        yield _write(package, name, bytes(changed))


def _write(package: Path, name: str, data: bytes) -> Path:
    (package / name).write_bytes(data)
    return package


@pytest.mark.parametrize("name", FILES)
def test_only_mil_errors_come_of_a_damaged_file(name: str, saved: Path, tmp_path: Path) -> None:
    answered = refused = 0
    for package in _attempts(saved, name, tmp_path):
        try:
            MilProgram(package).run({"x": X, "index": INDEX})
            answered += 1
        except MilError:
            refused += 1
    assert refused > 0
    assert answered + refused == 2 * MUTATIONS
