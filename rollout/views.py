"""What the API answers about rollouts: each with its profiles, their verdicts, and the figures that they rest on now."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from modelfleet.policies.plan import Plan, parse_plan
from modelfleet.rollout.changes.transitions import profiles_of
from modelfleet.rollout.decisions.residual import residual_risk
from modelfleet.rollout.evidence.readings import reading_of
from modelfleet.rollout.forecast.traffic import inferences_per_minute
from modelfleet.rollout.states import Verdict
from modelfleet.rollout.tables import Rollout, RolloutApproval, RolloutProfile


class DeviceCounts(BaseModel):
    """How many devices of a profile are where; `total` could take the candidate at 100 %.

    failed: refused it or went back by themselves. returned: went back because the rollout did. waiting: online, and waiting for
    their window or conditions before they start, or between two pieces.
    """

    total: int
    started: int
    committed: int
    failed: int
    returned: int
    waiting: int


class ProfileView(BaseModel):
    """One hardware profile of a rollout.

    `share` is the stage's; `waiting_for` says what a running stage lacks; `waits` counts devices by what they wait for (window,
    network, power, battery; one may wait for several); `evidence` are the figures now, or of the last
    decision; `median_seconds` from desired state to committed, over devices; `trial_seconds` from start to end.
    """

    profile: str
    verdict: str
    stage: int
    share: float
    reason: str
    waiting_for: str | None
    sha256: str
    counter: int
    previous: dict[str, Any]
    devices: DeviceCounts
    waits: dict[str, int]
    errors: dict[str, int]
    median_seconds: float | None
    trial_seconds: float | None
    evidence: dict[str, Any]
    unproven: list[str]
    trial_started_at: datetime | None
    ended_at: datetime | None


class ApprovalView(BaseModel):
    """Who approved, with which key, and the digest of the signed envelope."""

    person: str
    keyid: str
    envelope_sha256: str
    approved_at: datetime
    not_after: datetime


class RolloutSummary(BaseModel):
    """A rollout in a list."""

    id: str
    model: str
    version: str
    slot: str
    groups: list[str]
    state: str
    reason: str
    author: str
    emergency: str
    """Why it skips its waits; empty: it does not."""
    supersedes: bool
    superseded_by: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    verdicts: dict[str, str]


class RolloutView(RolloutSummary):
    """A rollout with all that is known of it; `not_proved` says what its evidence leaves open."""

    revision: int
    plan: dict[str, Any]
    plan_sha256: str
    skipped_profiles: dict[str, str]
    approvals: list[ApprovalView]
    not_proved: list[str]
    profiles: list[ProfileView]


def summarise_many(session: Session, rollouts: Sequence[Rollout]) -> list[RolloutSummary]:
    """Return the rollouts as lists show them, in their order."""
    columns = (RolloutProfile.rollout, RolloutProfile.profile, RolloutProfile.verdict)
    query = select(*columns).where(RolloutProfile.rollout.in_([each.id for each in rollouts]))
    verdicts: dict[str, dict[str, str]] = {}
    for name, profile, verdict in session.execute(query.order_by(RolloutProfile.profile)):
        verdicts.setdefault(name, {})[profile] = verdict
    return [RolloutSummary(**_summary(each, verdicts.get(each.id, {}))) for each in rollouts]


def describe(session: Session, rollout: Rollout, now: datetime) -> RolloutView:
    """Return the rollout with its profiles and what would be decided of them now; of a large one, a moment ago."""
    plan = parse_plan(rollout.plan)
    rows = profiles_of(session, rollout)
    profiles = [_profile(session, rollout, row, plan, now) for row in rows]
    given = session.scalars(select(RolloutApproval).where(RolloutApproval.rollout == rollout.id)).all()
    return RolloutView(
        **_summary(rollout, {row.profile: row.verdict for row in rows}),
        revision=rollout.revision,
        plan=rollout.plan,
        plan_sha256=rollout.plan_sha256,
        skipped_profiles=rollout.skipped_profiles,
        approvals=[
            ApprovalView(
                person=each.person,
                keyid=each.keyid,
                envelope_sha256=each.envelope_sha256,
                approved_at=each.approved_at,
                not_after=each.approval["not_after"],
            )
            for each in given
        ],
        not_proved=residual_risk(
            plan,
            {each.profile: each.devices.total for each in profiles},
            {row.profile: inferences_per_minute(session, rollout.tenant, rollout.slot, row.profile) for row in rows},
            emergency=rollout.emergency,
        ),
        profiles=profiles,
    )


def _summary(rollout: Rollout, verdicts: dict[str, str]) -> dict[str, Any]:
    return {
        "id": rollout.id,
        "model": rollout.model,
        "version": rollout.version,
        "slot": rollout.slot,
        "groups": rollout.groups,
        "state": rollout.state,
        "reason": rollout.reason,
        "author": rollout.author,
        "emergency": rollout.emergency_reason if rollout.emergency else "",
        "supersedes": rollout.supersede,
        "superseded_by": rollout.superseded_by,
        "created_at": rollout.created_at,
        "started_at": rollout.started_at,
        "ended_at": rollout.ended_at,
        "verdicts": verdicts,
    }


def _profile(session: Session, rollout: Rollout, row: RolloutProfile, plan: Plan, now: datetime) -> ProfileView:
    reading = reading_of(session, rollout, row, now)
    waits = dict(reading.waits)
    return ProfileView(
        profile=row.profile,
        verdict=row.verdict,
        stage=row.stage,
        share=0.0 if row.verdict in (Verdict.PENDING, Verdict.CLOSED) else plan.stages[min(row.stage, plan.last_stage)],
        reason=row.reason,
        waiting_for=reading.waiting_for,
        sha256=row.release["sha256"],
        counter=row.release["counter"],
        previous={group: release and release["version"] for group, release in row.previous.items()},
        devices=DeviceCounts(
            total=reading.total,
            started=reading.started,
            committed=reading.committed,
            failed=reading.failed,
            returned=reading.returned,
            waiting=waits.pop("devices", 0),
        ),
        waits=waits,
        errors=dict(reading.errors),
        median_seconds=reading.median_seconds,
        trial_seconds=_seconds_between(row.trial_started_at, row.ended_at),
        evidence=row.evidence if reading.evidence is None else dict(reading.evidence),
        unproven=row.unproven,
        trial_started_at=row.trial_started_at,
        ended_at=row.ended_at,
    )


def _seconds_between(start: datetime | None, end: datetime | None) -> float | None:
    return None if start is None or end is None else (end - start).total_seconds()
