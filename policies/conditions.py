"""The fields of a plan that say when: maintenance windows, conditions on the device, when it starts, when it may advance.

Each reader takes a field's TOML or JSON value and appends what is wrong with it to `problems`, as those of `plan` do. A stage's
clocks (bake, hold, soak) count only while a window is open somewhere: devices that may not start prove nothing by waiting.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import msgspec

from modelfleet.signer.windows import (
    ANY_CONDITIONS,
    DAYS,
    DEVICE_ZONE,
    MAX_WINDOWS,
    WEEK,
    Conditions,
    Window,
    after_open,
    next_opening,
    openings,
    zone_named,
)

_CONDITIONS_READ = "expected network any or unmetered, power any or external, battery_at_least 0 to 1"
_WINDOW_READS = (
    "expected days of mon, tue, wed, thu, fri, sat, sun, start such as 22:00, minutes from 1 to 10080, zone a name"
)

_A_MONDAY = datetime(2026, 1, 5, tzinfo=UTC)


def read_windows(value: Any, name: str, problems: list[str]) -> tuple[Window, ...]:
    """Read windows in which devices may start: days, start, minutes, zone (an IANA name, or `device`, which is the default)."""
    return _windows(value, name, problems, of_devices=True)


def read_hours(value: Any, name: str, problems: list[str]) -> tuple[Window, ...]:
    """Read windows in which the server acts, such as office hours: no zone of a device's."""
    return _windows(value, name, problems, of_devices=False)


def read_conditions(value: Any, name: str, problems: list[str]) -> Conditions:
    """Read what must hold on a device: network, power, battery_at_least."""
    if not _is_table_of(value, Conditions, name, problems):
        return ANY_CONDITIONS
    try:
        read = msgspec.convert(value, Conditions)
    except msgspec.ValidationError as error:
        problems.append(f"{name}: {_CONDITIONS_READ}; got: {error}")
        return ANY_CONDITIONS
    return msgspec.structs.replace(read, battery_at_least=float(read.battery_at_least))  # equal plans, equal digests


def read_moment(value: Any, name: str, problems: list[str]) -> datetime | None:
    """Read a moment with its offset from UTC: a TOML date-time, or ISO 8601 text; null is none."""
    if value is None:
        return None
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, datetime) or found.tzinfo is None:
        problems.append(f"{name}: expected a moment with an offset, such as 2026-03-01T22:00:00+01:00, got {value!r}")
        return None
    return found.astimezone(UTC)


def never_met(
    windows: Sequence[Window], bake_seconds: Sequence[float], deadline_seconds: float, start_at: datetime | None
) -> str | None:
    """Return why no stage can pass within these windows before the deadline, or None where they can; no clock is read."""
    if not windows:
        return None
    week = [begin for begin, _ in openings(windows, _A_MONDAY, _A_MONDAY + WEEK)]
    problems = [_misses(windows, bake_seconds, deadline_seconds, at) for at in ([start_at] if start_at else week)]
    return None if None in problems else problems[0]


def first_start(windows: Sequence[Window], start: datetime, deadline_seconds: float) -> datetime | None:
    """Return when the first device may start, in a trial that starts at that moment; None: not before the deadline."""
    first = next_opening(windows, start)
    return None if first is None or first >= start + timedelta(seconds=deadline_seconds) else first


def _misses(
    windows: Sequence[Window], bake_seconds: Sequence[float], deadline_seconds: float, start: datetime
) -> str | None:
    deadline = start + timedelta(seconds=deadline_seconds)
    if first_start(windows, start, deadline_seconds) is None:
        return f"expected a window before the deadline of {deadline_seconds:.0f} s, the first opens after it"
    baked = after_open(windows, start, sum(bake_seconds))
    if baked is None or baked > deadline:
        return (
            f"expected windows open for the stages' {sum(bake_seconds):.0f} s of bake time before the deadline of"
            f" {deadline_seconds:.0f} s: give longer windows, shorter bake times or a later deadline"
        )
    return None


def _windows(value: Any, name: str, problems: list[str], *, of_devices: bool) -> tuple[Window, ...]:
    if not isinstance(value, list | tuple):
        problems.append(f"{name}: expected a list of windows, got {value!r}")
        return ()
    rows = cast("Sequence[Any]", value)
    if len(rows) > MAX_WINDOWS:
        problems.append(f"{name}: expected at most {MAX_WINDOWS} windows, got {len(rows)}")
        return ()
    read = [_window(row, f"{name}[{index}]", problems, of_devices=of_devices) for index, row in enumerate(rows)]
    return tuple(window for window in read if window is not None)


def _window(value: Any, name: str, problems: list[str], *, of_devices: bool) -> Window | None:
    if not _is_table_of(value, Window, name, problems):
        return None
    try:
        read = msgspec.convert(value, Window)
    except msgspec.ValidationError as error:
        problems.append(f"{name}: {_WINDOW_READS}; got: {error}")
        return None
    if read.zone == DEVICE_ZONE and not of_devices:
        problems.append(f"{name}.zone: expected an IANA name such as Europe/Berlin: the server has no device's zone")
    elif read.zone != DEVICE_ZONE and zone_named(read.zone) is None:
        wanted = '"device" or an IANA name' if of_devices else "an IANA name"
        problems.append(f"{name}.zone: expected {wanted} such as Europe/Berlin, got {read.zone!r}")
    return msgspec.structs.replace(read, days=tuple(day for day in DAYS if day in read.days))


def _is_table_of(value: Any, kind: type[msgspec.Struct], name: str, problems: list[str]) -> bool:
    if not isinstance(value, Mapping):
        problems.append(f"{name}: expected a table, got {value!r}")
        return False
    unknown = sorted(set(cast("Mapping[str, Any]", value)) - set(kind.__struct_fields__))
    problems += [f"{name}.{key}: unknown field" for key in unknown]
    return not unknown
