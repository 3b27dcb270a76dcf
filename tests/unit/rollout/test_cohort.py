import uuid

from modelfleet.rollout.desired.cohort import cohort, cohort_below
from modelfleet.signer.desired import BUCKETS

DEVICES = [str(uuid.UUID(int=number)) for number in range(1000)]


def test_a_share_takes_exactly_that_many_devices():
    for share, expected in ((0.05, 50), (0.0501, 51), (0.25, 250), (0.5, 500)):
        assert len(cohort("salt", DEVICES, cohort_below("salt", DEVICES, share, 2))) == expected


def test_at_least_the_minimum_of_canaries_and_never_more_than_there_are():
    assert len(cohort("s", DEVICES[:10], cohort_below("s", DEVICES[:10], 0.05, 2))) == 2
    assert len(cohort("s", DEVICES[:1], cohort_below("s", DEVICES[:1], 0.05, 2))) == 1


def test_the_whole_share_is_the_whole_range():
    assert cohort_below("s", DEVICES[:3], 1.0, 2) == BUCKETS
    assert cohort_below("s", [], 1.0, 2) == BUCKETS


def test_a_cohort_only_grows_also_when_devices_leave():
    before = cohort_below("s", DEVICES, 0.5, 2)
    assert cohort_below("s", DEVICES, 0.05, 2, before) == before
    assert cohort_below("s", DEVICES[:5], 0.05, 2, before) >= before
    assert cohort_below("s", [], 0.05, 2, before) == before
    assert set(cohort("s", DEVICES, before)) <= set(cohort("s", DEVICES, cohort_below("s", DEVICES, 0.6, 2, before)))


def test_another_salt_takes_other_devices():
    first, second = (set(cohort(salt, DEVICES, cohort_below(salt, DEVICES, 0.05, 2))) for salt in ("a", "b"))
    assert len(first & second) < 10
