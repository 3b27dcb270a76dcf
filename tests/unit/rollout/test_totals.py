"""What is counted since a moment survives devices that leave: a good candidate never looks like a bad one for it."""

from dataclasses import replace
from datetime import timedelta

from modelfleet.policies.plan import parse_plan
from modelfleet.rollout.decisions.restarts import Restarts, restarts_of_counts
from modelfleet.rollout.decisions.statistics import Counts, log_alarm
from modelfleet.rollout.evidence import started, totals
from modelfleet.rollout.evidence.started import FAILURES
from modelfleet.rollout.evidence.totals import Point, Totals
from tests.unit.rollout.conftest import START
from tests.unit.rollout.test_tally import NOW, random_fleet

MINUTE = timedelta(minutes=1)


def points(*counted: tuple[int, int, int]) -> list[Point]:
    return [
        Point(at=START + MINUTE * place, totals=Totals(n=n, errors=errors, slow=slow))
        for place, (n, errors, slow) in enumerate(counted)
    ]


def test_what_is_counted_since_a_moment_is_the_difference_of_its_totals():
    found = totals.counted_since(points((10, 1, 0), (60, 1, 2), (110, 3, 4)), START + MINUTE)
    assert found == Totals(n=50, errors=2, slow=2)


def test_a_device_that_leaves_takes_its_inferences_and_leaves_no_alarm():
    """10,000 good inferences are revoked; as a difference of totals the 50 errors of 10,000 others would be of 100."""
    found = totals.counted_since(points((0, 0, 0), (19_900, 48, 0), (10_000, 49, 0), (10_100, 50, 0)), START)
    assert found.candidate.n == 20_000 and found.errors == 49
    assert log_alarm(found.candidate, 0.01) < 0
    assert log_alarm(replace(found.candidate, n=100, errors=50), 0.01) > 100


def test_an_arm_of_which_a_total_fell_counts_nothing_in_that_stretch_and_no_alarm_begins_anew_of_it():
    """A revoked device takes 9,900 of the candidate's inferences; on stable, one takes 900 and 40 errors."""
    course = [(0, 0, 0, 0), (9_950, 48, 1000, 50), (50, 60, 2000, 60), (10_050, 61, 1100, 20), (10_150, 62, 2000, 25)]
    known = [
        Point(at=START + MINUTE * place, totals=Totals(n=n, errors=errors, stable_n=stable_n, stable_errors=stable))
        for place, (n, errors, stable_n, stable) in enumerate(course)
    ]
    found = totals.intervals_since(known, START)
    assert [each.candidate for each in found] == [
        Counts(n=n, errors=e) for n, e in ((9950, 48), (0, 0), (10_000, 1), (100, 1))
    ]
    assert [each.stable for each in found] == [
        Counts(n=n, errors=e) for n, e in ((1000, 50), (1000, 10), (0, 0), (900, 5))
    ]
    assert [each.until for each in found] == [point.at for point in known[1:]]
    since = totals.counted_since(known, START).candidate
    assert (
        sum(each.candidate.n for each in found) == since.n
        and sum(each.candidate.errors for each in found) == since.errors
    )
    counted = [each.candidate for each in found]
    assert restarts_of_counts([c.n for c in counted], [c.errors for c in counted], since, 0.01) == Restarts()


def test_installs_are_counted_by_the_stage_in_which_a_device_started(sessions):
    for seed in range(8):
        require_installs(sessions, seed)


def require_installs(made, seed: int) -> None:
    known, plan = random_fleet(seed), parse_plan({})
    starts = [START, NOW - timedelta(seconds=201), NOW - timedelta(seconds=31)]
    known.row.baselines = [totals.baseline_of(Totals(), at) for at in starts]
    mine = {device.id for device in known.devices if _belongs(device, known)}
    begun = [
        (t.started_at, t.outcome in FAILURES)
        for t in known.trials
        if t.rollout == known.rollout.id and t.device in mine
    ]
    with made.begin() as session:
        session.add_all([known.rollout, *known.devices])
        session.flush()
        session.add_all([known.row, *known.slots, *known.trials, *known.counters])
        session.flush()
        found = started.count(session, known.rollout, [known.row], plan, NOW)[known.row.profile].since
        session.rollback()
    expected = [[failed for at, failed in begun if stage == 0 or at >= start] for stage, start in enumerate(starts)]
    assert [each.n for each in found] == [len(each) for each in expected]
    assert all(each.errors >= sum(failed) for each, failed in zip(found, expected, strict=True))  # the stalled beside


def _belongs(device, known) -> bool:
    return (
        device.group in known.rollout.groups
        and device.profile == known.row.profile
        and device.revoked_at is None
        and device.tenant == known.rollout.tenant
    )
