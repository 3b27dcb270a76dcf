"""When an update may start on a device, and what it never holds up."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from modelfleet.agent_client.conditions import Facts, moves_forward, require_conditions, unmet
from modelfleet.agent_client.errors import ConditionsError
from modelfleet.agent_client.record import Goal, SlotRecord
from modelfleet.signer.desired import Release
from modelfleet.signer.wanted import Reason, Wanted
from modelfleet.signer.windows import Conditions, Window

NOW = datetime(2026, 3, 7, 22, 30, tzinfo=UTC)  # a Saturday
NIGHT = (Window(days=("sat",), start="22:00", minutes=240),)
HARD = Conditions(network="unmetered", power="external", battery_at_least=0.5)


def release(counter: int, model: str = "digits") -> Release:
    return Release(
        model=model, version=f"1.{counter}.0", counter=counter, path="p", sha256="a" * 64, length=1, approvals=()
    )


def goal(counter: int, rollout: str = "", *, model: str = "digits", promoted: bool = False) -> Goal:
    return Goal(release=release(counter, model), rollout=rollout, seen_at=NOW, promoted=promoted)


def wanted(counter: int | None, reason: Reason = Reason.STABLE) -> Wanted:
    return Wanted(reason=reason, release=None if counter is None else release(counter), expires=NOW)


@pytest.mark.parametrize(
    ("facts", "lacking"),
    [
        (Facts(), ()),
        (Facts(zone=ZoneInfo("Asia/Tokyo")), ("window",)),
        (Facts(metered=True), ("network",)),
        (Facts(external_power=False), ("power",)),
        (Facts(battery_share=0.5), ()),
        (Facts(battery_share=0.49), ("battery",)),
        (Facts(metered=True, external_power=False, battery_share=0.0), ("network", "power", "battery")),
        (Facts(metered=True, external_power=False, battery_share=0.0, attended=True), ()),
    ],
)
def test_an_update_waits_for_exactly_what_is_missing(facts: Facts, lacking: tuple[str, ...]) -> None:
    assert unmet(NIGHT, HARD, facts, NOW) == lacking


def test_a_plan_that_asks_for_nothing_waits_for_nothing() -> None:
    assert unmet((), Conditions(), Facts(metered=True, external_power=False, battery_share=0.0), NOW) == ()


def test_what_is_missing_is_told_by_name() -> None:
    with pytest.raises(ConditionsError, match="not metered; a charged battery") as refused:
        require_conditions(HARD, Facts(metered=True, battery_share=0.1))
    assert refused.value.reasons == ("network", "battery")


@pytest.mark.parametrize(
    ("target", "running", "expected"),
    [
        (wanted(2, Reason.CANDIDATE), None, True),
        (wanted(2, Reason.CANDIDATE), goal(3), True),
        (wanted(2), None, False),  # an empty slot
        (wanted(2), goal(1), True),
        (wanted(2), goal(1, "r1", promoted=True), True),
        (wanted(2), goal(3), False),  # back to an older release
        (wanted(2), goal(1, "r1"), False),  # back from a candidate that was never stable
        (wanted(2), goal(1, model="letters"), False),
        (wanted(None), goal(1), False),
        (wanted(2, Reason.PINNED), goal(1), False),
    ],
)
def test_only_a_way_forward_may_be_kept_waiting(target: Wanted, running: Goal | None, expected: bool) -> None:
    assert moves_forward(target, SlotRecord(running=running)) is expected
