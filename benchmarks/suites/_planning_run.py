"""One run of the fleet suite: a stage is planned for very many devices, and published, on real PostgreSQL and mosquitto.

Devices are plain rows here, nobody connects: what is measured is what the controller, the database and the broker do. Alone:
`python -m modelfleet.benchmarks.suites._planning_run POSTGRESQL_URL mqtt://HOST:PORT --devices 1000000`.
"""

import argparse
import queue
import resource
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from modelfleet.agent_client.protocol import TOPIC_ROOT
from modelfleet.benchmarks.suites._planning_rows import (
    MODEL,
    NEW,
    PROFILES,
    SLOT,
    TENANT,
    count_candidate,
    prepare_versions,
    register,
    settle,
    trial_row,
)
from modelfleet.benchmarks.suites._report import console, percentile
from modelfleet.registry import catalog
from modelfleet.registry.context import Registry
from modelfleet.registry.copy_rows import copy_rows
from modelfleet.registry.no_builds import registry_without_builds
from modelfleet.registry.tables import Tenant
from modelfleet.rollout.changes import lifecycle
from modelfleet.rollout.controller import Controller
from modelfleet.rollout.desired.cohort import buckets_of
from modelfleet.rollout.evidence import population
from modelfleet.rollout.leadership import PostgresLeadership
from modelfleet.rollout.mqtt.paho_broker import PahoBroker
from modelfleet.rollout.states import Event
from modelfleet.rollout.steps import Step
from modelfleet.rollout.tables import DeviceTrial, Rollout, RolloutProfile
from modelfleet.rollout.views import describe, summarise_many
from modelfleet.service.database import migrate, open_database, session_factory
from modelfleet.signer.ceremony import CeremonyResult, create_repository
from modelfleet.signer.keys import load_signer
from modelfleet.signer.sign import sign_approval

GROUPS = ("north", "south")
STAGES = (0.05, 0.25, 0.5, 1.0)
WAIT_SECONDS = 120.0
READS = 40
PATIENCE = timedelta(minutes=5)
"""So long after a stage's begin a tick looks for devices to ask again, too: it is measured with that."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: what share it takes, the seconds from the decision to the last document at a subscriber, and the messages."""

    share: float
    seconds: float
    messages: int
    devices: int


@dataclass(frozen=True, kw_only=True)
class PlanningRows:
    """The figures of one run; times in seconds, `api_p95_ms` by question, `peak_rss_bytes` of this process."""

    devices: int
    places: int
    register_seconds: float
    create_seconds: float
    stages: tuple[Stage, ...]
    started: int
    tick_seconds: tuple[float, ...]
    documents_bytes: int
    api_p95_ms: dict[str, float]
    peak_rss_bytes: int
    bytes_per_device: float


class Subscriber:
    """Hears what devices of every group would: the group documents, each with the moment at which it came."""

    def __init__(self, broker_url: str) -> None:
        host, _, port = broker_url.removeprefix("mqtt://").partition(":")
        self.heard: queue.Queue[tuple[float, str, int]] = queue.Queue()
        self._subscribed = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, f"subscriber-{uuid.uuid4()}")
        self._client.on_connect = self._subscribe
        self._client.on_subscribe = self._answered
        self._client.on_message = lambda _client, _data, found: self.heard.put(
            (time.monotonic(), found.topic, len(found.payload))
        )
        self._client.connect(host, int(port))
        self._client.loop_start()
        assert self._subscribed.wait(WAIT_SECONDS)

    def _subscribe(self, client: mqtt.Client, *_: object) -> None:
        client.subscribe(f"{TOPIC_ROOT}/{TENANT}/g/#", qos=1)

    def _answered(self, *_: object) -> None:
        self._subscribed.set()

    def await_documents(self, topics: int) -> list[tuple[float, str, int]]:
        """Return what came until every one of so many topics has had a message, and what follows within a moment."""
        came: list[tuple[float, str, int]] = []
        while len({topic for _, topic, _ in came}) < topics:
            came.append(self.heard.get(timeout=WAIT_SECONDS))
        time.sleep(0.5)  # a message too many would come now
        while not self.heard.empty():
            came.append(self.heard.get())
        return came

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What a run works with."""

    registry: Registry
    controller: Controller
    ceremony: CeremonyResult
    subscriber: Subscriber

    @property
    def sessions(self) -> sessionmaker[Session]:
        """Of the database."""
        return self.registry.sessions


def planning_rows(
    url: str,
    broker_url: str,
    devices: int,
    *,
    started: int = 50_000,
    groups: Sequence[str] = GROUPS,
    profiles: Sequence[str] = PROFILES,
    ticks: int = 5,
) -> PlanningRows:
    """Register the devices, take a rollout through every stage, and return what it took.

    Args:
        url: SQLAlchemy URL of an empty PostgreSQL database.
        broker_url: `mqtt://host:port` of a mosquitto that takes anonymous clients.
        devices: how many are registered, over all groups and profiles.
        started: so many of them report on the candidate before ticks are measured; all of them sent counters before.
        ticks: how many ticks are measured.
    """
    with (
        tempfile.TemporaryDirectory(prefix="modelfleet-planning-") as folder,
        bench(url, broker_url, Path(folder)) as it,
    ):
        places = [(group, profile) for group in groups for profile in profiles]
        register_seconds = _timed(lambda: register(it.sessions, devices, places))
        prepare_versions(it.sessions, groups, profiles)
        began = time.monotonic()
        rollout = lifecycle.create(it.controller.direction, _request(groups), author="ada", now=datetime.now(UTC))
        create_seconds = time.monotonic() - began
        approve(it, rollout)
        while not it.controller.documents.settled:
            time.sleep(0.1)
        stages = [run_stage(it, rollout, 0, len(places), lambda: start(it, rollout))]
        reporting = report_trials(it, rollout, started)
        tick_seconds = tuple(_timed(lambda: it.controller.tick(datetime.now(UTC) + PATIENCE)) for _ in range(ticks))
        api = read_api(it, rollout)
        stages += [
            run_stage(it, rollout, number, len(places), lambda: advance(it, rollout, profiles))
            for number in range(1, len(STAGES))
        ]
        return PlanningRows(
            devices=devices,
            places=len(places),
            register_seconds=register_seconds,
            create_seconds=create_seconds,
            stages=tuple(stages),
            started=reporting,
            tick_seconds=tick_seconds,
            documents_bytes=_documents_bytes(it),
            api_p95_ms=api,
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            bytes_per_device=_bytes_per_device(it, devices),
        )


@contextmanager
def bench(url: str, broker_url: str, folder: Path) -> Generator[Bench]:
    """Put a real controller together over the database and the broker, as the one leader."""
    engine = open_database(url)
    migrate(engine)
    sessions = session_factory(engine)
    with sessions.begin() as session:
        session.add(Tenant(name=TENANT, created_at=datetime.now(UTC)))
    ceremony = create_repository(folder / "trust", TENANT, bits=1, approvers=["bob"], now=datetime.now(UTC))
    registry = registry_without_builds(folder, ceremony, sessions)
    controller = Controller(
        registry,
        PahoBroker(broker_url, f"controller-{uuid.uuid4()}"),
        load_signer(ceremony.director_key),
        lambda: datetime.now(UTC),
        PostgresLeadership(url, TENANT, "planning"),
    )
    controller.start()
    subscriber = Subscriber(broker_url)
    try:
        yield Bench(registry=registry, controller=controller, ceremony=ceremony, subscriber=subscriber)
    finally:
        subscriber.close()
        controller.stop()
        engine.dispose()


def approve(it: Bench, rollout: str) -> None:
    """Approve the rollout as bob."""
    now = datetime.now(UTC)
    approval = lifecycle.approval_request(it.registry, rollout, now)
    envelope = sign_approval(approval, load_signer(it.ceremony.approver_keys["bob"]))
    lifecycle.approve(it.controller.direction, rollout, envelope, actor="bob", now=now)


def start(it: Bench, rollout: str) -> None:
    """Start it as a person does: plan the first stage, write the documents, publish them."""
    lifecycle.start(it.controller.direction, rollout, actor="ada", now=datetime.now(UTC))
    it.controller.dispatch()


def advance(it: Bench, rollout: str, profiles: Sequence[str]) -> None:
    """Apply the controller's own step of an advance to every profile, and publish."""
    with it.sessions() as session:
        revision = lifecycle.find(session, TENANT, rollout).revision
    steps = [Step(profile=each, event=Event.ADVANCE, reason="measured", evidence={}) for each in profiles]
    it.controller.ticks.apply(rollout, revision, steps, datetime.now(UTC))
    it.controller.dispatch()


def run_stage(it: Bench, rollout: str, number: int, places: int, act: Callable[[], None]) -> Stage:
    """Return what the act took until every place's document was at a subscriber."""
    began = time.monotonic()
    act()
    came = it.subscriber.await_documents(places)
    with it.sessions() as session:
        rows = [session.get(RolloutProfile, (rollout, profile)) for profile in PROFILES]
        devices = sum(row.cohort or 0 for row in rows if row is not None)
    return Stage(
        share=STAGES[number], seconds=max(at for at, _, _ in came) - began, messages=len(came), devices=devices
    )


def report_trials(it: Bench, rollout: str, wanted: int) -> int:
    """Have the first stage's devices report, as many as wanted at most; how many did."""
    now = datetime.now(UTC)
    reporting = 0
    for profile in PROFILES:
        with it.sessions() as session:
            found = session.get_one(Rollout, rollout)
            row = session.get_one(RolloutProfile, (rollout, profile))
            ids = list(population.device_ids(session, found, profile))
            cohort = [name for name, bucket in zip(ids, buckets_of(found.salt, ids), strict=True) if bucket < row.below]
        cohort = cohort[: wanted // len(PROFILES)]
        with it.sessions.begin() as session:
            copy_rows(session, DeviceTrial, [trial_row(rollout, name, now) for name in cohort])
            count_candidate(session, rollout, profile, now)
        reporting += len(cohort)
    settle(it.sessions)
    return reporting


def read_api(it: Bench, rollout: str) -> dict[str, float]:
    """Return the p95 in milliseconds of what the routes ask of the database, question by question."""

    def get() -> None:
        with it.sessions() as session:
            describe(session, lifecycle.find(session, TENANT, rollout), datetime.now(UTC)).model_dump_json()

    def listed() -> None:
        with it.sessions() as session:
            [each.model_dump_json() for each in summarise_many(session, [lifecycle.find(session, TENANT, rollout)])]

    def devices() -> None:
        after = str(uuid.uuid4())
        with it.sessions() as session:
            catalog.device_page(session, TENANT, ("id", "profile", "online"), after=after, limit=100)

    def of_group() -> None:
        after = str(uuid.uuid4())
        with it.sessions() as session:
            catalog.device_page(session, TENANT, ("id",), group=GROUPS[0], profile=PROFILES[0], after=after, limit=100)

    questions = {"get rollout": get, "list rollouts": listed, "list devices": devices, "devices of a place": of_group}
    return {name: percentile([_timed(ask) for _ in range(READS)], 0.95) * 1000 for name, ask in questions.items()}


def _request(groups: Sequence[str]) -> lifecycle.RolloutRequest:
    plan: dict[str, Any] = {"stages": list(STAGES), "bake_seconds": 86_400, "max_hold_seconds": 86_400}
    return lifecycle.RolloutRequest(model=MODEL, version=NEW, slot=SLOT, groups=groups, plan=plan)


def _documents_bytes(it: Bench) -> int:
    with it.sessions() as session:
        return int(session.scalar(text("SELECT sum(length(envelope)) FROM desired_documents")) or 0)


def _bytes_per_device(it: Bench, devices: int) -> float:
    """Return what the database holds of a device that reports: its slot, counters and share of trials, with indexes."""
    tables = ("device_slots", "device_counters", "device_trials")
    with it.sessions() as session:
        return sum(session.scalar(text(f"SELECT pg_total_relation_size('{name}')")) or 0 for name in tables) / devices


def _timed(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def main() -> None:
    """Run it on servers that are there, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("broker_url")
    parser.add_argument("--devices", type=int, default=1_000_000)
    parser.add_argument("--started", type=int, default=50_000)
    asked = parser.parse_args()
    console.print(planning_rows(asked.url, asked.broker_url, asked.devices, started=asked.started))


if __name__ == "__main__":
    main()
