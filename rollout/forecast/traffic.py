"""How much a fleet infers, from what rollouts of the same slot counted last: for forecasts, never for decisions."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from modelfleet.rollout.tables import HealthSample, Rollout

LEAST_MINUTES = 1.0
"""Less than that between two samples tells no rate."""


def inferences_per_minute(session: Session, tenant: str, slot: str, profile: str) -> float | None:
    """Return the inferences a minute over a profile's devices in the newest rollout of the slot that counted any, or None."""
    total = func.sum(HealthSample.n).label("n")
    newest = (
        select(HealthSample.rollout)
        .join(Rollout, Rollout.id == HealthSample.rollout)
        .where(Rollout.tenant == tenant, Rollout.slot == slot, HealthSample.profile == profile)
        .order_by(HealthSample.at.desc())
        .limit(1)
    )
    rollout = session.scalar(newest)
    if rollout is None:
        return None
    points = select(HealthSample.at, total).where(HealthSample.rollout == rollout, HealthSample.profile == profile)
    found = session.execute(points.group_by(HealthSample.at).order_by(HealthSample.at)).all()
    first, last = found[0], found[-1]
    minutes = (last.at - first.at).total_seconds() / 60
    if minutes < LEAST_MINUTES or last.n <= first.n:
        return None
    return float(last.n - first.n) / minutes
