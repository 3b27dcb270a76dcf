"""The update agent: one thread that takes in desired state, works on its slots, and speaks up.

Messages come from MQTT, or from polling where MQTT cannot be held; both end in the same inbox. The loop sleeps until a
message, a timer or a metrics interval wakes it.
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from modelfleet.agent_client.certificates import Credentials
from modelfleet.agent_client.conditions import Facts
from modelfleet.agent_client.crew import Crew
from modelfleet.agent_client.device import StateChange, make_device
from modelfleet.agent_client.errors import AgentError, StoppingError
from modelfleet.agent_client.http_client import Deadlines, HttpClient
from modelfleet.agent_client.identity import (
    load_identity,
    load_key,
    load_root_metadata,
)
from modelfleet.agent_client.intake import Inbox, Intake
from modelfleet.agent_client.link import MqttLink
from modelfleet.agent_client.model import OPENERS, Model, SessionOpener, open_model
from modelfleet.agent_client.outbox import Outbox
from modelfleet.agent_client.poll import Poller
from modelfleet.agent_client.storage import Disk, locked
from modelfleet.agent_client.surroundings import Surroundings
from modelfleet.agent_client.transport import Client
from modelfleet.agent_client.version import agent_version
from modelfleet.agent_client.voice import BootStore, Voice
from modelfleet.benchmarks.runtimes.local_build import LocalBuild
from modelfleet.benchmarks.runtimes.table import LOCAL_BUILDS
from modelfleet.signer.errors import UntrustedError

TICK_SECONDS = 0.2
TELL_SECONDS = 1.0
"""How often a device that works looks whether something is to be told, at most."""
MAX_REFUSALS = 200
RETRY_START_SECONDS = 5.0

log = logging.getLogger(__name__)


class Agent:
    """The agent of the device whose folder is `root`.

    Args:
        root: an enrolled folder (see `enroll`).
        runtimes: runtime name -> opener, in place of the default ones of those names.
        builds: runtime name -> how its variants are built here.
        poll_seconds: how often desired state is asked for while MQTT is away.
        disk: what changes the folder; fault tests pass one that fails.
        surroundings: power, battery, network and time zone, in place of what the machine says.

    Raises:
        NotEnrolledError, StorageError: the folder is none of an enrolled device.
    """

    def __init__(
        self,
        root: Path,
        *,
        runtimes: Mapping[str, SessionOpener] | None = None,
        builds: Mapping[str, LocalBuild] = LOCAL_BUILDS,
        poll_seconds: float = 30.0,
        deadlines: Deadlines | None = None,
        disk: Disk | None = None,
        surroundings: Callable[[], Facts] | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._root = root
        self._disk = disk or Disk()
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._deadlines = deadlines
        self._openers = {**OPENERS, **(runtimes or {})}
        self._builds = builds
        self._surroundings = surroundings or Surroundings(root)
        self.identity = load_identity(root)
        self._bootstrap = load_root_metadata(root)
        load_key(root)  # a folder without a key is refused here, before anything is written
        self._wake = threading.Event()
        self._inbox = Inbox()
        self._refusals: deque[dict[str, str]] = deque(maxlen=MAX_REFUSALS)
        self._crew: Crew | None = None
        self._boots: BootStore | None = None
        self._running = False
        self._stop = threading.Event()
        self._link: MqttLink | None = None
        self._told_at = time.monotonic()

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set.

        Raises:
            LockedError: another agent works in this folder.
        """
        self._stop = stop
        with contextlib.ExitStack() as held:
            if not (self._insist(lambda: held.enter_context(locked(self._root))) and self._insist(self._begin)):
                return
            try:
                while not stop.is_set():
                    self._wake.wait(TICK_SECONDS)
                    self._wake.clear()
                    self._turn()
            finally:
                self._end()

    def inbox(self, topic: str, payload: bytes) -> None:
        """Take in a message; of one topic only the newest waits. May be called from any thread."""
        self._inbox.put(topic, payload)
        self._wake.set()

    def open_model(self, slot: str, **options: Any) -> Model:
        """Return the active model of a slot, opened by this agent's own runtimes (see `model.open_model`)."""
        return open_model(slot, root=self._root, openers=self._openers, **options)

    def status(self) -> dict[str, Any]:
        """Return how the device stands, as JSON values: identity, connection, slots, and the newest refusals."""
        identity = self.identity
        link = self._link
        return {
            "device": identity.device,
            "tenant": identity.tenant,
            "group": identity.group,
            "profile": identity.profile,
            "agent": agent_version(),
            "boot": self._boots.boot if self._boots is not None else 0,
            "running": self._running,
            "online": link is not None and link.connected,
            "certificate_expires_at": self._certificate_expiry(),
            "slots": self._crew.status() if self._crew is not None else {},
            "refusals": list(self._refusals),
        }

    def _insist(self, act: Callable[[], None]) -> bool:
        """Do what a start needs, and again while the disk refuses: an agent that ends cannot go back (False: asked to end)."""
        while not self._stop.is_set():
            try:
                act()
            except OSError as error:
                log.warning("device %s cannot start yet: %s", self.identity.device, error)
                self._stop.wait(RETRY_START_SECONDS)
            except StoppingError:  # asked to end while a slot was brought back
                return False
            else:
                return True
        return False

    def _begin(self) -> None:
        self._crew = None
        self._boots = BootStore(self._root / "boots.json", self._disk)
        self._outbox = Outbox(self._root / "outbox", self._disk)
        self._credentials = Credentials(self._root, self.identity, self._disk, on_renewed=self._follow_credentials)
        self._voice = Voice(self.identity, self._boots, self._credentials.signer(), self._outbox)
        self._client, self._polling = self._reach(), self._reach()  # it polls while a file is being fetched
        self._device = make_device(
            self._root,
            self.identity,
            bootstrap=self._bootstrap,
            client=self._client,
            disk=self._disk,
            openers=self._openers,
            builds=self._builds,
            clock=self._clock,
            report=self._report,
            refuse=self._refuse,
            look=self._look_at_work,
            alive=self._alive,
            surroundings=self._surroundings,
        )
        self._documents = self._device.documents
        self._crew = Crew(self._root, self._device, self._boots, self._voice)
        self._link = MqttLink(
            self.identity,
            credentials=self._credentials,
            deliver=self.inbox,
            wake=self._wake.set,
            outbox=self._outbox,
            agent=agent_version(),
        )
        self._intake = Intake(
            self._inbox, self.identity, self._documents, self._link, obey=self._crew.obey, refuse=self._refuse
        )
        self._poller = Poller(
            self._polling,
            self.identity.server,
            deliver_assignment=self._intake.take_assignment,
            deliver_group=self._intake.take_group,
            outbox=self._outbox,
            seconds=self._poll_seconds,
        )
        self._intake.follow_group()
        self._crew.recover()
        self._running = True
        # MQTT goes first; polling begins when it has not come up by then.
        self._poller.wait(time.monotonic(), min(self._poll_seconds, 5.0) if self.identity.mqtt else 0.0)
        self._link.start()

    def _reach(self) -> Client:
        """Return what the device has its bytes from: the server that it enrolled with."""
        return HttpClient(token=self._credentials.token, server=self.identity.server, deadlines=self._deadlines)

    def _turn(self) -> None:
        for task in (self._look, self._poll, self._work, self._send_metrics, self._renew, self._write_status):
            try:
                task()
            except StoppingError:
                return
            except (AgentError, UntrustedError, OSError) as error:
                # One thing that fails must not end the agent: it is all tried again.
                log.warning("device %s: %s: %s", self.identity.device, type(error).__name__, error)
        assert self._link is not None
        self._link.flush()

    def _end(self) -> None:
        self._running = False
        assert self._link is not None
        with contextlib.suppress(AgentError, OSError):
            self._send_metrics(now_all=True)
            self._link.flush()
        self._link.stop()
        self._link.flush()
        self._client.close()
        self._polling.close()
        with contextlib.suppress(OSError):
            self._write_status()

    def _look(self) -> None:
        """Take in what has arrived (StoppingError: the agent is to end)."""
        if self._stop.is_set():
            raise StoppingError("asked to end")
        self._intake.look()

    def _look_at_work(self) -> None:
        """As `_look`, between two pieces of work of a slot: who works for long must not seem to have fallen silent."""
        self._look()
        self._tell(self._poll, self._send_metrics)

    def _alive(self) -> None:
        self._tell(self._send_metrics)

    def _tell(self, *tasks: Callable[[], None]) -> None:
        """Do what tells that the device is alive, at most once in `TELL_SECONDS`; what fails is tried again, and told then."""
        now = time.monotonic()
        if now - self._told_at < TELL_SECONDS or self._link is None:
            return
        self._told_at = now
        for task in (*tasks, self._link.flush):
            with contextlib.suppress(AgentError, UntrustedError, OSError):
                task()

    def _work(self) -> None:
        assert self._crew is not None and self._link is not None
        self._crew.step()
        self._link.say_waiting(self._crew.waiting())

    def _poll(self) -> None:
        now = time.monotonic()
        assert self._link is not None
        if self._link.connected:
            self._poller.wait(now, min(self._poll_seconds, 5.0))
        elif self._poller.due(now):
            self._poller.poll(now, self._crew.metrics() if self._crew is not None else [])

    def _send_metrics(self, *, now_all: bool = False) -> None:
        assert self._link is not None and self._crew is not None
        if self._link.connected:
            for topic, payload in self._crew.metrics(now_all=now_all):
                self._link.send(topic, payload)

    def _report(self, change: StateChange) -> None:
        self._voice.report(change)
        assert self._crew is not None
        self._crew.metrics_at_once(change.slot)
        if self._link is not None:
            self._link.flush()

    def _refuse(self, error: Exception) -> None:
        said = {"kind": type(error).__name__, "message": str(error), "at": self._clock().isoformat()}
        log.warning("device %s refuses: %s: %s", self.identity.device, said["kind"], said["message"])
        self._refusals.append(said)

    def _certificate_expiry(self) -> str | None:
        expires_at = self._credentials.expires_at if self._link is not None else None  # made after them
        return expires_at.isoformat() if expires_at is not None else None

    def _renew(self) -> None:
        now = self._clock()
        if self._credentials.due(now):
            self._credentials.renew(now)

    def _follow_credentials(self) -> None:
        """Sign and connect with the renewed pair from here on."""
        self._voice.sign_with(self._credentials.signer())
        if self._link is not None:
            self._link.reconnect()

    def _write_status(self) -> None:
        data = msgspec.json.encode(self.status())
        if data != getattr(self, "_status", b""):
            self._status = data
            self._disk.write(self._root / "status.json", data)
