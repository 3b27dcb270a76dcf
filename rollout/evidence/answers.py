"""What devices answered, arm by arm and device by device, and the one look at it that each stage takes (`drift` judges it).

Stable's histograms are cumulative since activations that may be months old: what a sample of devices had answered when the trial
began is kept, so that both arms are compared over the trial's own time. A look is taken when a stage is ready to advance, while
devices are still on stable: the last stage has none beside it. It is kept on the profile's row, so that a stage that waits for a
maintenance window, or that a person resumes, is not looked at again until chance finds something.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, cast

from sqlalchemy import ColumnElement, delete, insert, select
from sqlalchemy.orm import Session

from modelfleet.policies.plan import Plan
from modelfleet.registry.tables import Device
from modelfleet.rollout.decisions.drift import Difference, Histograms, as_evidence, compare
from modelfleet.rollout.evidence import population, totals
from modelfleet.rollout.tables import AnswerBaseline, DeviceCounters, DeviceTrial, Rollout, RolloutProfile

SAMPLE = 500
"""Activations per arm that are compared: those of the lowest device ids, which are random."""


def keep_baselines(session: Session, rollout: Rollout, row: RolloutProfile) -> None:
    """Keep what the control arm's first devices have answered so far."""
    columns = (DeviceCounters.device, DeviceCounters.activation)
    cells = (DeviceCounters.classes, DeviceCounters.confidence, DeviceCounters.latency)
    query = select(*columns, *cells).where(*_counted(rollout, totals.stable_digests(row)))
    query = query.join(Device, Device.id == DeviceCounters.device).where(population.of_control(rollout, row))
    found = session.execute(query.order_by(DeviceCounters.device).limit(SAMPLE)).mappings()
    about = {"rollout": row.rollout, "profile": row.profile}
    kept = [{**about, **each} for each in found]
    if kept:
        session.execute(insert(AnswerBaseline), kept)


def forget_baselines(session: Session, row: RolloutProfile) -> None:
    """Remove what `keep_baselines` kept: the trial is over."""
    mine = (AnswerBaseline.rollout == row.rollout) & (AnswerBaseline.profile == row.profile)
    session.execute(delete(AnswerBaseline).where(mine))


def known(row: RolloutProfile) -> tuple[Difference, ...]:
    """Return what this stage's look has found; nothing before it."""
    if not looked(row):
        return ()
    found = cast("Mapping[str, dict[str, Any]]", (row.answers or {})["differences"])
    fields = Difference.__dataclass_fields__
    return tuple(
        Difference(measure=name, **{key: value for key, value in each.items() if key in fields})
        for name, each in found.items()
    )


def accepted(row: RolloutProfile) -> Mapping[str, float]:
    """Return the differences that a person was paused for and let pass, measure -> value."""
    return (row.answers or {}).get("accepted", {})


def looked(row: RolloutProfile) -> bool:
    """Return whether this stage's look was taken."""
    return row.answers is not None and row.answers["stage"] == row.stage


def look(session: Session, rollout: Rollout, row: RolloutProfile, plan: Plan) -> None:
    """Take the stage's look, unless it was taken or nobody is left on stable; the transaction is the caller's."""
    if looked(row) or row.stage >= plan.last_stage:
        return
    found = compare(
        _histograms(session, rollout, row),
        limits={"classes": plan.drift_psi, "confidence": plan.drift_psi, "latency": plan.slower_ratio},
        alpha=plan.difference_alpha,
        seed=f"{rollout.salt}/{row.profile}/{row.stage}",
    )
    differences = {each.measure: as_evidence(each) for each in found}
    row.answers = {"stage": row.stage, "differences": differences, "accepted": dict(accepted(row))}


def ask_person(row: RolloutProfile, evidence: Mapping[str, Any]) -> None:
    """Note the differences that a pause is for: who resumes it has let them pass."""
    seen = evidence.get("differing")
    if seen and row.answers is not None:
        row.answers = {**row.answers, "accepted": {**accepted(row), **seen}}


def _histograms(session: Session, rollout: Rollout, row: RolloutProfile) -> Mapping[str, Histograms]:
    mine, others = _candidate(session, rollout, row), _stable(session, rollout, row)
    measures = ("classes", "confidence", "latency")
    return {
        measure: Histograms(candidate=[each[measure] for each in mine], stable=[each[measure] for each in others])
        for measure in measures
    }


def _candidate(session: Session, rollout: Rollout, row: RolloutProfile) -> list[Mapping[str, list[int]]]:
    query = select(DeviceCounters).where(*_counted(rollout, [row.release["sha256"]]))
    query = query.join(Device, Device.id == DeviceCounters.device)
    query = query.where(population.of_profile(rollout, row.profile)).order_by(DeviceCounters.device).limit(SAMPLE)
    found: dict[str, Mapping[str, list[int]]] = {}
    for counters in session.scalars(query):
        found[counters.device] = _added(found.get(counters.device), _cells(counters))
    return list(found.values())


def _stable(session: Session, rollout: Rollout, row: RolloutProfile) -> list[Mapping[str, list[int]]]:
    """Return what devices that are still on stable answered since the trial began."""
    mine = (AnswerBaseline.rollout == row.rollout) & (AnswerBaseline.profile == row.profile)
    kept = {(each.device, each.activation): each for each in session.scalars(select(AnswerBaseline).where(mine))}
    trial = select(DeviceTrial.device).where(
        DeviceTrial.rollout == rollout.id, DeviceTrial.device == DeviceCounters.device
    )
    query = select(DeviceCounters).where(*_counted(rollout, totals.stable_digests(row)), ~trial.exists())
    query = query.join(Device, Device.id == DeviceCounters.device).where(population.of_control(rollout, row))
    if len(kept) == SAMPLE:  # of those beyond it nobody knows what they had answered before
        query = query.where(DeviceCounters.device <= max(device for device, _ in kept))
    found: dict[str, Mapping[str, list[int]]] = {}
    for counters in session.scalars(query.order_by(DeviceCounters.device).limit(SAMPLE)):
        before = kept.get((counters.device, counters.activation))
        since = _cells(counters) if before is None else _since(_cells(counters), _cells(before))
        found[counters.device] = _added(found.get(counters.device), since)
    return list(found.values())


def _counted(rollout: Rollout, digests: Sequence[str]) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return DeviceCounters.slot == rollout.slot, DeviceCounters.sha256.in_(digests)


def _cells(row: DeviceCounters | AnswerBaseline) -> Mapping[str, list[int]]:
    return {"classes": list(row.classes), "confidence": list(row.confidence or ()), "latency": list(row.latency)}


def _added(one: Mapping[str, list[int]] | None, other: Mapping[str, list[int]]) -> Mapping[str, list[int]]:
    if one is None:
        return other
    return {name: [a + b for a, b in zip_longest(one[name], other[name], fillvalue=0)] for name in other}


def _since(now: Mapping[str, list[int]], before: Mapping[str, list[int]]) -> Mapping[str, list[int]]:
    return {name: [max(0, a - b) for a, b in zip_longest(now[name], before[name], fillvalue=0)] for name in now}
