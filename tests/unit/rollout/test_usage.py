"""What `modelfleet usage` counts as a device."""

from datetime import timedelta

from modelfleet.rollout.usage.by_day import usage
from tests.unit.rollout.conftest import FLOAT, TENANT, Fleet


def test_a_device_counts_once_an_hour_however_often_it_activates_a_version(fleet: Fleet) -> None:
    often, _ = fleet.enrol(FLOAT, 2)
    fleet.publish("1.0.0", 1)
    fleet.settle("1.0.0")
    for _ in range(3):
        often.activation, often.n, often.errors = often.activation + 1, 0, 0
        fleet.steps(1)
    with fleet.registry.sessions() as session:
        (day,) = usage(session, TENANT, since=fleet.now - timedelta(days=1)).days
    assert day.devices == 2
    fleet.now += timedelta(hours=1)
    fleet.steps(1)
    with fleet.registry.sessions() as session:
        (day,) = usage(session, TENANT, since=fleet.now - timedelta(days=1)).days
    assert day.devices == 2
