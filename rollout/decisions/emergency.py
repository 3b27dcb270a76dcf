"""What an emergency skips: waiting. Never a guardrail, a signature, a device's own benchmark, or a second person.

A stage of an emergency advances as soon as enough of its devices have committed: each has then verified, measured and activated
the release on itself. Bake times, the soak, the promotion test, the proof of accuracy and devices that are still busy are not
waited for. Every guardrail goes on watching, and rolls back as ever.
"""

from datetime import datetime

from modelfleet.policies.plan import Plan
from modelfleet.rollout.decisions.decide import (
    Advance,
    Complete,
    Decision,
    Hold,
    Pause,
    ProfileHealth,
    decide,
    evidence_of,
    trip,
)
from modelfleet.signer.windows import open_seconds


def judge(plan: Plan, stage: int, health: ProfileHealth, now: datetime, *, emergency: bool) -> Decision:
    """Return what to do with a profile at `stage`: `decide`, or in an emergency the same without its waits."""
    return _hurry(plan, stage, health, now) if emergency else decide(plan, stage, health, now)


def _hurry(plan: Plan, stage: int, health: ProfileHealth, now: datetime) -> Decision:
    evidence = {**evidence_of(plan, health), "emergency": True}
    tripped = trip(plan, health, evidence)
    if tripped is not None:
        return tripped
    if stage > plan.last_stage:
        return Complete(evidence=evidence)
    needed = max(1, min(plan.min_canaries, health.devices.cohort))
    if health.devices.committed >= needed:
        return Advance(stage=stage + 1, evidence=evidence)
    waiting_for = f"waiting for {needed} devices to commit, {health.devices.committed} have"
    held = open_seconds(plan.windows, health.hold_started_at, now)
    if held >= plan.max_hold_seconds:
        return Pause(reason=f"held for {held:.0f} s, still {waiting_for}: a person must decide", evidence=evidence)
    return Hold(waiting_for=waiting_for, evidence=evidence)
