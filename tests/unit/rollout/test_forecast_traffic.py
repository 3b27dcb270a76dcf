"""How much a fleet infers is divided by the time in which that was seen, also where it is minutes old."""

from datetime import timedelta

import pytest

from modelfleet.policies.plan import parse_plan
from modelfleet.rollout.forecast.estimate import Traffic
from modelfleet.rollout.forecast.facts import Target, traffic_of
from tests.unit.rollout.conftest import FLOAT, SLOT, TENANT, Fleet

A_MINUTE = 600.0
"""100 inferences a step of 10 s."""


def traffic(fleet: Fleet) -> Traffic | None:
    target = Target(tenant=TENANT, slot=SLOT, groups=["lab"])
    with fleet.registry.sessions() as session:
        return traffic_of(session, target, parse_plan(None), FLOAT, len(fleet.devices), fleet.now)


def test_a_fleet_that_is_minutes_old_is_seen_at_its_real_rate(fleet: Fleet) -> None:
    fleet.now += timedelta(minutes=50)  # the clock's hour is nearly over, and was empty until now
    fleet.enrol(FLOAT, 4)
    fleet.publish("1.0.0", 1)
    fleet.settle("1.0.0")
    early = traffic(fleet)
    assert early is None  # less than ten minutes of devices, and the rollout's own samples are of a fleet that fills up
    fleet.steps(30)
    found = traffic(fleet)
    assert found is not None
    assert found.per_device_minute == pytest.approx(A_MINUTE, rel=0.1)
