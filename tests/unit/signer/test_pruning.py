"""Which superseded metadata goes, and that a client in the middle of an update never misses a file."""

import os
from datetime import datetime, timedelta
from pathlib import Path

from modelfleet.signer import pruning, repository
from modelfleet.signer.ceremony import CeremonyResult
from modelfleet.signer.pruning import prune
from tests.unit.signer.test_repository import DATA, PATH, signed_bin


def written(folder: Path, name: str, at: datetime) -> Path:
    path = folder / name
    path.write_bytes(b"{}")
    os.utime(path, (at.timestamp(), at.timestamp()))
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_goes_a_day_after_it_was_superseded_however_old_it_is(tmp_path: Path, now: datetime) -> None:
    for version, age in enumerate((90, 80, 0.9, 0), 1):
        written(tmp_path, f"{version}.releases-0.json", now - timedelta(days=age))
    assert prune(tmp_path, {"releases-0": 4}, now) == 1  # version 2 was the current one until 0.9 days ago
    assert names(tmp_path) == {"2.releases-0.json", "3.releases-0.json", "4.releases-0.json"}
    assert prune(tmp_path, {"releases-0": 4}, now + timedelta(days=1.01)) == 2
    assert names(tmp_path) == {"4.releases-0.json"}


def test_roots_current_files_and_what_is_none_of_ours_stay(tmp_path: Path, now: datetime) -> None:
    kept = ["1.root.json", "2.root.json", "7.snapshot.json", "timestamp.json", ".lock", "1.other.json"]
    for name in kept:
        written(tmp_path, name, now - timedelta(days=400))
    written(tmp_path, "6.snapshot.json", now - timedelta(days=401))
    assert prune(tmp_path, {"root": 2, "snapshot": 7, "timestamp": 9}, now) == 1
    assert names(tmp_path) == set(kept)


def test_a_version_that_was_never_named_goes_after_a_day(tmp_path: Path, now: datetime) -> None:
    written(tmp_path, "3.snapshot.json", now - timedelta(days=2))
    written(tmp_path, "4.snapshot.json", now - timedelta(days=0.5))
    assert prune(tmp_path, {"snapshot": 3}, now) == 0
    assert prune(tmp_path, {"snapshot": 3}, now + timedelta(days=1)) == 1
    assert names(tmp_path) == {"3.snapshot.json"}


def test_on_a_busy_day_the_newest_stay_and_all_of_the_last_minutes(tmp_path: Path, now: datetime, monkeypatch) -> None:
    monkeypatch.setattr(pruning, "MAX_SUPERSEDED", 5)
    for version in range(1, 41):  # one each minute
        written(tmp_path, f"{version}.snapshot.json", now - timedelta(minutes=39.5 - version))
    prune(tmp_path, {"snapshot": 40}, now)
    left = sorted(int(name.split(".")[0]) for name in names(tmp_path))
    assert left == list(range(29, 41))


def test_publishing_and_refreshing_prune_and_serve_on(fleet: CeremonyResult, now: datetime, monkeypatch) -> None:
    monkeypatch.setattr(repository, "PRUNE_EVERY", 2)
    online = fleet.repository()
    for version in (2, 3):
        role, data = signed_bin(fleet, version=version)
        online.publish({role: data}, {PATH: DATA}, now + timedelta(days=2))
    present = online.versions()
    assert {path.name for path in fleet.metadata_dir.glob("*.snapshot.json")} == {"3.snapshot.json"}
    online.refresh(now + timedelta(days=7))
    assert online.versions() == {**present, "snapshot": 4, "timestamp": present["timestamp"] + 1}
    for name, version in online.versions().items():
        if name != "timestamp":
            assert (fleet.metadata_dir / f"{version}.{name}.json").exists()
    assert (fleet.metadata_dir / "1.root.json").exists()
