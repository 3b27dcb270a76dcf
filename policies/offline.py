"""How long a bundle for offline devices may hold: the freeze window that somebody accepts with it.

Whoever holds a bundle can keep a device at its state, with all checks passing, until it expires. That is the price of a
device without a network, so it has a maximum here, and each bundle is an audit record.
"""

import re
from datetime import timedelta

from modelfleet.policies.errors import OfflineRefusedError

MIN_VALIDITY = timedelta(minutes=1)
MAX_VALIDITY = timedelta(days=90)
MAX_DEVICES = 2_000
"""Devices in one bundle; each is a signed assignment."""

_DURATION = re.compile(r"(?P<number>[1-9][0-9]{0,6})(?P<unit>[mhdw])")
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def parse_duration(text: str) -> timedelta:
    """Return the time that `30d`, `12h`, `90m` or `2w` says (OfflineRefusedError: it says none)."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise OfflineRefusedError(f"expected a time such as 30d, 12h, 90m or 2w, got {text[:40]!r}")
    return int(found["number"]) * _UNITS[found["unit"]]


def require_validity(valid_for: timedelta) -> None:
    """Return if a bundle may hold for so long (OfflineRefusedError: it may not)."""
    if not MIN_VALIDITY <= valid_for <= MAX_VALIDITY:
        raise OfflineRefusedError(
            f"expected a validity of {MIN_VALIDITY} to {MAX_VALIDITY.days} days, got {valid_for}:"
            " whoever holds the bundle can keep its devices at this state for so long"
        )


def require_devices(count: int) -> None:
    """Return if a bundle may be for so many devices (OfflineRefusedError: it may not)."""
    if not 1 <= count <= MAX_DEVICES:
        raise OfflineRefusedError(
            f"expected 1 to {MAX_DEVICES} devices in a bundle, got {count}: name some with --device"
        )
