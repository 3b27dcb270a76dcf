"""What expires when, and how much that matters: one pure table, which whoever has something that expires adds a row to.

Each kind has two leads. Past the first one, somebody should act (WARNING); past the second one, now (CRITICAL). What renews
itself has short ones: they speak only when renewal has failed for a while.
"""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta


class Level(enum.StrEnum):
    """How urgent an expiry is."""

    OK = "ok"
    WARNING = "warning"
    CRITICAL = "critical"


LEADS: Mapping[str, tuple[timedelta, timedelta]] = {
    "root": (timedelta(days=30), timedelta(days=7)),
    "targets": (timedelta(days=30), timedelta(days=7)),
    "bins": (timedelta(days=20), timedelta(days=5)),  # signed again with 30 days left
    "snapshot": (timedelta(days=3), timedelta(days=1)),  # with 3.5 days left
    "timestamp": (timedelta(hours=3), timedelta(hours=1)),  # with 12 hours left, looked at every 8.3 at the latest
    "ca": (timedelta(days=365), timedelta(days=90)),  # all of a fleet has to move under its successor
    "certificate": (timedelta(days=30), timedelta(days=7)),
}
"""Kind -> how long before its end it warns, and when that becomes critical."""


@dataclass(frozen=True, kw_only=True)
class Expiring:
    """Something with an end: a `kind` of `LEADS`, a name that a person knows it by, and what to do about it."""

    kind: str
    name: str
    expires: datetime
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Expiry:
    """When a thing ends, seen from now; `days_left` is negative after its end."""

    kind: str
    name: str
    expires: datetime
    days_left: float
    level: Level
    remedy: str

    @property
    def text(self) -> str:
        """What an alert says."""
        if self.days_left < 0:
            return f"{self.name} expired {-self.days_left:.1f} days ago, at {self.expires:%F %H:%M} UTC: {self.remedy}"
        return f"{self.name} expires in {self.days_left:.1f} days, at {self.expires:%F %H:%M} UTC: {self.remedy}"


def expiries(things: Iterable[Expiring], now: datetime) -> list[Expiry]:
    """Return when each thing ends and how urgent that is, the soonest first."""
    rows = [
        Expiry(
            kind=thing.kind,
            name=thing.name,
            expires=thing.expires,
            days_left=round((thing.expires - now) / timedelta(days=1), 3),
            level=level_of(thing, now),
            remedy=thing.remedy,
        )
        for thing in things
    ]
    return sorted(rows, key=lambda row: (row.expires, row.name))


def level_of(thing: Expiring, now: datetime) -> Level:
    """Return how urgent the end of one thing is."""
    warn, critical = LEADS[thing.kind]
    left = thing.expires - now
    if left <= critical:
        return Level.CRITICAL
    return Level.WARNING if left <= warn else Level.OK
