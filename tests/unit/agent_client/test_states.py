import pytest

from modelfleet.agent_client.protocol import DeviceState
from modelfleet.agent_client.states import RESTING, TIMER_SECONDS, TRANSITIONS, WORKING, Event, next_state


def test_every_state_can_be_reached_from_idle() -> None:
    reached = {DeviceState.IDLE}
    while new := {target for (state, _), target in TRANSITIONS.items() if state in reached} - reached:
        reached |= new
    assert reached == set(DeviceState)


def test_every_state_handles_a_newer_desired_state() -> None:
    for state in DeviceState:
        assert (state, Event.NEWER) in TRANSITIONS


def test_a_newer_desired_state_drops_work_before_the_switch_and_only_then() -> None:
    for state in WORKING | {DeviceState.FAILED}:
        assert next_state(state, Event.NEWER) is DeviceState.CANCELLED
    for state in set(DeviceState) - WORKING - {DeviceState.FAILED}:
        assert next_state(state, Event.NEWER) is state


def test_every_state_has_a_timer_and_an_answer_to_it() -> None:
    for state in DeviceState:
        assert TIMER_SECONDS[state] > 0
        assert (state, Event.TIMEOUT) in TRANSITIONS


def test_every_resting_state_starts_an_update_and_goes_back() -> None:
    for state in RESTING:
        assert next_state(state, Event.START) is DeviceState.PREFLIGHT
        assert next_state(state, Event.RETURN) is DeviceState.ROLLING_BACK


def test_a_failed_switch_always_goes_back() -> None:
    for event in (Event.REFUSED, Event.TRANSIENT, Event.TIMEOUT, Event.UNHEALTHY):
        assert next_state(DeviceState.ACTIVATING, event) is DeviceState.ROLLING_BACK


def test_what_is_wrong_in_probation_goes_back() -> None:
    assert next_state(DeviceState.PROBATION, Event.UNHEALTHY) is DeviceState.ROLLING_BACK


def test_only_a_passed_benchmark_leads_to_the_switch() -> None:
    ways = {way for way, target in TRANSITIONS.items() if target is DeviceState.ACTIVATING}
    assert ways == {(DeviceState.BENCHMARKING, Event.PASSED), (DeviceState.ACTIVATING, Event.NEWER)}


def test_every_state_has_a_way_on() -> None:
    for state in DeviceState:
        assert {target for (source, _), target in TRANSITIONS.items() if source is state} - {state}


def test_an_event_that_the_state_does_not_know_is_a_defect() -> None:
    with pytest.raises(ValueError, match="COMMITTED"):
        next_state(DeviceState.COMMITTED, Event.UNHEALTHY)
