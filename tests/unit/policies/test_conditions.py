"""The plan's fields that say when: what is read, what is refused, and that equal plans have equal digests."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from modelfleet.policies.conditions import first_start
from modelfleet.policies.errors import PlanError
from modelfleet.policies.plan import parse_plan, plan_as_dict, plan_sha256
from modelfleet.signer.windows import Conditions, Window

TEXT = """
start_at = 2026-03-07T22:00:00+01:00

[conditions]
network = "unmetered"
battery_at_least = 1

[[windows]]
days = ["sun", "sat", "sat"]
start = "22:00"
minutes = 240

[[windows]]
start = "12:00"
minutes = 30
zone = "Europe/Berlin"

[[advance_within]]
days = ["mon"]
start = "09:00"
minutes = 480
zone = "UTC"
"""


def test_a_plan_in_toml_says_when() -> None:
    plan = parse_plan(TEXT)
    assert plan.start_at == datetime(2026, 3, 7, 21, tzinfo=UTC)
    assert plan.conditions == Conditions(network="unmetered", battery_at_least=1.0)
    assert plan.windows == (
        Window(days=("sat", "sun"), start="22:00", minutes=240),
        Window(start="12:00", minutes=30, zone="Europe/Berlin"),
    )
    assert plan.advance_within == (Window(days=("mon",), start="09:00", minutes=480, zone="UTC"),)


def test_a_plan_that_says_when_survives_its_own_json() -> None:
    plan = parse_plan(TEXT)
    assert parse_plan(json.loads(json.dumps(plan_as_dict(plan)))) == plan


def test_equal_plans_have_equal_digests_however_their_times_are_written() -> None:
    other = TEXT.replace("2026-03-07T22:00:00+01:00", "2026-03-07T21:00:00Z").replace(
        '"sun", "sat", "sat"', '"sat", "sun"'
    )
    assert plan_sha256(parse_plan(other)) == plan_sha256(parse_plan(TEXT))
    assert plan_sha256(parse_plan(TEXT.replace("240", "241"))) != plan_sha256(parse_plan(TEXT))


NIGHT = {"days": ["sat"], "start": "22:00", "minutes": 240, "zone": "UTC"}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"windows": NIGHT}, "windows: expected a list"),
        ({"windows": [5]}, "windows[0]: expected a table"),
        ({"windows": [NIGHT | {"colour": 1}]}, "windows[0].colour"),
        ({"windows": [NIGHT, NIGHT | {"minutes": 0}]}, "windows[1]"),
        ({"windows": [NIGHT | {"minutes": 0.5}]}, "windows[0]"),
        ({"windows": [NIGHT | {"start": "25:00"}]}, "windows[0]: expected days of mon, tue"),
        ({"windows": [NIGHT | {"days": ["saturday"]}]}, "windows[0]: expected days of mon, tue"),
        ({"windows": [{"start": "22:00"}]}, "minutes"),
        ({"windows": [NIGHT | {"zone": "Mars/Olympus"}]}, "Mars/Olympus"),
        ({"windows": [NIGHT] * 17}, "at most 16"),
        ({"advance_within": [NIGHT | {"zone": "device"}]}, "advance_within[0].zone"),
        ({"conditions": "any"}, "conditions: expected a table"),
        ({"conditions": {"network": "wifi"}}, "conditions: expected network any or unmetered"),
        ({"conditions": {"battery_at_least": 50}}, "conditions"),
        ({"conditions": {"heat": 1}}, "conditions.heat"),
        ({"start_at": "2026-03-07T22:00:00"}, "start_at: expected a moment with an offset"),
        ({"start_at": "tonight"}, "start_at"),
        ({"start_at": 5}, "start_at"),
    ],
)
def test_refuses_what_says_when_in_no_way_that_can_be_kept(given: dict[str, Any], named: str) -> None:
    with pytest.raises(PlanError) as refused:
        parse_plan(given)
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        # Sunday morning until the next Saturday night is longer than a day.
        ({"deadline_seconds": 86400, "start_at": "2026-03-08T03:00:00Z"}, "before the deadline of 86400 s"),
        # Four stages of half an hour do not pass in a window of 30 minutes a week.
        ({"windows": [NIGHT | {"minutes": 30}]}, "7200 s of bake time"),
    ],
)
def test_refuses_a_plan_whose_windows_can_never_be_met(given: dict[str, Any], named: str) -> None:
    with pytest.raises(PlanError, match="windows: ") as refused:
        parse_plan({"windows": [NIGHT]} | given)
    assert named in str(refused.value)


def test_a_window_within_the_deadline_is_met() -> None:
    parse_plan({"windows": [NIGHT], "deadline_seconds": 86400})  # started in the window, or a little before
    parse_plan({"windows": [NIGHT], "deadline_seconds": 86400, "start_at": "2026-03-07T12:00:00Z"})
    saturday = datetime(2026, 3, 7, 12, tzinfo=UTC)
    assert first_start(parse_plan({"windows": [NIGHT]}).windows, saturday, 86400) == saturday.replace(hour=22)
    assert first_start(parse_plan({"windows": [NIGHT]}).windows, saturday, 36000) is None
