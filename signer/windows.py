"""Windows of time that come again every week, and what a device asks of itself before an update starts: on the wire and in plans.

A window begins on its days at its wall-clock time in its zone and is open for its minutes, which are elapsed time. Where the
clock is put forward over the start, the offset from before counts (02:30 that does not exist is 03:30); where it is put back, the
first of both. These are RFC 5545's rules for a start with an exact duration (3.3.5, 3.3.6). `device` is the zone of the device
that reads it; a server that knows no device's zone (`zone=None`) takes it to be open while it is anywhere on earth, from UTC+14
to UTC-12. Without any window it is always open.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, time, timedelta, tzinfo
from functools import lru_cache
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

import msgspec

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DEVICE_ZONE = "device"
MAX_WINDOWS = 16
WEEK = timedelta(days=7)
_EASTMOST, _WESTMOST = timedelta(hours=14), timedelta(hours=12)

Span = tuple[datetime, datetime]
"""From when until when (not including it) something is open, aware UTC."""


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of time that comes again every week; `days` are those on which it begins."""

    days: Annotated[tuple[Day, ...], msgspec.Meta(min_length=1, max_length=7)] = DAYS
    start: Annotated[str, msgspec.Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]\Z")]
    minutes: Annotated[int, msgspec.Meta(ge=1, le=7 * 24 * 60)]
    zone: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_+-]{1,32}(/[A-Za-z0-9_+-]{1,32}){0,2}\Z")] = DEVICE_ZONE


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """What must hold on a device while an update is fetched; `battery_at_least` is a share, 0..1."""

    network: Literal["any", "unmetered"] = "any"
    power: Literal["any", "external"] = "any"
    battery_at_least: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0


ANY_CONDITIONS = Conditions()


@lru_cache(maxsize=256)
def zone_named(name: str) -> tzinfo | None:
    """Return the zone of an IANA name, or None where this machine's time zone database has none."""
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):  # a folder of zones, a path, an unknown name
        return None


def is_open(windows: Sequence[Window], at: datetime, zone: tzinfo | None = None) -> bool:
    """Whether a window is open at that moment; `zone` is the device's, None: open anywhere on earth counts."""
    return not windows or any(begin <= at < end for begin, end in openings(windows, at, at, zone))


def next_opening(windows: Sequence[Window], at: datetime, zone: tzinfo | None = None) -> datetime | None:
    """Return `at` while a window is open, else when the next one opens; None where no zone of theirs is known."""
    if is_open(windows, at, zone):
        return at
    return next((begin for begin, _ in openings(windows, at, at + WEEK + timedelta(days=2), zone) if begin > at), None)


def open_seconds(windows: Sequence[Window], since: datetime, until: datetime, zone: tzinfo | None = None) -> float:
    """Return for how much of the time between two moments a window was open, in seconds."""
    if not windows:
        return (until - since).total_seconds()
    spans = openings(windows, since, until, zone)
    return sum(max(0.0, (min(end, until) - max(begin, since)).total_seconds()) for begin, end in spans)


def overlap_seconds(windows: Sequence[Window], hours: Sequence[Window], since: datetime, until: datetime) -> float:
    """Return for how much of the time between two moments both were open, in seconds."""
    if not windows:
        return open_seconds(hours, since, until)
    spans = openings(windows, since, until)
    return sum(open_seconds(hours, max(begin, since), min(end, until)) for begin, end in spans)


def after_open(
    windows: Sequence[Window], since: datetime, seconds: float, zone: tzinfo | None = None
) -> datetime | None:
    """Return when windows will have been open for that many seconds since then; None where none of them ever opens."""
    if not windows:
        return since + timedelta(seconds=seconds)
    moment = next_opening(windows, since, zone)
    left = seconds
    while moment is not None:
        end = next(end for begin, end in openings(windows, moment, moment, zone) if begin <= moment < end)
        here = (end - moment).total_seconds()
        if left <= here:
            return moment + timedelta(seconds=left)
        left, moment = left - here, next_opening(windows, end, zone)
    return None


def openings(windows: Sequence[Window], since: datetime, until: datetime, zone: tzinfo | None = None) -> list[Span]:
    """Return when windows are open, of those spans that touch [since, until]; in order, and those that meet are one."""
    found = sorted(
        span
        for window in windows
        for span in _occurrences(window, since, until, zone)
        if span[1] > since and span[0] <= until
    )
    merged: list[Span] = []
    for begin, end in found:
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def described(window: Window) -> str:
    """Return the window as people read it, such as `sat, sun 22:00 for 240 min (Europe/Berlin)`."""
    days = "daily" if len(set(window.days)) == len(DAYS) else ", ".join(window.days)
    return f"{days} {window.start} for {window.minutes} min ({window.zone})"


def _occurrences(window: Window, since: datetime, until: datetime, zone: tzinfo | None) -> Iterator[Span]:
    length = timedelta(minutes=window.minutes)
    begins = time.fromisoformat(window.start)
    wanted = {DAYS.index(day) for day in window.days}
    day = (since - length - timedelta(days=2)).date()
    last = (until + timedelta(days=2)).date()
    while day <= last:
        if day.weekday() in wanted:
            span = _span(window, datetime.combine(day, begins), length, zone)
            if span is not None:
                yield span
        day += timedelta(days=1)


def _span(window: Window, local: datetime, length: timedelta, zone: tzinfo | None) -> Span | None:
    """Return when the window that begins at this wall-clock time is open, or None where its zone is unknown here."""
    if window.zone == DEVICE_ZONE and zone is None:
        anywhere = local.replace(tzinfo=UTC)
        return anywhere - _EASTMOST, anywhere + _WESTMOST + length
    there = zone if window.zone == DEVICE_ZONE else zone_named(window.zone)
    if there is None:
        return None
    begin = local.replace(tzinfo=there, fold=0).astimezone(UTC)
    return begin, begin + length
