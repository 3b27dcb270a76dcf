"""Reports from mosquitto into PostgreSQL: our ingest against a bare pipeline, in the same rounds on the same servers.

Bare: a paho subscriber (MQTT 5, acknowledging by hand, the same window), `json.loads`, and one batched upsert of the last state
per device into one table, on one thread. Ours: the product's connection and `Ingest`: strict parsing, signatures under
the devices' keys, revocation looked up, slots and trials by (boot, seq), an audit record of every signed report. One process, and
two that share the subscription. Publisher, mosquitto, PostgreSQL (fsync on) and every subscriber are processes of their own.

`python -m benchmarks.suites._ingest_run` prints it; `ingest_rows` returns the figures.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from base64 import b64decode
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Any

import psycopg
from sqlalchemy import func, insert, select, text

from modelfleet.benchmarks.suites._ingest_parts import PARTS, Parts, TimedIngest, per_message, verification_us
from modelfleet.benchmarks.suites._ingest_traffic import ROLLOUT, SLOT, TENANT, Sender, make_senders, messages, publish
from modelfleet.registry.tables import AuditRecord, Device, Tenant
from modelfleet.rollout.ingest.compact import Counts
from modelfleet.rollout.mqtt.paho_broker import WINDOW
from modelfleet.rollout.tables import DeviceSlot, DeviceTrial, Rollout
from modelfleet.service.database import open_database, prepare_database, session_factory
from tests.postgresql import PostgreSql, postgresql_server
from tests.servers import free_port, program, running

REPORTS = f"mf/v1/{TENANT}/d/+/report"
BATCH = 1000
LONGEST_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class IngestFigures:
    """Medians over the rounds: messages per second from the first publication to the last commit."""

    devices: int
    messages_per_round: int
    rounds: int
    bare_per_second: float
    one_process_per_second: float
    two_processes_per_second: float
    bare_cpu_us: float
    """CPU time of the subscribing processes per message, in microseconds: what a busy machine distorts less than rates."""
    one_process_cpu_us: float
    two_processes_cpu_us: float
    one_process_of_bare: float
    """Median of the rounds' own ratios: what else the machine does in a round slows both sides of it."""
    two_processes_of_bare: float
    parts_us: Mapping[str, float]
    """Where one process's time goes, in microseconds a message; see `_ingest_parts`."""
    verification_us: float
    """Of its checks: the signatures."""
    lost: int
    """Devices without their terminal state, and messages never acknowledged, over all rounds of ours."""
    bytes_per_device: float
    """Slot, counters of two activations, trial and presence in PostgreSQL; see `device_bytes`."""


def ingest_rows(
    devices: int = 4000, rounds: int = 3, *, say: Callable[[str], None] = lambda _line: None
) -> IngestFigures:
    """Run all sides in turn, and return the figures; starts mosquitto and PostgreSQL itself, in some 20 s a round.

    Args:
        devices: with real keys; each reports seven times a round.
        say: told each round's rates.
    """
    rates: dict[str, list[float]] = {"bare": [], "one": [], "two": []}
    costs: dict[str, list[float]] = {side: [] for side in rates}
    parts: list[Mapping[str, float]] = []
    lost = 0
    with _servers() as (broker, server):
        senders = make_senders(devices)
        url, bare_url = server.new_database(), server.new_database()
        _enrol(url, senders)
        _prepare_bare(bare_url)
        for number in range(rounds + 1):  # the first warms both up
            traffic = list(messages(senders, number))
            order = [("bare", 1), ("one", 1), ("two", 2)]
            for side, processes in order if number % 2 else reversed(order):
                _forget(url)
                target, where = (_bare, bare_url) if side == "bare" else (_ours, url)
                names = [f"{side}-{number}-{each}" for each in range(processes)]
                seconds, left, spent = _drain(target, broker, where, names, traffic)
                missing = left + (
                    _missing(url, senders, number) if side != "bare" else _missing_bare(bare_url, devices, number)
                )
                lost += missing
                if number:
                    rates[side].append(len(traffic) / seconds)
                    costs[side].append(1e6 * spent[0] / len(traffic))
                    if side == "one":
                        parts.append(per_message(spent[1:], len(traffic)))
                    say(
                        f"round {number}, {side:>4}: {len(traffic) / seconds:8.0f} messages/s,"
                        f" {costs[side][-1]:.0f} µs CPU a message, lost {missing}"
                    )
        figure = device_bytes(url)
    return IngestFigures(
        devices=devices,
        messages_per_round=7 * devices,
        rounds=rounds,
        bare_per_second=statistics.median(rates["bare"]),
        one_process_per_second=statistics.median(rates["one"]),
        two_processes_per_second=statistics.median(rates["two"]),
        bare_cpu_us=statistics.median(costs["bare"]),
        one_process_cpu_us=statistics.median(costs["one"]),
        two_processes_cpu_us=statistics.median(costs["two"]),
        one_process_of_bare=_of(rates["one"], rates["bare"]),
        two_processes_of_bare=_of(rates["two"], rates["bare"]),
        parts_us={part: statistics.median(each[part] for each in parts) for part in PARTS},
        verification_us=verification_us(),
        lost=lost,
        bytes_per_device=figure,
    )


def _of(ours: list[float], bare: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, bare, strict=True))


def device_bytes(url: str) -> float:
    """Return the mean bytes that one device's state takes in PostgreSQL, by `pg_column_size` of whole rows.

    Slot, trial, presence, and the counters of two activations in eight buckets and ten classes; without key and certificate.
    """
    engine = prepare_database(url)
    counted = {"latency": Counts().pack([0] * 8 + [12345] * 8), "classes": Counts().pack([12345] * 10)}
    counters = text(
        "INSERT INTO device_counters (device, slot, activation, sha256, boot, seq, n, errors, slow, latency, classes,"
        " received_at) SELECT device, slot, a, decode(repeat('aa', 32), 'hex'), 1, 9, 1000000, 10, 20, :latency,"
        " :classes, now() FROM device_slots, generate_series(1, 2) a"
    )
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM device_counters"))
        connection.execute(counters, counted)
        sizes = [
            connection.scalar(
                text(f"SELECT sum(pg_column_size({table}.*)) / (SELECT count(*) FROM devices) FROM {table}")
            )
            for table in ("device_slots", "device_trials", "device_counters")
        ]
        presence = connection.scalar(
            text("SELECT avg(pg_column_size(row(online, last_seen_at, agent_version))) FROM devices")
        )
    engine.dispose()
    return float(sum(map(float, [*sizes, presence])))


@contextmanager
def _servers() -> Generator[tuple[int, PostgreSql]]:
    with tempfile.TemporaryDirectory() as folder, postgresql_server(durable=True) as server:
        port, conf = free_port(), Path(folder) / "mosquitto.conf"
        conf.write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nset_tcp_nodelay true\n"
            f"max_queued_messages 0\nmax_inflight_messages {WINDOW}\n"
        )
        log = Path(folder) / "mosquitto.log"
        with running([program("mosquitto"), "-c", str(conf)], log=log, ports=[port]):
            yield port, server


def _drain(
    side: Callable[..., None], port: int, url: str, names: list[str], traffic: list[tuple[str, bytes]]
) -> tuple[float, int, list[float]]:
    """Return the seconds from the first publication to the last commit, how many messages never were, and `spent`.

    That is: CPU seconds of the subscribing processes, then `PARTS` of ours.
    """
    context = multiprocessing.get_context("spawn")
    done, spent, stop = context.Value("q", 0), context.Array("d", 1 + len(PARTS)), context.Event()
    ready = [context.Event() for _ in names]
    workers = [
        context.Process(target=side, args=(port, url, name, event, done, spent, stop), daemon=True)
        for name, event in zip(names, ready, strict=True)
    ]
    for worker in workers:
        worker.start()
    if not all(event.wait(60) for event in ready):
        raise TimeoutError("a subscriber did not come up")
    begun = context.Event()
    publisher = context.Process(target=publish, args=(port, traffic, begun), daemon=True)
    publisher.start()
    if not begun.wait(60):  # its packets are made before the first one goes out
        raise TimeoutError("the publisher did not come up")
    began = time.monotonic()
    while done.value < len(traffic) and time.monotonic() - began < LONGEST_SECONDS and all(map(_alive, workers)):
        time.sleep(0.002)
    seconds = time.monotonic() - began
    stop.set()
    for worker in [*workers, publisher]:
        worker.join(30)
    return seconds, len(traffic) - done.value, spent[:]


def _alive(worker: Any) -> bool:
    return worker.is_alive()


def _ours(port: int, url: str, name: str, ready: Any, done: Any, spent: Any, stop: Any) -> None:
    from modelfleet.rollout.mqtt.paho_broker import MqttVersion, PahoBroker

    engine = open_database(url)
    parts = Parts(engine)
    ingest = TimedIngest(session_factory(engine), TENANT, parts)
    broker = PahoBroker(f"mqtt://127.0.0.1:{port}", name, version=MqttVersion.V5, one_of_several=True)
    broker.subscribe(REPORTS, ingest.offer, share="ingest")
    broker.connect(on_connected=lambda: Thread(target=_later, args=(ready,)).start())
    ready.wait()
    began, own, writing = time.process_time(), time.thread_time(), 0.0
    while not stop.is_set():
        if ingest.arrived.wait(0.05):
            started = time.perf_counter()
            taken = ingest.flush(datetime.now(UTC))
            writing += time.perf_counter() - started
            with done.get_lock():
                done.value += taken
    cpu, own = time.process_time() - began, time.thread_time() - own
    with spent.get_lock():
        for index, seconds in enumerate([cpu, *parts.seconds(writing=writing, connection=cpu - own)]):
            spent[index] += seconds
    time.sleep(0.2)  # the last acknowledgements
    broker.close()
    engine.dispose()


def _later(ready: Any) -> None:
    time.sleep(0.5)  # the subscription is answered by then
    ready.set()


def _bare(port: int, url: str, name: str, ready: Any, done: Any, spent: Any, stop: Any) -> None:
    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    waiting: list[Any] = []
    client = paho.Client(CallbackAPIVersion.VERSION2, name, protocol=paho.MQTTv5, manual_ack=True)
    client.on_message = lambda _client, _data, message: waiting.append(message)

    def subscribe(*_: object) -> None:
        client.subscribe(REPORTS, qos=1)

    def subscribed(*_: object) -> None:
        ready.set()

    client.on_connect, client.on_subscribe = subscribe, subscribed
    properties: Any = Properties(PacketTypes.CONNECT)
    properties.ReceiveMaximum = WINDOW
    client.connect("127.0.0.1", port, properties=properties)
    began = time.process_time()
    with psycopg.connect(_plain(url)) as database:
        while not stop.is_set():
            before = len(waiting)
            client.loop(0.01)  # one thread: with two, paho's many small reads wait for the interpreter's lock
            if not waiting or (len(waiting) < BATCH and len(waiting) > before):
                continue
            last: dict[str, Any] = {}
            for message in waiting:
                report = json.loads(message.payload)
                if "payloadType" in report:
                    report = json.loads(b64decode(report["payload"]))
                last[report["device"]] = report
            _bare_upsert(database, last)
            for message in waiting:
                client.ack(message.mid, message.qos)
            with done.get_lock():
                done.value += len(waiting)
            waiting.clear()
    with spent.get_lock():
        spent[0] += time.process_time() - began
    client.disconnect()


def _bare_upsert(database: Any, last: dict[str, Any]) -> None:
    found = list(last.values())
    columns = [[each[name] for each in found] for name in ("device", "boot", "seq", "state")]
    database.execute(
        "INSERT INTO last SELECT * FROM unnest(%s::text[], %s::bigint[], %s::bigint[], %s::text[])"
        " ON CONFLICT (device) DO UPDATE SET boot = excluded.boot, seq = excluded.seq, state = excluded.state"
        " WHERE (excluded.boot, excluded.seq) >= (last.boot, last.seq)",
        columns,
    )
    database.commit()


def _prepare_bare(url: str) -> None:
    with psycopg.connect(_plain(url)) as database:
        database.execute("CREATE TABLE last (device text PRIMARY KEY, boot bigint, seq bigint, state text)")


def _missing_bare(url: str, devices: int, number: int) -> int:
    with psycopg.connect(_plain(url)) as database:
        found = database.execute("SELECT count(*) FROM last WHERE state = 'COMMITTED' AND seq = %s", [7 * (number + 1)])
        (count,) = found.fetchone() or (0,)
    return devices - count


def _plain(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://")


def _enrol(url: str, senders: list[Sender]) -> None:
    now = datetime.now(UTC)
    engine = prepare_database(url)
    devices: list[dict[str, Any]] = [
        {
            "id": sender.id,
            "tenant": TENANT,
            "group": "lab",
            "profile": "linux-cpu-float",
            "public_key": sender.pem,
            "key_sha256": f"{number:064x}",
            "claim_sha256": f"{number:064x}",
            "facts": {},
            "agent_version": "0.1.0",
            "enrolled_at": now,
            "last_seen_at": now,
        }
        for number, sender in enumerate(senders)
    ]
    with session_factory(engine).begin() as session:
        session.add(Tenant(name=TENANT, created_at=now))
        session.flush()
        session.execute(insert(Device), devices)
        session.add(
            Rollout(
                id=ROLLOUT,
                tenant=TENANT,
                model="digits",
                version="1.1.0",
                slot=SLOT,
                groups=["lab"],
                plan={},
                plan_sha256="0" * 64,
                author="ada",
                salt="0" * 64,
                state="ROLLING_OUT",
                skipped_profiles={},
                created_at=now,
                approve_by=now,
            )
        )
    engine.dispose()


def _forget(url: str) -> None:
    """Every side starts from rows that exist already, none of which says that the round is over."""
    with psycopg.connect(_plain(url), autocommit=True) as database:
        for table in ("device_slots", "device_trials"):
            found = f"UPDATE {table} SET boot = 1, seq = 0"
            database.execute(found + (", proven_boot = -1, proven_seq = -1" if table == "device_slots" else ""))
        database.execute("UPDATE device_trials SET outcome = NULL, outcome_boot = -1, outcome_seq = -1")
        database.execute("DELETE FROM audit_records")
        database.execute("VACUUM device_slots, device_trials, audit_records")


def _missing(url: str, senders: list[Sender], number: int) -> int:
    """Return how many devices lack their terminal state in a slot, a trial or the audit trail."""
    engine = prepare_database(url)
    with session_factory(engine)() as session:
        last = 7 * (number + 1)
        slots = select(func.count()).where(DeviceSlot.proven_seq == last, DeviceSlot.state == "COMMITTED")
        trials = select(func.count()).where(DeviceTrial.outcome_seq == last, DeviceTrial.outcome == "COMMITTED")
        audited = select(func.count()).where(AuditRecord.action == "device.report")
        found = [session.scalar(query) or 0 for query in (slots, trials, audited)]
    engine.dispose()
    return sum(abs(len(senders) - each) for each in found)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    figures = ingest_rows(options.devices, options.rounds, say=print)
    print(json.dumps(asdict(figures), indent=2))


if __name__ == "__main__":
    main()
