"""One run of the fleet suite: simulated devices on real mosquitto and PostgreSQL converge on a good release, and leave a bad one.

The fleet is one process, the controller another, mosquitto and PostgreSQL are the servers' own. Every device is the agent's
logic with a key of its own (docs/simulator.md). Alone:
`python -m modelfleet.benchmarks.suites._fleet_run POSTGRESQL_URL mqtt://HOST:PORT --devices 100000`.
"""

import argparse
import base64
import math
import resource
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import func, select

from modelfleet.benchmarks.suites._report import console
from modelfleet.rollout.tables import DeviceSlot, Rollout, RolloutProfile
from modelfleet.service.simulate.device import SimulatedDevice
from modelfleet.service.simulate.faults import Faults
from modelfleet.service.simulate.ledger import share_at
from modelfleet.service.simulate.live import LiveSimulation
from modelfleet.service.simulate.setup import Setup
from modelfleet.service.simulate.world import Behaviour, Kind
from modelfleet.signer.desired import GroupDocument, bucket_of

GOOD, BAD = "2.0.0", "3.0.0"
MIX = {"linux-cpu-int8": 0.7, "raspberry-pi-5": 0.3}
GOOD_PLAN: dict[str, Any] = {
    "stages": [1.0],
    "bake_seconds": 10,
    "soak_seconds": 1,
    "max_hold_seconds": 86_400,
    "stall_seconds": 86_400,
    "limits": {"metrics_seconds": 120, "probation_seconds": 30},
}
"""One stage, so that what is measured is how long a fleet takes, not how long a plan waits."""
BAD_PLAN: dict[str, Any] = {
    "stages": [0.05, 1.0],
    "bake_seconds": 3600,
    "stall_seconds": 86_400,
    "limits": {"metrics_seconds": 120, "probation_seconds": 3600, "error_share": 1.0},
}
"""The devices' own judgement is switched off: the controller has to find out. During a trial every device of the group counts at
the candidate's interval, so that both arms are seen alike."""


@dataclass(frozen=True, kw_only=True)
class FleetRows:
    """What was measured; seconds, NaN where it did not happen in time.

    converged: from the start of the rollout to the candidate being active on 95, 99 and 100 % of the devices, by their own
    truth. reports_per_second: written by the controller while they converged. halted: from the tick that decided to the fleet
    hearing of it, the latest socket. back: from that tick to 95 % of the online canaries running the old release. behind: by
    how much the fleet's clock fell behind at most, where two cores could not do all that 100,000 devices do in a second.
    """

    devices: int
    setup_seconds: float
    online_seconds: float
    converged_95: float
    converged_99: float
    converged_all: float
    reports: int
    reports_per_second: float
    tripped_after: float
    tripped_by: str
    canaries: int
    halted: float
    back_95: float
    back_all: float
    wrong: int
    missing: int
    installed_twice: int
    broken_connections: int
    behind_seconds: float
    peak_rss_mib: float


def fleet_rows(
    database_url: str,
    mqtt_url: str,
    devices: int = 100_000,
    *,
    sockets: int = 200,
    faults: Faults | None = None,
    limit_seconds: float = 900.0,
    seed: int = 1,
    say: Callable[[str], None] = lambda _line: None,
) -> FleetRows:
    """Run a fleet through a good and a bad release, and return the figures.

    Args:
        database_url: an empty PostgreSQL database, as SQLAlchemy names it.
        mqtt_url: a mosquitto that takes anonymous clients.
        limit_seconds: of each of the three parts; what has not come about by then is NaN.
    """
    began = time.monotonic()
    setup = Setup(
        devices=devices,
        mix=MIX,
        faults=faults or Faults(),
        seed=seed,
        plan=GOOD_PLAN,
        kind=Kind(profile="", share=1.0, bandwidth=2_500_000.0, benchmark_seconds=5.0, per_minute=20.0),
        tenant=f"simulation-{uuid.uuid4().hex[:8]}",
        database_url=database_url,
        tick_seconds=1.0,
    )
    simulation = LiveSimulation(setup, mqtt_url, sockets=sockets)
    try:
        return _Run(simulation, began, limit_seconds, say).rows()
    finally:
        simulation.close()


class _Run:
    def __init__(self, simulation: LiveSimulation, began: float, limit: float, say: Callable[[str], None]) -> None:
        self._simulation, self._began, self._limit, self._say = simulation, began, limit, say
        self._devices: list[SimulatedDevice] = simulation.fleet.devices
        self._setup_seconds = time.monotonic() - began
        self._tripped_by = "nothing"

    def rows(self) -> FleetRows:
        online = self._come_online()
        self._say(f"{len(self._devices):,} devices registered in {self._setup_seconds:.0f} s, known in {online:.0f} s")
        converged, reports, seconds = self._converge()
        self._say(f"converged: 95 % {converged[0]:.0f} s, 99 % {converged[1]:.0f} s, all {converged[2]:.0f} s")
        completed = self._simulation.watch.state == "COMPLETED"
        if not completed:
            self._say(f"the good release was not stable within {self._limit:.0f} s: the bad one is left out")
        nothing = (math.nan, 0, math.nan, [math.nan, math.nan])
        tripped, canaries, halted, back = self._leave_bad_release() if completed else nothing
        self._say(
            f"tripped by {self._tripped_by} after {tripped:.0f} s;"
            f" halted {halted:.1f} s, 95 % of {canaries:,} back {back[0]:.1f} s later"
        )
        self._settle()
        truth = self._simulation.watch.wrong_statuses()
        twice = sum(1 for device in self._devices if any(times > 1 for times in device.machine.store.installs.values()))
        return FleetRows(
            devices=len(self._devices),
            setup_seconds=self._setup_seconds,
            online_seconds=online,
            converged_95=converged[0],
            converged_99=converged[1],
            converged_all=converged[2],
            reports=reports,
            reports_per_second=reports / seconds,
            tripped_after=tripped,
            tripped_by=self._tripped_by,
            canaries=canaries,
            halted=halted,
            back_95=back[0],
            back_all=back[1],
            wrong=truth["wrong"],
            missing=truth["missing"],
            installed_twice=twice,
            broken_connections=self._simulation.sockets.broken,
            behind_seconds=self._simulation.scheduler.behind,
            peak_rss_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        )

    def _come_online(self) -> float:
        """Switch every device on; returns the seconds until the database knows each."""
        started = time.monotonic()
        self._simulation.fleet.switch_on(20.0)
        wanted = sum(device.machine.online for device in self._devices)
        self._until(lambda: self._known() >= wanted, every=2.0)
        return time.monotonic() - started

    def _converge(self) -> tuple[list[float], int, float]:
        """Roll the good release out; returns seconds to 95, 99 and 100 %, reports written and the seconds that took."""
        simulation = self._simulation
        simulation.publish(GOOD, Behaviour())
        digests = {release.sha256 for release in simulation.releases[GOOD].values()}
        before, started = simulation.sockets.sent, time.monotonic()
        simulation.launch(GOOD)
        times: list[float] = []
        under_way = self._devices

        def all_there() -> bool:
            nonlocal under_way
            now = time.monotonic() - started
            under_way = [device for device in under_way if device.active not in digests]
            times.extend([now] * (len(self._devices) - len(under_way) - len(times)))
            return not under_way

        self._until(all_there, every=1.0)
        self._until(lambda: self._committed(digests) >= len(times), every=2.0)
        seconds, total = time.monotonic() - started, len(self._devices)
        found = [
            times[math.ceil(share * total) - 1] if len(times) >= math.ceil(share * total) else math.nan
            for share in (0.95, 0.99, 1.0)
        ]
        reports = simulation.sockets.sent - before
        self._until(lambda: simulation.watch.state == "COMPLETED", every=2.0)
        return found, reports, seconds

    def _leave_bad_release(self) -> tuple[float, int, float, list[float]]:
        """Roll the bad release out; returns seconds to the trip, canaries, seconds to the halt, and to 95 % and all back."""
        simulation = self._simulation
        simulation.publish(BAD, Behaviour(error_share=0.5))
        digests = {release.sha256 for release in simulation.releases[BAD].values()}
        started = time.time()
        rollout = simulation.launch(BAD, BAD_PLAN)
        profiles = len(simulation.releases[BAD])
        canaries: set[int] = set()
        back: dict[int, float] = {}
        chosen = self._first(rollout)

        def look() -> bool:
            now = time.time()
            for device in chosen:
                if device.active in digests:
                    canaries.add(device.place)
                    back.pop(device.place, None)
                elif device.place in canaries:
                    back.setdefault(device.place, now)
            return bool(canaries) and len(self._halted(digests)) == profiles and len(back) == len(canaries)

        self._until(look, every=0.25)
        trips, halts = self._tripped_at(rollout), self._halted(digests)
        if len(trips) < profiles or len(halts) < profiles:
            return math.nan, len(canaries), math.nan, [math.nan, math.nan]
        since = [back[place] - trips[self._devices[place].machine.kind.profile] for place in back]
        halted = max(at - trips[profile] for profile, at in halts.items())
        enough = len(back) >= math.ceil(0.95 * len(canaries))
        times = [share_at(since, 0.95) if enough else math.nan, max(since) if len(back) == len(canaries) else math.nan]
        return min(trips.values()) - started, len(canaries), halted, times

    def _first(self, rollout: str) -> list[SimulatedDevice]:
        """Return the devices of the first stage: looking at all of them four times a second would take the devices' time."""
        with self._simulation.tenant.registry.sessions() as session:
            rows = list(session.scalars(select(RolloutProfile).where(RolloutProfile.rollout == rollout)))
            salt = session.scalars(select(Rollout.salt).where(Rollout.id == rollout)).one()
        below = {row.profile: row.below for row in rows}
        return [
            device
            for device in self._devices
            if bucket_of(salt, device.identity.device) < below[device.machine.kind.profile]
        ]

    def _halted(self, digests: set[str]) -> dict[str, float]:
        """Return profile -> when the last socket had the first document that has dropped the bad candidate."""
        documents: dict[str, list[tuple[GroupDocument, float]]] = {}
        for (_, envelope), at in self._simulation.sockets.heard.items():
            payload = base64.b64decode(msgspec.json.decode(envelope)["payload"])
            document = msgspec.json.decode(payload, type=GroupDocument)
            documents.setdefault(document.scope.rpartition("/")[2], []).append((document, at))
        found: dict[str, float] = {}
        for profile, each in documents.items():
            each.sort(key=lambda pair: pair[0].seq)
            bad = [place for place, (document, _) in enumerate(each) if _names(document, digests)]
            if bad and bad[-1] + 1 < len(each):
                found[profile] = each[bad[-1] + 1][1]
        return found

    def _settle(self) -> None:
        """Wait until what devices say has come to an end."""

        def quiet() -> bool:
            truth = self._simulation.watch.wrong_statuses()
            return truth == {"wrong": 0, "missing": 0}

        self._until(quiet, every=3.0, limit=min(self._limit, 120.0))

    def _until(self, done: Callable[[], bool], *, every: float, limit: float | None = None) -> None:
        ends = time.monotonic() + (limit or self._limit)
        while not done() and time.monotonic() < ends:
            self._simulation.advance(every)

    def _known(self) -> int:
        with self._simulation.tenant.registry.sessions() as session:
            return session.scalar(select(func.count()).select_from(DeviceSlot)) or 0

    def _committed(self, digests: set[str]) -> int:
        with self._simulation.tenant.registry.sessions() as session:
            query = select(func.count()).select_from(DeviceSlot).where(DeviceSlot.active.in_(digests))
            return session.scalar(query.where(DeviceSlot.state == "COMMITTED")) or 0

    def _tripped_at(self, rollout: str) -> dict[str, float]:
        with self._simulation.tenant.registry.sessions() as session:
            rows = list(session.scalars(select(RolloutProfile).where(RolloutProfile.rollout == rollout)))
            guardrails = {str(row.evidence.get("guardrail")) for row in rows if row.rollback_started_at}
            self._tripped_by = ", ".join(sorted(guardrails)) or "nothing"
            return {row.profile: row.rollback_started_at.timestamp() for row in rows if row.rollback_started_at}


def _names(document: GroupDocument, digests: set[str]) -> bool:
    return any(each.release.sha256 in digests for slot in document.slots.values() for each in slot.candidates)


def main() -> None:
    """Run it alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database_url")
    parser.add_argument("mqtt_url")
    parser.add_argument("--devices", type=int, default=100_000)
    parser.add_argument("--sockets", type=int, default=200)
    parser.add_argument("--limit-seconds", type=float, default=900.0)
    given = parser.parse_args()
    rows = fleet_rows(
        given.database_url,
        given.mqtt_url,
        given.devices,
        sockets=given.sockets,
        limit_seconds=given.limit_seconds,
        say=lambda line: console.print(f"{datetime.now(UTC):%T} {line}"),
    )
    for name in rows.__dataclass_fields__:
        sys.stdout.write(f"{name}: {getattr(rows, name)}\n")


if __name__ == "__main__":
    main()
