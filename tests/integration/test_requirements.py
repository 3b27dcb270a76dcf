"""The requirement table of the design, held by a simulated fleet in virtual time: the agent's own logic, the real controller."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from modelfleet.agent_client.protocol import group_desired_topic
from modelfleet.rollout.tables import RolloutProfile
from modelfleet.service.simulate.faults import Faults
from modelfleet.service.simulate.setup import Setup
from modelfleet.service.simulate.simulation import CANDIDATE, GROUP, STABLE, VirtualSimulation
from modelfleet.service.simulate.world import Behaviour, Kind
from modelfleet.signer.desired import GroupDocument, bucket_of
from modelfleet.signer.verify import open_document

PROFILE = "linux-cpu-int8"
PLAN: dict[str, Any] = {
    "stages": [0.05, 1.0],
    "bake_seconds": 60,
    "soak_seconds": 30,
    "limits": {"metrics_seconds": 30, "probation_seconds": 30},
}


def simulation_of(**changes: Any) -> VirtualSimulation:
    setup: dict[str, Any] = {
        "devices": 240,
        "mix": {PROFILE: 1.0},
        "plan": PLAN,
        "kind": Kind(profile="", share=1.0, per_minute=400.0),
        "tick_seconds": 5.0,
        "max_seconds": 3600.0,
        "settle_seconds": 60.0,
    }
    return VirtualSimulation(Setup(**{**setup, **changes}))


@pytest.fixture(scope="module")
def good() -> Iterator[VirtualSimulation]:
    """A good release, 1 % transient faults at every step, and messages doubled and shuffled."""
    simulation = simulation_of(faults=Faults(transient=0.01, duplicate=0.05, reorder=0.05, loss=0.05))
    simulation.run()
    yield simulation
    simulation.close()


@pytest.fixture
def bad() -> Iterator[VirtualSimulation]:
    """A release of which 5 % of the inferences are wrong, whose canaries have it."""
    simulation = simulation_of(devices=400, candidate=Behaviour(error_share=0.05))
    simulation.publish(CANDIDATE, simulation.setup.candidate)
    simulation.fleet.switch_on(10.0)
    simulation.advance(20.0)
    simulation.launch()
    yield simulation
    simulation.close()


def runs(simulation: VirtualSimulation, version: str) -> list[int]:
    digests = {release.sha256 for release in simulation.releases[version].values()}
    return [device.place for device in simulation.fleet.devices if device.active in digests]


def test_a_device_has_a_release_within_five_minutes(good: VirtualSimulation) -> None:
    assert good.watch.state == "COMPLETED"
    deployed = good.ledger.deployed[PROFILE]
    assert len(deployed) == 240
    assert max(deployed) <= 300.0


def test_more_than_99_5_percent_succeed_with_one_percent_of_transient_faults(good: VirtualSimulation) -> None:
    assert good.ledger.failures["TransferError"] > 0, "no fault came about"
    assert len(runs(good, CANDIDATE)) > 0.995 * 240


def test_the_canary_is_five_percent(good: VirtualSimulation) -> None:
    cohorts = [sample.cohort[PROFILE] for sample in good.ledger.samples if sample.verdicts.get(PROFILE) == "CANARY"]
    running = [sample.running.get(CANDIDATE, 0) for sample in good.ledger.samples if PROFILE in sample.verdicts]
    assert cohorts
    assert 0 < max(running[: len(cohorts)]) <= 0.05 * 240


def test_no_device_installs_twice_and_no_status_is_wrong(good: VirtualSimulation) -> None:
    assert [device for device in good.fleet.devices if max(device.machine.store.installs.values(), default=0) > 1] == []
    assert good.watch.wrong_statuses() == {"wrong": 0, "missing": 0}


def test_devices_that_download_for_longer_than_the_silence_that_is_allowed_are_not_silent() -> None:
    slow = Kind(profile="", share=1.0, bandwidth=100_000.0, per_minute=400.0)  # 200 s of 90, for 20 MB
    simulation = simulation_of(devices=120, kind=slow, plan={**PLAN, "stages": [0.3, 1.0]})
    try:
        simulation.run()
        assert simulation.watch.state == "COMPLETED", simulation.watch.trail
        assert sorted(simulation.ledger.deployed[PROFILE])[60] > 90.0
    finally:
        simulation.close()


def test_a_bad_release_is_halted_at_once_and_its_canaries_are_back_within_a_minute(bad: VirtualSimulation) -> None:
    while bad.watch.state != "ROLLING_BACK":
        assert bad.scheduler.now() < 1800, bad.watch.trail
        canaries = runs(bad, CANDIDATE)
        bad.advance(bad.setup.tick_seconds)
    assert len(canaries) >= 15
    assert len(canaries) <= 0.05 * 400
    with bad.tenant.registry.sessions() as session:
        row = session.scalars(select(RolloutProfile)).one()
    assert row.rollback_started_at is not None
    assert (bad.scheduler.clock() - row.rollback_started_at).total_seconds() <= 5.0
    retained = bad.hub.retained[group_desired_topic("simulation", GROUP, PROFILE)]
    told, _ = open_document(retained, GroupDocument, bad.tenant.shelf.policy)
    assert [slot.candidates for slot in told.slots.values()] == [()], "the broker still offers the candidate"
    bad.advance(60.0)
    back = set(runs(bad, STABLE)) & set(canaries)
    assert len(back) >= 0.95 * len(canaries)
    bad.advance(60.0)
    assert bad.watch.state == "ROLLED_BACK"
    assert bad.watch.wrong_statuses() == {"wrong": 0, "missing": 0}


def test_devices_that_were_offline_or_lost_power_converge_when_they_come_back() -> None:
    simulation = simulation_of(devices=48, faults=Faults(power_cut=0.2), settle_seconds=60.0)
    try:
        by_bucket = sorted(simulation.fleet.devices, key=lambda each: bucket_of("simulation-1", each.identity.device))
        away = by_bucket[36:]  # no canaries
        simulation.scheduler.at(45.0, lambda: [device.go_offline() for device in away])
        simulation.run()
        assert simulation.watch.state == "COMPLETED"
        assert simulation.ledger.restarts > 3
        assert not {device.place for device in away} & set(runs(simulation, CANDIDATE))
        for device in away:
            device.go_online()
        simulation.advance(300.0)
        assert len(runs(simulation, CANDIDATE)) == 48
        assert max(max(device.machine.store.installs.values()) for device in simulation.fleet.devices) == 1
        assert simulation.watch.wrong_statuses() == {"wrong": 0, "missing": 0}
    finally:
        simulation.close()
