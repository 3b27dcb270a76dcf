"""Batches: whatever comes again, late or over several workers ends in the same rows; what one message does hurts no other."""

import random
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from securesystemslib.signer import CryptoSigner
from sqlalchemy import Engine, func, select

from modelfleet.agent_client.protocol import (
    Bench,
    DeviceState,
    Metrics,
    Report,
    ReportedError,
    Status,
    device_topic,
    encode,
)
from modelfleet.registry.tables import AuditRecord, Device, Tenant, Variant, Version
from modelfleet.rollout.ingest import write_reports as writing
from modelfleet.rollout.ingest.intake import Ingest
from modelfleet.rollout.ingest.keep import keep
from modelfleet.rollout.ingest.waiting import MAX_UNACKNOWLEDGEABLE, Waiting
from modelfleet.rollout.mqtt.broker import Message
from modelfleet.rollout.tables import DeviceCounters, DeviceSlot, DeviceTrial, Rollout, TelemetryHour
from modelfleet.rollout.usage.by_day import percentile_ms, usage
from modelfleet.service.database import session_factory
from modelfleet.signer.sign import sign_report
from tests.databases import new_sqlite

TENANT, SLOT, ROLLOUT, DIGEST = "acme", "detector", "r1", "a" * 64
NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
BENCH = Bench(samples=5, p50_ms=1.0, p95_ms=2.0, p99_ms=3.0, load_ms=9.0, peak_memory_bytes=1)


class Fleet:
    """A database with a few devices, one version and one rollout, and an ingest."""

    def __init__(self, engine: Engine, devices: int = 3) -> None:
        self.engine = engine
        self.sessions = session_factory(self.engine)
        self.ids = [str(uuid.UUID(int=number + 1)) for number in range(devices)]
        self.keys = {name: CryptoSigner.generate_ecdsa() for name in self.ids}
        with self.sessions.begin() as session:
            session.add(Tenant(name=TENANT, created_at=NOW))
            session.flush()
            session.add_all(self._device(name) for name in self.ids)
            session.add(a_rollout())
            version = a_version()
            session.add(version)
            session.flush()
            session.add(a_variant(version.id))
        self.ingest = Ingest(self.sessions, TENANT)

    def _device(self, name: str) -> Device:
        pem = str(self.keys[name].public_key.keyval["public"])
        more = {"claim_sha256": name, "facts": {}, "agent_version": "0", "enrolled_at": NOW}
        return Device(id=name, tenant=TENANT, group="lab", profile="p", public_key=pem, key_sha256=name, **more)

    def report(self, name: str, seq: int, state: DeviceState, **more: object) -> tuple[str, bytes]:
        known = {"device": name, "boot": 1, "seq": seq, "slot": SLOT, "digest": DIGEST, "rollout": ROLLOUT}
        payload = encode(Report(**(known | {"state": state, "active": DIGEST} | more)))  # pyright: ignore[reportArgumentType]
        signed = state in (DeviceState.COMMITTED, DeviceState.REJECTED, DeviceState.ROLLED_BACK)
        return device_topic(TENANT, name, "report"), sign_report(payload, self.keys[name]) if signed else payload

    def metrics(self, name: str, seq: int, n: int, activation: int = 1, **more: object) -> tuple[str, bytes]:
        known = {"device": name, "boot": 1, "seq": seq, "slot": SLOT, "activation": activation, "sha256": DIGEST}
        payload = encode(Metrics(**(known | {"n": n, "errors": n // 10, "latency": (0, n)} | more)))  # pyright: ignore[reportArgumentType]
        return device_topic(TENANT, name, "metrics"), payload

    def story(self) -> list[tuple[str, bytes]]:
        """Everything that each device says in two updates, in order."""
        found: list[tuple[str, bytes]] = []
        for name in self.ids:
            steps = [DeviceState.PREFLIGHT, DeviceState.DOWNLOADING, DeviceState.BENCHMARKING, DeviceState.ACTIVATING]
            found += [self.report(name, seq, state) for seq, state in enumerate(steps, 1)]
            found += [self.metrics(name, 5, 10), self.report(name, 6, DeviceState.REJECTED, bench=BENCH)]
            found += [self.report(name, 7, DeviceState.PREFLIGHT), self.metrics(name, 8, 30)]
            found += [self.report(name, 9, DeviceState.PROBATION, bench=BENCH)]
            found += [self.report(name, 10, DeviceState.COMMITTED), self.report(name, 11, DeviceState.IDLE)]
        return found

    def tables(self) -> dict[str, list[dict[str, object]]]:
        """What the rows say, times left out."""
        with self.sessions() as session:
            return {
                kind.__tablename__: [
                    {c.name: v for c, v in zip(kind.__table__.columns, row, strict=True) if not c.name.endswith("_at")}
                    for row in session.execute(select(*kind.__table__.columns).order_by(*kind.__table__.primary_key))
                ]
                for kind in (DeviceSlot, DeviceTrial, DeviceCounters, TelemetryHour)
            }

    def audited(self) -> Counter[str]:
        with self.sessions() as session:
            records = session.scalars(select(AuditRecord).where(AuditRecord.action == "device.report"))
            return Counter(f"{record.subject} {record.detail['seq']}" for record in records)


def a_rollout() -> Rollout:
    more = {"groups": ["lab"], "plan": {}, "plan_sha256": "0" * 64, "author": "ada", "salt": "0" * 64}
    times = {"created_at": NOW - timedelta(days=200), "approve_by": NOW, "ended_at": NOW - timedelta(days=100)}
    named = {"id": ROLLOUT, "tenant": TENANT, "model": "digits", "version": "1.0.0", "slot": SLOT}
    return Rollout(**named, **more, **times, state="COMPLETED", skipped_profiles={})


def a_version() -> Version:
    digests = ("source_sha256", "card_sha256", "golden_sha256", "statement_sha256")
    named = {
        "tenant": TENANT,
        "model": "digits",
        "version": "1.0.0",
        "channel": "stable",
        "counter": 1,
        "state": "READY",
    }
    more = {"card": {}, "source_length": 1, "published_by": "ada", "published_at": NOW}
    return Version(**named, **more, **dict.fromkeys(digests, "0" * 64))


def a_variant(version: int) -> Variant:
    named = {"version_id": version, "tenant": TENANT, "model": "digits", "version": "1.0.0", "profile": "p"}
    return Variant(**named, state="READY", counter=1, manifest_sha256=DIGEST, created_at=NOW)


@pytest.fixture
def fleet(engine: Engine) -> Fleet:
    return Fleet(engine)


def other_fleet(tmp_path, like: Fleet) -> Fleet:
    made = Fleet(new_sqlite(tmp_path / "other.db"))
    made.keys = like.keys
    with made.sessions.begin() as session:
        for name, key in like.keys.items():
            session.get_one(Device, name).public_key = str(key.public_key.keyval["public"])
    return made


@pytest.mark.parametrize("seed", range(2))
def test_messages_three_times_and_shuffled_end_in_the_rows_of_the_ordered_run(fleet, tmp_path, seed):
    ordered = other_fleet(tmp_path, fleet)
    for message in ordered.story():
        ordered.ingest.accept([message], NOW)
    shuffled = fleet.story() * 3
    draw = random.Random(seed)
    draw.shuffle(shuffled)
    workers = [fleet.ingest, Ingest(fleet.sessions, TENANT)]
    while shuffled:
        size = draw.randint(1, 40)
        draw.choice(workers).accept(shuffled[:size], NOW)
        del shuffled[:size]
    found, expected = fleet.tables(), ordered.tables()
    for each in (found, expected):  # counted in which order they came: one row an activation, whatever the hour's sum
        each["telemetry_hours"] = [row | {"devices": 0} for row in each["telemetry_hours"]]
    assert found == expected
    assert [row["outcome"] for row in found["device_trials"]] == ["COMMITTED"] * 3
    assert found["telemetry_hours"][0]["n"] == 90
    ordered.engine.dispose()


def test_one_batch_ends_in_the_rows_of_one_message_at_a_time(fleet, tmp_path):
    ordered = other_fleet(tmp_path, fleet)
    for message in ordered.story():
        ordered.ingest.accept([message], NOW)
    assert fleet.ingest.accept(fleet.story(), NOW) == len(fleet.story())
    assert fleet.tables() == ordered.tables()
    assert fleet.audited() == ordered.audited()
    assert set(fleet.audited().values()) == {1}
    ordered.engine.dispose()


def test_hostile_messages_hurt_no_neighbour(fleet):
    first, second, third = fleet.ids
    hostile = [
        (device_topic(TENANT, first, "report"), b"\xff"),
        ("mf/v1/other/d/x/report", b"{}"),
        (device_topic(TENANT, first, "metrics"), b"{}"),
        (device_topic(TENANT, str(uuid.uuid4()), "status"), encode(Status(state="online"))),
        fleet.report(second, 3, DeviceState.FAILED, error=ReportedError(kind="a\0b", message="\0")),
    ]
    good = [fleet.report(third, 1, DeviceState.COMMITTED), fleet.metrics(third, 2, 10)]
    assert fleet.ingest.accept([*hostile, *good], NOW) == 3
    assert fleet.ingest.dropped.total() == 4
    with fleet.sessions() as session:
        assert session.get_one(DeviceSlot, (second, SLOT)).error == {"kind": "a\ufffdb", "message": "\ufffd"}
        assert session.get_one(DeviceSlot, (third, SLOT)).proven == DIGEST


def test_what_the_database_refuses_is_dropped_alone(fleet, monkeypatch):
    """A row that no column takes, which no check has foreseen."""
    whole = writing._slot_row

    def too_long(each):
        row = whole(each)
        return row | {"state": None} if each.report.device == fleet.ids[0] else row

    monkeypatch.setattr(writing, "_slot_row", too_long)
    batch = [fleet.report(name, 1, DeviceState.PREFLIGHT) for name in fleet.ids]
    assert fleet.ingest.accept(batch, NOW) == 2
    assert fleet.ingest.dropped == {"refused by the database": 1}
    assert [row["device"] for row in fleet.tables()["device_slots"]] == fleet.ids[1:]


def test_a_device_revoked_between_check_and_write_is_not_heard(fleet):
    messages = [fleet.report(name, 1, DeviceState.PREFLIGHT) for name in fleet.ids]
    received = fleet.ingest._check(messages, NOW, None)
    with fleet.sessions.begin() as session:
        session.get_one(Device, fleet.ids[0]).revoked_at = NOW
    assert fleet.ingest._write(received) == 2
    assert fleet.ingest.dropped == {"unknown device": 1}


def test_inferences_are_added_to_their_hour_once(fleet):
    name = fleet.ids[0]
    for seq, n, at in ((1, 10, NOW), (2, 25, NOW), (1, 10, NOW), (3, 40, NOW + timedelta(hours=1))):
        fleet.ingest.accept([fleet.metrics(name, seq, n), fleet.metrics(name, seq, n)], at)
    hours = fleet.tables()["telemetry_hours"]
    assert [(row["n"], row["errors"], row["devices"], row["latency"]) for row in hours] == [
        (25, 2, 1, [0, 25]),
        (15, 2, 1, [0, 15]),
    ]


def test_counters_of_an_unknown_manifest_stay_their_devices_alone(fleet):
    fleet.ingest.accept([fleet.metrics(fleet.ids[0], 1, 10, sha256="b" * 64)], NOW)
    assert fleet.tables()["telemetry_hours"] == []
    assert [row["n"] for row in fleet.tables()["device_counters"]] == [10]


def test_only_the_newest_activations_are_kept_and_a_late_message_counts_nothing_twice(fleet):
    name = fleet.ids[0]
    for activation in (1, 2, 3):
        fleet.ingest.accept([fleet.metrics(name, activation, 10, activation)], NOW + timedelta(seconds=activation))
    fleet.ingest.accept([fleet.metrics(name, 1, 10, 1)], NOW + timedelta(seconds=9))
    assert [row["activation"] for row in fleet.tables()["device_counters"]] == [2, 3]
    assert [row["n"] for row in fleet.tables()["telemetry_hours"]] == [30]


def test_what_is_long_over_is_removed_and_audit_records_stay(fleet):
    old = NOW - timedelta(days=100)
    fleet.ingest.accept(fleet.story(), old)
    fleet.ingest.accept([fleet.metrics(fleet.ids[0], 99, 500)], NOW)
    gone = keep(fleet.sessions, TENANT, NOW, telemetry_days=60, trial_days=90)
    assert fleet.tables()["device_trials"] == []
    assert [row["n"] for row in fleet.tables()["telemetry_hours"]] == [470]
    assert gone["telemetry_partitions"] + gone["telemetry_hours"] >= 1
    assert fleet.audited().total() == 6
    assert keep(fleet.sessions, TENANT, NOW, telemetry_days=60, trial_days=90)["device_trials"] == 0


def test_usage_by_day_has_percentiles_from_the_buckets(fleet):
    fleet.ingest.accept([fleet.metrics(fleet.ids[0], 1, 100, latency=(50, 45, 4, 1))], NOW)
    with fleet.sessions() as session:
        found = usage(session, TENANT, model="digits", since=NOW - timedelta(days=1)).days
        assert usage(session, TENANT, model="other", since=NOW - timedelta(days=1)).days == []
    assert [(day.day.isoformat(), day.inferences, day.errors, day.devices) for day in found] == [
        ("2026-03-01", 100, 10, 1)
    ]
    assert (found[0].p50_ms, found[0].p95_ms, found[0].p99_ms) == (0.125, 0.177, 0.25)


def test_beyond_the_last_bucket_no_percentile_is_known():
    assert percentile_ms([0] * 32 + [1], 0.5) is None
    assert percentile_ms([], 0.5) is None


def test_beyond_its_bound_only_the_newest_counters_of_each_slot_wait():
    dropped: Counter[str] = Counter()
    queue = Waiting(dropped)
    for number in range(MAX_UNACKNOWLEDGEABLE + 1):
        payload = b'{"slot":"s%d","n":%d}' % (number % 2, number)
        queue.add(Message(topic="mf/v1/acme/d/1/metrics", payload=payload, qos=0))
    assert [message.payload for message in queue] == [b'{"slot":"s1","n":19999}', b'{"slot":"s0","n":20000}']
    assert dropped == {"metrics overtaken": MAX_UNACKNOWLEDGEABLE - 1}


def test_reports_wait_ahead_of_counters_and_come_back_after_a_failed_write():
    queue = Waiting(Counter())
    counted, said = Message(topic="m", payload=b"1", qos=0), Message(topic="r", payload=b"2")
    queue.add(counted)
    queue.add(said)
    batch = queue.take(2)
    assert batch == [said, counted]
    assert not queue.arrived.is_set()
    queue.put_back(batch)
    assert queue.take(1) == [said]


def test_presence_is_each_devices_last_word(fleet):
    topic = device_topic(TENANT, fleet.ids[0], "status")
    words = [encode(Status(state=state, agent="1.2")) for state in ("online", "offline", "online")]  # pyright: ignore[reportArgumentType]
    fleet.ingest.accept([(topic, word) for word in words], NOW)
    with fleet.sessions() as session:
        found = session.get_one(Device, fleet.ids[0])
        assert (found.online, found.agent_version, found.last_seen_at) == (True, "1.2", NOW)
        assert session.scalar(select(func.count()).where(Device.online)) == 1
