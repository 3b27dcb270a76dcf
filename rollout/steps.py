"""What one tick changes of a rollout, profile by profile: decisions made from measured health, as steps to apply."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from modelfleet.policies.plan import Plan
from modelfleet.rollout.changes.standing import obstacle
from modelfleet.rollout.changes.succession import wanted_again
from modelfleet.rollout.changes.transitions import profiles_of
from modelfleet.rollout.decisions.decide import (
    Advance,
    Complete,
    Decision,
    Halt,
    Hold,
    Pause,
    ProfileHealth,
    RollBack,
    decide,
    evidence_of,
    trip,
    without_differing,
)
from modelfleet.rollout.decisions.emergency import judge
from modelfleet.rollout.evidence import answers, health, tally, totals
from modelfleet.rollout.states import LEAVING, ON_TRIAL, RUNNING, VERDICTS, Event, Verdict
from modelfleet.rollout.tables import Rollout, RolloutProfile
from modelfleet.signer.statements import TrustPolicy

MAX_UNPROVEN = 10_000
"""So many devices are named at most, where a rollback's time is over and they have not proved to be back."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One profile's decided change: the event, and why."""

    profile: str
    event: Event
    reason: str
    evidence: Mapping[str, object]
    unproven: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look at a rollout found: what is to change, and profile -> the health of those on trial."""

    steps: Sequence[Step]
    measured: Mapping[str, ProfileHealth]


def look_at(session: Session, rollout: Rollout, plan: Plan, policy: TrustPolicy, now: datetime) -> Look:
    """Return what is to change now, per profile; keeps a sample of the totals beside."""
    steps: list[Step] = []
    measured: dict[str, ProfileHealth] = {}
    rows = profiles_of(session, rollout)
    on_trial = [row for row in rows if Verdict(row.verdict) in ON_TRIAL]
    arms = tally.count_arms(session, rollout, on_trial, plan, now)
    for row in rows:
        verdict = Verdict(row.verdict)
        step: Step | None = None
        if verdict in ON_TRIAL:
            measured[row.profile] = health.measure(session, rollout, row, plan, now, arms[row.profile])
            step = _trial_step(session, rollout, row, plan, policy, measured[row.profile], now)
            totals.record_sample(session, row, plan, arms[row.profile].totals, now)
        elif verdict in LEAVING:
            step = _leaving_step(session, rollout, row, plan, now)
        if step is not None:
            steps.append(step)
    return Look(steps=steps, measured=measured)


def _trial_step(
    session: Session,
    rollout: Rollout,
    row: RolloutProfile,
    plan: Plan,
    policy: TrustPolicy,
    measured: ProfileHealth,
    now: datetime,
) -> Step | None:
    if Verdict(row.verdict) in RUNNING:
        decision = judge(plan, row.stage, measured, now, emergency=rollout.emergency)
        if isinstance(decision, Advance) and not rollout.emergency:
            answers.look(session, rollout, row, plan)
            measured = replace(measured, differences=answers.known(row))
            decision = decide(plan, row.stage, measured, now)
    else:
        decision = trip(plan, measured, evidence_of(plan, measured))  # paused and halted profiles stay under watch
    if not isinstance(decision, RollBack):
        found = obstacle(session, rollout, row, plan, policy, now)
        if found is not None and (Verdict(row.verdict), found.event) in VERDICTS:
            evidence = {} if decision is None else without_differing(decision.evidence)
            return Step(profile=row.profile, event=found.event, reason=found.reason, evidence=evidence)
    return None if decision is None else step_of(row.profile, decision, plan)


def _hurried(decision: Advance | Complete) -> bool:
    """Whether an emergency skipped the waits and the evidence: what is told of it claims neither."""
    return bool(decision.evidence.get("emergency"))


def step_of(profile: str, decision: Decision, plan: Plan) -> Step | None:
    """Return the change that a decision asks for, or None where it holds."""
    match decision:
        case Hold():
            return None
        case Advance(stage=stage):
            event = Event.SOAK if stage > plan.last_stage else Event.ADVANCE
            share = "soak" if stage > plan.last_stage else f"{plan.stages[stage]:.0%}"
            why = "an emergency: devices have committed, on to" if _hurried(decision) else "evidence suffices for"
            return Step(profile=profile, event=event, reason=f"{why} {share}", evidence=decision.evidence)
        case Complete():
            why = "an emergency: no alarm, no soak" if _hurried(decision) else "soaked without an alarm"
            return Step(profile=profile, event=Event.COMPLETE, reason=why, evidence=decision.evidence)
        case Pause(reason=reason):
            return Step(profile=profile, event=Event.PAUSE, reason=reason, evidence=decision.evidence)
        case Halt(reason=reason):
            return Step(profile=profile, event=Event.HALT, reason=reason, evidence=decision.evidence)
        case RollBack(guardrail=guardrail, reason=reason):
            evidence = {"guardrail": guardrail, **decision.evidence}
            return Step(profile=profile, event=Event.ROLL_BACK, reason=f"{guardrail}: {reason}", evidence=evidence)


def _leaving_step(session: Session, rollout: Rollout, row: RolloutProfile, plan: Plan, now: datetime) -> Step | None:
    """Return the proof that the devices are back, or that the time for it is over; why they go back stays known throughout."""
    cause = row.evidence.get("cause", row.reason)
    left = tuple(tally.unproven(session, rollout, row, plan, now, limit=MAX_UNPROVEN))
    if not left or wanted_again(session, rollout, row):
        return Step(profile=row.profile, event=Event.PROVE, reason=cause, evidence={**row.evidence, "unproven": []})
    assert row.rollback_started_at is not None
    overdue = now - row.rollback_started_at >= timedelta(seconds=plan.rollback_seconds)
    if Verdict(row.verdict) is Verdict.ROLLING_BACK and overdue:
        reason = "; ".join(filter(None, (cause, f"{len(left)} devices have not proved to be back")))
        evidence = {**row.evidence, "cause": cause}
        return Step(profile=row.profile, event=Event.OVERDUE, reason=reason, evidence=evidence, unproven=left)
    return None
