import threading
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from modelfleet.signer.ceremony import CeremonyResult, create_repository
from modelfleet.signer.errors import DigestError, FormatError, ReplayError, SignatureError
from modelfleet.signer.keys import load_signer
from modelfleet.signer.manifest import encode_manifest
from modelfleet.signer.metadata import Snapshot, TargetFile, Targets, Timestamp, parse_metadata, sign_metadata
from modelfleet.signer.names import sha256_of
from modelfleet.signer.repository import TIMESTAMP_LIFE
from modelfleet.signer.trust import bin_of
from tests.unit.signer.samples import TENANT, manifest

DATA = encode_manifest(manifest())
PATH = manifest().path


def signed_bin(
    fleet: CeremonyResult, *, version: int = 2, path: str = PATH, data: bytes = DATA, key: str | None = None
) -> tuple[str, bytes]:
    """Return a bin that names `data`, as the signer would sign it."""
    targets = parse_metadata(fleet.repository().policy_chain().targets, Targets).signed
    role = bin_of(targets, path)
    metadata = parse_metadata((fleet.signer_state / f"{role}.json").read_bytes(), Targets)
    metadata.signed.targets[path] = TargetFile.from_data(path, data, ["sha256"])
    metadata.signed.version = version
    return role, sign_metadata(metadata, [load_signer(key or fleet.releases_key)])


def files_of(fleet: CeremonyResult) -> dict[str, bytes]:
    root = fleet.metadata_dir.parent
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_publishes_a_bin_and_its_target_under_a_new_timestamp(fleet: CeremonyResult, now: datetime) -> None:
    repository = fleet.repository()
    role, data = signed_bin(fleet)
    repository.publish({role: data}, {PATH: DATA}, now)
    versions = repository.versions()
    assert (versions[role], versions["snapshot"], versions["timestamp"]) == (2, 2, 2)
    folder, name = PATH.rsplit("/", 1)
    assert (fleet.targets_dir / folder / f"{sha256_of(DATA)}.{name}").read_bytes() == DATA
    assert (fleet.metadata_dir / f"2.{role}.json").read_bytes() == data


def test_publishing_the_same_again_changes_nothing(fleet: CeremonyResult, now: datetime) -> None:
    repository = fleet.repository()
    role, data = signed_bin(fleet)
    repository.publish({role: data}, {PATH: DATA}, now)
    before = files_of(fleet)
    repository.publish({role: data}, {PATH: DATA}, now + timedelta(hours=1))
    assert files_of(fleet) == before


def test_refuses_a_bin_older_than_the_published_one(fleet: CeremonyResult, now: datetime) -> None:
    repository = fleet.repository()
    role, newer = signed_bin(fleet, version=3)
    _, older = signed_bin(fleet, version=2)
    repository.publish({role: newer}, {PATH: DATA}, now)
    with pytest.raises(ReplayError, match="version >= 3, got 2"):
        repository.publish({role: older}, {}, now)
    assert repository.versions()[role] == 3


def test_refuses_other_bytes_under_a_published_version(fleet: CeremonyResult, now: datetime) -> None:
    repository = fleet.repository()
    role, data = signed_bin(fleet)
    repository.publish({role: data}, {PATH: DATA}, now)
    with pytest.raises(ReplayError, match="other bytes"):
        repository.publish({role: signed_bin(fleet)[1]}, {}, now)  # ECDSA: signing again gives another signature


@pytest.mark.parametrize("key", ["gate_key", "snapshot_key", "publisher_key"])
def test_refuses_a_bin_that_the_releases_key_did_not_sign(key: str, fleet: CeremonyResult, now: datetime) -> None:
    role, data = signed_bin(fleet, key=getattr(fleet, key))
    before = files_of(fleet)
    with pytest.raises(SignatureError):
        fleet.repository().publish({role: data}, {PATH: DATA}, now)
    assert files_of(fleet) == before


def test_refuses_a_target_that_no_given_bin_names_or_with_other_bytes(fleet: CeremonyResult, now: datetime) -> None:
    role, data = signed_bin(fleet)
    before = files_of(fleet)
    for targets in ({PATH: DATA + b" "}, {"models/other/1.0.0/p/manifest.json": DATA}, {"../../x": DATA}):
        with pytest.raises(DigestError):
            fleet.repository().publish({role: data}, targets, now)
    assert files_of(fleet) == before


def test_refuses_metadata_under_the_name_of_no_bin(fleet: CeremonyResult, now: datetime) -> None:
    _, data = signed_bin(fleet)
    for role in ("releases-9", "targets", "../root"):
        with pytest.raises((SignatureError, FormatError)):
            fleet.repository().publish({role: data}, {}, now)


def test_a_crash_before_the_timestamp_leaves_the_former_state_and_is_repaired(
    fleet: CeremonyResult, now: datetime
) -> None:
    repository = fleet.repository()
    role, data = signed_bin(fleet)
    timestamp = (fleet.metadata_dir / "timestamp.json").read_bytes()
    repository.publish({role: data}, {PATH: DATA}, now)
    (fleet.metadata_dir / "timestamp.json").write_bytes(timestamp)  # as if it had stopped just before
    assert repository.versions()[role] == 1
    repository.publish({role: data}, {PATH: DATA}, now)
    assert repository.versions()[role] == 2


def test_refresh_signs_the_timestamp_anew_past_half_its_life(fleet: CeremonyResult, now: datetime) -> None:
    repository = fleet.repository()
    repository.refresh(now + timedelta(hours=11))
    assert repository.versions()["timestamp"] == 1
    repository.refresh(now + timedelta(hours=13))
    assert (repository.versions()["timestamp"], repository.versions()["snapshot"]) == (2, 1)


def test_refresh_signs_the_snapshot_anew_past_half_its_life(fleet: CeremonyResult, now: datetime) -> None:
    repository = fleet.repository()
    repository.refresh(now + timedelta(days=4))
    assert (repository.versions()["timestamp"], repository.versions()["snapshot"]) == (2, 2)
    assert repository.versions()["releases-0"] == 1


def test_many_threads_and_repositories_publish_without_losing_anything(fleet: CeremonyResult, now: datetime) -> None:
    paths = [f"models/digits/1.0.{n}/linux-cpu-float/manifest.json" for n in range(40)]
    bins = {}
    for path in paths:  # one path per bin
        role, data = signed_bin(fleet, path=path)
        bins.setdefault(role, (path, data))
    shared = fleet.repository()
    failures: list[BaseException] = []

    def publish(role: str, path: str, data: bytes, own: bool) -> None:
        try:
            repository = fleet.repository() if own else shared
            repository.publish({role: data}, {path: DATA}, now)
            repository.refresh(now + timedelta(hours=13))
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=publish, args=(role, path, data, own))
        for role, (path, data) in bins.items()
        for own in (False, True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(bins) == 4
    assert all(shared.versions()[role] == 2 for role in bins)


def test_a_policy_that_is_not_signed_offline_or_not_named_is_refused(
    fleet: CeremonyResult, tmp_path: Path, now: datetime
) -> None:
    repository = fleet.repository()
    own = repository.policy_chain()

    def publish(targets: bytes, policy: bytes) -> None:
        root = own.roots[-1]
        repository.publish_change(root=root, targets=targets, policy=policy, bins={}, now=now, keep=lambda: None)

    publish(own.targets, own.policy)  # the same again
    assert repository.versions()["targets"] == 1
    other = create_repository(tmp_path / "other", TENANT, bits=1, approvers=["eve"], now=now)
    foreign = other.repository().policy_chain()
    with pytest.raises(SignatureError):
        publish(foreign.targets, foreign.policy)
    with pytest.raises(DigestError):
        publish(own.targets, foreign.policy)


def test_offline_metadata_holds_for_long_and_the_online_one_stays_ahead(fleet: CeremonyResult, now: datetime) -> None:
    repository = fleet.repository()
    role, data = signed_bin(fleet)
    repository.publish({role: data}, {PATH: DATA}, now)
    before = repository.versions()
    files = repository.offline_files(now + timedelta(days=30), now, [PATH])
    timestamp = parse_metadata(files["timestamp.json"], Timestamp).signed
    snapshot = parse_metadata(files[f"{before['snapshot'] + 1}.snapshot.json"], Snapshot).signed
    assert timestamp.expires == snapshot.expires == (now + timedelta(days=30)).replace(microsecond=0)
    assert (timestamp.version, timestamp.snapshot_meta.version) == (before["timestamp"] + 1, snapshot.version)
    assert set(files) == {
        "timestamp.json",
        f"{snapshot.version}.snapshot.json",
        "1.root.json",
        "1.targets.json",
        f"2.{role}.json",
    }
    online = repository.versions()
    assert (online["timestamp"], online["snapshot"]) == (timestamp.version + 1, snapshot.version + 1)
    served = parse_metadata((fleet.metadata_dir / "timestamp.json").read_bytes(), Timestamp).signed
    assert served.expires == (now + TIMESTAMP_LIFE).replace(microsecond=0)
    assert not (fleet.metadata_dir / f"{snapshot.version}.snapshot.json").exists(), "what is offline is never served"
