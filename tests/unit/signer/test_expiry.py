"""What expires when, how loudly that is said, and that what renews itself never comes near."""

import logging
from datetime import datetime, timedelta

import pytest

from modelfleet.signer.ceremony import CeremonyResult
from modelfleet.signer.expiry import LEADS, Expiring, Level, expiries, level_of
from modelfleet.signer.key_book import read_book
from modelfleet.signer.metadata import Snapshot, Timestamp, parse_metadata
from modelfleet.signer.status import ExpiryAlarm, TrustReader, TrustWatch, expiring, trust_status
from tests.unit.signer.samples import DAY, NOW

SECOND = timedelta(seconds=1)
SLOWEST_REFRESH = timedelta(seconds=500 * 60)
"""Between two looks of the service: 500 ticks, of 60 s at the most."""


def thing(kind: str, left: timedelta) -> Expiring:
    return Expiring(kind=kind, name=f"{kind}.json", expires=NOW + left, remedy="renew it")


@pytest.mark.parametrize("kind", LEADS)
def test_each_kind_warns_and_alarms_in_its_own_time(kind: str) -> None:
    warn, critical = LEADS[kind]
    assert critical < warn
    assert level_of(thing(kind, warn + SECOND), NOW) is Level.OK
    assert level_of(thing(kind, warn), NOW) is Level.WARNING
    assert level_of(thing(kind, critical + SECOND), NOW) is Level.WARNING
    assert level_of(thing(kind, critical), NOW) is Level.CRITICAL
    assert level_of(thing(kind, -DAY), NOW) is Level.CRITICAL


def test_the_soonest_comes_first_and_says_what_to_do() -> None:
    rows = expiries([thing("root", 29 * DAY), thing("certificate", -DAY), thing("targets", 90 * DAY)], NOW)
    assert [(row.name, row.level, row.days_left) for row in rows] == [
        ("certificate.json", Level.CRITICAL, -1.0),
        ("root.json", Level.WARNING, 29.0),
        ("targets.json", Level.OK, 90.0),
    ]
    assert "expired 1.0 days ago" in rows[0].text
    assert "expires in 29.0 days" in rows[1].text
    assert rows[1].text.endswith("renew it")


def test_a_new_fleet_is_well_and_an_old_one_names_what_to_renew(fleet: CeremonyResult, now: datetime) -> None:
    published = TrustReader(fleet.metadata_dir.parent).read()
    status = trust_status(published, now, book=read_book(fleet.data_dir))
    assert status.level is Level.OK
    assert {thing.kind for thing in expiring(published)} == {"root", "targets", "bins", "snapshot", "timestamp"}
    later = {row.kind: row.level for row in trust_status(published, now + 160 * DAY).expiries}
    assert later == {
        "root": Level.OK,
        "targets": Level.WARNING,
        "bins": Level.CRITICAL,
        "snapshot": Level.CRITICAL,
        "timestamp": Level.CRITICAL,
    }
    assert trust_status(published, now + 340 * DAY).level is Level.CRITICAL


def test_the_status_names_every_role_with_its_keys(fleet: CeremonyResult, now: datetime) -> None:
    published = TrustReader(fleet.metadata_dir.parent).read()
    status = trust_status(published, now, book=read_book(fleet.data_dir)).as_json()
    roles = {row["role"]: row for row in status["roles"]}
    assert {name: (row["threshold"], len(row["keys"]), row["version"]) for name, row in roles.items()} == {
        "root": (2, 3, 1),
        "targets": (2, 3, 1),
        "releases": (1, 1, 1),
        "snapshot": (1, 1, 1),
        "timestamp": (1, 1, 1),
        "director": (1, 1, None),
        "publisher": (1, 1, None),
        "gate": (1, 1, None),
        "approver": (1, 2, None),
    }
    assert {key["person"] for key in roles["approver"]["keys"]} == {"anna", "ben"}
    assert roles["root"]["keys"][0]["uri"].startswith("file:offline/root-")
    without_book = trust_status(published, now).as_json()
    assert {key["uri"] for row in without_book["roles"] for key in row["keys"]} == {None}


def test_an_alarm_speaks_at_start_once_a_day_and_when_it_gets_worse(caplog: pytest.LogCaptureFixture) -> None:
    alarm, root = ExpiryAlarm(), thing("root", 8 * DAY)

    def said(now: datetime) -> list[int]:
        caplog.clear()
        alarm.tell(expiries([root, thing("targets", 900 * DAY)], now), now)
        return [record.levelno for record in caplog.records]

    assert said(NOW) == [logging.WARNING]
    assert said(NOW + timedelta(hours=3)) == []
    assert said(NOW + timedelta(hours=13)) == [logging.WARNING]  # the next day
    assert said(NOW + DAY + timedelta(hours=1)) == [logging.ERROR]  # the same day, and critical by now
    assert said(NOW + DAY + timedelta(hours=2)) == []
    assert ExpiryAlarm().tell(expiries([root], NOW), NOW)


def test_others_add_rows_of_their_own(fleet: CeremonyResult, now: datetime) -> None:
    watch = TrustWatch(fleet.metadata_dir.parent)
    assert watch.alarm(now) == []
    watch.more.append(lambda: [Expiring(kind="certificate", name="the fleet CA", expires=now + DAY, remedy="renew it")])
    assert [row.name for row in watch.alarm(now)] == ["the fleet CA"]
    assert watch.status(now).level is Level.CRITICAL


def test_snapshot_and_timestamp_are_renewed_in_time_however_slow_the_clock_ticks(
    fleet: CeremonyResult, now: datetime
) -> None:
    """100 days of looks, as far apart as the settings allow: at the end of each wait both still hold, without a warning."""
    repository, at = fleet.repository(), now
    while at < now + 100 * DAY:
        repository.refresh(at)
        at += SLOWEST_REFRESH
        timestamp = parse_metadata((fleet.metadata_dir / "timestamp.json").read_bytes(), Timestamp).signed
        version = timestamp.snapshot_meta.version
        snapshot = parse_metadata((fleet.metadata_dir / f"{version}.snapshot.json").read_bytes(), Snapshot).signed
        for kind, signed in (("timestamp", timestamp), ("snapshot", snapshot)):
            ends = Expiring(kind=kind, name=kind, expires=signed.expires, remedy="")
            assert level_of(ends, at) is Level.OK, f"{kind} ends {signed.expires - at} after a look"
