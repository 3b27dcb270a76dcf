"""Rules 1 to 4 of DESIGN section 5, by example."""

from collections.abc import Collection
from datetime import timedelta

import msgspec

from modelfleet.signer.desired import (
    CONDITIONS,
    WINDOWS,
    Assignment,
    Candidate,
    GroupDocument,
    Limits,
    Slot,
    bucket_of,
    group_scope,
    needs_of,
)
from modelfleet.signer.wanted import Reason, Wanted, select, start_at
from modelfleet.signer.windows import Conditions, Window
from tests.unit.signer.samples import DAY, DEVICE, GROUP, NOW, assignment, candidate, group, manifest, release

A = release(manifest())
B = release(manifest(version="1.1.0", counter=2))
C = release(manifest(version="1.2.0", counter=3))
BUCKET = bucket_of("salt", DEVICE)


def wanted(
    document: GroupDocument | None,
    mine: Assignment | None = None,
    *,
    active: str | None = A.sha256,
    rejected: Collection[str] = (),
    slot: str = "classifier",
) -> Wanted:
    return select(document, mine or assignment(), slot=slot, device=DEVICE, active=active, rejected=rejected, now=NOW)


def trial(**changes: object) -> Candidate:
    return candidate(B, **changes)


def test_wants_the_stable_release() -> None:
    found = wanted(group(A))
    assert (found.release, found.reason, found.rollout, found.keep) == (A, Reason.STABLE, "", False)


def test_wants_nothing_where_stable_is_null() -> None:
    found = wanted(group(None))
    assert (found.release, found.keep) == (None, False)


def test_takes_a_candidate_in_its_bucket_range_with_its_rollout_and_limits() -> None:
    limits = Limits(latency_ms=20.0)
    found = wanted(group(A, trial(from_bucket=BUCKET, below=BUCKET + 1, limits=limits)))
    assert (found.release, found.reason, found.rollout, found.limits) == (B, Reason.CANDIDATE, "r1", limits)


def test_leaves_a_candidate_whose_range_ends_below_or_starts_above() -> None:
    for changes in ({"below": BUCKET}, {"from_bucket": BUCKET + 1}):
        assert wanted(group(A, trial(**changes))).release == A


def test_of_two_candidates_takes_the_one_whose_range_it_is_in() -> None:
    other = candidate(C, rollout="r2", from_bucket=BUCKET, below=BUCKET + 1)
    assert wanted(group(A, trial(below=BUCKET), other)).release == C


def test_without_a_group_document_keeps_what_runs() -> None:
    found = wanted(None)
    assert (found.keep, found.reason) == (True, Reason.NOT_STEERED)


def test_ignores_a_document_of_a_group_or_profile_that_is_not_assigned() -> None:
    for scope in (group_scope("depots", "linux-cpu-float"), group_scope(GROUP, "linux-cpu-int8")):
        assert wanted(group(B, scope=scope)).keep
    moved = assignment(group="depots")
    assert wanted(group(B), moved).keep
    assert wanted(group(B, scope=group_scope("depots", "linux-cpu-float")), moved).release == B


def test_ignores_a_document_older_than_the_assignment_asks_for() -> None:
    found = wanted(group(B, seq=10), assignment(not_below_seq=11))
    assert (found.keep, found.reason) == (True, Reason.BEHIND)
    assert wanted(group(B, seq=11), assignment(not_below_seq=11)).release == B


def test_keeps_a_slot_that_the_document_does_not_name() -> None:
    assert wanted(group(B), slot="detector").keep


def test_a_pin_wins_over_stable_and_candidate_and_needs_no_group_document() -> None:
    pinned = assignment(pins={"classifier": C})
    for document in (group(A, trial()), None):
        found = wanted(document, pinned)
        assert (found.release, found.reason, found.rollout) == (C, Reason.PINNED, "")


def test_a_pin_of_null_empties_the_slot() -> None:
    found = wanted(group(A), assignment(pins={"classifier": None}))
    assert (found.release, found.keep, found.reason) == (None, False, Reason.PINNED)


def test_a_pin_of_another_slot_pins_nothing_here() -> None:
    assert wanted(group(A), assignment(pins={"detector": C})).release == A


def test_a_halt_keeps_who_has_activated_and_starts_nobody_else() -> None:
    halted = group(A, trial(accept=False))
    assert wanted(halted, active=B.sha256).release == B
    found = wanted(halted, active=A.sha256)
    assert (found.release, found.reason) == (A, Reason.HALTED)


def test_nobody_starts_past_the_deadline_and_who_has_activated_stays() -> None:
    late = group(A, trial(deadline=NOW))
    assert wanted(late, active=B.sha256).release == B
    found = wanted(late)
    assert (found.release, found.reason) == (A, Reason.TOO_LATE)


def test_nobody_starts_before_not_before_and_the_answer_says_when() -> None:
    found = wanted(group(A, trial(not_before=NOW + timedelta(hours=1))))
    assert (found.release, found.reason, found.changes_at) == (A, Reason.NOT_YET, NOW + timedelta(hours=1))
    assert wanted(group(A, trial(not_before=NOW))).release == B


def test_a_spread_gives_each_device_its_own_moment_within_it() -> None:
    spread = trial(not_before=NOW, spread_seconds=1000)
    moments = {start_at(spread, f"device-{n}") for n in range(200)}
    assert NOW <= min(moments) < NOW + timedelta(seconds=50)
    assert NOW + timedelta(seconds=950) < max(moments) < NOW + timedelta(seconds=1000)
    found = wanted(group(A, spread))
    assert (found.reason, found.changes_at) == (Reason.NOT_YET, start_at(spread, DEVICE))


def test_a_rejected_candidate_is_left_for_stable() -> None:
    found = wanted(group(A, trial()), rejected={B.sha256})
    assert (found.release, found.reason) == (A, Reason.REJECTED)


def test_a_rejected_digest_is_not_run_when_it_becomes_stable() -> None:
    found = wanted(group(B), rejected={B.sha256})
    assert (found.keep, found.release, found.reason) == (True, None, Reason.REJECTED)


def test_a_rejected_pin_is_not_run() -> None:
    assert wanted(group(A), assignment(pins={"classifier": C}), rejected={C.sha256}).keep


def test_a_dropped_candidate_means_back_to_stable() -> None:
    assert wanted(group(A), active=B.sha256).release == A


def test_an_update_may_start_until_the_earlier_of_both_documents_expires() -> None:
    assert wanted(group(A, expires=NOW + DAY)).expires == NOW + DAY
    assert wanted(group(A), assignment(expires=NOW + DAY)).expires == NOW + DAY
    assert wanted(group(A, expires=NOW - DAY)).release == A  # expiry alone changes nothing that is wanted


NIGHT = (Window(start="22:00", minutes=240),)
QUIET = Conditions(network="unmetered", battery_at_least=0.5)


def test_a_candidate_comes_with_its_windows_and_conditions_and_with_what_to_hold_until_then() -> None:
    found = wanted(group(A, trial(windows=NIGHT, conditions=QUIET)), active=None)
    assert (found.release, found.windows, found.conditions) == (B, NIGHT, QUIET)
    assert found.meanwhile is not None
    assert (found.meanwhile.release, found.meanwhile.reason) == (A, Reason.NOT_YET)


def test_a_stable_release_comes_with_the_windows_of_its_slot() -> None:
    document = group(A)
    slots = {"classifier": msgspec.structs.replace(document.slots["classifier"], windows=NIGHT, conditions=QUIET)}
    found = wanted(msgspec.structs.replace(document, slots=slots))
    assert (found.release, found.windows, found.conditions, found.meanwhile) == (A, NIGHT, QUIET, None)


def test_a_document_names_what_of_it_must_be_understood() -> None:
    assert needs_of(group(A, trial()).slots.values()) == ()
    assert needs_of(group(A, trial(windows=NIGHT)).slots.values()) == (WINDOWS,)
    assert needs_of(group(A, trial(conditions=QUIET)).slots.values()) == (CONDITIONS,)
    assert needs_of([Slot(windows=NIGHT, conditions=QUIET)]) == (CONDITIONS, WINDOWS)
