"""The C verifier of data images: it takes what the signer signs, and nothing else. Compiled for the host with sanitizers."""

import ctypes
import hashlib
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleet.converters.microcontroller.image.files import FOLDER, verifier_files
from modelfleet.signer.keys import public_key_of_pem
from tests.unit.converters.microcontroller.image_library import (
    SANITIZED,
    CHeader,
    Expected,
    c_key,
    check_whole,
    compiled,
    image,
    sources,
)
from tests.unit.signer.samples import new_key

KEY, OTHER_KEY = new_key(), new_key()
PAYLOAD = bytes(range(64))
EXPECTED = Expected(keys=(OTHER_KEY.public_key, KEY.public_key), weights_bytes=len(PAYLOAD))
IMAGE = image(KEY, PAYLOAD, serial=3, counter=2)
HARNESS = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "modelfleet_image.h"
int main(void) { /* each case: its length, and as many bytes at the end of a block of just that size */
    unsigned char length[4];
    static const struct modelfleet_image_key key = {{KEY_ID}, {KEY_POINT}};
    uint8_t shapes[32];
    struct modelfleet_image_expected expected = {"acme", "ui/digits", "cortex-m4", "shops", shapes, 64, &key, 1};
    memset(shapes, 0x55, sizeof shapes);
    while (fread(length, 1, 4, stdin) == 4) {
        size_t size = (size_t)(length[0] | length[1] << 8);
        struct modelfleet_image_header header;
        uint8_t *bytes = malloc(size > 0 ? size : 1);
        if (fread(bytes, 1, size, stdin) != size) return 1;
        printf("%d %d\\n", (int)modelfleet_image_parse(bytes, size, &header),
               (int)modelfleet_image_check_whole(bytes, size, &expected, &header));
        free(bytes);
    }
    return 0;
}
"""


@pytest.fixture(scope="session")
def library() -> ctypes.CDLL:
    return compiled()


def test_takes_what_the_signer_signed(library: ctypes.CDLL) -> None:
    status, header = check_whole(library, IMAGE, EXPECTED)
    assert status == "OK"
    assert (header.serial, header.counter, header.replaces, header.flags) == (3, 2, 0, 0)
    assert (header.payload_bytes, header.version) == (64, b"1.2.0")
    assert bytes(header.payload_sha256) == hashlib.sha256(PAYLOAD).digest()
    assert bytes(header.manifest_sha256) == b"\x66" * 32


def test_takes_the_golden_image(library: ctypes.CDLL) -> None:
    folder = Path("tests/contracts/image")
    key = public_key_of_pem((folder / "releases.pub.pem").read_text())
    expected = Expected(keys=(key,), weights_bytes=768)
    assert check_whole(library, (folder / "image.bin").read_bytes(), expected)[0] == "OK"


def test_takes_the_longest_names_the_format_allows(library: ctypes.CDLL) -> None:
    names = {"tenant": "t" * 64, "group": "g" * 64, "profile": "p" * 64, "model": "/".join(["m" * 64] * 3 + ["m" * 61])}
    long = image(KEY, PAYLOAD, serial=2**53 - 1, counter=2**53 - 1, version="1.0.0-" + "a" * 58, **names)
    status, header = check_whole(library, long, replace(EXPECTED, **names))
    assert (status, header.version) == ("OK", b"1.0.0-" + b"a" * 58)
    for name, text in names.items():
        assert check_whole(library, long, replace(EXPECTED, **{**names, name: text + "x"}))[0] != "OK"
        assert check_whole(library, long, replace(EXPECTED, **{**names, name: text[:-1]}))[0] != "OK"


def test_refuses_every_byte_that_is_not_the_signed_one(library: ctypes.CDLL) -> None:
    statuses = set[str]()
    for place in range(len(IMAGE)):
        changed = bytearray(IMAGE)
        changed[place] ^= 1 << place % 8
        status = check_whole(library, bytes(changed), EXPECTED)[0]
        assert status != "OK", place
        statuses.add(status)
    assert statuses >= {
        "NOT_ONE",
        "FORMAT",
        "MODEL",
        "PROFILE",
        "GROUP",
        "SHAPES",
        "LENGTH",
        "KEY",
        "SIGNATURE",
        "PAYLOAD",
    }


@pytest.mark.parametrize("length", [0, 1, 16, 767, 768, len(IMAGE) - 1])
def test_refuses_what_is_cut_off_or_goes_on(length: int, library: ctypes.CDLL) -> None:
    assert check_whole(library, IMAGE[:length], EXPECTED)[0] == "TRUNCATED"
    assert check_whole(library, IMAGE + b"\0", EXPECTED)[0] == "TRUNCATED"


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"tenant": "umbrella"}, "MODEL"),
        ({"model": "ui/faces"}, "MODEL"),
        ({"model": "ui"}, "MODEL"),
        ({"profile": "cortex-m55"}, "PROFILE"),
        ({"group": "labs"}, "GROUP"),
        ({"shapes": b"\x55" * 31 + b"\x54"}, "SHAPES"),
        ({"weights_bytes": 63}, "LENGTH"),
        ({"keys": ()}, "KEY"),
        ({"keys": (OTHER_KEY.public_key,)}, "KEY"),
    ],
)
def test_refuses_what_is_for_another_firmware(changes: dict[str, object], status: str, library: ctypes.CDLL) -> None:
    assert check_whole(library, IMAGE, replace(EXPECTED, **changes))[0] == status  # type: ignore[arg-type]


def test_refuses_a_signature_by_another_key_under_a_trusted_id(library: ctypes.CDLL) -> None:
    forged = bytearray(image(OTHER_KEY, PAYLOAD, serial=3, counter=2))
    forged[672:704] = bytes.fromhex(KEY.public_key.keyid)
    assert check_whole(library, bytes(forged), EXPECTED)[0] == "SIGNATURE"
    for numbers in (bytes(64), b"\xff" * 64, IMAGE[736:768] + IMAGE[704:736]):
        assert check_whole(library, IMAGE[:704] + numbers + IMAGE[768:], EXPECTED)[0] == "SIGNATURE"


def test_refuses_a_key_that_is_no_point_of_the_curve(library: ctypes.CDLL) -> None:
    good = EXPECTED.in_c()
    header = CHeader()
    check = library.modelfleet_image_check
    assert check(IMAGE, ctypes.c_size_t(768), ctypes.byref(good), ctypes.byref(header)) == 0
    good.keys[1].point[64] ^= 1
    assert check(IMAGE, ctypes.c_size_t(768), ctypes.byref(good), ctypes.byref(header)) == 10


@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, len(IMAGE) - 1), st.integers(0, 255)), min_size=1, max_size=8),
    length=st.integers(0, len(IMAGE)),
)
def test_whatever_is_altered_is_refused(changes: list[tuple[int, int]], length: int, library: ctypes.CDLL) -> None:
    altered = bytearray(IMAGE)
    for place, value in changes:
        altered[place] = value
    altered = altered[:length]
    if altered != IMAGE:
        assert check_whole(library, bytes(altered), EXPECTED)[0] != "OK"


def test_reads_nothing_beyond_the_bytes_that_it_was_given(tmp_path: Path) -> None:
    key = c_key(KEY.public_key)
    harness = HARNESS.replace("KEY_ID", ", ".join(map(str, key.id))).replace(
        "KEY_POINT", ", ".join(map(str, key.point))
    )
    (tmp_path / "harness.c").write_text(harness)
    program = tmp_path / "harness"
    flags = [*SANITIZED, "-fsanitize=address,undefined", "-I", str(FOLDER)]
    subprocess.run(["gcc", *flags, str(tmp_path / "harness.c"), *sources(), "-o", str(program)], check=True)
    cases = [IMAGE[:length] for length in range(len(IMAGE) + 1)]
    cases += [IMAGE[:48] + struct.pack("<I", size) + IMAGE[52:] for size in (0, 63, 65, 2**31, 2**32 - 1)]
    given_bytes = b"".join(struct.pack("<I", len(case)) + case for case in cases)
    ran = subprocess.run([str(program)], input=given_bytes, capture_output=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, b"")
    lines = [tuple(map(int, line.split())) for line in ran.stdout.splitlines()]
    assert len(lines) == len(cases)
    assert {parsed for parsed, _ in lines[:768]} == {1}
    assert lines[768][0] == 0
    assert [cases[number] for number, (_, checked) in enumerate(lines) if checked == 0] == [IMAGE]


def test_our_own_c_compiles_without_a_warning(tmp_path: Path) -> None:
    flags = (
        "-std=c99",
        "-Wall",
        "-Wextra",
        "-Wconversion",
        "-Wpedantic",
        "-Wshadow",
        "-Werror",
        "-O1",
        "-fsyntax-only",
    )
    for compiler in ("gcc", "clang"):
        for path in sorted(FOLDER.glob("modelfleet_*.c")):
            subprocess.run([compiler, *flags, "-isystem", str(FOLDER / "bearssl"), str(path)], check=True)


def test_bearssl_is_what_its_author_released() -> None:
    listed = dict(
        reversed(line.split("  ")) for line in (FOLDER / "bearssl/SHA256SUMS").read_text().splitlines() if line
    )
    found = {
        name.removeprefix("bearssl/"): hashlib.sha256(data).hexdigest()
        for name, data in verifier_files().items()
        if name.startswith("bearssl/")
    }
    assert found.keys() - listed.keys() == {"README.md", "SHA256SUMS"}
    assert {name: found[name] for name in listed} == listed
