"""A simulated fleet in real time: a few sockets of a real mosquitto, and the controller in a process of its own."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelfleet.service.simulate.faults import Faults
from modelfleet.service.simulate.live import LiveSimulation
from modelfleet.service.simulate.setup import Setup
from modelfleet.service.simulate.simulation import CANDIDATE
from modelfleet.service.simulate.world import Behaviour, Kind
from tests.servers import free_port, program, running

PLAN = {"stages": [1.0], "bake_seconds": 3600, "limits": {"metrics_seconds": 60, "probation_seconds": 1}}
WAIT_SECONDS = 120.0


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[str]:
    port, conf = free_port(), tmp_path / "mosquitto.conf"
    conf.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n")
    with running([program("mosquitto"), "-c", str(conf)], log=tmp_path / "mosquitto.log", ports=[port]):
        yield f"mqtt://127.0.0.1:{port}"


def test_devices_that_share_sockets_converge_and_what_the_database_says_is_true(mosquitto: str) -> None:
    kind = Kind(profile="", share=1.0, bandwidth=1e9, benchmark_seconds=0.2)
    setup = Setup(devices=24, plan=PLAN, kind=kind, tick_seconds=0.5, faults=Faults(duplicate=0.2))
    simulation = LiveSimulation(setup, mosquitto, sockets=3)
    try:
        simulation.publish(CANDIDATE, Behaviour())
        simulation.fleet.switch_on(1.0)
        until(simulation, lambda: simulation.watch.wrong_statuses() == {"wrong": 0, "missing": 0})
        simulation.launch()
        digests = {release.sha256 for release in simulation.releases[CANDIDATE].values()}
        until(simulation, lambda: all(device.active in digests for device in simulation.fleet.devices))
        until(simulation, lambda: all(device.state.value == "COMMITTED" for device in simulation.fleet.devices))
        until(simulation, lambda: simulation.watch.wrong_statuses() == {"wrong": 0, "missing": 0})
        assert max(max(device.machine.store.installs.values()) for device in simulation.fleet.devices) == 1
        assert simulation.sockets.broken == 0
    finally:
        simulation.close()


def until(simulation: LiveSimulation, done: Callable[[], bool]) -> None:
    ends = time.monotonic() + WAIT_SECONDS
    while not done():
        assert time.monotonic() < ends, (simulation.watch.state, simulation.ledger.states, simulation.watch.trail)
        simulation.advance(0.5)
