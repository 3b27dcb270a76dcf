"""The fleet as Prometheus sees it: rollouts with their evidence, devices, builds, documents, ingest, the broker, trust.

What costs queries is read at most every few seconds, however often and by however many servers one is scraped.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from modelfleet.policies.plan import GUARDRAILS, parse_plan
from modelfleet.registry.context import Registry
from modelfleet.registry.tables import Device, Variant
from modelfleet.rollout.changes.transitions import profiles_of
from modelfleet.rollout.controller import Controller
from modelfleet.rollout.decisions.decide import Evidence
from modelfleet.rollout.evidence.readings import reading_of
from modelfleet.rollout.states import TERMINAL, State
from modelfleet.rollout.tables import DesiredDocument, Rollout, RolloutProfile

FRESH_SECONDS = 5.0
SHOWN_AFTER_END = timedelta(days=1)
E_VALUES = tuple(name for name in GUARDRAILS if name != "accuracy")
"""The guardrails that are judged by an e-value; accuracy is a bound."""


class FleetCollector:
    """Reads the figures when they are scraped; `registry.register` takes it."""

    def __init__(self, registry: Registry, controller: Controller) -> None:
        self._registry, self._controller = registry, controller
        self._lock = threading.Lock()
        self._kept: list[Metric] = []
        self._kept_at = float("-inf")

    def collect(self) -> Iterator[Metric]:
        """Yield every family; those that cost queries are a few seconds old at most."""
        with self._lock:
            if time.monotonic() - self._kept_at > FRESH_SECONDS:
                self._kept = list(self._read(datetime.now(UTC)))
                self._kept_at = time.monotonic()
            yield from self._kept
        yield from self._process()

    def describe(self) -> Iterable[Metric]:
        """Return nothing: registering reads no database."""
        return ()

    def _process(self) -> Iterator[Metric]:
        """Yield what this process did itself."""
        ingest = self._controller.ingest
        accepted = CounterMetricFamily(
            "modelfleet_ingest_messages", "Device messages written, by kind.", labels=("kind",)
        )
        _fill(accepted, ingest.accepted)
        yield accepted
        dropped = CounterMetricFamily(
            "modelfleet_ingest_dropped", "Device messages dropped, by the rule that they broke.", labels=("reason",)
        )
        _fill(dropped, ingest.dropped)
        yield dropped
        yield GaugeMetricFamily(
            "modelfleet_ingest_waiting", "Device messages received and not written yet.", value=ingest.waiting
        )
        yield GaugeMetricFamily(
            "modelfleet_broker_connected",
            "Whether this process is connected to the MQTT broker.",
            value=self._controller.connected,
        )
        yield GaugeMetricFamily(
            "modelfleet_controller_leads", "Whether this process decides.", value=self._controller.leads
        )

    def _read(self, now: datetime) -> Iterator[Metric]:
        with self._registry.sessions() as session:
            yield from self._rollouts(session, now)
            yield self._devices(session)
            yield self._builds(session)
            pending = select(func.count()).where(DesiredDocument.published_seq < DesiredDocument.seq)
            yield GaugeMetricFamily(
                "modelfleet_documents_pending",
                "Signed documents that are not published yet.",
                value=session.scalar(pending.where(DesiredDocument.tenant == self._registry.tenant)) or 0,
            )
        yield self._trust(now)

    def _rollouts(self, session: Session, now: datetime) -> Iterator[Metric]:
        count = GaugeMetricFamily("modelfleet_rollouts", "Rollouts by state.", labels=("state",))
        by_state = select(Rollout.state, func.count()).where(Rollout.tenant == self._registry.tenant)
        found = _counted(session, by_state.group_by(Rollout.state))
        _fill(count, {state.value: found.get(state.value, 0) for state in State})
        yield count
        yield from _profiles(self._shown(session, now))

    def _shown(self, session: Session, now: datetime) -> list[tuple[Rollout, RolloutProfile, Evidence]]:
        """Return the profiles of rollouts that go on or ended lately, each with its figures now, or of its last decision."""
        query = select(Rollout).where(Rollout.tenant == self._registry.tenant)
        going_on = Rollout.state.not_in([state.value for state in TERMINAL]) & Rollout.ended_at.is_(None)
        rollouts = session.scalars(query.where(going_on | (Rollout.ended_at > now - SHOWN_AFTER_END))).all()
        found: list[tuple[Rollout, RolloutProfile, Evidence]] = []
        for rollout in rollouts:
            for row in profiles_of(session, rollout):
                live = reading_of(session, rollout, row, now).evidence
                found.append((rollout, row, row.evidence if live is None else live))
        return found

    def _devices(self, session: Session) -> Metric:
        family = GaugeMetricFamily(
            "modelfleet_devices", "Enrolled devices, by hardware profile and presence.", labels=("profile", "online")
        )
        enrolled = select(Device.profile, Device.online, func.count()).where(
            Device.tenant == self._registry.tenant, Device.revoked_at.is_(None)
        )
        for profile, online, number in session.execute(enrolled.group_by(Device.profile, Device.online)):
            family.add_metric((profile, "true" if online else "false"), number)
        return family

    def _builds(self, session: Session) -> Metric:
        family = GaugeMetricFamily("modelfleet_variants", "Variants by state.", labels=("state",))
        states = select(Variant.state, func.count()).where(Variant.tenant == self._registry.tenant)
        _fill(family, _counted(session, states.group_by(Variant.state)))
        return family

    def _trust(self, now: datetime) -> Metric:
        family = GaugeMetricFamily(
            "modelfleet_trust_expires_timestamp_seconds",
            "When signed metadata, keys' authority or the fleet CA end.",
            labels=("kind", "name"),
        )
        for each in self._registry.trust.status(now).expiries:
            family.add_metric((each.kind, each.name), each.expires.timestamp())
        return family


def _profiles(shown: Sequence[tuple[Rollout, RolloutProfile, Evidence]]) -> Iterator[Metric]:
    key = ("rollout", "model", "version", "slot", "profile")
    verdict = GaugeMetricFamily("modelfleet_rollout_verdict", "1 for each profile's verdict.", labels=(*key, "verdict"))
    share = GaugeMetricFamily("modelfleet_rollout_stage_share", "The stage's share of the devices.", labels=key)
    devices = GaugeMetricFamily(
        "modelfleet_rollout_devices", "Devices of a trial, by where they are.", labels=(*key, "where")
    )
    evidence = GaugeMetricFamily(
        "modelfleet_rollout_evidence", "Natural logarithm of a guardrail's e-value.", labels=(*key, "guardrail")
    )
    limit = GaugeMetricFamily("modelfleet_rollout_alarm_limit", "A guardrail's logarithm that rolls back.", labels=key)
    inferences = GaugeMetricFamily(
        "modelfleet_rollout_inferences", "The candidate's inferences in the trial.", labels=key
    )
    errors = GaugeMetricFamily("modelfleet_rollout_errors", "The errors among them.", labels=key)
    for rollout, row, figures in shown:
        about = (rollout.id, rollout.model, rollout.version, rollout.slot, row.profile)
        verdict.add_metric((*about, row.verdict), 1)
        plan = parse_plan(rollout.plan)
        share.add_metric(about, plan.stages[min(row.stage, plan.last_stage)] if row.trial_started_at else 0.0)
        for where, number in figures.get("devices", {}).items():
            devices.add_metric((*about, where), number)
        for guardrail in E_VALUES:
            if guardrail in figures:
                evidence.add_metric((*about, guardrail), figures[guardrail])
        if "alarm_limit" in figures:
            limit.add_metric(about, figures["alarm_limit"])
        trial = figures.get("inferences", {}).get("trial")
        if trial is not None:
            inferences.add_metric(about, trial["n"])
            errors.add_metric(about, trial["errors"])
    yield from (verdict, share, devices, evidence, limit, inferences, errors)


def _fill(family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[str, float]) -> None:
    for label, value in sorted(values.items()):
        family.add_metric((label,), value)


def _counted(session: Session, query: Select[str, int]) -> dict[str, int]:
    return {name: number for name, number in session.execute(query)}  # noqa: C416 - rows are no pairs to a type checker
