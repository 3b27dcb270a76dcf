"""Where each device stands, page by page, and asking devices to try again."""

from datetime import timedelta

import msgspec
import pytest
from sqlalchemy import select

from modelfleet.agent_client.protocol import DeviceState, Status, encode
from modelfleet.registry.tables import Device
from modelfleet.rollout.changes import lifecycle
from modelfleet.rollout.desired.retries import MAX_RETRIES, retry
from modelfleet.rollout.devices.listing import DevicePosition, count_standings, device_page
from modelfleet.rollout.devices.standing import Standing
from modelfleet.rollout.errors import RolloutInputError, TransitionError
from modelfleet.rollout.tables import DesiredDocument
from modelfleet.signer.desired import Assignment, Request
from tests.unit.rollout.conftest import digest_of

FLOAT, INT8 = "linux-cpu-float", "linux-cpu-int8"


@pytest.fixture
def on_trial(fleet):
    """Eight devices on 1.0.0, whose rollout of 1.1.0 has reached six: one refused it."""
    fleet.enrol(FLOAT, 8)
    fleet.publish("1.0.0", 1)
    fleet.settle("1.0.0")
    fleet.publish("1.1.0", 2)
    fleet.trial = fleet.launch("1.1.0", plan={"stages": [0.75, 1.0], "bake_seconds": 3600, "alpha": 0.00001})
    chosen = fleet.wanted(FLOAT).candidates[0]
    from modelfleet.signer.desired import takes

    fleet.reached = [device for device in fleet.devices if takes(chosen, device.id)]
    fleet.reached[0].rejects = {digest_of("1.1.0", FLOAT)}
    fleet.steps(2)
    return fleet


def page(fleet, *standings: Standing, **more) -> list[DevicePosition]:
    with fleet.registry.sessions() as session:
        return device_page(session, fleet.row(fleet.trial), standings=standings, **more).devices


def ids(found) -> list[str]:
    return [each.device for each in found]


def ask(fleet, *devices: str):
    done = retry(fleet.controller.direction, fleet.trial, devices=devices, actor="ada", now=fleet.now)
    fleet.controller.dispatch()
    return done


def test_each_device_stands_where_it_says_that_it_does(on_trial):
    failed, *committed = on_trial.reached
    assert ids(page(on_trial, Standing.FAILED)) == [failed.id]
    assert ids(page(on_trial, Standing.COMMITTED)) == sorted(device.id for device in committed)
    assert [each.state for each in page(on_trial, Standing.NOT_REACHED)] == [None, None]  # COMMITTED was the former one
    (found,) = page(on_trial, Standing.FAILED)
    assert (found.group, found.profile, found.state) == ("lab", FLOAT, "REJECTED")
    assert (found.error, found.offline_since) == ({"kind": "ParityError", "message": "outputs differ"}, None)
    with on_trial.registry.sessions() as session:
        assert count_standings(session, on_trial.row(on_trial.trial)) == {"failed": 1, "committed": 5, "not-reached": 2}


def test_a_device_that_is_busy_or_runs_it_without_a_signature_is_told_apart(on_trial):
    busy, running = (device for device in on_trial.devices if device not in on_trial.reached)
    release = on_trial.wanted(FLOAT).candidates[0].release
    busy.report(DeviceState.DOWNLOADING, release, on_trial.trial)
    running.active = release.sha256
    running.report(DeviceState.PROBATION, release, on_trial.trial)
    on_trial.controller.tick(on_trial.now)
    assert (ids(page(on_trial, Standing.STARTED)), ids(page(on_trial, Standing.ON_CANDIDATE))) == (
        [busy.id],
        [running.id],
    )
    busy.report(DeviceState.FAILED, release, on_trial.trial)
    running.active = digest_of("1.0.0", FLOAT)
    running.report(DeviceState.CANCELLED, release, on_trial.trial)
    on_trial.controller.tick(on_trial.now)
    assert busy.id in ids(page(on_trial, Standing.FAILED))
    assert ids(page(on_trial, Standing.GAVE_UP)) == [running.id]


def test_pages_follow_each_other_without_a_gap_and_a_filter_holds_on_each(on_trial):
    everybody = sorted(device.id for device in on_trial.devices)
    seen: list[str] = []
    while found := page(on_trial, limit=3, after=seen[-1] if seen else ""):
        seen += ids(found)
    assert seen == everybody
    first = page(on_trial, Standing.COMMITTED, limit=2)
    assert (
        ids(page(on_trial, Standing.COMMITTED, limit=9, after=first[-1].device))
        == ids(page(on_trial, Standing.COMMITTED))[2:]
    )
    assert page(on_trial, profile=INT8) == []


def test_a_page_looks_at_so_many_devices_and_goes_on_from_there(on_trial, monkeypatch):
    from modelfleet.rollout.devices import listing as device_list

    monkeypatch.setattr(device_list, "SCANNED", 3)
    seen, after, pages = [], "", 0
    with on_trial.registry.sessions() as session:
        while after is not None:
            found = device_page(session, on_trial.row(on_trial.trial), standings=[Standing.FAILED], after=after)
            seen, after, pages = seen + ids(found.devices), found.after, pages + 1
    assert (seen, pages) == ([on_trial.reached[0].id], 3)


def test_after_a_rollback_who_has_proved_it_is_told_from_who_has_not_and_since_when_it_is_away(on_trial):
    failed, away, *others = on_trial.reached
    on_trial.devices.remove(away)
    away.broker.publish(away.topic("status"), encode(Status(state="offline")), retain=True)
    on_trial.controller.tick(on_trial.now)
    lifecycle.rollback(on_trial.controller.direction, on_trial.trial, actor="ada", now=on_trial.now)
    on_trial.run_until(on_trial.trial, "ROLLED_BACK")
    assert ids(page(on_trial, Standing.BACK)) == sorted(device.id for device in others)
    (found,) = page(on_trial, Standing.NOT_PROVED)
    assert (found.device, found.offline_since is not None) == (away.id, True)
    assert ids(page(on_trial, Standing.FAILED)) == [failed.id]
    on_trial.devices.append(away)
    away.come_online()
    on_trial.steps(1)
    assert page(on_trial, Standing.NOT_PROVED) == []


def test_a_device_that_left_the_fleet_is_listed_no_more(on_trial):
    with on_trial.registry.sessions.begin() as session:
        session.get(Device, on_trial.devices[0].id).revoked_at = on_trial.now
    assert on_trial.devices[0].id not in ids(page(on_trial))


def test_a_device_that_is_asked_tries_again_and_commits(on_trial):
    failed = on_trial.reached[0]
    assert ask(on_trial, failed.id).asked == (failed.id,)
    (request,) = assignment(on_trial, failed.id).requests
    assert request.kind == "retry"
    failed.rejects, failed.refused = set(), set()
    on_trial.steps(1)
    assert failed.id in ids(page(on_trial, Standing.COMMITTED))
    assert on_trial.trail(on_trial.trial)[-1] == "rollout.retry"


def assignment(fleet, device: str) -> Assignment:
    with fleet.registry.sessions() as session:
        row = session.scalars(select(DesiredDocument).where(DesiredDocument.scope == f"d/{device}")).one()
        return msgspec.json.decode(row.payload, type=Assignment)


def test_no_device_is_asked_more_than_three_times(on_trial):
    failed = on_trial.reached[0]
    for _ in range(MAX_RETRIES):
        assert ask(on_trial, failed.id).asked == (failed.id,)
    assert ask(on_trial, failed.id).exhausted == (failed.id,)
    assert page(on_trial, Standing.FAILED)[0].retries == MAX_RETRIES


def test_all_that_failed_are_asked_once_until_they_answer(on_trial):
    failed = on_trial.reached[0]
    assert ask(on_trial).asked == (failed.id,)
    assert ask(on_trial).asked == ()
    on_trial.now += timedelta(seconds=1)
    failed.report(DeviceState.PREFLIGHT, on_trial.wanted(FLOAT).candidates[0].release, on_trial.trial)
    failed.report(DeviceState.FAILED, on_trial.wanted(FLOAT).candidates[0].release, on_trial.trial)
    on_trial.controller.tick(on_trial.now)
    assert ask(on_trial).asked == (failed.id,)


def test_who_has_not_failed_is_left_alone_and_who_is_not_there_is_named(on_trial):
    well = on_trial.reached[1]
    assert ask(on_trial, well.id).not_failed == (well.id,)
    with pytest.raises(RolloutInputError, match="nobody"):
        ask(on_trial, "nobody")


def test_what_takes_no_device_asks_none(on_trial):
    lifecycle.halt(on_trial.controller.direction, on_trial.trial, actor="ada", now=on_trial.now)
    with pytest.raises(TransitionError, match="cannot retry in state HALTED"):
        ask(on_trial)


def test_a_request_stays_in_the_assignment_until_another_of_its_kind_replaces_it(on_trial):
    failed = on_trial.reached[0]
    ask(on_trial, failed.id)
    (first,) = assignment(on_trial, failed.id).requests
    desk = on_trial.controller.direction.desk()
    with on_trial.registry.sessions.begin() as session:
        device = session.get(Device, failed.id)
        desk.write_assignment(session, device, on_trial.now, requests=(Request(id="m", kind="re-benchmark"),))
    assert [each.kind for each in assignment(on_trial, failed.id).requests] == ["retry", "re-benchmark"]
    ask(on_trial, failed.id)
    (second,) = assignment(on_trial, failed.id).requests
    assert (second.kind, second.id != first.id) == ("retry", True)
