"""Pulses of processes: who is lost, by whose clock, and that nobody who lives is forgotten."""

from datetime import UTC, datetime, timedelta

from modelfleet.registry import workers
from modelfleet.registry.cli_workers import status_rows
from modelfleet.registry.workers import Introduction, Pulses

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ONE = Introduction(
    tenant="acme", executor="one", host="a", pid=1, version="0.1", roles=["worker"], kinds=["hw-cpu", "hw-mlx"]
)


def test_a_process_is_lost_when_its_pulse_stands_still_for_the_stated_time_on_the_lookers_clock() -> None:
    pulses = Pulses(timedelta(seconds=30))
    assert pulses.lost([("one", 5), ("two", 9)], 100.0) == []
    assert pulses.lost([("one", 5), ("two", 10)], 129.0) == []
    assert pulses.lost([("one", 5), ("two", 11)], 130.0) == [("one", 5)]


def test_a_process_that_is_seen_for_the_first_time_gets_all_the_time_there_is() -> None:
    pulses = Pulses(timedelta(seconds=30))
    pulses.lost([("one", 5)], 0.0)
    assert pulses.lost([("one", 5), ("two", 1)], 31.0) == [("one", 5)]
    assert pulses.lost([("two", 1)], 60.0) == []


def test_a_pulse_that_moves_while_it_is_taken_for_lost_is_not_forgotten(fleet) -> None:
    with fleet.sessions.begin() as session:
        workers.introduce(session, ONE, NOW)
    with fleet.sessions.begin() as session:
        assert workers.beat(session, ONE, NOW)
    with fleet.sessions.begin() as session:
        assert not workers.forget(session, "acme", "one", 1), "it has beaten since"
        assert workers.forget(session, "acme", "one", 2)
        assert not workers.beat(session, ONE, NOW), "it learns that it was forgotten"


def test_a_kind_is_offered_while_a_process_that_takes_it_lives(fleet) -> None:
    with fleet.sessions.begin() as session:
        workers.introduce(session, ONE, NOW)
    with fleet.sessions() as session:
        assert workers.kinds_offered(session, "acme", NOW + timedelta(seconds=29)) == {"hw-cpu", "hw-mlx"}
        assert workers.kinds_offered(session, "acme", NOW + timedelta(seconds=30)) == frozenset()
        assert workers.kinds_offered(session, "beta", NOW) == frozenset()


def test_a_status_names_what_is_not_begun_what_is_done_and_why_it_failed() -> None:
    found = {
        "variants": [
            {"profile": "b", "state": "BUILDING", "stage": "prove int8", "error": None},
            {"profile": "c", "state": "FAILED", "stage": None, "error": "GateError: too slow"},
            {"profile": "d", "state": "READY", "stage": None, "error": None},
        ],
        "waiting": [{"profile": "a", "reason": "waits for a worker of hw-mlx: no live one offers it"}],
    }
    assert [(row["profile"], row["state"], row["detail"]) for row in status_rows(found)] == [
        ("a", "WAITING", "waits for a worker of hw-mlx: no live one offers it"),
        ("b", "BUILDING", "prove int8"),
        ("c", "FAILED", "GateError: too slow"),
        ("d", "READY", ""),
    ]
