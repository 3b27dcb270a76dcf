"""What changes before a start, and what time and the trust policy do to approvals, before it and after."""

from datetime import timedelta

import msgspec
import pytest

from modelfleet.policies.errors import ApprovalRefusedError, NotEnoughApprovalsError, PlanError
from modelfleet.registry.tables import Version
from modelfleet.rollout.changes import lifecycle
from modelfleet.rollout.changes.lifecycle import RolloutChange
from modelfleet.rollout.errors import RolloutConflictError, RolloutInputError, TransitionError
from modelfleet.rollout.tables import RolloutApproval
from modelfleet.signer.ceremony import update_policy
from modelfleet.signer.keys import load_signer
from modelfleet.signer.sign import sign_approval
from tests.unit.rollout.conftest import PLAN, digest_of, policy_in

FLOAT, INT8 = "linux-cpu-float", "linux-cpu-int8"


@pytest.fixture
def ready(fleet):
    fleet.enrol(FLOAT, 4)
    fleet.publish("1.0.0", 1)
    return fleet


@pytest.fixture
def policy(ready):
    """Changes the trust policy for one test."""
    ceremony, before = ready.ceremony, ready.registry.repository.policy()

    def to(**changes) -> None:
        update_policy(ceremony.data_dir, "acme", lambda old: msgspec.structs.replace(old, **changes), ready.now)
        policy_in.cache_clear()

    yield to
    to(revoked=before.revoked, minimum_counter=before.minimum_counter, approvers=before.approvers)


def change(fleet, rollout: str, actor: str = "ada", **changes) -> None:
    lifecycle.change(fleet.controller.direction, rollout, RolloutChange(**changes), actor=actor, now=fleet.now)


def start(fleet, rollout: str) -> None:
    lifecycle.start(fleet.controller.direction, rollout, actor="ada", now=fleet.now)
    fleet.controller.dispatch()


def approve_for(fleet, rollout: str, person: str = "bob", **time) -> None:
    asked = lifecycle.approval_request(fleet.registry, rollout, fleet.now)
    signed = msgspec.structs.replace(asked, not_after=asked.issued + timedelta(**time))
    envelope = sign_approval(signed, load_signer(fleet.ceremony.approver_keys[person]))
    lifecycle.approve(fleet.controller.direction, rollout, envelope, actor=person, now=fleet.now)


def approvals(fleet, rollout: str) -> list[str]:
    with fleet.registry.sessions() as session:
        return [row.person for row in session.query(RolloutApproval).where(RolloutApproval.rollout == rollout)]


def test_a_change_voids_every_approval_and_asks_anew(ready):
    rollout = ready.create("1.0.0")
    ready.approve(rollout)
    before = ready.row(rollout)
    change(ready, rollout, plan=PLAN | {"stages": [0.5, 1.0]})
    after = ready.row(rollout)
    assert (after.state, after.approved_at, approvals(ready, rollout)) == ("AWAITING_APPROVAL", None, [])
    assert after.plan_sha256 != before.plan_sha256
    assert after.revision > before.revision
    assert ready.trail(rollout)[-2:] == ["rollout.change", "rollout.request-approval"]


def test_an_approval_of_what_it_was_before_does_not_count_after(ready):
    rollout = ready.create("1.0.0")
    asked = lifecycle.approval_request(ready.registry, rollout, ready.now)
    envelope = sign_approval(asked, load_signer(ready.ceremony.approver_keys["bob"]))
    change(ready, rollout, plan=PLAN | {"stages": [0.5, 1.0]})
    with pytest.raises(ApprovalRefusedError, match="plan_sha256"):
        lifecycle.approve(ready.controller.direction, rollout, envelope, actor="bob", now=ready.now)


def test_who_changes_a_rollout_is_its_author_and_may_not_approve_it(ready):
    rollout = ready.create("1.0.0")
    change(ready, rollout, actor="bob", plan=PLAN | {"stages": [0.5, 1.0]})
    with pytest.raises(ApprovalRefusedError):
        ready.approve(rollout, "bob")
    assert ready.approve(rollout, "eve") == {"eve"}


def test_other_groups_have_other_profiles(ready):
    ready.enrol(INT8, 1, group="shop")
    rollout = ready.create("1.0.0")
    change(ready, rollout, groups=["shop", "lab"])
    assert ready.row(rollout).groups == ["lab", "shop"]
    assert ready.verdicts(rollout) == {FLOAT: "PENDING", INT8: "PENDING"}


@pytest.mark.parametrize(
    ("changes", "refused"),
    [({}, RolloutInputError), ({"plan": {"stages": [2]}}, PlanError), ({"groups": []}, RolloutInputError)],
)
def test_a_change_that_cannot_be_leaves_everything_as_it_was(ready, changes, refused):
    rollout = ready.create("1.0.0")
    ready.approve(rollout)
    revision = ready.row(rollout).revision
    with pytest.raises(refused):
        change(ready, rollout, **changes)
    assert (ready.state(rollout), ready.row(rollout).revision, approvals(ready, rollout)) == (
        "SCHEDULED",
        revision,
        ["bob"],
    )


def test_a_change_into_another_rollouts_slot_is_refused(ready):
    ready.enrol(FLOAT, 1, group="shop")
    ready.create("1.0.0", groups=("shop",))
    rollout = ready.create("1.0.0")
    with pytest.raises(RolloutConflictError):
        change(ready, rollout, groups=["lab", "shop"])


def test_what_runs_cannot_be_changed(ready):
    rollout = ready.launch("1.0.0")
    with pytest.raises(TransitionError, match="cannot change in state CANARY"):
        change(ready, rollout, groups=["lab"])


def test_an_approval_is_withdrawn_by_who_gave_it_and_by_nobody_else(ready):
    rollout = ready.create("1.0.0")
    ready.approve(rollout)
    direction = ready.controller.direction
    with pytest.raises(RolloutInputError, match="only who gave one"):
        lifecycle.withdraw(direction, rollout, actor="eve", now=ready.now)
    lifecycle.withdraw(direction, rollout, actor="bob", now=ready.now, reason="stale golden set")
    assert (ready.state(rollout), approvals(ready, rollout)) == ("AWAITING_APPROVAL", [])
    ready.approve(rollout, "eve")
    start(ready, rollout)
    with pytest.raises(TransitionError):
        lifecycle.withdraw(direction, rollout, actor="eve", now=ready.now)


def test_one_of_more_approvals_than_needed_can_go(ready):
    rollout = ready.create("1.0.0", emergency=True, reason="recall")
    ready.approve(rollout, "bob")
    lifecycle.withdraw(ready.controller.direction, rollout, actor="bob", now=ready.now)
    assert ready.state(rollout) == "AWAITING_APPROVAL"
    assert ready.trail(rollout)[-1] == "rollout.withdraw"


def test_approvals_that_end_before_the_start_are_asked_for_again(ready):
    rollout = ready.create("1.0.0")
    approve_for(ready, rollout, hours=1)
    ready.controller.tick(ready.now + timedelta(minutes=59))
    assert ready.state(rollout) == "SCHEDULED"
    ready.controller.tick(ready.now + timedelta(hours=1))
    assert ready.state(rollout) == "AWAITING_APPROVAL"
    assert ready.trail(rollout)[-1] == "rollout.lapse"


def test_an_approval_for_longer_than_half_a_year_is_refused(ready):
    with pytest.raises(ApprovalRefusedError, match="within 180 days"):
        approve_for(ready, ready.create("1.0.0"), days=181)


def test_approvals_that_end_while_it_runs_halt_it_until_it_is_approved_anew(ready):
    rollout = ready.create("1.0.0", plan={"bake_seconds": 100})
    approve_for(ready, rollout, seconds=45)
    start(ready, rollout)
    ready.steps(6)
    assert ready.state(rollout) == "HALTED"
    assert "devices would refuse it" in ready.row(rollout).reason
    assert ready.wanted(FLOAT).candidates[0].accept is False
    direction = ready.controller.direction
    with pytest.raises(RolloutConflictError, match="expected approvals"):
        lifecycle.resume(direction, rollout, actor="ada", now=ready.now)
    ready.approve(rollout, "eve")
    ready.controller.dispatch()
    assert len(ready.wanted(FLOAT).candidates[0].release.approvals) == 2
    lifecycle.resume(direction, rollout, actor="ada", now=ready.now)
    assert ready.run_until(rollout, "COMPLETED") == "COMPLETED"


def test_what_is_stable_is_approved_anew_before_its_approvals_end(ready):
    rollout = ready.launch("1.0.0")
    ready.run_until(rollout, "COMPLETED")
    ready.approve(rollout, "eve")
    ready.controller.dispatch()
    stable = ready.wanted(FLOAT).stable
    assert stable is not None
    assert len(stable.approvals) == 2
    assert ready.state(rollout) == "COMPLETED"


def test_an_approver_who_may_approve_no_more_halts_what_runs(ready, policy):
    rollout = ready.launch("1.0.0", plan={"bake_seconds": 600})
    approvers = ready.registry.repository.policy().approvers
    policy(approvers={key: each for key, each in approvers.items() if each.person != "bob"})
    ready.controller.tick(ready.now)
    assert ready.state(rollout) == "HALTED"


def test_what_the_policy_revokes_is_rolled_back_while_it_runs(ready, policy):
    rollout = ready.launch("1.0.0", plan={"bake_seconds": 600})
    ready.steps(2)
    policy(revoked=(digest_of("1.0.0", FLOAT),))
    ready.steps(1)
    assert ready.state(rollout) in ("ROLLING_BACK", "ROLLED_BACK")
    assert "revokes" in ready.profile(rollout, FLOAT).reason
    assert ready.run_until(rollout, "ROLLED_BACK") == "ROLLED_BACK"


@pytest.mark.parametrize("changes", [{"revoked": (digest_of("1.0.0", FLOAT),)}, {"minimum_counter": {"digits": 2}}])
def test_what_the_policy_refuses_is_neither_drafted_nor_started(ready, policy, changes):
    rollout = ready.create("1.0.0")
    ready.approve(rollout)
    policy(**changes)
    with pytest.raises(RolloutInputError, match="the trust policy"):
        start(ready, rollout)
    assert ready.state(rollout) == "SCHEDULED"
    lifecycle.cancel(ready.controller.direction, rollout, actor="ada", now=ready.now)
    with pytest.raises(RolloutInputError, match="the trust policy"):
        ready.create("1.0.0")


def test_a_version_that_is_no_longer_ready_does_not_start(ready):
    rollout = ready.create("1.0.0")
    ready.approve(rollout)
    with ready.registry.sessions.begin() as session:
        session.query(Version).one().state = "FAILED"
    with pytest.raises(RolloutInputError, match="it is FAILED"):
        start(ready, rollout)
    assert ready.wanted(FLOAT).candidates == ()


def test_a_slot_that_was_taken_meanwhile_is_not_shared(ready):
    first = ready.create("1.0.0")
    ready.approve(first)
    with ready.registry.sessions.begin() as session:
        from modelfleet.rollout.tables import Rollout

        session.get(Rollout, first).slot = "other"
    second = ready.launch("1.0.0", plan={"bake_seconds": 600})
    with ready.registry.sessions.begin() as session:
        session.get(Rollout, first).slot = "detector"
    with pytest.raises(RolloutConflictError):
        start(ready, first)
    assert [each.rollout for each in ready.wanted(FLOAT).candidates] == [second]


def test_past_its_deadline_a_rollout_halts_even_where_it_could_advance(ready):
    rollout = ready.launch("1.0.0", plan={"bake_seconds": 50, "deadline_seconds": 45})
    ready.steps(8)
    assert ready.state(rollout) == "HALTED"
    assert "deadline" in ready.row(rollout).reason
    with pytest.raises(RolloutConflictError, match="deadline"):
        lifecycle.resume(ready.controller.direction, rollout, actor="ada", now=ready.now)


def test_enough_approvals_are_needed_at_the_very_start(ready):
    rollout = ready.create("1.0.0")
    approve_for(ready, rollout, hours=1)
    ready.now += timedelta(hours=2)
    with pytest.raises(NotEnoughApprovalsError):
        start(ready, rollout)
