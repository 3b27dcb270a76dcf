"""A controller that lives for one tick, in a process of its own that is killed (SIGKILL) before its n-th effect.

An effect is a commit of a transaction that wrote, or a message to the broker. Devices and broker outlive the process, as they do
in the field: they are the parent's. The database is all that a controller finds when it comes back.
"""

import base64
import json
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import event

from modelfleet.rollout.controller import Controller
from modelfleet.rollout.mqtt.broker import Handler, Message, Will, matches
from modelfleet.rollout.mqtt.memory_broker import MemoryBroker
from modelfleet.service.database import open_database, session_factory
from modelfleet.signer.keys import load_signer
from tests.unit.rollout.conftest import STEP, Fleet

NEVER = 1 << 30
_WRITES = re.compile(r"\s*(INSERT|UPDATE|DELETE)\b", re.IGNORECASE)


@dataclass
class Life:
    """Counts effects, and ends the process before the one that it is told."""

    ends_before: int
    effects: int = 0

    def effect(self) -> None:
        self.effects += 1
        if self.effects == self.ends_before:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class PipeBroker:
    """The child's connection: what it publishes is the parent's to deliver; what was retained it has from the fork."""

    pipe: int
    hub: MemoryBroker
    life: Life
    connected: bool = False
    subscriptions: list[tuple[str, Handler]] = field(default_factory=list)

    def connect(self, will: Will | None = None, on_connected: Callable[[], None] = lambda: None) -> None:
        self.connected = True
        on_connected()

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        self.life.effect()
        self.say({"topic": topic, "payload": base64.b64encode(payload).decode(), "retain": retain})
        return True

    def publish_all(self, messages: Sequence[tuple[str, bytes]]) -> list[bool]:
        return [self.publish(topic, payload, retain=True) for topic, payload in messages]

    def subscribe(self, topic_filter: str, handler: Handler, *, share: str = "") -> None:
        self.subscriptions.append((topic_filter, handler))
        for topic, payload in list(self.hub.retained.items()):
            if matches(topic_filter, topic):
                handler(Message(topic=topic, payload=payload, retained=True))

    def close(self) -> None:
        self.connected = False

    def say(self, line: dict[str, Any]) -> None:
        os.write(self.pipe, json.dumps(line).encode() + b"\n")


@dataclass
class Killed:
    """A fleet whose controller is another process at each tick.

    Attributes:
        kills: how often one was killed. published: (topic, payload) of every message that left one, in order.
    """

    fleet: Fleet
    url: str
    kills: int = 0
    published: list[tuple[str, bytes]] = field(default_factory=list)
    unread: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        listener = self.fleet.hub.client()
        listener.subscribe(f"mf/v1/{self.fleet.registry.tenant}/d/+/#", self._take)
        listener.connect()

    def _take(self, message: Message) -> None:
        if message.topic.rpartition("/")[2] in ("report", "metrics", "status"):
            self.unread.append(message)

    def steps(self, ends: Iterator[int]) -> None:
        """Move the clock by one step; have controllers tick until one lives to the end of its tick.

        Args:
            ends: before which effect each controller's life ends.
        """
        fleet = self.fleet
        fleet.now += STEP
        for device in fleet.devices:
            device.step()
        while not self._tick(fleet.now, next(ends)):
            self.kills += 1

    def _tick(self, now: datetime, ends_before: int) -> bool:
        """Have a new process tick; whether it reached the end. What a killed one has read, its successor reads again."""
        self.fleet.engine.dispose()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            try:
                live(self.fleet, self.url, self.unread, now, writing, Life(ends_before))
            finally:
                os._exit(1)
        os.close(writing)
        with os.fdopen(reading, "rb") as lines:
            for line in lines:
                said = json.loads(line)
                topic, payload = said["topic"], base64.b64decode(said["payload"])
                self.published.append((topic, payload))
                self.fleet.hub.deliver(topic, payload, retain=said["retain"])
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            return False
        assert os.WEXITSTATUS(status) == 0, "the controller's process failed; its message is above"
        self.unread.clear()
        return True

    def trail(self) -> Counter[tuple[str, str]]:
        """Return how often each action was recorded, by profile."""
        from modelfleet.registry import audit

        with self.fleet.registry.sessions() as session:
            rows = audit.records(session, self.fleet.registry.tenant, limit=5000)
        return Counter((row.action, str(row.detail.get("profile", ""))) for row in rows)


def live(fleet: Fleet, url: str, unread: list[Message], now: datetime, pipe: int, life: Life) -> None:
    """Be a controller for one tick; does not return."""
    engine = open_database(url)
    wrote: set[int] = set()

    def execute(connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if _WRITES.match(statement):
            wrote.add(id(connection))

    def commit(connection: Any) -> None:
        if id(connection) in wrote:
            wrote.discard(id(connection))
            life.effect()

    event.listen(engine, "before_cursor_execute", execute)
    event.listen(engine, "commit", commit)
    registry = replace(fleet.registry, sessions=session_factory(engine))
    broker = PipeBroker(pipe, fleet.hub, life)
    director = load_signer(fleet.ceremony.director_key)
    controller = Controller(registry=registry, broker=broker, director=director, clock=lambda: now)
    controller.start(writes_at_once=False)
    for message in unread:
        controller.ingest.offer(message)
    controller.tick(now)
    os._exit(0)
