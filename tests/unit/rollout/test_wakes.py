"""A guardrail trips when the reports come, not when somebody's clock comes round."""

import pytest

from modelfleet.rollout import controller
from modelfleet.rollout.controller import Controller
from modelfleet.signer.keys import load_signer
from tests.unit.rollout.conftest import FLOAT, PLAN, STEP, digest_of
from tests.waiting import until


def test_errors_that_arrive_send_the_fleet_back_without_a_tick(fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "WAKE_SECONDS", 0.05)
    fleet.enrol(FLOAT, 4)
    fleet.publish("1.0.0", 1)
    rollout = fleet.launch("1.0.0", plan=PLAN)
    fleet.controller.stop()
    director = load_signer(fleet.ceremony.director_key)
    awake = Controller(fleet.registry, fleet.hub.client(), director, lambda: fleet.now)
    awake.start(wakes=True)
    try:
        for _ in range(3):
            fleet.now += STEP
            for device in fleet.devices:
                device.error_share[digest_of("1.0.0", FLOAT)] = 0.5
                device.step()
        until(lambda: fleet.state(rollout) in ("ROLLING_BACK", "ROLLED_BACK"), 30)
        until(lambda: fleet.wanted(FLOAT).candidates == (), 30)
    finally:
        awake.stop()
