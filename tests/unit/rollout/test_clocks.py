"""A decision's clocks under windows and hours: what stands still, and what goes on."""

from datetime import timedelta
from typing import Any

from modelfleet.policies.plan import Plan, parse_plan
from modelfleet.rollout.decisions.decide import Advance, Complete, DeviceTally, Halt, Hold, Pause, decide
from modelfleet.rollout.decisions.emergency import judge
from tests.unit.rollout.test_decide import START, health

# START is a Thursday, 00:00 UTC.
NIGHTLY: dict[str, Any] = {"start": "00:00", "minutes": 60, "zone": "UTC"}
DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
NOBODY = DeviceTally(cohort=5)


def nightly(**more: Any) -> Plan:
    return parse_plan({"windows": [NIGHTLY], "bake_seconds": 5400, **more})


def waits(decision: object) -> str:
    assert isinstance(decision, Hold), decision
    return decision.waiting_for


def test_bake_time_counts_only_while_a_window_is_open() -> None:
    plan = nightly()
    assert waits(decide(plan, 0, health(), START + 50 * MINUTE)) == "baking for another 2400 s"
    assert waits(decide(plan, 0, health(), START + 23 * HOUR)) == (
        "waiting for a window, which opens at 2026-01-02 00:00 UTC"
    )
    assert isinstance(decide(plan, 0, health(), START + DAY + 29 * MINUTE), Hold)
    assert isinstance(decide(plan, 0, health(), START + DAY + 30 * MINUTE), Advance)


def test_the_hold_does_not_run_out_while_windows_are_closed() -> None:
    plan = nightly(max_hold_seconds=3600)
    nobody = health(devices=NOBODY)
    assert isinstance(decide(plan, 0, nobody, START + 2 * DAY + 29 * MINUTE), Hold)  # 89 + 60 minutes would be 149
    assert isinstance(decide(plan, 0, nobody, START + 2 * DAY + 30 * MINUTE), Pause)


def test_the_soak_counts_only_while_a_window_is_open() -> None:
    plan = nightly(soak_seconds=5400)
    assert isinstance(decide(plan, 4, health(), START + 20 * HOUR), Hold)
    assert isinstance(decide(plan, 4, health(), START + DAY + 30 * MINUTE), Complete)


def test_the_deadline_is_wall_time() -> None:
    plan = nightly(deadline_seconds=7 * 86400)
    assert isinstance(decide(plan, 0, health(devices=NOBODY), START + 7 * DAY), Halt)
    assert isinstance(decide(plan, 0, health(devices=NOBODY), START + DAY), Hold)


def test_a_stage_that_is_ready_waits_for_its_hours_and_is_not_paused_for_it() -> None:
    office = {"days": ["mon"], "start": "09:00", "minutes": 480, "zone": "UTC"}
    plan = parse_plan({"advance_within": [office], "max_hold_seconds": 60})
    assert waits(decide(plan, 0, health(), START + 3 * DAY)) == (
        "waiting to advance until 2026-01-05 09:00 UTC, as the plan's hours say"
    )
    assert isinstance(decide(plan, 0, health(), START + 4 * DAY + 9 * HOUR), Advance)


def test_an_emergencys_hold_stands_still_too() -> None:
    plan = nightly(max_hold_seconds=3000)
    late = START + 20 * HOUR
    nobody = health(devices=NOBODY)
    assert isinstance(judge(plan, 0, nobody, START + 49 * MINUTE, emergency=True), Hold)
    assert isinstance(judge(plan, 0, nobody, late, emergency=True), Pause)
    patient = nightly(max_hold_seconds=3700)
    assert isinstance(judge(patient, 0, nobody, late, emergency=True), Hold)
