"""Looks at controller and fleet while time passes: samples for plots, events for the summary, and whether statuses are true."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

from sqlalchemy import select

from modelfleet.agent_client.protocol import DeviceState
from modelfleet.registry.context import Registry
from modelfleet.registry.tables import Device
from modelfleet.rollout.controller import Controller
from modelfleet.rollout.states import Verdict
from modelfleet.rollout.tables import DeviceSlot, Rollout, RolloutProfile
from modelfleet.service.simulate.fleet import Fleet
from modelfleet.service.simulate.ledger import GUARDRAILS, Ledger, Sample
from modelfleet.signer.desired import BUCKETS, Release

FIRST_SAMPLES_SECONDS = 30.0
SAMPLES = 400
"""At most about twice that many are kept: then every second one goes."""
_GONE = frozenset({Verdict.ROLLING_BACK, Verdict.ROLLED_BACK, Verdict.ROLLBACK_INCOMPLETE, Verdict.CLOSED})
"""Verdicts in which no device may have the candidate."""


class Counting(Protocol):
    """What counts messages of devices."""

    sent: int


class Watch:
    """Follows one rollout.

    Attributes:
        state: the rollout's, as the database has it; empty before there is one.
        trail: profile -> (second, verdict, reason) for each change.
    """

    def __init__(
        self,
        controller: Controller,
        registry: Registry,
        fleet: Fleet,
        ledger: Ledger,
        releases: Mapping[str, Mapping[str, Release]],
        exchange: Counting,
    ) -> None:
        self._controller, self._registry, self._exchange = controller, registry, exchange
        self.fleet, self.ledger = fleet, ledger
        self._releases = releases
        self._rollout = ""
        self._every, self._due = FIRST_SAMPLES_SECONDS, 0.0
        self.state = ""
        self.trail: dict[str, list[tuple[float, str, str]]] = {}

    def follow(self, rollout: str) -> None:
        """Look at this rollout from now on."""
        self._rollout = rollout
        self._due = 0.0
        self.look()

    def look(self) -> None:
        """Note what has changed, and keep a sample where one is due."""
        now = self.fleet.world.scheduler.now()
        rows = self._rows() if self._rollout else []
        moved = False
        for row in rows:
            trail = self.trail.setdefault(row.profile, [])
            if not trail or trail[-1][1] != row.verdict or (row.stage and trail[-1][2] != row.reason):
                trail.append((now, row.verdict, row.reason))
                moved = True
        if moved or now >= self._due:  # the look that decided is on every chart
            self._sample(now, rows)
            self._due = now + self._every

    @property
    def now(self) -> float:
        """The second of the simulation."""
        return self.fleet.world.scheduler.now()

    @property
    def messages(self) -> int:
        """How many messages devices have sent."""
        return self._exchange.sent

    def running(self) -> dict[str, int]:
        """Return version -> how many devices run it."""
        labels = {release.sha256: version for version, each in self._releases.items() for release in each.values()}
        found: Counter[str] = Counter()
        for sha256, count in self.fleet.running().items():
            found[labels.get(sha256 or "", "none")] += count
        return dict(found)

    def wrong_statuses(self) -> dict[str, int]:
        """Compare what the database says of each device's slot with the device's own truth.

        Returns:
            `wrong`: the database says something else; `missing`: it says nothing. Of devices that are online only, since
            others have not been able to tell.
        """
        with self._registry.sessions() as session:
            query = select(DeviceSlot.device, DeviceSlot.state, DeviceSlot.active)
            mine = query.join(Device, Device.id == DeviceSlot.device).where(Device.tenant == self._registry.tenant)
            said = {device: (state, active) for device, state, active in session.execute(mine)}
        found = {"wrong": 0, "missing": 0}
        for device in self.fleet.devices:
            if not device.machine.online or device.machine.running is not None or not device.is_on:
                continue
            told = said.get(device.identity.device)
            if told is None:
                found["missing"] += 1
            elif told != (device.state.value, device.active):
                found["wrong"] += 1
        return found

    def _rows(self) -> list[RolloutProfile]:
        with self._registry.sessions() as session:
            rollout = session.get(Rollout, self._rollout)
            if rollout is not None and rollout.state != self.state:
                self.state = rollout.state
                self.ledger.events.append((self.fleet.world.scheduler.now(), rollout.state))
            query = select(RolloutProfile).where(RolloutProfile.rollout == self._rollout)
            return list(session.scalars(query.order_by(RolloutProfile.profile)))

    def _sample(self, now: float, rows: list[RolloutProfile]) -> None:
        figures = {row.profile: found for row in rows if (found := self._evidence(row))}
        counts = self.ledger.states
        self.ledger.samples.append(
            Sample(
                seconds=now,
                states={state.value: counts[state] for state in DeviceState if counts[state] > 0},
                running=self.running(),
                online=self.fleet.online(),
                state=self.state,
                verdicts={row.profile: row.verdict for row in rows},
                cohort={row.profile: 0.0 if row.verdict in _GONE else row.below / BUCKETS for row in rows},
                e_values={name: {each: float(found[each]) for each in GUARDRAILS} for name, found in figures.items()},
                limits={name: float(found["alarm_limit"]) for name, found in figures.items()},
                messages=self._exchange.sent,
            )
        )
        if len(self.ledger.samples) >= 2 * SAMPLES:
            self.ledger.samples[:] = self.ledger.samples[::2]
            self._every *= 2

    def _evidence(self, row: RolloutProfile) -> Mapping[str, Any] | None:
        with self._registry.sessions() as session:
            rollout = session.get(Rollout, self._rollout)
            if rollout is None:
                return None
            decision = self._controller.health_of(session, rollout, row, self.fleet.world.scheduler.clock())
            found = row.evidence if decision is None else decision.evidence  # of the last decision, once it has ended
            return found if "alarm_limit" in found else None
