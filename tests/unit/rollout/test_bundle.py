"""Bundles as the server makes them: by the command, over HTTP, applied by the real agent, and what remains of it online."""

import contextlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from fastapi.testclient import TestClient

from modelfleet.agent_client.apply import OfflineAgent, Outcome, encode_reports
from modelfleet.agent_client.bundle import open_bundle, read_index
from modelfleet.agent_client.protocol import device_topic, group_desired_topic
from modelfleet.agent_client.slot_state import SlotState
from modelfleet.registry.errors import ServerUnreachableError
from modelfleet.registry.tables import AuditRecord, Device
from modelfleet.rollout.bundles.archive import BundleFileError, receive, write_archive
from modelfleet.rollout.bundles.making import BundleRequest, prepare
from modelfleet.rollout.cli import COMMANDS
from modelfleet.rollout.tables import DesiredDocument, DeviceSlot
from modelfleet.signer.desired import Assignment, GroupDocument
from modelfleet.signer.errors import UntrustedError
from modelfleet.signer.metadata import Timestamp, parse_metadata
from tests.unit.agent_client.fleet import GROUP, PROFILE, SLOT, TENANT, Fleet, make_fleet, now
from tests.unit.agent_client.fleet import Device as EdgeDevice
from tests.unit.rollout.offline import Office, make_office

main = click.Group("modelfleet", commands={found.name: found for found in COMMANDS if found.name})
MONTH = 30 * 86400


@pytest.fixture(autouse=True)
def probation_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stable release is watched for a minute on each device."""
    monkeypatch.setattr(SlotState, "seconds_in_state", lambda _state: 61.0)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = make_fleet(tmp_path)
    yield made
    with contextlib.suppress(OSError):
        made.server.stop()


@pytest.fixture
def office(fleet: Fleet, tmp_path: Path) -> Iterator[Office]:
    with make_office(fleet, tmp_path / "office") as made:
        yield made


@pytest.fixture
def device(office: Office, tmp_path: Path) -> EdgeDevice:
    return office.enrol(tmp_path / "device")


@pytest.fixture
def modelfleet(office: Office) -> Callable[..., Result]:
    def run(*arguments: str, user: str = "ada") -> Result:
        return CliRunner().invoke(
            main, [*arguments, "--url", office.url, "--token", office.tokens[user]], catch_exceptions=False
        )

    return run


def apply(device: EdgeDevice, path: Path) -> tuple[Outcome, OfflineAgent]:
    bundle = open_bundle(path)
    try:
        agent = OfflineAgent(device.root, bundle)
        return agent.apply(threading.Event()), agent
    finally:
        bundle.close()


@pytest.mark.parametrize("name", ["stick.mfbundle", "stick"])
def test_a_bundle_made_by_the_command_is_applied_by_the_agent(
    office: Office, device: EdgeDevice, tmp_path: Path, modelfleet: Callable[..., Result], name: str
) -> None:
    office.releases(office.fleet.release("1.0.0"))
    made = modelfleet("bundle", str(tmp_path / name), "--valid-for", "30d", "--device", device.id, "--json")
    assert made.exit_code == 0, made.output
    office.fleet.server.stop()
    outcome, _ = apply(device, tmp_path / name)
    assert outcome.ok
    assert outcome.slots[0].version == "1.0.0"
    told = json.loads(made.stdout)
    assert told["devices"] == [device.id]
    if name.endswith(".mfbundle"):
        assert told["bytes"] == (tmp_path / name).stat().st_size
    assert [path.name for path in tmp_path.glob(".stick*")] == []


def test_the_freeze_window_is_on_the_record(
    office: Office, device: EdgeDevice, tmp_path: Path, modelfleet: Callable[..., Result]
) -> None:
    office.releases(office.fleet.release("1.0.0"))
    told = json.loads(modelfleet("bundle", str(tmp_path / "stick"), "--group", GROUP, "--json").stdout)
    with office.registry.sessions() as session:
        (record,) = session.query(AuditRecord).where(AuditRecord.action == "bundle.make")
        assert (record.actor, record.subject) == ("ada", f"bundle/{told['sha256']}")
        assert (record.detail["group"], record.detail["devices"]) == (GROUP, [device.id])
        assert record.detail["expires"] == told["expires"]
        assert record.detail["valid_for_seconds"] == MONTH


def test_the_online_versions_stay_ahead_and_the_device_goes_on_online(
    office: Office, device: EdgeDevice, tmp_path: Path, modelfleet: Callable[..., Result]
) -> None:
    office.releases(office.fleet.release("1.0.0"))
    modelfleet("bundle", str(tmp_path / "stick"), "--device", device.id)
    assert apply(device, tmp_path / "stick")[0].ok
    assignment, group = office.online(device.id)
    device.start()
    try:
        device.agent.inbox(device_topic(TENANT, device.id, "desired"), assignment)
        device.agent.inbox(group_desired_topic(TENANT, GROUP, PROFILE), group)
        assert device.waits_for_report("COMMITTED").version == "1.0.0"
        office.releases(office.fleet.release("1.1.0", seed=2))
        device.agent.inbox(group_desired_topic(TENANT, GROUP, PROFILE), office.online(device.id)[1])
        device.waits_for("COMMITTED", "1.1.0")
        assert device.agent.status()["refusals"] == []
    finally:
        device.stop()


def test_online_documents_are_signed_one_above_the_bundles(
    office: Office, device: EdgeDevice, tmp_path: Path, modelfleet: Callable[..., Result]
) -> None:
    office.releases(office.fleet.release("1.0.0"))
    before = office.registry.repository.versions()
    modelfleet("bundle", str(tmp_path / "stick"), "--valid-for", "30d", "--device", device.id)
    apply(device, tmp_path / "stick")
    desired = device.root / "desired"
    for file, kind in (("assignment.json", Assignment), ("group.json", GroupDocument)):
        applied = json.loads((desired / file).read_bytes())
        with office.registry.sessions() as session:
            online = session.get_one(DesiredDocument, (TENANT, applied["scope"]))
            assert online.seq == applied["seq"] + 1, kind
        document = json.loads(online.payload)
        assert document["expires"] < applied["expires"], "online documents keep their seven days"
    timestamp = parse_metadata((tmp_path / "stick/metadata/timestamp.json").read_bytes(), Timestamp).signed
    assert before["timestamp"] < timestamp.version < office.registry.repository.versions()["timestamp"]


def test_reports_come_back_on_the_medium(
    office: Office, device: EdgeDevice, tmp_path: Path, modelfleet: Callable[..., Result]
) -> None:
    release = office.fleet.release("1.0.0")
    office.releases(release)
    modelfleet("bundle", str(tmp_path / "stick"), "--device", device.id)
    _, agent = apply(device, tmp_path / "stick")
    (tmp_path / "reports.json").write_bytes(encode_reports(device.id, agent.reports()))
    taken = json.loads(modelfleet("bundle", "import-reports", str(tmp_path / "reports.json"), "--json").stdout)
    assert taken["accepted"] == 1
    assert taken["refused"] == 0
    with office.registry.sessions() as session:
        slot = session.get_one(DeviceSlot, (device.id, SLOT))
        assert (slot.state, slot.proven, slot.active) == ("COMMITTED", release.sha256, release.sha256)
    again = json.loads(modelfleet("bundle", "import-reports", str(tmp_path / "reports.json"), "--json").stdout)
    assert again == taken, "taken in twice, it changes nothing"


@pytest.mark.parametrize(("user", "status"), [("ada", 200), ("vic", 403), ("bob", 403)])
def test_a_role_decides_who_makes_bundles(office: Office, device: EdgeDevice, user: str, status: int) -> None:
    office.releases(office.fleet.release("1.0.0"))
    client = TestClient(office.app, headers={"Authorization": f"Bearer {office.tokens[user]}"})
    assert client.post("/v1/bundles", json={"group": GROUP, "valid_for_seconds": 60}).status_code == status
    assert client.post("/v1/bundles/reports", json={"messages": []}).status_code == status


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"group": GROUP, "valid_for_seconds": 91 * 86400}, "90 days"),
        ({"group": "nowhere", "valid_for_seconds": MONTH}, "nowhere"),
        ({"group": "empty", "valid_for_seconds": MONTH}, "no devices"),
        ({"devices": ["0" * 36], "valid_for_seconds": MONTH}, "no such device"),
        ({"valid_for_seconds": MONTH}, "either devices or a group"),
        ({"devices": ["x"], "group": GROUP, "valid_for_seconds": MONTH}, "either devices or a group"),
    ],
)
def test_what_cannot_be_bundled_is_a_problem_and_no_record(
    office: Office, device: EdgeDevice, asked: dict[str, object], said: str
) -> None:
    client = TestClient(office.app, headers={"Authorization": f"Bearer {office.tokens['ada']}"})
    answer = client.post("/v1/bundles", json=asked)
    assert answer.status_code in (404, 422)
    assert said in answer.json()["detail"]
    with office.registry.sessions() as session:
        assert session.query(AuditRecord).where(AuditRecord.action == "bundle.make").count() == 0


def test_a_revoked_device_gets_no_bundle(office: Office, device: EdgeDevice) -> None:
    with office.registry.sessions.begin() as session:
        session.get_one(Device, device.id).revoked_at = now()
    client = TestClient(office.app, headers={"Authorization": f"Bearer {office.tokens['ada']}"})
    answer = client.post("/v1/bundles", json={"devices": [device.id], "valid_for_seconds": MONTH})
    assert answer.status_code == 422
    assert "revoked" in answer.json()["detail"]


def test_a_file_that_is_not_in_the_store_is_told_before_anything_is_signed(office: Office, device: EdgeDevice) -> None:
    office.releases(office.fleet.release("1.0.0"))
    before = office.registry.repository.versions()
    shutil.rmtree(office.registry.work_dir / "blobs")
    client = TestClient(office.app, headers={"Authorization": f"Bearer {office.tokens['ada']}"})
    answer = client.post("/v1/bundles", json={"group": GROUP, "valid_for_seconds": MONTH})
    assert answer.status_code == 409
    assert "not there" in answer.json()["detail"]
    assert office.registry.repository.versions() == before


def test_signatures_that_end_before_the_bundle_are_noted(
    office: Office, device: EdgeDevice, tmp_path: Path, modelfleet: Callable[..., Result]
) -> None:
    office.releases(office.fleet.release("1.0.0"))  # approved for 30 days
    short = json.loads(
        modelfleet("bundle", str(tmp_path / "a"), "--valid-for", "20d", "--device", device.id, "--json").stdout
    )
    assert short["notes"] == []
    made = json.loads(
        modelfleet("bundle", str(tmp_path / "b"), "--valid-for", "60d", "--device", device.id, "--json").stdout
    )
    assert len(made["notes"]) == 1
    assert "approval of digits 1.0.0 ends" in made["notes"][0]


def test_what_is_there_already_is_never_overwritten(
    office: Office, device: EdgeDevice, tmp_path: Path, modelfleet: Callable[..., Result]
) -> None:
    (tmp_path / "there.mfbundle").write_text("mine")
    done = modelfleet("bundle", str(tmp_path / "there.mfbundle"), "--device", device.id)
    assert done.exit_code == 1
    assert (tmp_path / "there.mfbundle").read_text() == "mine"


@pytest.mark.parametrize("arguments", [["--valid-for", "30"], ["--valid-for", "30d"]])
def test_wrong_usage_is_status_two(arguments: list[str], tmp_path: Path, modelfleet: Callable[..., Result]) -> None:
    assert modelfleet("bundle", str(tmp_path / "x"), *arguments).exit_code == 2
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("target", ["stick", "stick.mfbundle"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_transfer_that_breaks_off_leaves_nothing(
    office: Office, device: EdgeDevice, tmp_path: Path, target: str, share: float
) -> None:
    office.releases(office.fleet.release("1.0.0", padding=300_000))
    data = archive(office, device)

    def pieces() -> Iterator[bytes]:
        yield data[: int(len(data) * share)]
        raise ServerUnreachableError("gone")

    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(ServerUnreachableError):
        receive(pieces(), folder / target, lambda _bytes: None)
    assert list(folder.iterdir()) == []
    receive(iter([data]), folder / target, lambda _bytes: None)
    assert [path.name for path in folder.iterdir()] == [target]


def test_what_comes_bent_out_of_the_network_is_refused_and_leaves_nothing(
    office: Office, device: EdgeDevice, tmp_path: Path
) -> None:
    office.releases(office.fleet.release("1.0.0"))
    data = bytearray(archive(office, device))
    data[-1600] ^= 1  # in the last file
    (tmp_path / "out").mkdir()
    with pytest.raises(UntrustedError):
        receive(iter([bytes(data)]), tmp_path / "out" / "stick", lambda _bytes: None)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_medium_that_is_not_there_is_told(office: Office, device: EdgeDevice, tmp_path: Path) -> None:
    data = archive(office, device)
    with pytest.raises(BundleFileError, match="cannot be written"):
        receive(iter([data]), tmp_path / "not-mounted" / "stick", lambda _bytes: None)
    assert not (tmp_path / "not-mounted").exists()


def test_an_archive_of_a_big_model_is_streamed(office: Office, device: EdgeDevice) -> None:
    """No piece is longer than a MiB, whatever the model has."""
    office.releases(office.fleet.release("1.0.0", padding=5_000_000))
    made = prepare(
        office.controller.direction,
        BundleRequest(devices=(device.id,), group=None, valid_for=timedelta(days=1)),
        actor="ada",
        now=now(),
    )
    lengths = [len(piece) for piece in write_archive(made, office.registry.store)]
    assert max(lengths) == 1024 * 1024
    assert sum(lengths) == made.archive_length


def test_the_index_names_every_file_by_its_digest(
    office: Office, device: EdgeDevice, tmp_path: Path, modelfleet: Callable[..., Result]
) -> None:
    office.releases(office.fleet.release("1.0.0"))
    modelfleet("bundle", str(tmp_path / "stick"), "--device", device.id)
    bundle = open_bundle(tmp_path / "stick")
    names = {file.name for file in read_index(bundle).files}
    bundle.close()
    there = {str(path.relative_to(tmp_path / "stick")) for path in (tmp_path / "stick").rglob("*") if path.is_file()}
    assert names | {"bundle.json"} == there


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
@pytest.mark.parametrize("target", ["stick", "stick.mfbundle"])
def test_a_full_medium_is_told_and_leaves_nothing(
    office: Office, device: EdgeDevice, tmp_path: Path, target: str
) -> None:
    office.releases(office.fleet.release("1.0.0", padding=2_000_000))
    data, medium = archive(office, device), tmp_path / "medium"
    medium.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(medium)], check=True)
    try:
        with pytest.raises(BundleFileError, match="No space left"):
            receive(iter([data]), medium / target, lambda _bytes: None)
        assert list(medium.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(medium)], check=True)


def archive(office: Office, device: EdgeDevice) -> bytes:
    request = BundleRequest(devices=(device.id,), group=None, valid_for=timedelta(days=30))
    made = prepare(office.controller.direction, request, actor="ada", now=now())
    return b"".join(write_archive(made, office.registry.store))
