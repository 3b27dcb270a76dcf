"""The rollout controller: takes in what devices say, decides, changes state, publishes desired state. One tick at a time.

A tick may stop anywhere and be run again, by this process or another: what devices said is written before it is acknowledged, a
decision is applied by compare-and-set in one transaction with its audit record and documents, and documents are published from
the database. Nothing that matters is kept in memory.
"""

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime

from sqlalchemy.orm import Session

from modelfleet.agent_client.protocol import TOPIC_ROOT, HostStatus, encode, host_topic
from modelfleet.registry.context import Registry
from modelfleet.registry.tables import Device
from modelfleet.rollout.changes.lifecycle import Direction
from modelfleet.rollout.decisions.decide import Decision
from modelfleet.rollout.desired.dispatch import Dispatch
from modelfleet.rollout.errors import NotLeadingError
from modelfleet.rollout.evidence.readings import decision_of
from modelfleet.rollout.ingest.intake import Ingest
from modelfleet.rollout.leadership import Alone, Leadership
from modelfleet.rollout.mqtt.broker import Broker, Message, Will
from modelfleet.rollout.tables import Rollout, RolloutProfile
from modelfleet.rollout.tick import Ticks
from modelfleet.signer.keys import Signer

INGEST_WAIT_SECONDS = 0.5
FLUSH_SECONDS = 1.0
"""How long a tick waits for reports to be written before it decides on those that are."""
SHARES = {"report": "ingest", "metrics": "ingest", "status": ""}
"""Kind of message -> the name under which controllers share it. Presence has no (boot, seq): each follows the broker's order."""
WAKE_SECONDS = 2.0
"""How soon after reports arrived it is decided, however seldom `tick` is called."""
DISPATCH_SECONDS = 1.0
"""How often it is looked whether the broker lacks documents, where nothing says so."""
PUBLISH_SECONDS = 1.0
"""How long who has changed something waits for its documents, where another thread is publishing."""
ONLINE, OFFLINE = encode(HostStatus(state="online")), encode(HostStatus(state="offline"))

log = logging.getLogger(__name__)


class Controller:
    """Moves one tenant's rollouts.

    Args:
        registry: database, blobs, trust policy.
        broker: its own connection.
        director: the key that signs desired state.
        clock: the time for what happens outside of `tick`.
        leadership: who decides, of several controllers; None: this one. All of them take in what devices say.

    Attributes:
        direction: what `lifecycle`'s functions take.
        ingest: takes device messages; `ingest.dropped` counts what was refused.
        ticks: decides, where this controller leads.
        documents: publishes them.
        leads: whether this one decided in the last tick.
    """

    def __init__(
        self,
        registry: Registry,
        broker: Broker,
        director: Signer,
        clock: Callable[[], datetime],
        leadership: Leadership | None = None,
    ) -> None:
        self.direction = Direction(registry=registry, director=director)
        self._leadership = leadership or Alone()
        self._to_dispatch = threading.Event()
        self.ticks = Ticks(registry, self.direction, self._leadership, moved=self._to_dispatch.set)
        self.leads = False
        self.ingest = Ingest(registry.sessions, registry.tenant)
        self._registry, self._broker, self._clock = registry, broker, clock
        self._host_topic = host_topic(registry.tenant)
        self._stopping = threading.Event()
        self._ticking = threading.Lock()
        self._writer = threading.Thread(target=self._write_reports, name="ingest", daemon=True)
        self.documents = Dispatch(registry.sessions, broker, registry.tenant, self._leadership)
        self._publisher = threading.Thread(target=self._keep_documents, name="documents", daemon=True)
        self._evidence, self._ticked_at = threading.Event(), float("-inf")
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)

    def start(self, *, writes_at_once: bool = True, wakes: bool = False) -> None:
        """Connect, subscribe, say that a controller is there, and publish what the broker lacks.

        Args:
            writes_at_once: write reports as they arrive, on a thread; else only in `tick`, where time is simulated.
            wakes: tick soon after reports arrived, not only when `tick` is called.
        """
        self._registry.on_device_changed.append(self.ensure_assignment)
        for kind, share in SHARES.items():
            self._broker.subscribe(f"{TOPIC_ROOT}/{self._registry.tenant}/d/+/{kind}", self.ingest.offer, share=share)
        self.documents.subscribe()
        self._broker.subscribe(self._host_topic, self._host_said)
        self._broker.connect(Will(topic=self._host_topic, payload=OFFLINE), self._connected)
        if writes_at_once:
            self._writer.start()
            self._publisher.start()
        if wakes:
            self._watcher.start()

    def stop(self) -> None:
        """Write what has arrived, say goodbye, disconnect."""
        self._stopping.set()
        self.ingest.arrived.set()
        self._to_dispatch.set()
        self._evidence.set()
        for thread in (self._writer, self._publisher, self._watcher):
            if thread.is_alive():
                thread.join(10)
        if self.ensure_assignment in self._registry.on_device_changed:
            self._registry.on_device_changed.remove(self.ensure_assignment)
        self._leadership.close()
        self._broker.publish(self._host_topic, OFFLINE, qos=1, retain=True)
        self._broker.close()

    def tick(self, now: datetime) -> None:
        """Bring every rollout as far as the evidence allows; safe to repeat, to interrupt, and beside another controller's."""
        with self._ticking:
            self._ticked_at = time.monotonic()
            # Reports that keep coming must not keep it from deciding: where a thread writes them, the rest is left to that.
            self.ingest.flush(now, seconds=FLUSH_SECONDS if self._writer.is_alive() else None)
            self.leads = self._leadership.leads()
            if not self.leads:
                return
            try:
                self.ticks.tick(now)
            except NotLeadingError as error:
                log.warning("another controller leads by now", extra={"error": str(error)})
                return
            self.dispatch()

    @property
    def connected(self) -> bool:
        """Whether the line to the broker stands."""
        return self._broker.connected

    def dispatch(self) -> None:
        """Publish the documents that were not published yet; what the broker has lost is the publishing thread's work."""
        self.documents.run_through(PUBLISH_SECONDS, restores=not self._publisher.is_alive())

    def ensure_assignment(self, device_id: str) -> None:
        """Issue the device's assignment, and its group's document, where they are missing or of another group; publish them."""
        desk = self.direction.desk()
        with self._registry.sessions.begin() as session:
            device = session.get(Device, device_id)
            if device is None or device.tenant != self._registry.tenant or device.revoked_at is not None:
                return
            desk.ensure_device(session, device, self._clock())
        self.dispatch()

    def health_of(self, session: Session, rollout: Rollout, row: RolloutProfile, now: datetime) -> Decision | None:
        """Return what would be decided now of a profile on trial, with its evidence; None for others."""
        return decision_of(session, rollout, row, now)

    def _connected(self) -> None:
        self._broker.publish(self._host_topic, ONLINE, qos=1, retain=True)
        self.documents.connected()
        self._to_dispatch.set()

    def _host_said(self, message: Message) -> None:
        """Say that a controller is there, where another one's end has told devices that none is."""
        message.acknowledge()
        if message.payload == OFFLINE and not self._stopping.is_set():
            self._broker.publish(self._host_topic, ONLINE, qos=1, retain=True)

    def _watch(self) -> None:
        """Tick where reports came and no tick has been for a moment; a slow tick is followed by a pause of its length."""
        while not self._stopping.is_set():
            self._evidence.wait()
            began = time.monotonic()
            if began - self._ticked_at >= WAKE_SECONDS and not self._stopping.is_set():
                self._evidence.clear()
                try:
                    self.tick(self._clock())
                except Exception:  # the next one tries again
                    log.exception("a tick failed")
            self._stopping.wait(max(WAKE_SECONDS / 4, time.monotonic() - began))

    def _keep_documents(self) -> None:
        """Publish what the broker lacks, however long that takes, beside the ticks."""
        while not self._stopping.is_set():
            self._to_dispatch.wait(DISPATCH_SECONDS)
            self._to_dispatch.clear()
            if self._stopping.is_set():
                return
            try:
                self.documents.run()
            except Exception:  # the outbox stands in the database, which may be back in a moment
                log.exception("documents could not be published")
                self._stopping.wait(DISPATCH_SECONDS)

    def _write_reports(self) -> None:
        """Write reports as they arrive, so that the broker's window does not wait for the next tick."""
        while not self._stopping.is_set():
            self.ingest.arrived.wait(INGEST_WAIT_SECONDS)
            try:
                if self.ingest.flush(self._clock()):
                    self._evidence.set()
            except Exception:  # the batch is kept; the database may be back in a moment
                log.exception("reports could not be written")
                self._stopping.wait(INGEST_WAIT_SECONDS)
