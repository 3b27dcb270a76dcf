"""The device's TUF client against a repository that is replayed, frozen, bent and slow."""

import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from modelfleet.agent_client.errors import InsecureUrlError, TransferError
from modelfleet.agent_client.floors import FloorStore, RoleFloor
from modelfleet.agent_client.http_client import Deadlines, HttpClient
from modelfleet.agent_client.storage import Disk
from modelfleet.agent_client.trust import Trust
from modelfleet.signer.ceremony import create_repository, update_policy
from modelfleet.signer.errors import (
    DigestError,
    ExpiredError,
    FormatError,
    ReplayError,
    SignatureError,
    UntrustedError,
)
from modelfleet.signer.keys import load_signer
from modelfleet.signer.metadata import Timestamp, parse_metadata, sign_metadata
from modelfleet.signer.verify import Floor, Floors
from tests.unit.agent_client.fleet import TENANT, Fleet, now


class Client:
    """A device's trust and what it lies on; `new` is the same device after a restart."""

    def __init__(self, fleet: Fleet, folder: Path, clock: Any = now) -> None:
        self.fleet, self.folder, self.clock = fleet, folder, clock
        self.root = (fleet.keys.metadata_dir / "1.root.json").read_bytes()
        self.http = HttpClient(deadlines=Deadlines(stall_seconds=4.0, total_seconds=6.0))
        self.new()

    def new(self) -> Trust:
        self.folder.mkdir(exist_ok=True)
        self.floors = FloorStore(self.folder / "floors.json", Disk())
        self.trust = Trust(
            self.folder,
            bootstrap=self.root,
            tenant=TENANT,
            server=self.fleet.server.url,
            client=self.http,
            floors=self.floors,
            disk=Disk(),
            clock=self.clock,
        )
        return self.trust

    def loses_its_cache(self) -> Trust:
        shutil.rmtree(self.folder / "metadata")
        return self.new()


@pytest.fixture
def client(fleet: Fleet, tmp_path: Path) -> Iterator[Client]:
    made = Client(fleet, tmp_path / "trust")
    yield made
    made.http.close()


def saved(fleet: Fleet, folder: Path) -> Path:
    shutil.copytree(fleet.keys.metadata_dir, folder)
    return folder


def test_reads_policy_and_manifests_of_an_honest_repository(client: Client, fleet: Fleet) -> None:
    release = fleet.release("1.0.0")
    client.trust.refresh()
    assert client.trust.policy() == fleet.keys.repository().policy()
    data, target = client.trust.manifest(release.path)
    assert (len(data), target.hashes["sha256"]) == (release.length, release.sha256)


def test_knows_the_policy_offline_after_a_restart(client: Client, fleet: Fleet) -> None:
    client.trust.refresh()
    fleet.server.fault = lambda request: (request.send_error(503), True)[1]
    assert client.new().policy() == fleet.keys.repository().policy()


def test_follows_a_changed_policy(client: Client, fleet: Fleet) -> None:
    client.trust.refresh()
    update_policy(fleet.keys.data_dir, TENANT, lambda policy: replace(policy, epoch=7), now())
    client.trust.refresh()
    assert client.trust.policy().epoch == 7


def test_refuses_an_old_repository_with_its_cache(client: Client, fleet: Fleet, tmp_path: Path) -> None:
    old = saved(fleet, tmp_path / "old")
    fleet.release("1.0.0")
    client.trust.refresh()
    fleet.server.metadata_dir = old
    with pytest.raises(ReplayError):
        client.trust.refresh()


def test_refuses_an_old_repository_when_its_cache_was_wiped(client: Client, fleet: Fleet, tmp_path: Path) -> None:
    old = saved(fleet, tmp_path / "old")
    fleet.release("1.0.0")
    client.trust.refresh()
    fleet.server.metadata_dir = old
    with pytest.raises(ReplayError, match="timestamp"):
        client.loses_its_cache().refresh()


def test_refuses_frozen_metadata_once_it_expired(client: Client, fleet: Fleet) -> None:
    client.clock = lambda: now() + timedelta(days=2)
    with pytest.raises(ExpiredError, match="timestamp"):
        client.new().refresh()


def test_a_clock_that_was_put_back_does_not_revive_expired_metadata(client: Client, fleet: Fleet) -> None:
    later = now() + timedelta(days=2)
    client.floors.keep(Floors(latest_signed=later), latest_possible=later)
    client.clock = lambda: datetime(1999, 1, 1, tzinfo=UTC)
    with pytest.raises(ExpiredError):
        client.new().refresh()


def test_refuses_a_repository_of_other_keys(client: Client, fleet: Fleet, tmp_path: Path) -> None:
    other = create_repository(tmp_path / "other", TENANT, bits=2, approvers=["anna"], now=now())
    fleet.server.metadata_dir = other.metadata_dir
    with pytest.raises(SignatureError):
        client.trust.refresh()


def test_refuses_a_timestamp_that_another_role_signed(client: Client, fleet: Fleet) -> None:
    path = fleet.keys.metadata_dir / "timestamp.json"
    metadata = parse_metadata(path.read_bytes(), Timestamp)
    path.write_bytes(sign_metadata(metadata, [load_signer(fleet.keys.snapshot_key)]))
    with pytest.raises(SignatureError):
        client.trust.refresh()


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 5000, b'{"signed": {"_type": "timestamp"}}', b"\xff" * 100])
def test_refuses_metadata_that_is_none(data: bytes, client: Client, fleet: Fleet) -> None:
    (fleet.keys.metadata_dir / "timestamp.json").write_bytes(data)
    with pytest.raises(FormatError):
        client.trust.refresh()


def test_refuses_endless_metadata(client: Client, fleet: Fleet) -> None:
    (fleet.keys.metadata_dir / "timestamp.json").write_bytes(b" " * 1_000_000)
    with pytest.raises(UntrustedError):
        client.trust.refresh()


def test_refuses_another_file_under_the_name_of_a_target(client: Client, fleet: Fleet) -> None:
    release = fleet.release("1.0.0")
    for path in fleet.keys.targets_dir.rglob(f"{release.sha256}.*"):
        path.write_bytes(path.read_bytes().replace(b"1.0.0", b"9.0.0"))
    client.trust.refresh()
    with pytest.raises(DigestError):
        client.trust.manifest(release.path)


def test_refuses_a_target_that_nobody_signed(client: Client) -> None:
    client.trust.refresh()
    with pytest.raises(SignatureError, match="got none"):
        client.trust.manifest("models/digits/9.9.9/linux-cpu-float/manifest.json")


def test_refuses_a_bin_that_went_back_when_its_cache_was_wiped(client: Client, fleet: Fleet) -> None:
    release = fleet.release("1.0.0")
    client.trust.refresh()
    client.trust.manifest(release.path)
    role = next(role for role in client.floors.record.roles if role.startswith("releases"))
    floor = client.floors.record.roles[role]
    client.floors.raise_roles({role: RoleFloor(version=floor.version + 1, keys=floor.keys)})
    trust = client.loses_its_cache()
    trust.refresh()
    with pytest.raises(ReplayError, match="releases"):
        trust.manifest(release.path)


def test_a_slow_mirror_is_a_transfer_error_within_the_deadline(client: Client, fleet: Fleet) -> None:
    client.http.deadlines = Deadlines(stall_seconds=0.3, total_seconds=1.0)

    def stall(request: BaseHTTPRequestHandler) -> bool:
        time.sleep(3)
        return False

    fleet.server.fault = stall
    started = time.monotonic()
    with pytest.raises(TransferError):
        client.trust.refresh()
    assert time.monotonic() - started < 2.5


def test_a_damaged_cache_is_fetched_again(client: Client, fleet: Fleet) -> None:
    client.trust.refresh()
    for path in (client.folder / "metadata").rglob("*.json"):
        if not path.is_symlink():
            path.write_bytes(b"\x00" * 10)
    (client.folder / "policy.json").write_bytes(b"{")
    trust = client.new()
    trust.refresh()
    assert trust.policy() == fleet.keys.repository().policy()


def test_rotated_keys_let_a_roles_floor_fall_and_others_do_not(tmp_path: Path) -> None:
    floors = FloorStore(tmp_path / "floors.json", Disk())
    floors.raise_roles({"timestamp": RoleFloor(version=2**40, keys="old")})
    with pytest.raises(ReplayError):
        floors.raise_roles({"timestamp": RoleFloor(version=3, keys="old")})
    floors.raise_roles({"timestamp": RoleFloor(version=3, keys="new")})
    with pytest.raises(ReplayError):
        floors.raise_roles({"timestamp": RoleFloor(version=2, keys="new")})


def test_floors_outlive_the_process(tmp_path: Path) -> None:
    floors = FloorStore(tmp_path / "floors.json", Disk())
    floor = Floor(epoch=1, seq=9, sha256="a" * 64)
    floors.keep(Floors(scopes={"g/a/b": floor}, latest_signed=now()), latest_possible=now())
    again = FloorStore(tmp_path / "floors.json", Disk())
    assert again.floors() == floors.floors()
    assert again.floors().scopes == {"g/a/b": floor}


def test_a_clock_of_the_director_that_runs_ahead_does_not_expire_everything(tmp_path: Path) -> None:
    floors = FloorStore(tmp_path / "floors.json", Disk())
    ahead, possible = now() + timedelta(days=4000), now() + timedelta(days=1)
    floors.keep(Floors(latest_signed=ahead), latest_possible=possible)
    assert floors.now(now()) == possible


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x04  # a bit that rotted
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["floors.json", "floors.copy.json"])
@pytest.mark.parametrize("harm", [damaged, Path.unlink, lambda path: path.write_bytes(b"")])
def test_floors_that_rot_or_vanish_are_mended_from_their_copy(name: str, harm: Any, tmp_path: Path) -> None:
    floors = FloorStore(tmp_path / "floors.json", Disk())
    floors.raise_roles({"timestamp": RoleFloor(version=7, keys="k")})
    harm(tmp_path / name)
    again = FloorStore(tmp_path / "floors.json", Disk())
    assert again.record == floors.record
    with pytest.raises(ReplayError):
        again.raise_roles({"timestamp": RoleFloor(version=6, keys="k")})
    assert (tmp_path / "floors.json").read_bytes() == (tmp_path / "floors.copy.json").read_bytes()


def test_the_newer_copy_of_the_floors_counts(tmp_path: Path) -> None:
    floors = FloorStore(tmp_path / "floors.json", Disk())
    floors.raise_roles({"timestamp": RoleFloor(version=7, keys="k")})
    before = (tmp_path / "floors.copy.json").read_bytes()
    floors.raise_roles({"timestamp": RoleFloor(version=8, keys="k")})
    (tmp_path / "floors.copy.json").write_bytes(before)  # as if it had stopped between the two writes
    assert FloorStore(tmp_path / "floors.json", Disk()).record.roles["timestamp"].version == 8


def test_floors_of_which_no_copy_is_left_are_said_aloud_and_the_cache_still_refuses(
    client: Client, fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = saved(fleet, tmp_path / "old")
    fleet.release("1.0.0")
    client.trust.refresh()
    for name in ("floors.json", "floors.copy.json"):
        damaged(client.folder / name)
    trust = client.new()
    assert "both damaged" in caplog.text
    fleet.server.metadata_dir, young = old, fleet.server.metadata_dir
    with pytest.raises(ReplayError):
        trust.refresh()
    fleet.server.metadata_dir = young
    trust.refresh()
    assert FloorStore(client.folder / "floors.json", Disk()).record.roles["snapshot"].version == 2


def test_a_full_disk_leaves_floors_that_are_not_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    floors = FloorStore(tmp_path / "floors.json", Disk())
    floors.raise_roles({"timestamp": RoleFloor(version=7, keys="k")})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "no space left")

    with monkeypatch.context() as patched:
        patched.setattr(Disk, "write", full)
        with pytest.raises(OSError):
            floors.raise_roles({"timestamp": RoleFloor(version=8, keys="k")})
        damaged(tmp_path / "floors.json")
        again = FloorStore(tmp_path / "floors.json", Disk())  # it starts, though nothing can be mended
    with pytest.raises(ReplayError):
        again.raise_roles({"timestamp": RoleFloor(version=6, keys="k")})
    again.raise_roles({"timestamp": RoleFloor(version=8, keys="k")})


def test_a_bin_that_was_pruned_meanwhile_is_asked_for_again_under_a_new_timestamp(client: Client, fleet: Fleet) -> None:
    first = fleet.release("1.0.0")
    client.trust.refresh()
    fleet.release("1.0.1")
    newest = fleet.keys.repository().versions()
    for path in fleet.keys.metadata_dir.glob("*.releases-*.json"):
        version, _, role = path.name.removesuffix(".json").partition(".")
        if int(version) != newest[role]:
            path.unlink()
    for path in fleet.keys.metadata_dir.glob("*.snapshot.json"):
        if path.name != f"{newest['snapshot']}.snapshot.json":
            path.unlink()
    data, _ = client.trust.manifest(first.path)
    assert len(data) == first.length


@pytest.mark.parametrize(
    "path", ["../root.json", "models/../x/1.0.0/p/manifest.json", "trust/policy.json", "models/a%2f"]
)
def test_asks_for_no_manifest_but_by_its_path(path: str, client: Client, fleet: Fleet) -> None:
    with pytest.raises(FormatError):
        client.trust.manifest(path)
    assert fleet.server.requests == []


def test_public_metadata_is_asked_for_without_the_devices_token(client: Client, fleet: Fleet) -> None:
    client.http = HttpClient(token=lambda: "secret", server=fleet.server.url)
    release = fleet.release("1.0.0")
    trust = client.new()
    trust.refresh()
    trust.manifest(release.path)
    assert not any("Authorization" in headers for _, headers in fleet.server.requests)
    trust.blob(release.approvals[0])
    assert fleet.server.requests[-1][1]["Authorization"] == "Bearer secret"


def test_an_unchanged_sync_asks_for_the_next_root_and_the_timestamp_alone(client: Client, fleet: Fleet) -> None:
    client.trust.refresh()
    fleet.server.requests.clear()
    client.new().refresh()
    assert [path.rpartition("/")[2] for path, _ in fleet.server.requests] == ["2.root.json", "timestamp.json"]
    assert "If-None-Match" in fleet.server.requests[-1][1]


def test_no_redirect_leads_to_plain_http_on_another_machine(client: Client, fleet: Fleet) -> None:
    def away(request: BaseHTTPRequestHandler) -> bool:
        request.send_response(302)
        request.send_header("Location", "http://192.0.2.1:9/timestamp.json")
        request.send_header("Content-Length", "0")
        request.end_headers()
        return True

    fleet.server.fault = away
    with pytest.raises(InsecureUrlError):
        client.trust.refresh()
