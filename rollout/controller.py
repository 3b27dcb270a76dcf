"""The rollout controller: takes in what devices say, decides, changes state, publishes desired state. One tick at a time.

A tick may stop anywhere and be run again, by this process or another: what devices said is written before it is acknowledged, a
decision is applied by compare-and-set in one transaction with its audit record and documents, and documents are published from
the database. Nothing that matters is kept in memory.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from modelfleet.agent_client.protocol import TOPIC_ROOT, HostStatus, encode, host_topic
from modelfleet.policies.plan import Plan, parse_plan
from modelfleet.registry.context import Registry
from modelfleet.registry.tables import Device
from modelfleet.rollout import dispatch, health, lifecycle, recall, tally, totals
from modelfleet.rollout.broker import Broker, Will
from modelfleet.rollout.decide import (
    Advance,
    Complete,
    Decision,
    Halt,
    Hold,
    Pause,
    RollBack,
    evidence_of,
    trip,
)
from modelfleet.rollout.emergency import judge
from modelfleet.rollout.errors import StaleRevisionError
from modelfleet.rollout.ingest import Ingest
from modelfleet.rollout.lifecycle import Direction
from modelfleet.rollout.standing import obstacle
from modelfleet.rollout.states import LEAVING, ON_TRIAL, RUNNING, VERDICTS, Event, State, Verdict
from modelfleet.rollout.succession import wanted_again
from modelfleet.rollout.tables import Rollout, RolloutProfile
from modelfleet.rollout.totals import Totals
from modelfleet.rollout.transitions import CONTROLLER, Cause, claim, follow_profiles, move, places, profiles_of
from modelfleet.signer.keys import Signer
from modelfleet.signer.statements import TrustPolicy

INGEST_WAIT_SECONDS = 0.5
MAX_UNPROVEN = 10_000
"""So many devices are named at most, where a rollback's time is over and they have not proved to be back."""
ONLINE, OFFLINE = encode(HostStatus(state="online")), encode(HostStatus(state="offline"))

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One profile's decided change: the event, and why."""

    profile: str
    event: Event
    reason: str
    evidence: Mapping[str, object]
    unproven: tuple[str, ...] = ()


class Controller:
    """Moves one tenant's rollouts.

    Args:
        registry: database, blobs, trust policy.
        broker: its own connection.
        director: the key that signs desired state.
        clock: the time for what happens outside of `tick`.

    Attributes:
        direction: what `lifecycle`'s functions take.
        ingest: takes device messages; `ingest.dropped` counts what was refused.
    """

    def __init__(self, registry: Registry, broker: Broker, director: Signer, clock: Callable[[], datetime]) -> None:
        self.direction = Direction(registry=registry, director=director)
        self.ingest = Ingest(registry.sessions, registry.tenant)
        self._registry, self._broker, self._clock = registry, broker, clock
        self._host_topic = host_topic(registry.tenant)
        self._stopping = threading.Event()
        self._ticking = threading.Lock()
        self._writer = threading.Thread(target=self._write_reports, name="ingest", daemon=True)

    def start(self, *, writes_at_once: bool = True) -> None:
        """Connect, subscribe, say that a controller is there, and publish every document again.

        Args:
            writes_at_once: write reports as they arrive, on a thread; else only in `tick`, where time is simulated.
        """
        self._registry.on_device_changed.append(self.ensure_assignment)
        for kind in ("report", "metrics", "status"):
            self._broker.subscribe(f"{TOPIC_ROOT}/{self._registry.tenant}/d/+/{kind}", self.ingest.offer)
        self._broker.connect(Will(topic=self._host_topic, payload=OFFLINE), self._republish)
        if writes_at_once:
            self._writer.start()

    def stop(self) -> None:
        """Write what has arrived, say goodbye, disconnect."""
        self._stopping.set()
        self.ingest.arrived.set()
        if self._writer.is_alive():
            self._writer.join(10)
        if self.ensure_assignment in self._registry.on_device_changed:
            self._registry.on_device_changed.remove(self.ensure_assignment)
        self._broker.publish(self._host_topic, OFFLINE, qos=1, retain=True)
        self._broker.close()

    def tick(self, now: datetime) -> None:
        """Bring every rollout as far as the evidence allows; safe to repeat, to interrupt, and beside another controller's."""
        with self._ticking:
            self.ingest.flush(now)
            for rollout_id in self._active_rollouts(now):
                try:
                    self._tick_rollout(rollout_id, now)
                except StaleRevisionError:
                    log.info("somebody else moved the rollout", extra={"rollout": rollout_id})
                except Exception:  # one rollout's fault must not stop the others; the next tick tries again
                    log.exception("a rollout could not be moved", extra={"rollout": rollout_id})
            self._renew(now)
            self.dispatch()

    def dispatch(self) -> None:
        """Publish the documents that were not published yet."""
        dispatch.publish_pending(self._registry.sessions, self._broker, self._registry.tenant)

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
        if Verdict(row.verdict) not in ON_TRIAL:
            return None
        plan = parse_plan(rollout.plan)
        measured = health.measure(session, rollout, row, plan, now)
        return judge(plan, row.stage, measured, now, emergency=rollout.emergency)

    def _republish(self) -> None:
        self._broker.publish(self._host_topic, ONLINE, qos=1, retain=True)
        count = dispatch.publish_all(self._registry.sessions, self._broker, self._registry.tenant)
        log.info("documents published again", extra={"documents": count})

    def _write_reports(self) -> None:
        """Write reports as they arrive, so that the broker's window does not wait for the next tick."""
        while not self._stopping.is_set():
            self.ingest.arrived.wait(INGEST_WAIT_SECONDS)
            try:
                self.ingest.flush(self._clock())
            except Exception:  # the batch is kept; the database may be back in a moment
                log.exception("reports could not be written")
                self._stopping.wait(INGEST_WAIT_SECONDS)

    def _active_rollouts(self, now: datetime) -> list[str]:
        moving = [verdict.value for verdict in ON_TRIAL | LEAVING]
        by_profile = select(RolloutProfile.rollout).where(RolloutProfile.verdict.in_(moving))
        waiting = [State.AWAITING_APPROVAL.value, State.SCHEDULED.value]
        overdue = Rollout.state.in_(waiting) & (Rollout.approve_by < now)
        overdue |= Rollout.state == State.SCHEDULED.value  # its approvals may lapse
        query = select(Rollout.id).where(Rollout.tenant == self._registry.tenant, Rollout.id.in_(by_profile) | overdue)
        with self._registry.sessions() as session:
            return list(session.scalars(query.order_by(Rollout.created_at)))

    def _tick_rollout(self, rollout_id: str, now: datetime) -> None:
        """Decide from one revision, then apply to that revision or not at all."""
        with self._registry.sessions.begin() as session:
            rollout = session.get(Rollout, rollout_id)
            if rollout is None:
                return
            revision, state, plan = rollout.revision, State(rollout.state), parse_plan(rollout.plan)
            policy = self._registry.repository.policy()
            steps = [] if state in _UNSTARTED else _steps(session, rollout, plan, policy, now)
        if state in _UNSTARTED:
            lifecycle.tend(self.direction, rollout_id, revision, now)
        elif steps:
            self._apply(rollout_id, revision, steps, now)
        else:
            self._ask_again(rollout_id, plan, now)

    def _ask_again(self, rollout_id: str, plan: Plan, now: datetime) -> None:
        """Ask devices whose reports got lost where they stand."""
        desk = self.direction.desk()
        with self._registry.sessions.begin() as session:
            rollout = lifecycle.find(session, self._registry.tenant, rollout_id)
            rows = [row for row in profiles_of(session, rollout) if Verdict(row.verdict) in ON_TRIAL | LEAVING]
            for row in rows:
                asked = recall.ask_again(session, desk, rollout, row, plan, now)
                if asked:
                    log.info("devices asked to report again", extra={"rollout": rollout_id, "devices": asked})

    def _apply(self, rollout_id: str, revision: int, steps: list[Step], now: datetime) -> None:
        desk = self.direction.desk()
        with self._registry.sessions.begin() as session:
            rollout = claim(session, self._registry.tenant, rollout_id, revision)
            rows = {row.profile: row for row in profiles_of(session, rollout)}
            changed: list[tuple[str, str]] = []
            for step in steps:
                row = rows[step.profile]
                cause = Cause(actor=CONTROLLER, now=now, reason=step.reason, evidence=step.evidence)
                row.unproven = list(step.unproven)
                move(session, rollout, row, step.event, cause)
                changed += places(rollout, row)
            follow_profiles(session, rollout, Cause(actor=CONTROLLER, now=now, reason=steps[0].reason))
            desk.write_groups(session, changed, now)
        for step in steps:
            log.info(
                "rollout moved",
                extra={"rollout": rollout_id, "profile": step.profile, "event": step.event, "reason": step.reason},
            )

    def _renew(self, now: datetime) -> None:
        with self._registry.sessions.begin() as session:
            renewed = self.direction.desk().renew(session, now)
        if renewed:
            log.info("documents signed again", extra={"documents": renewed})


_UNSTARTED = frozenset({State.AWAITING_APPROVAL, State.SCHEDULED})


def _steps(session: Session, rollout: Rollout, plan: Plan, policy: TrustPolicy, now: datetime) -> list[Step]:
    """Return what is to change now, per profile; keeps a sample of the totals beside."""
    steps: list[Step] = []
    for row in profiles_of(session, rollout):
        verdict = Verdict(row.verdict)
        step: Step | None = None
        if verdict in ON_TRIAL:
            counted = totals.count(session, rollout, row)
            step = _trial_step(session, rollout, row, plan, policy, counted, now)
            totals.record_sample(session, row, plan, counted, now)
        elif verdict in LEAVING:
            step = _leaving_step(session, rollout, row, plan, now)
        if step is not None:
            steps.append(step)
    return steps


def _trial_step(
    session: Session,
    rollout: Rollout,
    row: RolloutProfile,
    plan: Plan,
    policy: TrustPolicy,
    counted: Totals,
    now: datetime,
) -> Step | None:
    measured = health.measure(session, rollout, row, plan, now, counted)
    if Verdict(row.verdict) in RUNNING:
        decision = judge(plan, row.stage, measured, now, emergency=rollout.emergency)
    else:
        decision = trip(plan, measured, evidence_of(plan, measured))  # paused and halted profiles stay under watch
    if not isinstance(decision, RollBack):
        found = obstacle(session, rollout, row, plan, policy, now)
        if found is not None and (Verdict(row.verdict), found.event) in VERDICTS:
            evidence = {} if decision is None else decision.evidence
            return Step(profile=row.profile, event=found.event, reason=found.reason, evidence=evidence)
    return None if decision is None else step_of(row.profile, decision, plan)


def step_of(profile: str, decision: Decision, plan: Plan) -> Step | None:
    """Return the change that a decision asks for, or None where it holds."""
    match decision:
        case Hold():
            return None
        case Advance(stage=stage):
            event = Event.SOAK if stage > plan.last_stage else Event.ADVANCE
            share = "soak" if stage > plan.last_stage else f"{plan.stages[stage]:.0%}"
            return Step(
                profile=profile, event=event, reason=f"evidence suffices for {share}", evidence=decision.evidence
            )
        case Complete():
            return Step(
                profile=profile, event=Event.COMPLETE, reason="soaked without an alarm", evidence=decision.evidence
            )
        case Pause(reason=reason):
            return Step(profile=profile, event=Event.PAUSE, reason=reason, evidence=decision.evidence)
        case Halt(reason=reason):
            return Step(profile=profile, event=Event.HALT, reason=reason, evidence=decision.evidence)
        case RollBack(guardrail=guardrail, reason=reason):
            evidence = {"guardrail": guardrail, **decision.evidence}
            return Step(profile=profile, event=Event.ROLL_BACK, reason=f"{guardrail}: {reason}", evidence=evidence)


def _leaving_step(session: Session, rollout: Rollout, row: RolloutProfile, plan: Plan, now: datetime) -> Step | None:
    """Return the proof that the devices are back, or that the time for it is over."""
    left = tuple(tally.unproven(session, rollout, row, plan, now, limit=MAX_UNPROVEN))
    if not left or wanted_again(session, rollout, row):
        return Step(
            profile=row.profile, event=Event.PROVE, reason=row.reason, evidence={**row.evidence, "unproven": []}
        )
    assert row.rollback_started_at is not None
    overdue = now - row.rollback_started_at >= timedelta(seconds=plan.rollback_seconds)
    if Verdict(row.verdict) is Verdict.ROLLING_BACK and overdue:
        reason = f"{len(left)} devices have not proved to be back"
        return Step(profile=row.profile, event=Event.OVERDUE, reason=reason, evidence={}, unproven=left)
    return None
