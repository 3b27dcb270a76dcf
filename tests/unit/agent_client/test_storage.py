"""State files: what rotted on the disk is told from what was written."""

from pathlib import Path

import pytest

from modelfleet.agent_client.errors import StorageError
from modelfleet.agent_client.slots import Pointer
from modelfleet.agent_client.storage import encode_struct, read_struct

POINTER = Pointer(directory="a", activation=7, sha256="ab" * 32, version="1.0.0", latency_ms=100.0)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    (tmp_path / "active.json").write_bytes(encode_struct(POINTER))
    assert read_struct(tmp_path / "active.json", Pointer) == POINTER


@pytest.mark.parametrize("bit", range(8))
def test_no_flipped_bit_is_read_as_another_value(bit: int, tmp_path: Path) -> None:
    path, data = tmp_path / "active.json", encode_struct(POINTER)
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
        try:
            assert read_struct(path, Pointer) == POINTER, f"byte {place}"
        except StorageError as error:
            assert str(path) in str(error)


def test_a_file_from_before_there_were_checksums_is_read(tmp_path: Path) -> None:
    body, _, _ = encode_struct(POINTER).rpartition(b',"checksum"')
    (tmp_path / "active.json").write_bytes(body + b"}")
    assert read_struct(tmp_path / "active.json", Pointer) == POINTER
