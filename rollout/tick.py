"""One tick of the leader: every open rollout as far as the evidence allows, documents signed again before they expire.

What a tick decides is applied by compare-and-set to the revision that it read, in one transaction with its audit record and its
documents; and every transaction that changes something checks first that nobody else leads by now (`leadership`).
"""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime

from sqlalchemy import select

from modelfleet.policies.plan import Plan, parse_plan
from modelfleet.registry.context import Registry
from modelfleet.rollout.changes import lifecycle, schedule
from modelfleet.rollout.changes.direction import Direction
from modelfleet.rollout.changes.transitions import CONTROLLER, Cause, claim, follow_profiles, move, places, profiles_of
from modelfleet.rollout.desired import recall
from modelfleet.rollout.errors import NotLeadingError, StaleRevisionError
from modelfleet.rollout.evidence import readings
from modelfleet.rollout.leadership import Leadership
from modelfleet.rollout.states import LEAVING, ON_TRIAL, State, Verdict
from modelfleet.rollout.steps import Look, Step, look_at
from modelfleet.rollout.tables import Rollout, RolloutProfile

_UNSTARTED = frozenset({State.AWAITING_APPROVAL, State.SCHEDULED})

log = logging.getLogger(__name__)


class Ticks:
    """Decides and applies for one tenant; nothing is kept between two ticks.

    Args:
        registry: database and trust policy.
        direction: whose desk writes documents.
        leadership: who decides, of several controllers.
        moved: called after each change that has written documents: a halt waits for no other rollout's figures.
    """

    def __init__(
        self, registry: Registry, direction: Direction, leadership: Leadership, moved: Callable[[], None]
    ) -> None:
        self._registry, self._direction, self._leadership, self._moved = registry, direction, leadership, moved

    def tick(self, now: datetime) -> None:
        """Bring every rollout as far as the evidence allows (NotLeadingError: another leads by now)."""
        for rollout_id in self._active_rollouts(now):
            try:
                self._tick_rollout(rollout_id, now)
            except NotLeadingError:
                raise
            except StaleRevisionError:
                log.info("somebody else moved the rollout", extra={"rollout": rollout_id})
            except Exception:  # one rollout's fault must not stop the others; the next tick tries again
                log.exception("a rollout could not be moved", extra={"rollout": rollout_id})
        self._renew(now)

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
            found = Look(steps=(), measured={})
            if state not in _UNSTARTED:
                found = look_at(session, rollout, plan, policy, now)
        if state in _UNSTARTED:
            lifecycle.tend(self._direction, rollout_id, revision, now)
            schedule.start_if_due(self._direction, rollout_id, plan, now)
            return
        if found.steps:
            self.apply(rollout_id, revision, found.steps, now)
        else:
            self._ask_again(rollout_id, plan, now)
        self._keep_readings(rollout_id, found, now)

    def _ask_again(self, rollout_id: str, plan: Plan, now: datetime) -> None:
        """Ask devices whose reports got lost where they stand."""
        desk = self._direction.desk()
        with self._registry.sessions.begin() as session:
            self._leadership.fence(session)
            rollout = lifecycle.find(session, self._registry.tenant, rollout_id)
            rows = [row for row in profiles_of(session, rollout) if Verdict(row.verdict) in ON_TRIAL | LEAVING]
            for row in rows:
                asked = recall.ask_again(session, desk, rollout, row, plan, now)
                if asked:
                    log.info("devices asked to report again", extra={"rollout": rollout_id, "devices": asked})

    def apply(self, rollout_id: str, revision: int, steps: Sequence[Step], now: datetime) -> None:
        """Change one rollout by its steps, and write the documents that follow (StaleRevisionError: it has another revision)."""
        desk = self._direction.desk()
        with self._registry.sessions.begin() as session:
            rollout = claim(session, self._registry.tenant, rollout_id, revision)
            self._leadership.fence(session)
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
        self._moved()
        for step in steps:
            log.info(
                "rollout moved",
                extra={"rollout": rollout_id, "profile": step.profile, "event": step.event, "reason": step.reason},
            )

    def _keep_readings(self, rollout_id: str, found: Look, now: datetime) -> None:
        """Have people see of a large fleet what was counted a moment ago."""
        moved = {step.profile for step in found.steps}
        known = {profile: health for profile, health in found.measured.items() if profile not in moved}
        with self._registry.sessions.begin() as session:
            rollout = lifecycle.find(session, self._registry.tenant, rollout_id)
            readings.keep(session, rollout, profiles_of(session, rollout), known, now)

    def _renew(self, now: datetime) -> None:
        with self._registry.sessions.begin() as session:
            self._leadership.fence(session)
            renewed = self._direction.desk().renew(session, now)
        if renewed:
            log.info("documents signed again", extra={"documents": renewed})
