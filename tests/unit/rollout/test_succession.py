"""A running rollout ended by a person, or by the next one: devices go straight to what is wanted, and prove that they left."""

import pytest

from modelfleet.rollout.changes import lifecycle
from modelfleet.rollout.errors import RolloutConflictError, TransitionError

FLOAT, INT8 = "linux-cpu-float", "linux-cpu-int8"


@pytest.fixture
def settled(fleet):
    """A fleet on 1.0.0."""
    fleet.enrol(FLOAT, 4)
    fleet.publish("1.0.0", 1)
    fleet.settle("1.0.0")
    fleet.publish("1.1.0", 2)
    return fleet


@pytest.fixture
def running(settled):
    """A fleet on 1.0.0 whose rollout of 1.1.0 is with its canaries."""
    settled.old = settled.launch("1.1.0", plan={"bake_seconds": 600})
    settled.steps(2)
    return settled


def digest(fleet, version: str) -> str:
    from tests.unit.rollout.conftest import digest_of

    return digest_of(version, FLOAT)


def on(fleet, version: str) -> int:
    return sum(device.active == digest(fleet, version) for device in fleet.devices)


def cancel(fleet, rollout: str) -> None:
    lifecycle.cancel(fleet.controller.direction, rollout, actor="ada", now=fleet.now, reason="wrong week")
    fleet.controller.dispatch()


def start(fleet, rollout: str) -> None:
    lifecycle.start(fleet.controller.direction, rollout, actor="ada", now=fleet.now)
    fleet.controller.dispatch()


def test_cancelling_what_runs_takes_it_back_and_ends_cancelled_once_all_have_proved_it(running):
    assert on(running, "1.1.0") == 2
    cancel(running, running.old)
    assert (running.state(running.old), running.row(running.old).reason) == ("ROLLING_BACK", "wrong week")
    assert running.wanted(FLOAT).candidates == ()
    running.run_until(running.old, "CANCELLED")
    assert running.verdicts(running.old) == {FLOAT: "ROLLED_BACK"}
    assert on(running, "1.0.0") == 4
    assert running.trail(running.old)[-4:] == [
        "rollout.cancel",
        "rollout.cancel",
        "rollout.prove",
        "rollout.prove-cancel",
    ]


@pytest.mark.parametrize("action", [lifecycle.pause, lifecycle.halt])
def test_what_is_paused_or_halted_can_be_cancelled(running, action):
    action(running.controller.direction, running.old, actor="ada", now=running.now)
    cancel(running, running.old)
    assert running.run_until(running.old, "CANCELLED") == "CANCELLED"


def test_an_end_cannot_be_cancelled_and_neither_can_a_rollback(running):
    lifecycle.rollback(running.controller.direction, running.old, actor="ada", now=running.now)
    with pytest.raises(TransitionError, match="no profile is on trial"):
        cancel(running, running.old)
    running.run_until(running.old, "ROLLED_BACK")
    with pytest.raises(TransitionError):
        cancel(running, running.old)


def test_what_completed_in_a_cancelled_rollout_stays_and_can_be_rolled_back(fleet):
    fleet.enrol(FLOAT, 2)
    fleet.enrol(INT8, 2)
    fleet.publish("1.0.0", 1)
    rollout = fleet.launch("1.0.0")
    lifecycle.pause(fleet.controller.direction, rollout, actor="ada", now=fleet.now, profile=INT8)
    for _ in range(30):
        fleet.steps(1)
        if fleet.verdicts(rollout)[FLOAT] == "COMPLETED":
            break
    assert fleet.verdicts(rollout) == {FLOAT: "COMPLETED", INT8: "PAUSED"}
    cancel(fleet, rollout)
    assert fleet.run_until(rollout, "COMPLETED") == "COMPLETED"
    assert (fleet.stable(FLOAT), fleet.stable(INT8)) == ("1.0.0", None)
    lifecycle.rollback(fleet.controller.direction, rollout, actor="ada", now=fleet.now)
    assert fleet.run_until(rollout, "ROLLED_BACK") == "ROLLED_BACK"


def test_a_device_that_comes_back_late_ends_the_cancelled_rollout(running):
    stuck = next(device for device in running.devices if device.active == digest(running, "1.1.0"))
    running.devices.remove(stuck)
    stuck.come_online()
    cancel(running, running.old)
    running.run_until(running.old, "ROLLBACK_INCOMPLETE")
    running.devices.append(stuck)
    assert running.run_until(running.old, "CANCELLED") == "CANCELLED"


def test_a_second_rollout_is_refused_unless_it_supersedes(running):
    running.publish("1.2.0", 3)
    with pytest.raises(RolloutConflictError, match="supersede"):
        running.create("1.2.0")
    assert running.state(running.create("1.2.0", supersede=True)) == "AWAITING_APPROVAL"
    assert running.state(running.old) == "CANARY"


def test_the_old_candidate_leaves_in_the_signature_in_which_the_new_one_appears(running):
    running.publish("1.2.0", 3)
    new = running.create("1.2.0", supersede=True)
    running.approve(new)
    before = documents(running)
    start(running, new)
    assert [each.rollout for each in running.wanted(FLOAT).candidates] == [new]
    assert documents(running) == before + 1
    assert running.state(running.old) == "ROLLING_BACK"
    running.run_until(running.old, "SUPERSEDED")
    assert running.row(running.old).superseded_by == new
    assert running.run_until(new, "COMPLETED") == "COMPLETED"
    assert on(running, "1.2.0") == 4


def documents(fleet) -> int:
    from sqlalchemy import func, select

    from modelfleet.registry.tables import AuditRecord

    issued = (AuditRecord.action == "desired.issue") & (AuditRecord.subject == f"desired/g/lab/{FLOAT}")
    with fleet.registry.sessions() as session:
        return session.scalar(select(func.count()).select_from(AuditRecord).where(issued))


def test_superseding_by_the_same_version_leaves_nothing_to_prove(running):
    new = running.create("1.1.0", supersede=True)
    running.approve(new)
    start(running, new)
    assert running.run_until(new, "COMPLETED") == "COMPLETED"
    assert running.state(running.old) == "SUPERSEDED"


def test_what_rolls_back_already_frees_its_slot_for_what_supersedes_it_and_keeps_its_reason(running):
    for device in running.devices:
        device.error_share[digest(running, "1.1.0")] = 0.5
    running.run_until(running.old, "ROLLING_BACK", "ROLLED_BACK")
    stuck = [device for device in running.devices if device.active == digest(running, "1.1.0")]
    if running.state(running.old) == "ROLLING_BACK":
        for device in stuck:
            running.devices.remove(device)
    running.publish("1.2.0", 3)
    new = running.create("1.2.0", supersede=True)
    running.approve(new)
    start(running, new)
    assert (
        running.profile(running.old, FLOAT).reason.startswith("more errors")
        or "errors" in running.profile(running.old, FLOAT).reason
    )
    running.devices += [device for device in stuck if device not in running.devices]
    assert running.run_until(running.old, "ROLLED_BACK") == "ROLLED_BACK"


def test_what_would_supersede_waits_while_the_old_one_completes(settled):
    old = settled.launch("1.1.0", plan={"stages": [1.0], "bake_seconds": 0, "soak_seconds": 0})
    settled.publish("1.2.0", 3)
    new = settled.create("1.2.0", supersede=True)
    settled.approve(new)
    settled.run_until(old, "COMPLETED")
    start(settled, new)
    assert settled.state(old) == "COMPLETED"
    assert settled.profile(new, FLOAT).previous["lab"]["version"] == "1.1.0"


def test_a_crash_at_any_commit_leaves_the_old_or_the_new_candidate_and_never_both(running):
    import contextlib

    from sqlalchemy import event

    running.publish("1.2.0", 3)
    new = running.create("1.2.0", supersede=True)
    running.approve(new)

    def fail(_connection) -> None:
        raise ConnectionAbortedError("killed before the commit")

    event.listen(running.engine, "commit", fail)
    with contextlib.suppress(ConnectionAbortedError):
        start(running, new)
    event.remove(running.engine, "commit", fail)
    running.crash()
    running.start_controller()
    running.controller.tick(running.now)
    assert (running.state(running.old), running.state(new)) == ("CANARY", "SCHEDULED")
    assert [each.rollout for each in running.wanted(FLOAT).candidates] == [running.old]
    start(running, new)
    assert [each.rollout for each in running.wanted(FLOAT).candidates] == [new]


def test_one_profile_alone_is_paused_resumed_halted_and_rolled_back(fleet):
    fleet.enrol(FLOAT, 2)
    fleet.enrol(INT8, 2)
    fleet.publish("1.0.0", 1)
    rollout = fleet.launch("1.0.0", plan={"bake_seconds": 600})
    direction = fleet.controller.direction
    for action, verdict in ((lifecycle.pause, "PAUSED"), (lifecycle.resume, "CANARY"), (lifecycle.halt, "HALTED")):
        action(direction, rollout, actor="ada", now=fleet.now, profile=INT8)
        assert fleet.verdicts(rollout) == {FLOAT: "CANARY", INT8: verdict}
    lifecycle.rollback(direction, rollout, actor="ada", now=fleet.now, profile=INT8)
    fleet.controller.dispatch()
    assert (fleet.wanted(FLOAT).candidates != (), fleet.wanted(INT8).candidates) == (True, ())
    from modelfleet.rollout.errors import RolloutInputError

    with pytest.raises(RolloutInputError, match=FLOAT):
        lifecycle.pause(direction, rollout, actor="ada", now=fleet.now, profile="toaster")
