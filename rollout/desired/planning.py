"""Which devices a stage takes, planned from the database: ids are streamed, nothing else of a device is read."""

from sqlalchemy.orm import Session

from modelfleet.policies.plan import Plan
from modelfleet.rollout.desired.cohort import Cohort, plan_cohort
from modelfleet.rollout.evidence import population
from modelfleet.rollout.tables import Rollout, RolloutProfile
from modelfleet.signer.desired import BUCKETS


def plan_stage(session: Session, rollout: Rollout, row: RolloutProfile, plan: Plan, stage: int) -> Cohort:
    """Return the cohort of a stage: the plan's share of the profile's devices as they are now, never less than before."""
    share = plan.stages[stage]
    if share >= 1.0:
        return Cohort(below=BUCKETS, devices=population.size(session, rollout, row.profile))
    devices = population.device_ids(session, rollout, row.profile)
    return plan_cohort(rollout.salt, devices, share, plan.min_canaries, row.below)
