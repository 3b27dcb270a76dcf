"""What to do next with one hardware profile of a rollout: pure, from a plan, its health and the time.

Rules, in this order: a guardrail that trips rolls back, also while paused or halted; a stage advances when its bake time is over,
every device that started has ended, enough have committed, accuracy is proved and the promotion test passes; otherwise it holds,
and after `max_hold_seconds` a person is asked. Devices that have not started neither block nor dilute. Every decision carries
the figures that it rests on. Bake, hold and soak stand still while no maintenance window is open anywhere.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from modelfleet.policies.bounds import clopper_pearson
from modelfleet.policies.plan import Plan
from modelfleet.rollout.decisions.drift import Difference, as_evidence
from modelfleet.rollout.decisions.restarts import Alarm, alarm_over, relative_alarm_over, restarts_of_counts
from modelfleet.rollout.decisions.statistics import (
    Counts,
    Interval,
    log_alarm,
    log_over_looks,
    log_over_starts,
    log_promotion,
    relative_threshold,
)
from modelfleet.signer.windows import is_open, next_opening, open_seconds, overlap_seconds

INSTALL_FAILURE_THRESHOLD = 0.01
"""The share of devices that may refuse a good candidate: the requirement's success rate is above 99 %."""
ACCEPTED_GROWTH = 1.5
"""A difference that a person has let pass is another one once it is this many times as large."""

Evidence = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class DeviceTally:
    """How many devices of the profile are where.

    cohort: may take the candidate. started: reported on it. ended: committed, in probation past its time, failed, gave up, or
    stalled. committed: run it for good. failed: REJECTED, ROLLED_BACK, or online and stalled. silent: started, and not heard
    of for three metrics intervals. stable and stable_silent: those not on the candidate that were heard of in its time.
    unsigned: of those started, the hawkBit clients whose word the plan accepts; they send no counters.
    """

    cohort: int = 0
    started: int = 0
    ended: int = 0
    committed: int = 0
    failed: int = 0
    silent: int = 0
    stable: int = 0
    stable_silent: int = 0
    unsigned: int = 0


@dataclass(frozen=True, kw_only=True)
class AccuracySample:
    """What the devices measured on the golden set: their median accuracy, of `samples` inputs. They are one sample, not many."""

    accuracy: float
    samples: int


@dataclass(frozen=True, kw_only=True)
class ProfileHealth:
    """What is known of one profile's trial.

    errors_since and slow_since hold the candidate's counts since the start of each stage so far, the first one first,
    `installs_since` the devices that started since then and how many of them failed (none: the tally's), `intervals_since` the
    closed stretches in which both arms were counted; those since the trial began say where alarms begin anew. `window` is the
    literal rule's window. `blocking` counts started devices that have neither ended nor fallen silent. `silence_look` numbers the
    spans of `silent_seconds` since the trial began.
    `differences` are how the answers differ from concurrent stable's, where the stage's one look at them was taken; `accepted`
    those that a person has let pass, measure -> value.
    """

    trial_started_at: datetime
    stage_started_at: datetime
    hold_started_at: datetime
    devices: DeviceTally
    blocking: int = 0
    errors_since: tuple[Counts, ...] = (Counts(),)
    slow_since: tuple[Counts, ...] = (Counts(),)
    intervals_since: tuple[tuple[Interval, ...], ...] = ((),)
    window: Counts = field(default_factory=Counts)
    accuracy: AccuracySample | None = None
    installs_since: tuple[Counts, ...] = ()
    silence_look: int = 1
    differences: tuple[Difference, ...] = ()
    accepted: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, kw_only=True)
class Hold:
    """Nothing changes yet; `waiting_for` says why."""

    waiting_for: str
    evidence: Evidence = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class Advance:
    """The next stage may begin; past the last one, the soak."""

    stage: int
    evidence: Evidence = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class Complete:
    """The candidate becomes the profile's stable release."""

    evidence: Evidence = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class Pause:
    """The evidence did not come in time, or the answers differ from stable's: a person decides."""

    reason: str
    evidence: Evidence = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class RollBack:
    """A guardrail tripped: every device of the profile goes back."""

    guardrail: str
    reason: str
    evidence: Evidence = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class Halt:
    """The rollout's time is over: no further device starts, a person decides what becomes of those that have."""

    reason: str
    evidence: Evidence = field(default_factory=dict[str, Any])


Decision = Hold | Advance | Complete | Pause | Halt | RollBack


def decide(plan: Plan, stage: int, health: ProfileHealth, now: datetime) -> Decision:
    """Return what to do with a profile at `stage` (one past the plan's last stage is the soak)."""
    evidence = evidence_of(plan, health)
    tripped = trip(plan, health, evidence)
    if tripped is not None:
        return tripped
    if stage > plan.last_stage:
        return _decide_soak(plan, health, now, evidence)
    waiting_for = _missing(plan, stage, health, now, evidence) or _out_of_hours(plan, now)
    if waiting_for is None:
        return _differing(health, evidence) or Advance(stage=stage + 1, evidence=evidence)
    if (now - health.trial_started_at).total_seconds() >= plan.deadline_seconds:
        return Halt(
            reason=f"the plan's deadline of {plan.deadline_seconds:.0f} s passed, still {waiting_for}",
            evidence=evidence,
        )
    held = overlap_seconds(plan.windows, plan.advance_within, health.hold_started_at, now)
    if held >= plan.bake_seconds[stage] + plan.max_hold_seconds:
        return Pause(reason=f"held for {held:.0f} s, still {waiting_for}: a person must decide", evidence=evidence)
    return Hold(waiting_for=waiting_for, evidence=evidence)


def evidence_of(plan: Plan, health: ProfileHealth) -> Evidence:
    """Return every figure that decisions rest on, as plain JSON; e-values by their natural logarithm."""
    stages, errors, devices = len(plan.stages), health.errors_since, health.devices
    installs = health.installs_since or (Counts(n=devices.started, errors=devices.failed),)
    alarms = _alarms(plan, health)
    return {
        "alarm_limit": _figure(math.log(1 / plan.guardrail_alpha)),
        "promotion_limit": _figure(math.log(1 / plan.beta)),
        "inferences": {"stage": _pair(errors[-1]), "trial": _pair(errors[0]), "window": _pair(health.window)},
        "devices": {name: getattr(devices, name) for name in DeviceTally.__dataclass_fields__}
        | {"blocking": health.blocking},
        **{name: _figure(each.log_evidence) for name, each in alarms.items()},
        "since": {name: since for name, each in alarms.items() if (since := _since(health, each)) is not None},
        "install": _figure(log_over_starts([log_alarm(each, INSTALL_FAILURE_THRESHOLD) for each in installs], stages)),
        "silence": _figure(log_over_looks(_log_silence(plan, devices), health.silence_look)),
        "promotion": _figure(log_promotion(errors[-1], plan.error_threshold)),
        "accuracy": _accuracy(plan, health.accuracy),
        "differences": {each.measure: as_evidence(each) for each in health.differences},
    }


def _alarms(plan: Plan, health: ProfileHealth) -> dict[str, Alarm]:
    """Return the alarms that begin anew inside stages, too."""
    stretches = health.intervals_since[0] if health.intervals_since else ()
    n = [each.candidate.n for each in stretches]
    watched = {
        "errors": (health.errors_since, [each.candidate.errors for each in stretches], plan.error_threshold),
        "slow": (health.slow_since, [each.slow for each in stretches], plan.slow_threshold),
    }
    stages, found = len(plan.stages), dict[str, Alarm]()
    for name, (since, counted, p0) in watched.items():
        restarts = restarts_of_counts(n, counted, since[0], p0)
        found[name] = alarm_over([log_alarm(each, p0) for each in since], restarts, stages)
    return found | {"relative": relative_alarm_over(health.intervals_since, plan.delta, stages)}


def _since(health: ProfileHealth, alarm: Alarm) -> str | None:
    """Return from when on the alarm's heaviest part counts, where that is inside a stage."""
    if alarm.after is None:
        return None
    until = health.intervals_since[0][alarm.after - 1].until
    return None if until is None else until.isoformat(timespec="seconds")


_ALARMS = {
    "errors": "more errors than the plan's threshold allows",
    "relative": "more errors than the devices still on stable make",
    "install": "too many devices refused it or went back",
    "silence": "too many devices fell silent, compared with those on stable",
    "slow": "too many inferences passed the latency limit",
}


def trip(plan: Plan, health: ProfileHealth, evidence: Evidence) -> RollBack | None:
    """Return the rollback that the first tripped guardrail asks for, or None."""
    limit = math.log(1 / plan.guardrail_alpha)
    for guardrail, meaning in _ALARMS.items():
        if evidence[guardrail] >= limit:
            since = evidence["since"].get(guardrail)
            counted = "" if since is None else f", counted from {since} on"
            reason = f"{meaning}: log e-value {evidence[guardrail]:.2f}, limit {limit:.2f}{counted}"
            return RollBack(guardrail=guardrail, reason=reason, evidence=evidence)
    window, literal = health.window, plan.literal
    if window.n >= literal.min_inferences and window.share > literal.share:
        seen = f"{window.errors} errors in {window.n} inferences within {literal.window_seconds:.0f} s"
        reason = f"{seen}, limit {literal.share:.2%}"
        return RollBack(guardrail="literal", reason=reason, evidence=evidence)
    bounds = evidence["accuracy"]
    if bounds is not None and bounds["upper"] < bounds["limit"]:
        reason = f"accuracy on devices is at most {bounds['upper']:.4f}, limit {bounds['limit']}"
        return RollBack(guardrail="accuracy", reason=reason, evidence=evidence)
    return None


def _decide_soak(plan: Plan, health: ProfileHealth, now: datetime, evidence: Evidence) -> Decision:
    left = plan.soak_seconds - open_seconds(plan.windows, health.stage_started_at, now)
    if left > 0:
        return Hold(waiting_for=f"soaking for another {left:.0f} s", evidence=evidence)
    return Complete(evidence=evidence)


def _missing(plan: Plan, stage: int, health: ProfileHealth, now: datetime, evidence: Evidence) -> str | None:
    """Return what the stage still lacks, or None where it may advance."""
    devices, in_stage, bounds = health.devices, health.errors_since[-1], evidence["accuracy"]
    left = plan.bake_seconds[stage] - open_seconds(plan.windows, health.stage_started_at, now)
    needed = max(1, min(plan.min_canaries, devices.cohort))
    if left > 0 and not is_open(plan.windows, now):
        return f"waiting for a window, which opens at {next_opening(plan.windows, now):%F %H:%M} UTC"
    if left > 0:
        return f"baking for another {left:.0f} s"
    if health.blocking:
        return f"waiting for {health.blocking} devices that have started to end"
    if devices.committed < needed:
        return f"waiting for {needed} devices to commit, {devices.committed} have"
    if bounds is not None and bounds["lower"] < bounds["limit"]:
        return f"accuracy not proved: at least {bounds['lower']:.4f}, limit {bounds['limit']}; use a larger golden set"
    if plan.accept_unsigned and 0 < devices.started == devices.unsigned:
        return None  # nobody counts inferences here, and the plan says that installs are enough
    if in_stage.n == 0:
        return "waiting for inferences: none in this stage"
    if evidence["promotion"] < evidence["promotion_limit"]:
        return f"waiting for evidence: {in_stage.errors} errors in {in_stage.n} inferences do not prove enough"
    return None


def differing(health: ProfileHealth) -> list[Difference]:
    """Return the differences from concurrent stable that no person has let pass yet."""
    return [
        each
        for each in health.differences
        if each.found and each.value > ACCEPTED_GROWTH * health.accepted.get(each.measure, 0.0)
    ]


def _differing(health: ProfileHealth, evidence: Evidence) -> Pause | None:
    """Return the pause that differences from stable ask for: within the limits, hence no rollback, but a person should look."""
    found = differing(health)
    if not found:
        return None
    what = "; ".join(f"{each.measure} {each.value:.2f}, limit {each.limit:g}, p = {each.p_value:.4f}" for each in found)
    seen = {each.measure: _figure(each.value) for each in found}
    return Pause(
        reason=f"answers differ from those of devices still on stable: {what}; resume to accept it",
        evidence={**evidence, "differing": seen},
    )


def without_differing(evidence: Evidence) -> Evidence:
    """Return the evidence of a pause for another reason: who resumes that one accepts no difference."""
    return {name: value for name, value in evidence.items() if name != "differing"}


def _out_of_hours(plan: Plan, now: datetime) -> str | None:
    if is_open(plan.advance_within, now):
        return None
    return f"waiting to advance until {next_opening(plan.advance_within, now):%F %H:%M} UTC, as the plan's hours say"


def _log_silence(plan: Plan, devices: DeviceTally) -> float:
    both = devices.started + devices.stable
    if both == 0:
        return 0.0
    q = relative_threshold(devices.started / both, plan.delta)
    return log_alarm(Counts(n=devices.silent + devices.stable_silent, errors=devices.silent), q)


def _accuracy(plan: Plan, sample: AccuracySample | None) -> Evidence | None:
    if sample is None or plan.limits.accuracy is None or sample.samples == 0:
        return None
    right = round(sample.accuracy * sample.samples)
    lower, _ = clopper_pearson(right, sample.samples, plan.confidence)
    _, upper = clopper_pearson(right, sample.samples, 1 - plan.guardrail_alpha)
    return {
        "right": right,
        "samples": sample.samples,
        "lower": round(lower, 6),
        "upper": round(upper, 6),
        "limit": plan.limits.accuracy,
    }


def _figure(value: float) -> float:
    return round(value, 6)


def _pair(counts: Counts) -> dict[str, int]:
    return {"n": counts.n, "errors": counts.errors}
