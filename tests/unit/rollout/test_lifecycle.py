"""What people may do with a rollout, and when."""

from datetime import UTC, datetime, timedelta
from functools import partial

import msgspec
import pytest

from modelfleet.policies.errors import ApprovalRefusedError, AuthorApprovedError, NotEnoughApprovalsError, PlanError
from modelfleet.registry.errors import NotFoundError
from modelfleet.registry.tables import Device, Version
from modelfleet.rollout.changes import lifecycle
from modelfleet.rollout.changes.lifecycle import RolloutRequest
from modelfleet.rollout.changes.transitions import claim
from modelfleet.rollout.errors import (
    RolloutConflictError,
    RolloutInputError,
    RolloutNotFoundError,
    StaleRevisionError,
    TransitionError,
)
from modelfleet.rollout.tables import Rollout
from modelfleet.signer.ceremony import CeremonyResult, update_policy
from modelfleet.signer.errors import SignatureError, UnknownKeyError
from modelfleet.signer.keys import load_signer
from modelfleet.signer.sign import sign_approval
from tests.unit.rollout.conftest import TENANT

FLOAT, INT8 = "linux-cpu-float", "linux-cpu-int8"


@pytest.fixture
def ready(fleet):
    fleet.enrol(FLOAT, 4)
    fleet.publish("1.0.0", 1)
    return fleet


def count_rollouts(fleet) -> int:
    with fleet.registry.sessions() as session:
        return session.query(Rollout).count()


def test_a_draft_waits_for_approval_with_what_it_would_do(ready):
    rollout = ready.create("1.0.0")
    assert ready.state(rollout) == "AWAITING_APPROVAL"
    asked = lifecycle.approval_request(ready.registry, rollout, ready.now)
    assert (asked.model, asked.version, asked.groups, asked.author) == ("digits", "1.0.0", ("lab",), "ada")
    assert set(asked.releases) == {FLOAT}
    assert asked.plan_sha256 == ready.row(rollout).plan_sha256
    assert asked.not_after == ready.now + timedelta(days=180)


def test_profiles_without_a_variant_are_left_out_and_named(ready):
    ready.enrol(INT8, 2)
    ready.publish("1.1.0", 2, profiles=(FLOAT,))
    rollout = ready.create("1.1.0")
    assert ready.verdicts(rollout) == {FLOAT: "PENDING"}
    assert "no variant" in ready.row(rollout).skipped_profiles[INT8]


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"version": "9.9.9"}, NotFoundError),
        ({"groups": ["nowhere"]}, NotFoundError),
        ({"groups": []}, RolloutInputError),
        ({"groups": ["shop"]}, RolloutInputError),
        ({"slot": "Not A Slot"}, RolloutInputError),
        ({"plan": {"stages": [0.5, 0.25]}}, PlanError),
        ({"plan": "stages = ["}, PlanError),
    ],
)
def test_a_rollout_that_cannot_be_is_refused_and_nothing_is_stored(ready, changes, refused):
    asked = {"model": "digits", "version": "1.0.0", "slot": "detector", "groups": ["lab"]} | changes
    with pytest.raises(refused):
        lifecycle.create(ready.controller.direction, RolloutRequest(**asked), author="ada", now=ready.now)
    assert count_rollouts(ready) == 0


def test_a_version_that_is_not_ready_is_refused(ready):
    with ready.registry.sessions.begin() as session:
        session.query(Version).one().state = "BUILDING"
    with pytest.raises(RolloutInputError, match="BUILDING"):
        ready.create("1.0.0")


def test_a_second_rollout_on_the_same_slot_is_refused_and_on_another_is_not(ready):
    ready.create("1.0.0")
    with pytest.raises(RolloutConflictError, match="end it first"):
        ready.create("1.0.0")
    other = RolloutRequest(model="digits", version="1.0.0", slot="classifier", groups=["lab"])
    assert lifecycle.create(ready.controller.direction, other, author="ada", now=ready.now)


def test_a_rollout_that_has_not_started_can_be_superseded(ready):
    first = ready.create("1.0.0")
    second = ready.create("1.0.0", supersede=True)
    assert (ready.state(first), ready.verdicts(first)) == ("SUPERSEDED", {FLOAT: "CLOSED"})
    assert ready.row(first).superseded_by == second


def test_what_is_stable_already_is_not_rolled_out_again(ready):
    ready.run_until(ready.launch("1.0.0"), "COMPLETED")
    with pytest.raises(RolloutInputError, match="stable there already"):
        ready.create("1.0.0")


def test_nothing_starts_without_approval(ready):
    rollout = ready.create("1.0.0")
    with pytest.raises(TransitionError, match="cannot start in state AWAITING_APPROVAL"):
        lifecycle.start(ready.controller.direction, rollout, actor="ada", now=ready.now)
    assert ready.wanted(FLOAT).candidates == ()


def test_an_approval_schedules_and_devices_are_told_its_digest(ready):
    rollout = ready.create("1.0.0")
    assert ready.approve(rollout) == {"bob"}
    assert ready.state(rollout) == "SCHEDULED"
    lifecycle.start(ready.controller.direction, rollout, actor="ada", now=ready.now)
    ready.controller.dispatch()
    (approval,) = ready.wanted(FLOAT).candidates[0].release.approvals
    assert ready.registry.store.exists(approval)


def approve_with(fleet, rollout: str, key: str, **changes):
    asked = lifecycle.approval_request(fleet.registry, rollout, fleet.now)
    envelope = sign_approval(msgspec.structs.replace(asked, **changes), load_signer(key))
    return lifecycle.approve(fleet.controller.direction, rollout, envelope, actor="x", now=fleet.now)


def test_the_authors_own_approval_does_not_count(ready):
    request = RolloutRequest(model="digits", version="1.0.0", slot="detector", groups=["lab"])
    rollout = lifecycle.create(ready.controller.direction, request, author="bob", now=ready.now)
    with pytest.raises(AuthorApprovedError):
        ready.approve(rollout, "bob")
    assert ready.state(rollout) == "AWAITING_APPROVAL"
    assert ready.approve(rollout, "eve") == {"eve"}


def test_an_approval_under_a_key_that_is_no_approvers_does_not_count(ready):
    with pytest.raises(UnknownKeyError):
        approve_with(ready, ready.create("1.0.0"), ready.ceremony.publisher_key)


@pytest.mark.parametrize(
    "changes",
    [{"releases": {FLOAT: "0" * 64}}, {"groups": ("lab", "shop")}, {"plan_sha256": "0" * 64}, {"version": "2.0.0"}],
)
def test_an_approval_of_something_else_does_not_count(ready, changes):
    with pytest.raises(ApprovalRefusedError, match="expected"):
        approve_with(ready, ready.create("1.0.0"), ready.ceremony.approver_keys["bob"], **changes)


def test_an_approval_with_a_broken_signature_does_not_count(ready):
    rollout = ready.create("1.0.0")
    asked = lifecycle.approval_request(ready.registry, rollout, ready.now)
    envelopes = [
        msgspec.json.decode(sign_approval(each, load_signer(ready.ceremony.approver_keys["bob"])))
        for each in (asked, msgspec.structs.replace(asked, version="9.0.0"))
    ]
    envelopes[0]["signatures"] = envelopes[1]["signatures"]
    with pytest.raises(SignatureError):
        lifecycle.approve(
            ready.controller.direction, rollout, msgspec.json.encode(envelopes[0]), actor="bob", now=ready.now
        )


def test_an_approval_that_expired_before_the_start_no_longer_counts(ready):
    rollout = ready.create("1.0.0")
    approve_with(ready, rollout, ready.ceremony.approver_keys["bob"], not_after=ready.now + timedelta(hours=1))
    with pytest.raises(NotEnoughApprovalsError):
        lifecycle.start(ready.controller.direction, rollout, actor="ada", now=ready.now + timedelta(hours=2))


def test_two_persons_must_approve_where_the_policy_says_two(ready):
    ceremony = ready.ceremony
    require_approvals(ceremony, 2)
    try:
        rollout = ready.create("1.0.0")
        ready.approve(rollout, "bob")
        ready.approve(rollout, "bob")
        assert ready.state(rollout) == "AWAITING_APPROVAL"
        assert ready.approve(rollout, "eve") == {"bob", "eve"}
        assert ready.state(rollout) == "SCHEDULED"
        lifecycle.start(ready.controller.direction, rollout, actor="ada", now=ready.now)
        ready.controller.dispatch()
        assert len(ready.wanted(FLOAT).candidates[0].release.approvals) == 2
    finally:
        require_approvals(ceremony, 1)


def require_approvals(ceremony: CeremonyResult, count: int) -> None:
    """Have the policy ask for so many, signed at the real time: other tests go on with these keys and this metadata."""
    change = partial(msgspec.structs.replace, approvals_required=count)
    update_policy(ceremony.data_dir, TENANT, change, datetime.now(UTC))


def test_refusing_the_approval_ends_the_rollout(ready):
    rollout = ready.create("1.0.0")
    lifecycle.reject(ready.controller.direction, rollout, actor="bob", now=ready.now, reason="too risky")
    assert (ready.state(rollout), ready.row(rollout).reason) == ("REJECTED", "too risky")
    with pytest.raises(TransitionError):
        ready.approve(rollout)


def test_cancelling_ends_what_has_not_started_and_frees_the_slot(ready):
    rollout = ready.create("1.0.0")
    lifecycle.cancel(ready.controller.direction, rollout, actor="ada", now=ready.now)
    assert ready.state(rollout) == "CANCELLED"
    assert ready.create("1.0.0")


def test_what_nobody_starts_expires(ready):
    rollout = ready.create("1.0.0")
    ready.approve(rollout)
    ready.controller.tick(ready.now + timedelta(days=29))
    assert ready.state(rollout) == "SCHEDULED"
    ready.controller.tick(ready.now + timedelta(days=31))
    assert ready.state(rollout) == "EXPIRED"


@pytest.mark.parametrize("action", [lifecycle.pause, lifecycle.resume, lifecycle.halt, lifecycle.rollback])
def test_a_rollout_that_has_not_started_cannot_be_steered(ready, action):
    rollout = ready.create("1.0.0")
    before = ready.row(rollout).revision
    with pytest.raises(TransitionError):
        action(ready.controller.direction, rollout, actor="ada", now=ready.now)
    assert ready.row(rollout).revision == before


@pytest.mark.parametrize("action", [lifecycle.pause, lifecycle.start, lifecycle.rollback, lifecycle.cancel])
def test_an_unknown_rollout_is_not_found(ready, action):
    with pytest.raises(RolloutNotFoundError):
        action(ready.controller.direction, "nothing", actor="ada", now=ready.now)


def test_a_completed_rollout_is_not_rolled_back_once_the_fleet_moved_on(ready):
    first = ready.launch("1.0.0")
    ready.run_until(first, "COMPLETED")
    ready.publish("1.1.0", 2)
    second = ready.launch("1.1.0")
    with pytest.raises(RolloutConflictError, match="is open there"):
        lifecycle.rollback(ready.controller.direction, first, actor="ada", now=ready.now)
    ready.run_until(second, "COMPLETED")
    with pytest.raises(RolloutConflictError, match="moved on"):
        lifecycle.rollback(ready.controller.direction, first, actor="ada", now=ready.now)
    assert ready.state(first) == "COMPLETED"


def test_a_decision_from_an_older_revision_is_refused(ready):
    rollout = ready.create("1.0.0")
    revision = ready.row(rollout).revision
    ready.approve(rollout)
    with pytest.raises(StaleRevisionError), ready.registry.sessions.begin() as session:
        claim(session, "acme", rollout, revision)


def test_a_device_that_moves_gets_a_new_assignment_that_forbids_older_group_documents(ready):
    from modelfleet.rollout.tables import DesiredDocument
    from modelfleet.signer.desired import Assignment

    device = ready.devices[0]
    ready.enrol(FLOAT, 1, group="shop")
    with ready.registry.sessions.begin() as session:
        session.get(Device, device.id).group = "shop"
    ready.controller.ensure_assignment(device.id)
    with ready.registry.sessions() as session:
        assigned = msgspec.json.decode(
            session.get(DesiredDocument, ("acme", f"d/{device.id}")).payload, type=Assignment
        )
        steering = session.get(DesiredDocument, ("acme", f"g/shop/{FLOAT}"))
    assert (assigned.group, assigned.not_below_seq) == ("shop", steering.seq)
