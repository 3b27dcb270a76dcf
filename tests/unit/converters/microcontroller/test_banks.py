"""Two banks of flash: which image is taken, and that every cut of the power leaves a whole model."""

import ctypes
from dataclasses import replace

import pytest

from modelfleet.signer.image import parse_header
from tests.unit.converters.microcontroller.image_library import (
    BANK_BYTES,
    BUILTIN,
    BUILTIN_WEIGHTS,
    Expected,
    Firmware,
    Flash,
    compiled,
    image,
)
from tests.unit.signer.samples import new_key

KEY = new_key()
LENGTH = 333
A, B, C = (bytes([byte]) * LENGTH for byte in (0xAA, 0xBB, 0xCC))
EXPECTED = Expected(keys=(KEY.public_key,), weights_bytes=LENGTH)
IMAGE_A = image(KEY, A, serial=1, counter=1)
IMAGE_B = image(KEY, B, serial=2, counter=2)
IMAGE_C = image(KEY, C, serial=3, counter=3)
BACK_TO_A = image(KEY, A, serial=4, counter=1, replaces=3)


@pytest.fixture(scope="session")
def library() -> ctypes.CDLL:
    return compiled()


@pytest.fixture
def flash() -> Flash:
    return Flash()


def start(library: ctypes.CDLL, flash: Flash, *, counter: int = 0, **changes: object) -> Firmware:
    flash.left = None
    return Firmware(library, flash, replace(EXPECTED, **changes), counter)  # type: ignore[arg-type]


def test_flash_that_was_never_used_runs_the_weights_of_the_firmware(library: ctypes.CDLL, flash: Flash) -> None:
    for data in (b"\xff", b"\0", b"\x5a"):
        flash.data[:] = data * 2 * BANK_BYTES
        firmware = start(library, flash)
        assert (firmware.active, firmware.weights) == (BUILTIN, BUILTIN_WEIGHTS)


def test_an_image_runs_at_once_and_after_every_start(library: ctypes.CDLL, flash: Flash) -> None:
    firmware = start(library, flash)
    for data, weights in ((IMAGE_A, A), (IMAGE_B, B), (IMAGE_C, C)):
        assert firmware.install(data) == "OK"
        assert firmware.weights == weights
        firmware = start(library, flash)
        assert (firmware.weights, firmware.banks.serial) == (weights, parse_header(data).serial)


@pytest.mark.parametrize("piece", [1, 7, 32, 64, 1000])
def test_pieces_may_have_any_length(piece: int, library: ctypes.CDLL, flash: Flash) -> None:
    assert start(library, flash).install(IMAGE_A, piece=piece) == "OK"
    assert start(library, flash).weights == A


def test_the_same_or_an_older_image_is_refused(library: ctypes.CDLL, flash: Flash) -> None:
    assert start(library, flash).install(IMAGE_B) == "OK"
    for counter in (0, 2):
        before = bytes(flash.data)
        firmware = start(library, flash, counter=counter)
        assert firmware.install(IMAGE_B) == "REPLAY"
        assert firmware.install(IMAGE_A) == "REPLAY"
        assert flash.data == before  # refused before anything is erased


def test_a_lower_counter_is_refused_without_a_signed_downgrade(library: ctypes.CDLL, flash: Flash) -> None:
    assert start(library, flash).install(IMAGE_C) == "OK"
    before = bytes(flash.data)
    assert start(library, flash).install(image(KEY, A, serial=4, counter=2)) == "COUNTER"
    assert flash.data == before
    assert start(library, flash).install(BACK_TO_A) == "OK"
    assert start(library, flash).weights == A


def test_a_downgrade_lowers_nothing_and_cannot_be_replayed(library: ctypes.CDLL, flash: Flash) -> None:
    for data in (IMAGE_C, BACK_TO_A):
        assert start(library, flash).install(data) == "OK"
    firmware = start(library, flash)
    assert (firmware.banks.serial, firmware.banks.counter) == (4, 3)
    assert firmware.install(IMAGE_C) == "REPLAY"
    assert firmware.install(image(KEY, B, serial=5, counter=2)) == "COUNTER"
    assert firmware.install(image(KEY, C, serial=6, counter=4)) == "OK"
    assert start(library, flash).install(BACK_TO_A) == "REPLAY"
    assert start(library, flash).weights == C


def test_a_downgrade_reaches_no_further_up_than_it_says(library: ctypes.CDLL, flash: Flash) -> None:
    assert start(library, flash, counter=4).install(BACK_TO_A) == "COUNTER"
    assert start(library, flash, counter=3).install(BACK_TO_A) == "OK"


def test_newer_firmware_runs_its_own_weights(library: ctypes.CDLL, flash: Flash) -> None:
    for data in (IMAGE_B, IMAGE_C):
        assert start(library, flash).install(data) == "OK"
    assert start(library, flash, counter=3).weights == C
    newer = start(library, flash, counter=4)
    assert newer.active == BUILTIN
    assert newer.install(image(KEY, A, serial=5, counter=3)) == "COUNTER"
    assert newer.install(image(KEY, A, serial=6, counter=4)) == "OK"


@pytest.mark.parametrize(
    "changes",
    [{"shapes": b"\x11" * 32}, {"model": "ui/faces"}, {"profile": "cortex-m7"}, {"keys": ()}, {"weights_bytes": 9}],
)
def test_other_firmware_leaves_the_banks_alone_and_runs_its_own(
    changes: dict[str, object], library: ctypes.CDLL, flash: Flash
) -> None:
    assert start(library, flash).install(IMAGE_A) == "OK"
    assert start(library, flash, **changes).active == BUILTIN
    assert start(library, flash).weights == A


def test_another_model_s_serials_do_not_stand_in_the_way(library: ctypes.CDLL, flash: Flash) -> None:
    assert start(library, flash).install(image(KEY, A, serial=900, counter=900)) == "OK"
    other = start(library, flash, model="ui/faces")
    assert (other.banks.serial, other.banks.counter) == (0, 0)
    assert other.install(image(KEY, B, serial=1, counter=1, model="ui/faces")) == "OK"


def test_a_forged_image_changes_nothing(library: ctypes.CDLL, flash: Flash) -> None:
    assert start(library, flash).install(IMAGE_A) == "OK"
    before = bytes(flash.data)
    for forged, status in (
        (image(new_key(), B, serial=2, counter=2), "KEY"),
        (IMAGE_B[:24] + b"\x09" + IMAGE_B[25:], "SIGNATURE"),
        (image(KEY, B, serial=2, counter=2, group="labs"), "GROUP"),
        (image(KEY, B, serial=2, counter=2, shapes_sha256="1" * 64), "SHAPES"),
        (IMAGE_B[:700], "TRUNCATED"),
    ):
        assert start(library, flash).install(forged) == status
    assert flash.data == before


def test_other_weights_than_were_signed_are_never_committed(library: ctypes.CDLL, flash: Flash) -> None:
    assert start(library, flash).install(IMAGE_A) == "OK"
    firmware = start(library, flash)
    assert firmware.install(IMAGE_B[:768] + C) == "PAYLOAD"
    assert (firmware.weights, start(library, flash).weights) == (A, A)
    assert start(library, flash).banks.serial == 1  # no record of it
    assert start(library, flash).install(IMAGE_B) == "OK"  # and the right ones are still taken


def test_flash_that_does_not_hold_what_was_written_is_never_committed(library: ctypes.CDLL, flash: Flash) -> None:
    firmware = start(library, flash)
    assert firmware.begin(IMAGE_A[:768]) == "OK"
    assert firmware.write(A) == "OK"
    flash.data[1024 + 5] ^= 1
    assert firmware.finish() == "PAYLOAD"
    assert start(library, flash).active == BUILTIN


def test_calls_out_of_order_and_wrong_lengths_are_refused(library: ctypes.CDLL, flash: Flash) -> None:
    firmware = start(library, flash)
    assert (firmware.write(A), firmware.finish()) == ("ORDER", "ORDER")
    assert firmware.begin(IMAGE_A) == "TRUNCATED"  # the header alone
    assert firmware.install(IMAGE_A[:-1]) == "TRUNCATED"
    assert firmware.install(IMAGE_A + b"x") == "TRUNCATED"
    assert (firmware.write(b""), firmware.active) == ("ORDER", BUILTIN)
    assert firmware.install(IMAGE_A) == "OK"


def test_an_image_longer_than_a_bank_is_refused(library: ctypes.CDLL, flash: Flash) -> None:
    room = BANK_BYTES - 1024
    for length, status in ((room, "OK"), (room + 1, "LENGTH")):
        payload = b"p" * length
        data = image(KEY, payload, serial=1, counter=1)
        assert start(library, Flash(), weights_bytes=length).install(data) == status


def test_rotten_flash_falls_back_to_the_other_bank_and_then_to_the_firmware(library: ctypes.CDLL, flash: Flash) -> None:
    for data in (IMAGE_A, IMAGE_B):
        assert start(library, flash).install(data) == "OK"
    newest = start(library, flash).active
    whole = bytes(flash.data)
    for place in (*range(0, 128, 5), *range(256, 1024, 37), *range(1024, 1024 + LENGTH, 29), 1024 + LENGTH - 1):
        flash.data[:] = whole
        flash.data[newest * BANK_BYTES + place] ^= 0x10
        assert start(library, flash).weights == A, place
        flash.data[(1 - newest) * BANK_BYTES + place] ^= 0x10
        assert start(library, flash).weights == BUILTIN_WEIGHTS, place


def test_an_image_that_got_lost_may_be_taken_again(library: ctypes.CDLL, flash: Flash) -> None:
    for data in (IMAGE_A, IMAGE_B):
        assert start(library, flash).install(data) == "OK"
    flash.data[start(library, flash).active * BANK_BYTES + 1024] ^= 1
    firmware = start(library, flash)
    assert (firmware.weights, firmware.install(IMAGE_A)) == (A, "REPLAY")
    assert firmware.install(IMAGE_B) == "OK"
    assert start(library, flash).weights == B


def test_the_signature_is_verified_at_every_start(library: ctypes.CDLL, flash: Flash) -> None:
    assert start(library, flash).install(IMAGE_A) == "OK"
    stranger = new_key().public_key
    forged = Expected(keys=(stranger,), weights_bytes=LENGTH).in_c()
    keys = EXPECTED.in_c()
    keys.keys[0].point = forged.keys[0].point  # the id stays the same
    firmware = start(library, flash)
    firmware.c_expected = keys
    firmware.library.modelfleet_banks_open(
        ctypes.byref(firmware.banks), ctypes.byref(firmware.c_flash), ctypes.byref(keys), ctypes.c_uint64(0)
    )
    assert firmware.active == BUILTIN


def _used(library: ctypes.CDLL, *images: bytes) -> Flash:
    flash = Flash()
    for data in images:
        assert start(library, flash).install(data) == "OK"
    return flash


@pytest.mark.parametrize(
    ("before", "update", "old", "new"),
    [
        ((), IMAGE_A, BUILTIN_WEIGHTS, A),
        ((IMAGE_A,), IMAGE_B, A, B),
        ((IMAGE_A, IMAGE_B), IMAGE_C, B, C),
        ((IMAGE_B, IMAGE_C), BACK_TO_A, C, A),
    ],
    ids=["first", "second", "third", "downgrade"],
)
def test_power_cut_at_any_write_or_erase_leaves_the_old_model_or_the_new_one(
    before: tuple[bytes, ...], update: bytes, old: bytes, new: bytes, library: ctypes.CDLL
) -> None:
    used = _used(library, *before)
    whole = Flash(bytearray(used.data))
    assert Firmware(library, whole, EXPECTED).install(update) == "OK"
    seen = set[bytes]()
    for step in range(whole.steps):
        flash = Flash(bytearray(used.data), seed=step)
        firmware = Firmware(library, flash, EXPECTED)
        flash.left = step
        assert firmware.install(update) == "FLASH"
        assert firmware.weights == old  # this start goes on with what it has
        after = start(library, flash)
        assert after.weights in (old, new), step
        seen.add(after.weights)
        assert after.weights == new or after.install(update) == "OK"  # the update works once there is power
        assert start(library, flash).weights == new
    assert old in seen


def test_power_cut_twice_in_a_row_leaves_a_whole_model(library: ctypes.CDLL) -> None:
    used = _used(library, IMAGE_A, IMAGE_B)
    for first in range(0, 60, 11):
        for second in range(0, 60, 8):
            flash = Flash(bytearray(used.data), seed=first * 100 + second)
            for left in (first, second):
                firmware = start(library, flash)
                flash.left = left
                firmware.install(IMAGE_C)
            assert start(library, flash).weights in (B, C), (first, second)
