import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from modelfleet.registry.leftovers import remove_leftovers


def test_removes_unfinished_work_of_a_killed_process_and_nothing_else(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    for name in ("upload-old", "build-old", "upload-new", "releasing"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").write_bytes(b"half")
    for name in ("upload-old", "build-old", "releasing"):
        os.utime(tmp_path / name, ((now - timedelta(hours=2)).timestamp(),) * 2)
    assert remove_leftovers(tmp_path, now) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["releasing", "upload-new"]
    assert remove_leftovers(tmp_path / "not-there", now) == 0
