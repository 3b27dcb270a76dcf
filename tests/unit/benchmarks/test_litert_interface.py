"""The names and types at the end of a .tflite file, which are read before LiteRT opens it."""

import zipfile
from pathlib import Path

import pytest

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.runtimes.litert import INTERFACE_FILE, Interface, Port, append_interface, read_interface

INTERFACE = Interface(inputs=(Port(name="x", dtype="float32", shape=(None, 2), tensor="t0"),), outputs=())


def test_what_is_appended_is_read_and_stands_behind_the_flatbuffer(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"flatbuffer")
    append_interface(path, INTERFACE)
    assert read_interface(path) == INTERFACE
    assert path.read_bytes().startswith(b"flatbuffer")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_nothing_compressed_is_unpacked(method: int, tmp_path: Path) -> None:
    """Attack: decompressors take as much memory as the file tells them to, and fail with errors of their own."""
    path = tmp_path / "model.tflite"
    with zipfile.ZipFile(path, "w", method) as appended:
        appended.writestr(INTERFACE_FILE, b" " * 100_000_000)
    with pytest.raises(MeasureError, match="not compressed"):
        read_interface(path)


def test_an_interface_beyond_the_cap_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    with zipfile.ZipFile(path, "w") as appended:
        appended.writestr(INTERFACE_FILE, b" " * (2**20 + 1))
    with pytest.raises(MeasureError, match="at most"):
        read_interface(path)


def test_brackets_without_end_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    with zipfile.ZipFile(path, "w") as appended:
        appended.writestr(INTERFACE_FILE, b'{"more":' + b"[" * 500_000)
    with pytest.raises(MeasureError, match=INTERFACE_FILE):
        read_interface(path)
