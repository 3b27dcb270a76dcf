import stat
import threading
import time
from pathlib import Path

import pytest

from modelfleet.signer.files import folder_lock, write_durably


def test_replaces_a_file_whole_with_the_mode_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    write_durably(path, b"old" * 1000)
    write_durably(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()  # a folder cannot be replaced by a file
    with pytest.raises(OSError):
        write_durably(tmp_path / "target", b"data")
    assert [entry.name for entry in tmp_path.iterdir()] == ["target"]


def test_a_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with folder_lock(tmp_path):
            order.append("second")

    with folder_lock(tmp_path):
        with pytest.raises(BlockingIOError), folder_lock(tmp_path, wait=False):
            pass
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
