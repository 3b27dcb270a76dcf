"""Firmware on an emulated Cortex-M4 takes data images: the code of model A answers as model B, and refuses what is not for it."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from modelfleet.benchmarks.microcontroller.board import BOARDS, COMPILER, EMULATOR, build, run
from modelfleet.converters.graphs import read_model
from modelfleet.converters.microcontroller.emitting.release import ImageKey, Release, release_files
from modelfleet.converters.microcontroller.generate import Generated, generate
from modelfleet.converters.microcontroller.image.files import FOLDER
from modelfleet.converters.microcontroller.ir import Array, Program
from modelfleet.converters.microcontroller.lowering import Backend, Target
from modelfleet.signer.keys import Signer
from tests.unit.converters.microcontroller.image_library import STATUSES, c_key, image, sources
from tests.unit.converters.microcontroller.programs import answer_of, generated, open_files, two_layers
from tests.unit.signer.samples import new_key

BOARD = BOARDS["cortex-m4"]
INPUT = np.arange(-6, 6, dtype=np.int8)
KWS = Path("examples/mlperf_tiny/kws_int8.onnx")
KEY = new_key()
MOST_STACK_BYTES = 3072
MOST_CODE_BYTES = 16 * 1024
BUILTIN = "2"

ALL_OF_IT = """
#include "modelfleet_banks.h"
static struct modelfleet_banks banks;
int main(void);
int main(void) {
    const uint8_t *bytes = (const uint8_t *)8;
    modelfleet_banks_open(&banks, (const void *)8, (const void *)8, 1);
    int status = modelfleet_banks_begin(&banks, bytes, 768);
    return status + modelfleet_banks_write(&banks, bytes, 1) + modelfleet_banks_finish(&banks);
}
"""

needs_board = pytest.mark.skipif(
    shutil.which(COMPILER) is None or shutil.which(EMULATOR) is None, reason=f"needs {COMPILER} and {EMULATOR}"
)


@dataclass(frozen=True)
class Line:
    """What the firmware says after an image or a start."""

    what: str
    status: str
    stack: int
    answer: bytes


def offered(
    key: Signer, model: Generated, weights: Generated, *, serial: int, counter: int, **changes: object
) -> bytes:
    """Return an image of other weights for the code of `model`."""
    shapes = {"shapes_sha256": model.shapes_digest, **changes}
    return image(key, weights.text.blob.data, serial=serial, counter=counter, **shapes)


def firmware(model: Generated, images: dict[str, bytes], folder: Path, given: Array = INPUT) -> str:
    """Build the firmware of a model, run it on the board with these images at hand, and return what it prints."""
    key = c_key(KEY.public_key)
    release = Release(
        tenant="acme",
        group="shops",
        model="ui/digits",
        version="1.0.0",
        profile="cortex-m4",
        counter=1,
        manifest_sha256="6" * 64,
        shapes_sha256=model.shapes_digest,
        weights_bytes=len(model.text.blob.data),
        keys=[ImageKey(keyid=bytes(key.id), point=bytes(key.point))],
    )
    for name, data in {**model.files(), **release_files(release, images=True)}.items():
        (folder / name).write_bytes(data)
    arrays = [f"static const uint8_t image_{i}[] = {{{_numbers(data)}}};" for i, data in enumerate(images.values())]
    rows = [f'    {{"{name}", image_{i}, sizeof image_{i}}},' for i, name in enumerate(images)]
    table = "static const struct { const char *name; const uint8_t *bytes; uint32_t length; } IMAGES[] = {"
    outputs = model.program.tensors[model.program.outputs[0]].size_bytes
    text = ["#include <stdint.h>", *arrays, table, *rows, "};", f"#define OUTPUT_BYTES {outputs}u"]
    numbers = _numbers(given.tobytes())
    text.append(f"static const uint8_t input_bytes[] __attribute__((aligned(16))) = {{{numbers}}};")
    text.append("#define INPUT ((const int8_t *)(const void *)input_bytes)")
    (folder / "images.h").write_text("\n".join(text))
    own = [folder / name for name in ("model.c", "weights.c", "model_release.c")]
    program = build(
        BOARD,
        [Path(__file__).parent / "image_firmware.c", *own, *map(Path, sources())],
        folder / "firmware.elf",
        [folder, FOLDER, FOLDER / "bearssl"],
    )
    return run(BOARD, program)


def _numbers(data: bytes) -> str:
    return ",".join(map(str, data))


def lines(said: str) -> list[Line]:
    """Return the lines after the first, which is about the start without an image."""
    pattern = re.compile(r"(\w+) (?:status )?(\d+) ticks \d+ stack (\d+) run 0 answer ([0-9a-f]+)")
    found = [pattern.fullmatch(line) for line in said.splitlines()[1:]]
    assert all(found), said
    return [Line(one[1], one[2], int(one[3]), bytes.fromhex(one[4])) for one in found if one]


@needs_board
def test_the_firmware_of_a_model_takes_the_weights_of_another_and_refuses_what_is_not_for_it(tmp_path: Path) -> None:
    programs: dict[str, Program] = {name: two_layers(seed=seed) for seed, name in enumerate("ABC")}
    a, b, c = (generated(program) for program in programs.values())
    other = generated(two_layers(seed=4, names=("other", "names", "of", "tensors")))
    newer = offered(KEY, a, b, serial=2, counter=2)
    images = {
        "forged": newer[:200] + b"x" + newer[201:],
        "stranger": offered(new_key(), a, b, serial=2, counter=2),
        "shapes": offered(KEY, other, b, serial=2, counter=2, shapes_sha256="1" * 64),
        "older": offered(KEY, a, b, serial=2, counter=0),
        "newer": newer,
        "again": newer,
        "payload": offered(KEY, a, c, serial=3, counter=3)[:768] + b.text.blob.data,
        "back": offered(KEY, a, c, serial=4, counter=1, replaces=2),
    }
    said = firmware(a, images, tmp_path)
    answers = {name: answer_of(program, INPUT).tobytes() for name, program in programs.items()}
    assert len(set(answers.values())) == 3
    assert said.startswith(f"builtin {BUILTIN} run 0 answer {answers['A'].hex()}\n")
    expected = {
        "forged": ("MODEL", "A"),
        "stranger": ("KEY", "A"),
        "shapes": ("SHAPES", "A"),
        "older": ("COUNTER", "A"),
        "newer": ("OK", "B"),
        "again": ("REPLAY", "B"),
        "payload": ("PAYLOAD", "B"),
        "back": ("OK", "C"),
    }
    found = lines(said)
    told = {line.what: (STATUSES[int(line.status)], line.answer) for line in found[::2]}
    assert told == {name: (status, answers[model]) for name, (status, model) in expected.items()}
    starts = [line.answer for line in found[1::2]]
    assert starts == [answers[model] for _, model in expected.values()]
    assert max(line.stack for line in found) <= MOST_STACK_BYTES


def tuned(model: ModelProto) -> ModelProto:
    """Return the network after a little more training, as it were: one weight in five differs."""
    random = np.random.default_rng(1)
    found = ModelProto()
    found.CopyFrom(model)
    for tensor in found.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.int8 and value.ndim > 1:
            moved = value + (random.random(value.shape) < 0.2) * random.integers(-9, 10, value.shape)
            tensor.CopyFrom(numpy_helper.from_array(np.clip(moved, -127, 127).astype(np.int8), tensor.name))
    return found


@needs_board
def test_keyword_spotting_is_updated_in_the_field_with_its_dsp_kernels(tmp_path: Path) -> None:
    model = read_model(KWS)
    target = Target(backend=Backend.DSP, fixed_shapes=True)
    old, new = (generate(each, "kws", target) for each in (model, tuned(model)))
    assert old.shapes_digest == new.shapes_digest
    given = np.random.default_rng(2).integers(-128, 128, 490).astype(np.int8)  # no word: the answer is not saturated
    answers = list[bytes]()
    for number, each in enumerate((old, new)):
        (tmp_path / str(number)).mkdir()
        session = open_files(each.files(), tmp_path / str(number))
        made = session.run({session.inputs[0].name: given.reshape(session.inputs[0].shape)})
        answers.append(made[session.outputs[0].name].tobytes())
    assert answers[0] != answers[1]
    said = firmware(old, {"newer": offered(KEY, old, new, serial=2, counter=2)}, tmp_path, given)
    assert said.startswith(f"builtin {BUILTIN} run 0 answer {answers[0].hex()}\n")
    assert [(line.status, line.answer) for line in lines(said)] == [("0", answers[1])] * 2


@needs_board
def test_the_verifier_takes_no_more_flash_than_stated(tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text(ALL_OF_IT)
    flags = ["-mcpu=cortex-m4", "-mthumb", "-Os", "-w", "-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections"]
    link = ["-nostartfiles", "-Wl,-emain", "--specs=nano.specs", "--specs=nosys.specs"]
    command = [
        COMPILER,
        *flags,
        *link,
        "-I",
        str(FOLDER),
        "-isystem",
        str(FOLDER / "bearssl"),
        str(tmp_path / "main.c"),
    ]
    program = tmp_path / "verifier.elf"
    subprocess.run([*command, *sources(), "-o", str(program)], check=True)
    size = subprocess.run(["arm-none-eabi-size", str(program)], capture_output=True, text=True, check=True)
    code, data, bss = (int(number) for number in size.stdout.splitlines()[1].split()[:3])
    assert 0 < code <= MOST_CODE_BYTES
    assert (data, bss <= 512) == (0, True)
