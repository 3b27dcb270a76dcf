"""A golden set comes from outside: what is not exactly one is refused, before it costs memory."""

import contextlib
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleet.benchmarks.errors import GoldenSetError
from modelfleet.benchmarks.golden import (
    accuracy,
    load_golden,
    mismatch_share,
    predictions,
    require_golden_fits,
    save_golden,
)
from modelfleet.signer.manifest import Tensor, Tolerance

IMAGE = Tensor(name="image", dtype="float32", shape=(None, 1, 8, 8))
LOGITS = Tensor(name="logits", dtype="float32", shape=(None, 10))


def arrays(**changes: object) -> dict[str, np.ndarray]:
    found = {
        "input.image": np.arange(8 * 64, dtype=np.float32).reshape(8, 1, 8, 8) / 512,
        "label": np.arange(8, dtype=np.int64),
        "output.logits": np.eye(8, 10, dtype=np.float32),
    }
    return {name: value for name, value in (found | changes).items() if value is not None}


def packed(content: dict[str, np.ndarray]) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **content)
    return stream.getvalue()


def npy(header: bytes, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def zipped(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", ".") + ".npy", content)
    return stream.getvalue()


def test_reads_inputs_labels_and_expected_outputs():
    golden = load_golden(packed(arrays()))
    assert len(golden) == 8
    assert golden.sample(3)["image"].shape == (1, 1, 8, 8)
    assert golden.sample(3)["image"][0, 0, 0, 0] == 192 / 512
    assert golden.labels is not None and golden.labels.tolist() == list(range(8))
    assert list(golden.expected) == ["logits"]


def test_what_is_saved_for_the_device_is_what_is_read_there(tmp_path: Path):
    golden = load_golden(packed(arrays()))
    save_golden(golden, tmp_path / "a.npz")
    save_golden(golden, tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    again = load_golden(tmp_path / "a.npz")
    assert np.array_equal(again.inputs["image"], golden.inputs["image"])
    assert np.array_equal(again.expected["logits"], golden.expected["logits"])


def test_reads_fortran_order_and_big_endian_as_they_are_meant():
    image = np.asfortranarray(arrays()["input.image"]).astype(">f4")
    golden = load_golden(packed(arrays(**{"input.image": image})))
    assert golden.inputs["image"].dtype == np.float32
    assert np.array_equal(golden.inputs["image"], arrays()["input.image"])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"input.image": None}, "expected one input"),
        ({"label": None, "output.logits": None}, "expected label or output"),
        ({"label": np.arange(7, dtype=np.int64)}, "same N"),
        ({"label": np.arange(8, dtype=np.float32)}, "expected int64"),
        ({"label": np.arange(8, dtype=np.int32)}, "expected int64"),
        ({"label": -np.ones(8, dtype=np.int64)}, ">= 0"),
        ({"label": np.zeros((8, 1), dtype=np.int64)}, "expected int64"),
        ({"input.image": np.full((8, 1, 8, 8), np.nan, np.float32)}, "finite"),
        ({"output.logits": np.full((8, 10), np.inf, np.float32)}, "finite"),
        ({"input.image": np.array(["a"] * 8)}, "expected numbers"),
        ({"surprise": np.zeros(8)}, "surprise"),
        ({"input.": np.zeros(8)}, "expected input"),
        ({"input.scalar": np.float32(3)}, "same N"),
    ],
)
def test_refuses_a_set_with(change: dict[str, object], complaint: str):
    with pytest.raises(GoldenSetError, match=complaint):
        load_golden(packed(arrays(**change)))


def test_refuses_fewer_than_eight_samples():
    with pytest.raises(GoldenSetError, match="8 to 100000 samples, got 7"):
        load_golden(packed({name: value[:7] for name, value in arrays().items()}))


def test_refuses_a_pickle_without_reading_it():
    harmful = np.array([print], dtype=object)
    with pytest.raises(GoldenSetError, match="expected numbers"):
        load_golden(packed(arrays(**{"input.image": harmful})))


def test_refuses_a_header_that_claims_more_than_the_file_holds():
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }\n"
    with pytest.raises(GoldenSetError, match="4000000000000 bytes"):
        load_golden(zipped(input__image=npy(header, b"\0" * 64)))


def test_refuses_a_zip_bomb_by_its_declared_size():
    bomb = bytearray(packed(arrays()))
    entry = bomb.rindex(b"PK\x01\x02")  # the last record of the central directory: uncompressed size at offset 24
    bomb[entry + 24 : entry + 28] = struct.pack("<I", 0x7FFFFFFF)
    with pytest.raises(GoldenSetError, match="bytes unpacked"):
        load_golden(bytes(bomb))


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-8,), }\n",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (8, }\n",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (8,), }\n",
        b"{'descr': '<f4', 'fortran_order': 'no', 'shape': (8,), }\n",
        b"[" * 5000,
        b"\xff\xfe",
    ],
)
def test_refuses_an_array_header_that_is_none(header: bytes):
    with pytest.raises(GoldenSetError):
        load_golden(zipped(input__image=npy(header, b"\0" * 32), label=npy(header)))


@pytest.mark.parametrize("data", [b"", b"no zip at all", b"PK\x03\x04", packed(arrays())[:400]])
def test_refuses_what_is_no_npz_file(data: bytes):
    with pytest.raises(GoldenSetError, match=r"expected a \.npz file"):
        load_golden(data)


def test_refuses_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(GoldenSetError, match="cannot read"):
        load_golden(tmp_path / "absent.npz")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_change_of_bytes_raises_anything_but_a_golden_set_error(data: st.DataObject):
    content = bytearray(packed(arrays()))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    with contextlib.suppress(GoldenSetError):
        load_golden(bytes(content[:cut]) if data.draw(st.booleans()) else bytes(content))


def test_a_set_that_fits_the_model_is_accepted():
    require_golden_fits(load_golden(packed(arrays())), (IMAGE,), (LOGITS,))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"input.image": np.zeros((8, 1, 8, 9), np.float32)}, r"expected shape \['N', 1, 8, 8\], got \[8, 1, 8, 9\]"),
        ({"input.image": np.zeros((8, 64), np.float32)}, "expected shape"),
        ({"input.image": np.zeros((8, 1, 8, 8), np.float64)}, "expected float32, got float64"),
        (
            {"input.image": None, "input.picture": arrays()["input.image"]},
            r"expected inputs \['image'\], got \['picture'\]",
        ),
        ({"input.more": np.zeros(8, np.float32)}, "expected inputs"),
        ({"output.logits": np.zeros((8, 9), np.float32)}, "expected.logits: expected shape"),
        ({"output.logits": None, "output.scores": np.zeros((8, 10), np.float32)}, "scores"),
    ],
)
def test_a_set_that_does_not_fit_the_model_says_expected_and_got(change: dict[str, object], complaint: str):
    with pytest.raises(GoldenSetError, match=complaint):
        require_golden_fits(load_golden(packed(arrays(**change))), (IMAGE,), (LOGITS,))


def test_refuses_a_model_whose_batch_is_fixed_at_more_than_one():
    fixed = Tensor(name="image", dtype="float32", shape=(4, 1, 8, 8))
    with pytest.raises(GoldenSetError, match="free or 1"):
        require_golden_fits(load_golden(packed(arrays())), (fixed,), (LOGITS,))


def test_the_prediction_is_the_largest_score_or_the_class_itself():
    scores = np.array([[0.1, 0.9], [0.8, 0.2]], np.float32)
    assert predictions({"boxes": np.zeros((2, 3, 4)), "scores": scores}).tolist() == [1, 0]
    assert predictions({"class": np.array([4, 2], np.int32)}).tolist() == [4, 2]
    with pytest.raises(GoldenSetError, match="expected an output of scores"):
        predictions({"boxes": np.zeros((2, 3, 4))})


def test_accuracy_is_the_share_of_right_answers():
    scores = np.eye(4, dtype=np.float32)
    assert accuracy({"scores": scores}, np.array([0, 1, 2, 0])) == 0.75
    assert accuracy({"scores": np.roll(scores, 1, axis=1)}, np.array([0, 1, 2, 3])) == 0.0
    with pytest.raises(GoldenSetError, match="label"):
        accuracy({"scores": scores}, np.array([0, 1, 2]))


@pytest.mark.parametrize(
    ("got", "share"),
    [
        ([1.0, 2.0, 4.0, 0.0], 0.0),
        ([1.1, 2.2, 4.4, 0.09], 0.0),
        ([1.3, 2.0, 4.0, 0.0], 0.25),
        ([1.0, 2.0, 4.6, 0.2], 0.5),
        ([1.0, 2.0, 4.0, float("nan")], 0.25),
        ([float("inf"), 2.0, 4.0, 0.0], 0.25),
    ],
)
def test_an_element_mismatches_beyond_atol_and_rtol(got: list[float], share: float):
    expected = {"y": np.array([[1.0, 2.0, 4.0, 0.0]], np.float32)}
    assert mismatch_share({"y": np.array([got], np.float32)}, expected, Tolerance(rtol=0.1, atol=0.1)) == share


def test_the_worst_output_counts_and_a_missing_one_is_wrong_everywhere():
    expected = {"a": np.zeros((1, 4), np.float32), "b": np.zeros((1, 2), np.float32)}
    loose = Tolerance(rtol=0.0, atol=0.5)
    assert (
        mismatch_share({"a": np.zeros((1, 4), np.float32), "b": np.array([[0, 1]], np.float32)}, expected, loose) == 0.5
    )
    assert mismatch_share({"a": np.zeros((1, 4), np.float32)}, expected, loose) == 1.0
    assert mismatch_share({"a": np.zeros((4,), np.float32), "b": expected["b"]}, expected, loose) == 1.0


def test_whole_numbers_must_be_equal():
    expected = {"class": np.array([3, 4], np.int64)}
    assert mismatch_share({"class": np.array([3, 5], np.int64)}, expected, Tolerance(rtol=9.0, atol=9.0)) == 0.5
