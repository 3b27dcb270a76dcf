"""Whole rollouts over the real controller, database, documents and signatures."""

import contextlib

import pytest
from sqlalchemy import event, select

from modelfleet.agent_client.protocol import group_desired_topic, host_topic, parse_status
from modelfleet.registry import catalog
from modelfleet.rollout.changes import lifecycle
from modelfleet.rollout.changes.transitions import find, profiles_of
from modelfleet.rollout.controller import Controller
from modelfleet.rollout.evidence.readings import reading_of
from modelfleet.rollout.mqtt.memory_broker import MemoryBroker
from modelfleet.rollout.tables import DesiredDocument, DeviceTrial, HealthSample
from modelfleet.signer.keys import load_signer
from tests.waiting import until

TENANT, FLOAT, INT8 = "acme", "linux-cpu-float", "linux-cpu-int8"


def rolled_out(fleet, version: str = "1.0.0", counter: int = 1, floats: int = 6, int8s: int = 0) -> str:
    """Return a completed rollout of `version` on new devices, all of them at once."""
    fleet.enrol(FLOAT, floats)
    fleet.enrol(INT8, int8s)
    fleet.publish(version, counter)
    return fleet.settle(version)


def test_a_good_version_reaches_every_device_and_becomes_stable(fleet):
    fleet.enrol(FLOAT, 6)
    fleet.enrol(INT8, 6)
    fleet.publish("1.0.0", 1)
    rollout = fleet.launch("1.0.0")
    fleet.run_until(rollout, "COMPLETED")
    assert fleet.verdicts(rollout) == {FLOAT: "COMPLETED", INT8: "COMPLETED"}
    assert {device.active for device in fleet.devices} == {
        fleet.profile(rollout, profile).release["sha256"] for profile in (FLOAT, INT8)
    }
    assert fleet.stable(FLOAT) == "1.0.0"
    assert fleet.wanted(FLOAT).candidates == ()
    assert fleet.trail(rollout, profile=FLOAT) == [f"rollout.{e}" for e in ("start", "advance", "soak", "complete")]
    with fleet.registry.sessions() as session:
        stable = catalog.stable_variant(session, "acme", "digits", FLOAT)
        assert stable is not None
        assert stable.version == "1.0.0"


def test_canaries_go_first_and_nobody_else(fleet):
    devices = fleet.enrol(FLOAT, 12)
    fleet.publish("1.0.0", 1)
    rollout = fleet.launch("1.0.0")
    fleet.steps(2)
    assert fleet.state(rollout) == "CANARY"
    assert sum(device.active is not None for device in devices) == 3


def test_every_transition_is_an_audit_record_with_its_evidence(fleet):
    rollout = rolled_out(fleet)
    assert fleet.trail(rollout)[:4] == [f"rollout.{e}" for e in ("validate", "request-approval", "approve", "start")]
    evidence = fleet.profile(rollout, FLOAT).evidence
    assert evidence["promotion"] >= evidence["promotion_limit"]
    assert evidence["devices"]["committed"] == 6


def test_one_profile_that_is_refused_rolls_back_while_the_other_completes(fleet):
    rolled_out(fleet, floats=6, int8s=6)
    fleet.publish("1.1.0", 2)
    for device in fleet.devices[6:]:
        device.rejects = {fleet_digest(fleet, "1.1.0", INT8)}
    rollout = fleet.launch("1.1.0")
    fleet.run_until(rollout, "COMPLETED")
    assert fleet.verdicts(rollout) == {FLOAT: "COMPLETED", INT8: "ROLLED_BACK"}
    assert fleet.profile(rollout, INT8).evidence["guardrail"] == "install"
    assert (fleet.stable(FLOAT), fleet.stable(INT8)) == ("1.1.0", "1.0.0")
    assert sum(bool(device.refused) for device in fleet.devices[6:]) == 2


def test_errors_in_traffic_trip_the_alarm_and_the_fleet_goes_back(fleet):
    rolled_out(fleet)
    fleet.publish("1.1.0", 2)
    bad, good = fleet_digest(fleet, "1.1.0", FLOAT), fleet_digest(fleet, "1.0.0", FLOAT)
    for device in fleet.devices:
        device.error_share[bad] = 0.06
    rollout = fleet.launch("1.1.0")
    fleet.run_until(rollout, "ROLLING_BACK", "ROLLED_BACK")
    assert fleet.profile(rollout, FLOAT).evidence["guardrail"] == "errors"
    assert fleet.wanted(FLOAT).candidates == ()
    assert fleet.run_until(rollout, "ROLLED_BACK") == "ROLLED_BACK"
    assert {device.active for device in fleet.devices} == {good}


def test_the_first_version_of_all_can_be_rolled_back_to_nothing(fleet):
    fleet.enrol(FLOAT, 4)
    fleet.publish("1.0.0", 1)
    for device in fleet.devices:
        device.error_share[fleet_digest(fleet, "1.0.0", FLOAT)] = 0.5
    rollout = fleet.launch("1.0.0")
    fleet.run_until(rollout, "ROLLED_BACK")
    assert fleet.stable(FLOAT) is None
    assert {device.active for device in fleet.devices} == {None}


def test_without_inferences_a_stage_holds_and_then_asks_a_person(fleet):
    fleet.enrol(FLOAT, 4)
    for device in fleet.devices:
        device.rate = 0
    fleet.publish("1.0.0", 1)
    rollout = fleet.launch("1.0.0", plan={"max_hold_seconds": 100})
    fleet.steps(10)
    assert fleet.state(rollout) == "CANARY"
    fleet.run_until(rollout, "PAUSED")
    assert "none in this stage" in fleet.profile(rollout, FLOAT).reason
    for device in fleet.devices:
        device.rate = 100
    lifecycle.resume(fleet.controller.direction, rollout, actor="bob", now=fleet.now)
    assert fleet.run_until(rollout, "COMPLETED") == "COMPLETED"


def test_pause_stops_advancing_but_the_guardrails_go_on_watching(fleet):
    fleet.enrol(FLOAT, 4)
    fleet.publish("1.0.0", 1)
    rollout = fleet.launch("1.0.0")
    fleet.steps(1)
    lifecycle.pause(fleet.controller.direction, rollout, actor="bob", now=fleet.now)
    fleet.steps(20)
    assert fleet.state(rollout) == "PAUSED"
    for device in fleet.devices:
        device.error_share[fleet_digest(fleet, "1.0.0", FLOAT)] = 0.5
    assert fleet.run_until(rollout, "ROLLED_BACK") == "ROLLED_BACK"


def test_halt_lets_nobody_else_start_and_resume_goes_on(fleet):
    fleet.enrol(FLOAT, 12)
    fleet.publish("1.0.0", 1)
    rollout = fleet.launch("1.0.0")
    lifecycle.halt(fleet.controller.direction, rollout, actor="bob", now=fleet.now, reason="looks odd")
    fleet.controller.dispatch()
    fleet.steps(5)
    assert (fleet.state(rollout), fleet.row(rollout).reason) == ("HALTED", "looks odd")
    assert fleet.wanted(FLOAT).candidates[0].accept is False
    assert {device.active for device in fleet.devices} == {None}
    lifecycle.resume(fleet.controller.direction, rollout, actor="bob", now=fleet.now)
    assert fleet.run_until(rollout, "COMPLETED") == "COMPLETED"


def test_a_completed_rollout_can_be_rolled_back_to_the_former_stable(fleet):
    rolled_out(fleet)
    fleet.publish("1.1.0", 2)
    rollout = fleet.launch("1.1.0")
    fleet.run_until(rollout, "COMPLETED")
    lifecycle.rollback(fleet.controller.direction, rollout, actor="bob", now=fleet.now, reason="complaints")
    assert fleet.run_until(rollout, "ROLLED_BACK") == "ROLLED_BACK"
    assert fleet.stable(FLOAT) == "1.0.0"
    assert {device.active for device in fleet.devices} == {fleet_digest(fleet, "1.0.0", FLOAT)}
    with fleet.registry.sessions() as session:
        stable = catalog.stable_variant(session, "acme", "digits", FLOAT)
        assert stable is not None
        assert stable.version == "1.0.0"


def counted(fleet, rollout):
    """How many started, have committed and run it still, and went back because the rollout did."""
    with fleet.registry.sessions() as session:
        found = find(session, TENANT, rollout)
        reading = reading_of(session, found, profiles_of(session, found)[0], fleet.now)
    return reading.started, reading.committed, reading.returned


def test_devices_that_do_not_prove_to_be_back_are_listed_until_they_do(fleet):
    rolled_out(fleet)
    fleet.publish("1.1.0", 2)
    rollout = fleet.launch("1.1.0")
    fleet.run_until(rollout, "COMPLETED")
    stuck = fleet.devices.pop(0)
    stuck.come_online()
    lifecycle.rollback(fleet.controller.direction, rollout, actor="bob", now=fleet.now, reason="wrong at night")
    fleet.run_until(rollout, "ROLLBACK_INCOMPLETE")
    assert counted(fleet, rollout) == (6, 1, 5)
    assert fleet.profile(rollout, FLOAT).unproven == [stuck.id]
    assert fleet.profile(rollout, FLOAT).reason == "wrong at night; 1 devices have not proved to be back"
    fleet.devices.append(stuck)
    assert fleet.run_until(rollout, "ROLLED_BACK") == "ROLLED_BACK"
    assert fleet.profile(rollout, FLOAT).unproven == []
    assert fleet.profile(rollout, FLOAT).reason == "wrong at night", "who looks now asks why it went back"
    assert counted(fleet, rollout) == (6, 0, 6)


def test_a_device_that_is_offline_neither_blocks_nor_dilutes(fleet):
    fleet.enrol(FLOAT, 12)
    fleet.publish("1.0.0", 1)
    fleet.devices = fleet.devices[:9]
    rollout = fleet.launch("1.0.0", plan={"stages": [0.9, 1.0]})
    assert fleet.run_until(rollout, "COMPLETED") == "COMPLETED"
    assert fleet.profile(rollout, FLOAT).evidence["devices"]["started"] == 9


def test_replayed_and_reordered_and_repeated_messages_change_nothing(fleet):
    rollout = rolled_out(fleet)
    before = trials(fleet)
    for device in fleet.devices:
        for topic, payload in [*reversed(device.sent), *device.sent, *device.sent[::3]]:
            device.broker.publish(topic, payload)
    fleet.controller.tick(fleet.now)
    assert trials(fleet) == before
    assert fleet.state(rollout) == "COMPLETED"


def test_a_rollout_goes_the_same_way_when_messages_arrive_shuffled(fleet):
    fleet.enrol(FLOAT, 6)
    fleet.publish("1.0.0", 1)
    for device in fleet.devices:
        device.quiet = True

    def deliver_backwards() -> None:
        for device in fleet.devices:
            for topic, payload in reversed(device.sent):
                device.broker.publish(topic, payload)
            device.sent.clear()

    rollout = fleet.launch("1.0.0")
    for _ in range(40):
        fleet.steps(1, deliver_backwards)
    assert fleet.state(rollout) == "COMPLETED"
    assert {row[1] for row in trials(fleet)} == {"COMMITTED"}


@pytest.mark.parametrize(("lost", "committed"), [(2, 4), (3, 2)])
def test_reports_that_the_broker_took_and_lost_are_asked_for_again(fleet, lost, committed):
    """Without the signed COMMITTED no stage advances, so the two canaries were asked; later devices do not block."""
    fleet.enrol(FLOAT, 4)
    fleet.publish("1.0.0", 1)
    for device in fleet.devices:
        device.loses = lost
    rollout = fleet.launch("1.0.0")
    assert fleet.run_until(rollout, "COMPLETED") == "COMPLETED"
    assert fleet.profile(rollout, FLOAT).evidence["devices"]["committed"] == committed


def test_a_lost_proof_of_being_back_is_asked_for_again(fleet):
    rolled_out(fleet)
    fleet.publish("1.1.0", 2)
    rollout = fleet.launch("1.1.0")
    fleet.run_until(rollout, "COMPLETED")
    for device in fleet.devices:
        device.loses = 2
    lifecycle.rollback(fleet.controller.direction, rollout, actor="bob", now=fleet.now)
    fleet.controller.dispatch()
    fleet.steps(1)
    assert fleet.state(rollout) == "ROLLING_BACK"
    assert fleet.run_until(rollout, "ROLLED_BACK", limit=11) == "ROLLED_BACK"


class FailingBroker(MemoryBroker):
    """A connection that fails at its n-th publication, as a process killed there would."""

    left = 10**9

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        self.left -= 1
        if self.left == 0:
            raise ConnectionAbortedError("killed while publishing")
        return super().publish(topic, payload, qos=qos, retain=retain)


def test_a_controller_killed_at_any_commit_ends_in_the_same_state(fleet):
    """Every commit in turn fails once before it is durable, and the controller starts anew."""
    rolled_out(fleet, floats=4)
    for number, left in enumerate((1, 2, 3, 5, 8)):
        version = f"1.{number + 1}.0"
        fleet.publish(version, number + 2)
        rollout = fleet.launch(version)
        kill_at_commit(fleet, left)
        assert fleet.run_until(rollout, "COMPLETED") == "COMPLETED"
        assert fleet.trail(rollout, profile=FLOAT) == [f"rollout.{e}" for e in ("start", "advance", "soak", "complete")]
        assert fleet.stable(FLOAT) == version


def kill_at_commit(fleet, left: int) -> None:
    """Have the `left`-th commit from now fail, and a new controller take over."""
    remaining = [left]

    def fail(_connection) -> None:
        remaining[0] -= 1
        if remaining[0] == 0:
            raise ConnectionAbortedError("killed before the commit")

    event.listen(fleet.engine, "commit", fail)
    with contextlib.suppress(ConnectionAbortedError):
        fleet.steps(4)
    event.remove(fleet.engine, "commit", fail)
    assert remaining[0] <= 0
    fleet.crash()
    fleet.start_controller()


@pytest.mark.parametrize("left", [1, 2, 3])
def test_a_controller_killed_while_publishing_publishes_after_its_restart(fleet, left):
    rolled_out(fleet, floats=4)
    fleet.publish("1.1.0", 2)
    fleet.crash()
    broker = FailingBroker(fleet.hub)
    fleet.start_controller(broker)
    broker.left = left
    rollout = fleet.create("1.1.0")
    fleet.approve(rollout)
    lifecycle.start(fleet.controller.direction, rollout, actor="ada", now=fleet.now)
    with contextlib.suppress(ConnectionAbortedError):  # in a tick, or on the thread that publishes
        for _ in range(20):
            fleet.steps(1)
            if broker.left <= 0:
                break
    assert broker.left <= 0
    fleet.crash()
    fleet.start_controller()
    assert fleet.run_until(rollout, "COMPLETED") == "COMPLETED"
    assert fleet.stable(FLOAT) == "1.1.0"


def test_two_controllers_never_decide_the_same_thing_twice(fleet):
    import threading

    fleet.enrol(FLOAT, 4)
    fleet.publish("1.0.0", 1)
    director = load_signer(fleet.ceremony.director_key)
    second = Controller(fleet.registry, fleet.hub.client(), director, lambda: fleet.now)
    rollout = fleet.launch("1.0.0")

    def both_tick() -> None:
        other = threading.Thread(target=second.tick, args=(fleet.now,))
        other.start()
        fleet.controller.tick(fleet.now)
        other.join()

    for _ in range(25):
        fleet.steps(1, both_tick)
    assert fleet.state(rollout) == "COMPLETED"
    assert fleet.trail(rollout, profile=FLOAT) == [f"rollout.{e}" for e in ("start", "advance", "soak", "complete")]


def test_a_broker_that_lost_its_memory_gets_every_document_again(fleet):
    rolled_out(fleet, floats=2)
    fleet.hub.retained.clear()
    fleet.connections[-1].drop()
    fleet.connections[-1].reconnect()
    until(lambda: len([topic for topic in fleet.hub.retained if topic.endswith("/desired")]) == 3)
    assert fleet.stable(FLOAT) == "1.0.0"


def test_agents_are_told_whether_a_controller_is_there(fleet):
    assert parse_status(fleet.hub.retained[host_topic("acme")]).state == "online"
    fleet.connections[-1].drop()
    assert parse_status(fleet.hub.retained[host_topic("acme")]).state == "offline"


def test_a_device_that_enrols_later_finds_its_documents_and_converges(fleet):
    rollout = rolled_out(fleet, floats=4)
    late = fleet.enrol(FLOAT, 1, group="shop")[0]
    assert late.slot().stable is None
    from_lab = fleet.enrol(FLOAT, 5)[4]
    fleet.steps(1)
    assert from_lab.active == fleet.profile(rollout, FLOAT).release["sha256"]


def test_documents_are_signed_again_daily_with_a_higher_seq(fleet):
    from datetime import timedelta

    fleet.enrol(FLOAT, 1)
    topic = group_desired_topic("acme", "lab", FLOAT)
    before = fleet.hub.retained[topic]
    fleet.now += timedelta(days=1, seconds=1)
    fleet.controller.tick(fleet.now)
    assert fleet.hub.retained[topic] != before
    with fleet.registry.sessions() as session:
        for row in session.scalars(select(DesiredDocument)):
            assert row.seq == row.published_seq == int(fleet.now.timestamp() * 1000)


def test_a_clock_that_went_back_never_lowers_seq(fleet):
    from datetime import timedelta

    fleet.enrol(FLOAT, 4)
    fleet.publish("1.0.0", 1)
    with fleet.registry.sessions() as session:
        before = {row.scope: row.seq for row in session.scalars(select(DesiredDocument))}
    fleet.now -= timedelta(days=300)
    fleet.launch("1.0.0")
    with fleet.registry.sessions() as session:
        after = {row.scope: row.seq for row in session.scalars(select(DesiredDocument))}
    assert after[f"g/lab/{FLOAT}"] == before[f"g/lab/{FLOAT}"] + 1


def test_samples_are_thinned_to_sixty_in_the_window(fleet):
    fleet.enrol(FLOAT, 4)
    for device in fleet.devices:
        device.rate = 0
    fleet.publish("1.0.0", 1)
    fleet.launch("1.0.0")
    fleet.steps(30)
    with fleet.registry.sessions() as session:
        times = {row.at for row in session.scalars(select(HealthSample))}
    assert len(times) == 10


def fleet_digest(fleet, version: str, profile: str) -> str:
    with fleet.registry.sessions() as session:
        return catalog.release_of(session, "acme", "digits", version, profile).sha256


def trials(fleet) -> list[tuple[str, str, int, int, str | None]]:
    with fleet.registry.sessions() as session:
        rows = session.scalars(select(DeviceTrial).order_by(DeviceTrial.rollout, DeviceTrial.device))
        return [(row.device, row.state, row.boot, row.seq, row.outcome) for row in rows]
