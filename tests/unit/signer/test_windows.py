"""Windows that come again every week: over midnight, over both changes of the clock, in the device's zone and in all at once."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from modelfleet.signer.windows import (
    Window,
    after_open,
    described,
    is_open,
    next_opening,
    open_seconds,
    openings,
    zone_named,
)

BERLIN = "Europe/Berlin"  # forward 2026-03-29 02:00 CET, back 2026-10-25 03:00 CEST


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def window(start: str, minutes: int, *days: Any, zone: str = "UTC") -> Window:
    return Window(start=start, minutes=minutes, zone=zone, **({"days": days} if days else {}))


NIGHT = window("22:00", 240, "sat")  # from Saturday into Sunday
# 2026-03-07 is a Saturday.


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("2026-03-07T21:59:59+00:00", False),
        ("2026-03-07T22:00:00+00:00", True),
        ("2026-03-08T01:59:59+00:00", True),  # after midnight it is still Saturday's window
        ("2026-03-08T02:00:00+00:00", False),
        ("2026-03-08T22:30:00+00:00", False),
        ("2026-03-07T00:30:00+00:00", False),  # Friday night
    ],
)
def test_a_window_over_midnight_belongs_to_the_day_on_which_it_begins(moment: str, expected: bool) -> None:
    assert is_open([NIGHT], at(moment)) is expected


def test_without_windows_it_is_always_open() -> None:
    moment = at("2026-03-07T12:00:00+00:00")
    assert is_open([], moment)
    assert next_opening([], moment) == moment
    assert open_seconds([], moment, moment + timedelta(hours=2)) == 7200
    assert after_open([], moment, 60) == moment + timedelta(seconds=60)


def test_a_start_that_the_clock_skips_is_an_hour_later_on_the_clock() -> None:
    gap = window("02:30", 60, zone=BERLIN)
    (span,) = openings([gap], at("2026-03-29T00:00:00+01:00"), at("2026-03-29T12:00:00+02:00"))
    assert span == (at("2026-03-29T03:30:00+02:00"), at("2026-03-29T04:30:00+02:00"))


def test_a_start_that_comes_twice_is_the_first() -> None:
    overlap = window("02:30", 60, zone=BERLIN)
    (span,) = openings([overlap], at("2026-10-25T00:00:00+02:00"), at("2026-10-25T12:00:00+01:00"))
    assert span == (at("2026-10-25T02:30:00+02:00"), at("2026-10-25T02:30:00+01:00"))


@pytest.mark.parametrize("day", ["2026-03-28T23:00:00+01:00", "2026-10-24T23:00:00+02:00", "2026-06-01T23:00:00+02:00"])
def test_a_window_lasts_its_minutes_also_where_the_clock_changes_in_it(day: str) -> None:
    nightly = window("23:00", 360, zone=BERLIN)
    (span,) = openings([nightly], at(day), at(day))
    assert span == (at(day), at(day) + timedelta(minutes=360))


def test_the_devices_zone_says_when_a_window_of_the_device_is_open() -> None:
    lunch, noon_in_utc = window("12:00", 60, zone="device"), at("2026-06-01T12:30:00+00:00")
    assert is_open([lunch], noon_in_utc, UTC)
    assert not is_open([lunch], noon_in_utc, ZoneInfo("Asia/Tokyo"))
    assert is_open([lunch], at("2026-06-01T12:30:00+09:00"), ZoneInfo("Asia/Tokyo"))


def test_a_server_takes_a_devices_window_to_be_open_while_it_is_anywhere_on_earth() -> None:
    lunch = window("12:00", 60, "mon", zone="device")  # 2026-06-01 is a Monday
    first, last = timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))
    begin = datetime(2026, 6, 1, 12, tzinfo=first)
    end = datetime(2026, 6, 1, 13, tzinfo=last)
    assert is_open([lunch], begin)
    assert not is_open([lunch], begin - timedelta(seconds=1))
    assert is_open([lunch], end - timedelta(seconds=1))
    assert not is_open([lunch], end)


def test_several_windows_are_open_together_and_meet() -> None:
    both = [window("08:00", 60), window("08:30", 60), window("09:30", 30), window("20:00", 10)]
    spans = openings(both, at("2026-06-01T06:00:00+00:00"), at("2026-06-01T23:00:00+00:00"))
    assert [(begin.hour, (end - begin).seconds // 60) for begin, end in spans] == [(8, 120), (20, 10)]


def test_the_next_opening_may_be_a_week_away() -> None:
    assert next_opening([NIGHT], at("2026-03-08T02:00:00+00:00")) == at("2026-03-14T22:00:00+00:00")
    assert next_opening([NIGHT], at("2026-03-07T23:00:00+00:00")) == at("2026-03-07T23:00:00+00:00")


def test_a_zone_that_is_unknown_here_never_opens() -> None:
    nowhere = window("00:00", 1440, zone="Mars/Olympus")
    assert zone_named("Mars/Olympus") is None
    assert zone_named("../../etc/passwd") is None
    assert zone_named("America") is None
    assert not is_open([nowhere], at("2026-06-01T06:00:00+00:00"))
    assert next_opening([nowhere], at("2026-06-01T06:00:00+00:00")) is None
    assert after_open([nowhere], at("2026-06-01T06:00:00+00:00"), 60) is None


def test_open_time_counts_what_lies_inside_only() -> None:
    since, until = at("2026-03-07T12:00:00+00:00"), at("2026-03-08T01:00:00+00:00")
    assert open_seconds([NIGHT], since, until) == 3 * 3600
    assert open_seconds([NIGHT], since, since + timedelta(hours=1)) == 0
    assert after_open([NIGHT], since, 3 * 3600) == until
    assert after_open([NIGHT], since, 4 * 3600 + 60) == at("2026-03-14T22:01:00+00:00")
    assert after_open([NIGHT], since, 0) == at("2026-03-07T22:00:00+00:00")


def test_a_window_all_week_long_is_never_closed() -> None:
    always = window("00:00", 7 * 24 * 60, "mon")
    since = at("2026-06-01T06:00:00+00:00")
    assert open_seconds([always], since, since + timedelta(days=20)) == 20 * 86400
    assert after_open([always], since, 20 * 86400) == since + timedelta(days=20)


@pytest.mark.parametrize(
    "bad",
    [
        {"start": "24:00", "minutes": 5},
        {"start": "8:00", "minutes": 5},
        {"start": "08:00\n", "minutes": 5},
        {"start": "08:00", "minutes": 0},
        {"start": "08:00", "minutes": 10081},
        {"start": "08:00", "minutes": 5, "days": []},
        {"start": "08:00", "minutes": 5, "days": ["caturday"]},
        {"start": "08:00", "minutes": 5, "zone": "../../etc/passwd"},
        {"start": "08:00", "minutes": 5, "zone": ""},
    ],
)
def test_a_window_outside_its_bounds_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(bad, Window)


def test_a_window_is_described_as_people_read_it() -> None:
    assert described(NIGHT) == "sat 22:00 for 240 min (UTC)"
    assert described(window("03:00", 30)) == "daily 03:00 for 30 min (UTC)"
