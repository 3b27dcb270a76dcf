"""What a polling device is asked to install: the same desired state as everybody's, an action at a time."""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from sqlalchemy import select

from modelfleet.agent_client.protocol import DeviceState, Report, device_topic, encode
from modelfleet.registry.tables import AuditRecord, Device
from modelfleet.rollout.changes import lifecycle
from modelfleet.rollout.ddi.actions import poll
from modelfleet.rollout.ddi.devices import forget_absent
from modelfleet.rollout.desired.retries import retry
from modelfleet.rollout.tables import DeviceSlot, DeviceTrial
from modelfleet.signer.sign import sign_report
from tests.unit.rollout.conftest import FLOAT, TENANT
from tests.unit.rollout.ddi.conftest import ACCEPTING, PLAN, SLOT, Ddi, Polling


def slot_of(ddi: Ddi, device: Polling) -> DeviceSlot:
    with ddi.fleet.registry.sessions() as session:
        return session.get_one(DeviceSlot, (device.id, SLOT))


def trials(ddi: Ddi, rollout: str) -> list[DeviceTrial]:
    with ddi.fleet.registry.sessions() as session:
        return list(session.scalars(select(DeviceTrial).where(DeviceTrial.rollout == rollout)))


def test_a_candidate_is_installed_counts_and_becomes_stable_without_being_offered_again(ddi: Ddi) -> None:
    digest = ddi.publish("1.0.0", 1)
    device = ddi.device()
    assert device.offered() is None
    rollout = ddi.launch("1.0.0")
    action = device.offered()
    assert action is not None
    assert device.offered() == action  # the same until it ends
    assert trials(ddi, rollout) == []  # offered is not started
    device.get(f"/deploymentBase/{action}")
    assert [(each.state, each.outcome) for each in trials(ddi, rollout)] == [("PREFLIGHT", None)]
    assert device.install() == action
    assert [(each.state, each.outcome) for each in trials(ddi, rollout)] == [("COMMITTED", "COMMITTED")]
    assert (slot_of(ddi, device).active, slot_of(ddi, device).proven) == (digest, digest)
    ddi.complete(rollout)
    assert device.offered() is None
    assert ddi.actions(device) == [("1.0.0", "SUCCEEDED")]


def test_a_plan_that_accepts_nothing_unsigned_tries_nothing_on_it(ddi: Ddi) -> None:
    ddi.publish("1.0.0", 1)
    device, (native,) = ddi.device(), ddi.fleet.enrol(FLOAT, 1)
    rollout = ddi.launch("1.0.0", PLAN)
    assert device.offered() is None
    ddi.fleet.steps(1)
    assert [each.device for each in trials(ddi, rollout)] == [native.id]
    ddi.complete(rollout)
    device.install()  # stable it takes like everybody, and what it says of it proves nothing
    assert [each.device for each in trials(ddi, rollout)] == [native.id]
    assert (slot_of(ddi, device).active, slot_of(ddi, device).proven) == (ddi.digests["1.0.0"], None)


def test_inferences_are_waited_for_as_soon_as_a_device_that_counts_them_takes_part(ddi: Ddi) -> None:
    ddi.publish("1.0.0", 1)
    device, (native,) = ddi.device(), ddi.fleet.enrol(FLOAT, 1)
    native.rate = 0
    rollout = ddi.launch("1.0.0")
    device.install()
    ddi.fleet.steps(3)
    assert ddi.fleet.state(rollout) == "CANARY"


def test_a_halt_starts_nobody_and_stops_who_has_begun(ddi: Ddi) -> None:
    ddi.publish("1.0.0", 1)
    unseen, begun, done = ddi.device("a"), ddi.device("b"), ddi.device("c")
    rollout = ddi.launch("1.0.0")
    assert unseen.offered() is not None
    action = begun.offered()
    begun.get(f"/deploymentBase/{action}")
    done.install()
    lifecycle.halt(ddi.fleet.controller.direction, rollout, actor="ada", now=ddi.fleet.now, reason="a smell")
    assert unseen.links().keys() == {"configData"}
    assert ddi.actions(unseen) == [("1.0.0", "CANCELLED")]
    assert begun.links()["cancelAction"].endswith(f"/cancelAction/{action}")
    assert "deploymentBase" not in begun.links()
    assert begun.get(f"/deploymentBase/{action}").status_code == 410
    assert begun.get(f"/cancelAction/{action}").json() == {
        "id": str(action),
        "cancelAction": {"stopId": str(action)},
    }
    assert begun.feedback(action or 0, "closed", "success", kind="cancelAction") == 200
    assert ddi.actions(begun) == [("1.0.0", "CANCELLED")]
    assert begun.offered() is None
    assert done.offered() is None  # who has activated stays


def test_a_newer_release_is_offered_once_the_older_one_that_was_begun_is_cancelled(ddi: Ddi) -> None:
    ddi.publish("1.0.0", 1)
    ddi.publish("1.1.0", 2)
    device = ddi.device()
    ddi.launch("1.0.0")
    action = device.offered() or 0
    device.fetch(action)
    ddi.fleet.launch("1.1.0", plan=ACCEPTING, supersede=True)
    links = device.links()
    assert "deploymentBase" not in links
    assert links["cancelAction"].endswith(f"/cancelAction/{action}")
    assert device.feedback(action, "closed", "success", kind="cancelAction") == 200
    assert device.install() > action
    assert ddi.actions(device) == [("1.0.0", "CANCELLED"), ("1.1.0", "SUCCEEDED")]


def test_a_rollback_sends_the_former_release_as_a_new_action_and_is_proved(ddi: Ddi) -> None:
    first, second = ddi.publish("1.0.0", 1), ddi.publish("1.1.0", 2)
    device = ddi.device()
    rollout = ddi.launch("1.0.0")
    old = device.install()
    ddi.complete(rollout)
    rollout = ddi.launch("1.1.0")
    device.install()
    ddi.fleet.run_until(rollout, "SOAK")
    lifecycle.rollback(ddi.fleet.controller.direction, rollout, actor="ada", now=ddi.fleet.now, reason="no")
    ddi.tick()
    assert ddi.fleet.state(rollout) == "ROLLING_BACK"
    back = device.install()
    assert back > old
    assert ddi.action(back).digest == first != second
    ddi.fleet.run_until(rollout, "ROLLED_BACK")
    assert ddi.actions(device) == [("1.0.0", "SUCCEEDED"), ("1.1.0", "SUCCEEDED"), ("1.0.0", "SUCCEEDED")]


def test_a_device_that_does_not_cancel_ends_what_it_began_and_then_goes_back(ddi: Ddi) -> None:
    ddi.publish("1.0.0", 1)
    ddi.publish("1.1.0", 2)
    device = ddi.device()
    rollout = ddi.launch("1.0.0")
    device.install()
    ddi.complete(rollout)
    rollout = ddi.launch("1.1.0")
    action = device.offered() or 0
    device.fetch(action)
    lifecycle.rollback(ddi.fleet.controller.direction, rollout, actor="ada", now=ddi.fleet.now, reason="no")
    assert "cancelAction" in device.links()
    assert device.feedback(action, "rejected", kind="cancelAction") == 200
    assert device.offered() == action
    assert device.feedback(action, "closed", "success") == 200
    device.install()
    assert ddi.actions(device) == [("1.0.0", "SUCCEEDED"), ("1.1.0", "SUCCEEDED"), ("1.0.0", "SUCCEEDED")]


def test_what_was_installed_and_never_confirmed_is_replaced_when_it_is_taken_back(ddi: Ddi) -> None:
    ddi.publish("1.0.0", 1)
    ddi.publish("1.1.0", 2)
    device = ddi.device()
    rollout = ddi.launch("1.0.0")
    device.install()
    ddi.complete(rollout)
    rollout = ddi.launch("1.1.0")
    action = device.offered() or 0
    device.fetch(action)
    assert device.feedback(action, "proceeding", "none", ["All Chunks Installed."]) == 200
    assert slot_of(ddi, device).state == "ACTIVATING"
    lifecycle.rollback(ddi.fleet.controller.direction, rollout, actor="ada", now=ddi.fleet.now, reason="no")
    device.install()  # although it had confirmed this release before, nobody knows what runs now
    assert ddi.actions(device) == [("1.0.0", "SUCCEEDED"), ("1.1.0", "CANCELLED"), ("1.0.0", "SUCCEEDED")]


def test_a_failure_is_kept_by_digest_also_when_the_release_becomes_stable_until_a_retry(ddi: Ddi) -> None:
    ddi.publish("1.0.0", 1)
    device, other = ddi.device(), ddi.device("cam-2")
    rollout = ddi.launch("1.0.0")
    action = device.offered() or 0
    assert device.feedback(action, "closed", "failure", ["no space left"]) == 200
    assert ddi.action(action).reason == "no space left"
    assert device.offered() is None
    other.install()
    with ddi.fleet.registry.sessions() as session:
        found = session.get_one(DeviceTrial, (rollout, device.id))
        assert (found.outcome, found.error) == ("REJECTED", {"kind": "DdiFailure", "message": "no space left"})
    assert device.offered() is None
    assert ddi.http.post("/v1/ddi/devices/cam-1/retry", headers=ddi.admin).json() == {"forgiven": 1}
    again = device.install()
    assert again != action


def test_a_retry_of_the_rollout_reaches_it_as_every_device_and_only_for_what_had_failed_by_then(ddi: Ddi) -> None:
    ddi.publish("1.0.0", 1)
    device = ddi.device()
    rollout = ddi.launch("1.0.0")
    assert device.feedback(device.offered() or 0, "closed", "failure") == 200
    assert device.offered() is None
    retry(ddi.fleet.controller.direction, rollout, devices=[device.id], actor="ada", now=datetime.now(UTC))
    assert device.feedback(device.offered() or 0, "closed", "failure") == 200
    assert device.offered() is None
    assert ddi.actions(device) == [("1.0.0", "FAILED")] * 2


def test_a_device_that_gives_up_three_times_is_left_alone(ddi: Ddi) -> None:
    ddi.publish("1.0.0", 1)
    device = ddi.device()
    ddi.launch("1.0.0")
    for _ in range(3):
        action = device.offered()
        assert action is not None
        assert device.feedback(action, "canceled") == 200
    assert device.offered() is None
    assert ddi.actions(device) == [("1.0.0", "ABANDONED")] * 3


def test_a_window_opens_by_the_zone_that_the_device_has_named(ddi: Ddi) -> None:
    ddi.publish("1.0.0", 1)
    east, unnamed = ddi.device("east"), ddi.device("unnamed")
    body = {"data": {"timezone": "Etc/GMT-6"}}  # six hours ahead of UTC, as POSIX counts
    assert east.http.put(f"{east.path}/configData", json=body, headers=east.headers).status_code == 200
    opened = datetime.now(UTC) + timedelta(hours=6) - timedelta(minutes=30)
    ddi.launch("1.0.0", ACCEPTING | {"windows": [{"start": f"{opened:%H:%M}", "minutes": 60, "zone": "device"}]})
    assert east.offered() is not None
    assert unnamed.offered() is None


def test_what_asks_for_the_devices_own_judgement_is_not_offered(ddi: Ddi) -> None:
    ddi.publish("1.0.0", 1)
    device = ddi.device()
    ddi.launch("1.0.0", ACCEPTING | {"conditions": {"network": "unmetered"}})
    assert device.offered() is None


def test_the_token_of_a_revoked_device_opens_nothing(ddi: Ddi) -> None:
    device = ddi.device()
    assert device.get().status_code == 200
    with ddi.fleet.registry.sessions.begin() as session:
        session.get_one(Device, device.id).revoked_at = ddi.fleet.now
    assert device.get().status_code == 401


def test_polling_is_a_sign_of_life_and_its_absence_the_end_of_one(ddi: Ddi) -> None:
    def online() -> bool:
        with ddi.fleet.registry.sessions() as session:
            return session.get_one(Device, device.id).online

    device = ddi.device()
    assert not online()
    device.links()
    assert online()
    forget_absent(ddi.fleet.registry, ddi.fleet.now + timedelta(minutes=5))
    assert online()
    forget_absent(ddi.fleet.registry, ddi.fleet.now + timedelta(minutes=20))
    assert not online()


def test_a_trial_asks_its_devices_to_poll_so_often_that_none_is_silent(ddi: Ddi) -> None:
    ddi.publish("1.0.0", 1)
    device = ddi.device()
    assert device.get().json()["config"] == {"polling": {"sleep": "00:05:00"}}
    ddi.launch("1.0.0")
    device.install()
    assert device.get().json()["config"] == {"polling": {"sleep": "00:00:10"}}  # the plan's metrics_seconds


def test_every_move_is_in_the_audit_trail_as_unsigned(ddi: Ddi) -> None:
    ddi.publish("1.0.0", 1)
    device = ddi.device()
    ddi.launch("1.0.0")
    action = device.install()
    with ddi.fleet.registry.sessions() as session:
        mine = select(AuditRecord).where(AuditRecord.subject == f"device/{device.id}").order_by(AuditRecord.id)
        moves = [row for row in session.scalars(mine) if row.action == "ddi-action.move"]
        assert [(row.actor, row.detail["to"]) for row in moves] == [
            ("system:controller", "OPEN"),
            (f"device:{device.id}", "SUCCEEDED"),
        ]
        assert all(row.detail["id"] == action and row.detail["signed"] is False for row in moves)


def test_what_the_signer_refuses_is_not_offered_and_it_is_asked_once_however_many_poll(
    ddi: Ddi, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "swu.crt.pem").rename(tmp_path / "elsewhere")
    ddi.publish("1.0.0", 1)
    devices = [ddi.device(f"cam-{number}", artifacts="swu") for number in range(3)]
    ddi.launch("1.0.0")
    with caplog.at_level(logging.WARNING):
        assert [device.offered() for device in devices] == [None] * 3
    assert "ddi keys init" in caplog.records[-1].__dict__["error"]
    (tmp_path / "elsewhere").rename(tmp_path / "swu.crt.pem")
    assert devices[0].offered() is None
    later = ddi.fleet.now + timedelta(minutes=2)
    assert poll(ddi.app.state.registry, devices[0].id, later).action is not None


def test_documents_that_have_expired_start_nothing_and_stop_nothing(ddi: Ddi) -> None:
    ddi.publish("1.0.0", 1)
    begun, idle = ddi.device("begun"), ddi.device("idle")
    ddi.launch("1.0.0", ACCEPTING | {"deadline_seconds": 30 * 86400})
    action = begun.offered() or 0
    begun.fetch(action)
    late = ddi.fleet.now + timedelta(days=6, hours=23), ddi.fleet.now + timedelta(days=8)
    assert [poll(ddi.app.state.registry, begun.id, now).cancel for now in late] == [False, False]
    assert poll(ddi.app.state.registry, begun.id, late[1]).action == action
    assert poll(ddi.app.state.registry, idle.id, late[1]).action is None
    assert poll(ddi.app.state.registry, idle.id, late[0]).action is not None


def test_what_comes_over_mqtt_in_the_name_of_a_device_without_a_key_is_dropped(ddi: Ddi) -> None:
    device = ddi.device()
    said = Report(device=device.id, boot=9, seq=9, slot=SLOT, state=DeviceState.COMMITTED, digest="1" * 64)
    letters = [encode(said), sign_report(encode(said), CryptoSigner.generate_ecdsa())]
    topic = device_topic(TENANT, device.id, "report")
    assert ddi.fleet.controller.ingest.accept([(topic, letter) for letter in letters], ddi.fleet.now) == 0


@pytest.mark.parametrize("artifacts", ["files", "swu"])
def test_devices_of_one_group_share_one_delivery(ddi: Ddi, artifacts: str) -> None:
    ddi.publish("1.0.0", 1)
    first, second = ddi.device("a", artifacts=artifacts), ddi.device("b", artifacts=artifacts)
    ddi.launch("1.0.0")
    assert first.fetch(first.offered() or 0) == second.fetch(second.offered() or 0)
    assert ddi.action(first.offered() or 0).module == ddi.action(second.offered() or 0).module
