"""An agent whose update has to wait: it holds what it should meanwhile, keeps what it has fetched, and says what it waits for."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from modelfleet.agent_client.cli import cli
from modelfleet.agent_client.conditions import Facts
from modelfleet.agent_client.protocol import WAITING_KIND
from modelfleet.signer.desired import Slot, needs_of
from modelfleet.signer.sign import sign_group
from modelfleet.signer.windows import DAYS, Conditions, Window
from tests.unit.agent_client.fleet import SLOT, Device, Fleet, commit, linear_model, make_device
from tests.waiting import until

UNMETERED = Conditions(network="unmetered")


class Place:
    """Where the device stands; tests move it."""

    def __init__(self) -> None:
        self.facts = Facts()

    def __call__(self) -> Facts:
        return self.facts

    def becomes(self, **changes: object) -> None:
        self.facts = replace(self.facts, **changes)  # type: ignore[arg-type]


@pytest.fixture
def place() -> Place:
    return Place()


@pytest.fixture
def device(fleet: Fleet, tmp_path: Path, place: Place) -> Iterator[Device]:
    made = make_device(fleet, tmp_path / "device", surroundings=place)
    made.start()
    yield made
    made.stop()


def open_now(zone: str = "UTC") -> Window:
    """A window that has been open for an hour and stays so for another."""
    begin = datetime.now(UTC) - timedelta(hours=1)
    return Window(days=(DAYS[begin.weekday()],), start=f"{begin:%H:%M}", minutes=121, zone=zone)


def closed() -> Window:
    """A window that opens in two days."""
    begin = datetime.now(UTC) + timedelta(days=2)
    return Window(days=(DAYS[begin.weekday()],), start=f"{begin:%H:%M}", minutes=60, zone="UTC")


def offers(fleet: Fleet, device: Device, **changes: object) -> None:
    """The director names a candidate under windows or conditions, which the document says must be understood."""
    release = fleet.release("2.0.0", seed=2)
    fleet.candidates = (fleet.candidate(release, rollout="r-2", **changes),)
    tells(fleet, device, Slot(stable=fleet.stable, candidates=fleet.candidates))


def tells(fleet: Fleet, device: Device, slot: Slot) -> None:
    device.told()
    document = fleet.group_document(slots={SLOT: slot}, must_understand=needs_of([slot]))
    device.hears(sign_group(document, fleet.director))


def states(device: Device, rollout: str = "r-2") -> list[str]:
    return [report.state.value for report in device.reports() if report.rollout == rollout]


def waits_for(device: Device, *reasons: str) -> None:
    until(lambda: device.slot.get("waiting") == list(reasons), shown=lambda: device.slot)


def test_a_candidate_starts_within_its_window(fleet: Fleet, device: Device) -> None:
    commit(fleet, device)
    offers(fleet, device, windows=(closed(), open_now()), conditions=UNMETERED)
    device.waits_for("COMMITTED", "2.0.0")


def test_a_device_outside_its_window_starts_nothing_and_says_so(fleet: Fleet, device: Device) -> None:
    commit(fleet, device)
    offers(fleet, device, windows=(closed(),))
    waits_for(device, "window")
    assert device.slot == device.slot | {"state": "COMMITTED", "version": "1.0.0"}
    assert states(device) == []  # it has not started
    until(lambda: json.loads((device.root / "status.json").read_bytes())["slots"][SLOT]["waiting"] == ["window"])
    told = CliRunner().invoke(cli, ["status", "--root", str(device.root)]).output
    assert "COMMITTED  waits for window" in told


def test_a_device_that_waits_takes_the_stable_release_meanwhile(fleet: Fleet, device: Device) -> None:
    fleet.stable = fleet.release("1.0.0")
    offers(fleet, device, windows=(closed(),))
    device.waits_for("PROBATION", "1.0.0")
    waits_for(device, "window")


def test_it_starts_once_the_conditions_hold(fleet: Fleet, device: Device, place: Place) -> None:
    commit(fleet, device)
    place.becomes(metered=True, external_power=False, battery_share=0.2)
    conditions = Conditions(network="unmetered", power="external", battery_at_least=0.5)
    offers(fleet, device, conditions=conditions)
    waits_for(device, "network", "power", "battery")
    place.becomes(metered=False, external_power=True)
    waits_for(device, "battery")
    place.becomes(battery_share=0.5)
    device.waits_for("COMMITTED", "2.0.0")
    assert device.slot["waiting"] == []


def test_a_download_stops_where_the_network_begins_to_cost_and_goes_on_later(
    fleet: Fleet, device: Device, place: Place
) -> None:
    commit(fleet, device)
    release = fleet.release("2.0.0", seed=2, padding=3_000_000)
    model = linear_model(2, padding=3_000_000)
    half_sent = threading.Event()

    def slow(request: BaseHTTPRequestHandler) -> bool:
        """Send the first half of the model at once, the rest in drops for as long as somebody takes them."""
        if half_sent.is_set() or fleet.server.blobs.get(request.path.rpartition("/")[2]) != model:
            return False
        request.send_response(200)
        request.send_header("Content-Length", str(len(model)))
        request.end_headers()
        request.close_connection = True
        half = len(model) // 2
        request.wfile.write(model[:half])
        half_sent.set()
        with contextlib.suppress(OSError):
            for start in range(half, len(model), 10_000):
                request.wfile.write(model[start : start + 10_000])
                time.sleep(0.05)
        return True

    fleet.server.fault = slow
    fleet.candidates = (fleet.candidate(release, rollout="r-2", conditions=UNMETERED),)
    tells(fleet, device, Slot(stable=fleet.stable, candidates=fleet.candidates))
    assert half_sent.wait(15)
    place.becomes(metered=True)
    device.waits_for("FAILED", "1.0.0")
    waits_for(device, "network")
    report = device.waits_for_report("FAILED")
    assert report.error is not None and report.error.kind == WAITING_KIND
    parts = list((device.root / "slots" / SLOT).glob("*/model.onnx.part"))
    assert [part.stat().st_size > 0 for part in parts] == [True]
    place.becomes(metered=False)
    device.waits_for("COMMITTED", "2.0.0")
    ranges = [headers["Range"] for path, headers in fleet.server.requests if "Range" in headers]
    assert ranges and not ranges[-1].startswith("bytes=0-")
    assert "CANCELLED" not in states(device)


def test_a_try_that_failed_waits_for_the_next_window_and_says_so_once(fleet: Fleet, device: Device) -> None:
    commit(fleet, device)
    release = fleet.release("2.0.0", seed=2)
    fleet.server.fault = lambda request: request.path.startswith("/v1/blobs/") and request.send_error(500) is None
    fleet.candidates = (fleet.candidate(release, rollout="r-2", windows=(open_now(),)),)
    tells(fleet, device, Slot(stable=fleet.stable, candidates=fleet.candidates))
    device.waits_for_report("FAILED")
    fleet.candidates = (msgspec.structs.replace(fleet.candidates[0], windows=(closed(),)),)
    tells(fleet, device, Slot(stable=fleet.stable, candidates=fleet.candidates))
    waits_for(device, "window")
    kinds = [report.error.kind for report in device.reports() if report.error is not None]
    until(lambda: device.reports()[-1].error is not None and device.reports()[-1].error.kind == WAITING_KIND)
    assert kinds.count(WAITING_KIND) <= 1
    assert device.slot["state"] == "FAILED"


def test_a_way_back_waits_for_nothing(fleet: Fleet, device: Device, place: Place) -> None:
    commit(fleet, device)
    offers(fleet, device)
    device.waits_for("COMMITTED", "2.0.0")
    place.becomes(metered=True, external_power=False, battery_share=0.01)
    fleet.candidates = ()
    tells(fleet, device, Slot(stable=fleet.stable, windows=(closed(),), conditions=UNMETERED))
    device.waits_for("ROLLED_BACK", "1.0.0")


def test_a_newer_stable_release_waits_for_the_windows_of_its_rollout(fleet: Fleet, device: Device) -> None:
    commit(fleet, device)
    newer = fleet.release("2.0.0", seed=2)
    tells(fleet, device, Slot(stable=newer, windows=(closed(),)))
    waits_for(device, "window")
    assert device.slot["version"] == "1.0.0"
    tells(fleet, device, Slot(stable=newer, windows=(open_now(),)))
    device.waits_for("PROBATION", "2.0.0")


def test_an_empty_slot_takes_the_stable_release_at_once(fleet: Fleet, device: Device, place: Place) -> None:
    place.becomes(metered=True)
    fleet.stable = fleet.release("1.0.0")
    tells(fleet, device, Slot(stable=fleet.stable, windows=(closed(),), conditions=UNMETERED))
    device.waits_for("PROBATION", "1.0.0")
    assert device.slot["waiting"] == []


def test_what_waited_in_vain_past_the_deadline_has_never_started(fleet: Fleet, device: Device) -> None:
    commit(fleet, device)
    offers(fleet, device, windows=(closed(),))
    waits_for(device, "window")
    late = msgspec.structs.replace(fleet.candidates[0], deadline=datetime.now(UTC) - timedelta(seconds=1))
    tells(fleet, device, Slot(stable=fleet.stable, candidates=(late,)))
    waits_for(device)
    assert states(device) == []
