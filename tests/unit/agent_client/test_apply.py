"""A device without a network, and the bundle that is carried to it: the whole agent, real bytes, and the command itself."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from modelfleet.agent_client.apply import OfflineAgent, Outcome
from modelfleet.agent_client.apply_cli import status_of
from modelfleet.agent_client.bundle import open_bundle
from modelfleet.agent_client.cli import cli
from modelfleet.agent_client.errors import BundleError, LockedError
from modelfleet.agent_client.model import open_model
from modelfleet.agent_client.storage import locked
from modelfleet.signer.desired import Release
from modelfleet.signer.errors import ExpiredError, FormatError, ReplayError, ScopeError
from modelfleet.signer.windows import DAYS, Conditions, Window
from tests.unit.agent_client.bundles import archive_of, make_bundle
from tests.unit.agent_client.fleet import QUICK, SLOT, Device, Fleet, make_device, now, unsigned

OTHER = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def offline(fleet: Fleet, tmp_path: Path) -> Device:
    """A device that enrolled, and whose server cannot be reached from then on."""
    device = make_device(fleet, tmp_path / "device")
    fleet.server.stop()
    fleet.server.start = lambda: None  # type: ignore[method-assign]
    fleet.server.stop = lambda: None  # type: ignore[method-assign]
    return device


def apply(device: Device, path: Path, **options: Any) -> Outcome:
    bundle = open_bundle(path)
    try:
        return OfflineAgent(device.root, bundle, **options).apply(threading.Event())
    finally:
        bundle.close()


def candidate_bundle(fleet: Fleet, device: Device, folder: Path, version: str = "1.0.0", **changes: Any) -> Path:
    release = fleet.release(version, **changes)
    fleet.candidates = (fleet.candidate(release, rollout=f"r-{version}"),)
    return make_bundle(fleet, folder, [device.id], named(fleet))


def named(fleet: Fleet) -> list[Release]:
    found = [fleet.stable, *(candidate.release for candidate in fleet.candidates)]
    return [release for release in found if release is not None]


@pytest.mark.parametrize("archived", [False, True], ids=["folder", "archive"])
def test_a_device_without_a_network_takes_a_model_from_a_bundle(
    fleet: Fleet, offline: Device, tmp_path: Path, archived: bool
) -> None:
    path = candidate_bundle(fleet, offline, tmp_path / "bundle")
    outcome = apply(offline, archive_of(path) if archived else path)
    assert outcome.ok
    (slot,) = outcome.slots
    assert (slot.slot, slot.version, slot.state, slot.changed) == (SLOT, "1.0.0", "COMMITTED", True)
    model = open_model(SLOT, root=offline.root)
    assert model.version == "1.0.0"
    model.close()


def test_a_bundle_waits_for_no_window_as_somebody_stands_by(fleet: Fleet, offline: Device, tmp_path: Path) -> None:
    opens = now() + timedelta(days=2)
    night = Window(days=(DAYS[opens.weekday()],), start=f"{opens:%H:%M}", minutes=60, zone="UTC")
    (offline.root / "conditions.json").write_text('{"battery": 0.0, "external_power": false}')
    conditions = Conditions(power="external", battery_at_least=1.0)
    release = fleet.release("1.0.0")
    fleet.candidates = (fleet.candidate(release, windows=(night,), conditions=conditions),)
    outcome = apply(offline, make_bundle(fleet, tmp_path / "bundle", [offline.id], named(fleet)))
    assert outcome.ok and outcome.slots[0].version == "1.0.0"


def test_terminal_reports_wait_signed_in_the_outbox(fleet: Fleet, offline: Device, tmp_path: Path) -> None:
    bundle = open_bundle(candidate_bundle(fleet, offline, tmp_path / "bundle"))
    agent = OfflineAgent(offline.root, bundle)
    agent.apply(threading.Event())
    bundle.close()
    signed = [
        json.loads(unsigned(each["payload"].encode())) for each in agent.reports() if "payloadType" in each["payload"]
    ]
    assert [report["state"] for report in signed] == ["COMMITTED"]
    assert signed[0]["rollout"] == "r-1.0.0"


def test_the_same_bundle_twice_changes_nothing(fleet: Fleet, offline: Device, tmp_path: Path) -> None:
    path = candidate_bundle(fleet, offline, tmp_path / "bundle")
    apply(offline, path)
    pointer = (offline.root / "slots" / SLOT / "active.json").read_bytes()
    outcome = apply(offline, path)
    assert outcome.ok
    assert not outcome.slots[0].changed
    assert (offline.root / "slots" / SLOT / "active.json").read_bytes() == pointer


def test_a_newer_bundle_moves_the_device_on_and_the_older_one_is_refused_then(
    fleet: Fleet, offline: Device, tmp_path: Path
) -> None:
    old = candidate_bundle(fleet, offline, tmp_path / "old")
    assert apply(offline, old).ok
    fleet.stable = named(fleet)[0]
    new = candidate_bundle(fleet, offline, tmp_path / "new", "1.1.0", seed=2)
    assert apply(offline, new).slots[0].version == "1.1.0"
    with pytest.raises(ReplayError):
        apply(offline, old)
    assert running(offline) == "1.1.0"


def test_a_bundle_can_take_a_model_back_without_its_files(fleet: Fleet, offline: Device, tmp_path: Path) -> None:
    assert apply(offline, candidate_bundle(fleet, offline, tmp_path / "one")).ok
    fleet.stable = named(fleet)[0]
    assert apply(offline, candidate_bundle(fleet, offline, tmp_path / "two", "1.1.0", seed=2)).ok
    fleet.candidates = ()  # the rollout was rolled back online
    outcome = apply(offline, make_bundle(fleet, tmp_path / "three", [offline.id], named(fleet)))
    assert outcome.ok
    assert outcome.slots[0].version == "1.0.0"


def test_a_device_goes_on_online_after_a_bundle(fleet: Fleet, tmp_path: Path) -> None:
    device = make_device(fleet, tmp_path / "device")
    assert apply(device, candidate_bundle(fleet, device, tmp_path / "bundle")).ok
    fleet.stable, fleet.candidates = named(fleet)[0], ()
    device.start()
    try:
        device.told()
        assert device.waits_for_report("COMMITTED").version == "1.0.0", "what waited in the outbox has arrived"
        release = fleet.release("1.1.0", seed=2)
        fleet.candidates = (fleet.candidate(release),)
        device.told()
        device.waits_for("COMMITTED", "1.1.0")
        assert device.agent.status()["refusals"] == []
    finally:
        device.stop()


def test_a_bundle_continues_what_began_online(fleet: Fleet, tmp_path: Path) -> None:
    """The line breaks in the middle of a download; the medium brings the rest."""
    device = make_device(fleet, tmp_path / "device")
    release = fleet.release("1.0.0", padding=3_000_000)
    fleet.candidates = (fleet.candidate(release),)
    fleet.server.fault = lambda request: "/v1/blobs/" in request.path and request.send_error(503) is None
    device.start()
    device.told()
    device.waits_for("FAILED")
    device.stop()
    outcome = apply(device, make_bundle(fleet, tmp_path / "bundle", [device.id], named(fleet)))
    assert outcome.ok
    assert running(device) == "1.0.0"


def test_refuses_to_work_beside_a_running_agent(fleet: Fleet, offline: Device, tmp_path: Path) -> None:
    path = candidate_bundle(fleet, offline, tmp_path / "bundle")
    with locked(offline.root), pytest.raises(LockedError, match="stop it, apply the bundle, and start it again"):
        apply(offline, path)
    assert apply(offline, path).ok


def test_a_variant_that_measures_badly_here_is_rejected_as_online(
    fleet: Fleet, offline: Device, tmp_path: Path
) -> None:
    path = candidate_bundle(fleet, offline, tmp_path / "bundle", golden_seed=7)
    outcome = apply(offline, path)
    assert not outcome.ok
    error = outcome.slots[0].error
    assert error is not None
    assert status_of(error.kind) == 1
    assert apply(offline, path).slots[0].error == error, "applied again, it says the same"


def test_a_medium_that_is_pulled_out_changes_nothing(fleet: Fleet, offline: Device, tmp_path: Path) -> None:
    assert apply(offline, candidate_bundle(fleet, offline, tmp_path / "one")).ok
    fleet.stable = named(fleet)[0]
    path = candidate_bundle(fleet, offline, tmp_path / "two", "1.1.0", seed=2, padding=4_000_000)
    bundle = open_bundle(path)
    model = max((path / "blobs").iterdir(), key=lambda blob: blob.stat().st_size)

    def pull_out(line: str) -> None:
        if "DOWNLOADING" in line:
            model.rename(tmp_path / "pulled")

    outcome = OfflineAgent(offline.root, bundle, say=pull_out).apply(threading.Event())
    error = outcome.slots[0].error
    assert error is not None
    assert (error.kind, status_of(error.kind)) == ("BundleError", 4)
    assert running(offline) == "1.0.0"
    (tmp_path / "pulled").rename(model)
    assert apply(offline, path).slots[0].version == "1.1.0", "plugged in again, it goes on"


def test_too_little_space_is_told_and_changes_nothing(
    fleet: Fleet, offline: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = candidate_bundle(fleet, offline, tmp_path / "bundle")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=100))
    error = apply(offline, path).slots[0].error
    assert error is not None
    assert (error.kind, status_of(error.kind)) == ("NoSpaceError", 1)
    monkeypatch.undo()
    assert apply(offline, path).ok


def test_without_waiting_the_probation_ends_at_the_next_apply(fleet: Fleet, offline: Device, tmp_path: Path) -> None:
    path = candidate_bundle(fleet, offline, tmp_path / "bundle")
    assert apply(offline, path, wait=False).slots[0].state == "PROBATION"
    assert apply(offline, path).slots[0].state == "COMMITTED"


def test_ends_in_order_when_asked_to(fleet: Fleet, offline: Device, tmp_path: Path) -> None:
    release = fleet.release("1.0.0")
    slow = msgspec.structs.replace(QUICK, probation_seconds=60.0)
    fleet.candidates = (fleet.candidate(release, limits=slow),)
    path = make_bundle(fleet, tmp_path / "bundle", [offline.id], named(fleet))
    stop = threading.Event()
    threading.Timer(1.0, stop.set).start()
    bundle = open_bundle(path)
    outcome = OfflineAgent(offline.root, bundle).apply(stop)
    bundle.close()
    assert not outcome.finished
    assert outcome.slots[0].state == "PROBATION"


def test_a_file_that_is_missing_is_told_before_anything_begins(fleet: Fleet, offline: Device, tmp_path: Path) -> None:
    path = candidate_bundle(fleet, offline, tmp_path / "bundle")
    max((path / "blobs").iterdir(), key=lambda blob: blob.stat().st_size).unlink()
    with pytest.raises(BundleError, match="copy the bundle again"):
        apply(offline, path)
    assert not (offline.root / "trust").exists()


def test_a_bundle_for_others_and_an_expired_one_are_told_plainly(fleet: Fleet, offline: Device, tmp_path: Path) -> None:
    release = fleet.release("1.0.0")
    fleet.candidates = (fleet.candidate(release),)
    others = make_bundle(fleet, tmp_path / "others", [OTHER], named(fleet))
    with pytest.raises(ScopeError, match=f"for device {offline.id}"):
        apply(offline, others)
    expired = make_bundle(fleet, tmp_path / "expired", [offline.id], named(fleet), made=now() - timedelta(days=31))
    with pytest.raises(ExpiredError, match="have a new one made"):
        apply(offline, expired)


def test_the_command_tells_what_came_of_it_and_writes_the_reports(
    fleet: Fleet, offline: Device, tmp_path: Path
) -> None:
    archive = archive_of(candidate_bundle(fleet, offline, tmp_path / "bundle"))
    reports = tmp_path / "reports.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "modelfleet.agent_client.cli", "apply", str(archive),
            "--root", str(offline.root), "--reports-to", str(reports),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("applied: 1 of 1 slots changed; the bundle holds until ")
    assert f"{SLOT}: DOWNLOADING digits 1.0.0" in done.stderr
    assert json.loads(reports.read_bytes())["device"] == offline.id
    again = CliRunner().invoke(cli, ["apply", str(archive), "--root", str(offline.root), "--json"])
    assert again.exit_code == 0
    assert json.loads(again.output)["slots"][0]["changed"] is False


def test_a_compressed_bundle_is_none(tmp_path: Path) -> None:
    """Nothing grows: there is no compression to bomb with."""
    (tmp_path / "bundle.mfbundle").write_bytes(gzip.compress(bytes(1024 * 1024)))
    with pytest.raises(FormatError):
        open_bundle(tmp_path / "bundle.mfbundle")


def test_the_command_says_which_kind_of_failure_it_was(fleet: Fleet, offline: Device, tmp_path: Path) -> None:
    path = candidate_bundle(fleet, offline, tmp_path / "bundle")
    arguments = [sys.executable, "-m", "modelfleet.agent_client.cli", "apply", "--root", str(offline.root)]
    nowhere = subprocess.run([*arguments, str(tmp_path / "none")], capture_output=True, timeout=60, check=False)
    assert nowhere.returncode == 4
    os.mkfifo(tmp_path / "pipe")
    pipe = subprocess.run([*arguments, str(tmp_path / "pipe")], capture_output=True, timeout=60, check=False)
    assert pipe.returncode == 3
    with locked(offline.root):
        busy = subprocess.run([*arguments, str(path)], capture_output=True, timeout=60, check=False)
    assert busy.returncode == 1


@pytest.mark.parametrize(
    ("kind", "status"),
    [("SignatureError", 3), ("BundleError", 4), ("NoSpaceError", 1), ("UnhealthyError", 1), ("OSError", 1)],
)
def test_every_class_of_error_has_its_exit_status(kind: str, status: int) -> None:
    assert status_of(kind) == status


def running(device: Device) -> str | None:
    model = open_model(SLOT, root=device.root)
    try:
        return model.version
    finally:
        model.close()
