import random
from pathlib import Path

import pytest

from modelfleet.rollout.errors import TransitionError
from modelfleet.rollout.states import (
    ON_TRIAL,
    OPEN,
    ROLLOUTS,
    TERMINAL,
    UNSTARTED,
    VERDICTS,
    Event,
    State,
    Verdict,
    event_between,
    next_state,
    resume_event,
    summary,
)


@pytest.mark.parametrize(("table", "start"), [(ROLLOUTS, State.DRAFT), (VERDICTS, Verdict.PENDING)])
def test_every_state_is_reachable(table, start):
    reached, fresh = {start}, {start}
    while fresh:
        fresh = {after for (before, _), after in table.items() if before in fresh} - reached
        reached |= fresh
    assert reached == set(type(start))


def test_terminal_states_have_no_way_out():
    assert {state for state, _ in ROLLOUTS} == set(State) - TERMINAL
    assert {verdict for verdict, _ in VERDICTS} == set(Verdict) - {Verdict.ROLLED_BACK, Verdict.CLOSED}


@pytest.mark.parametrize(("table", "kind"), [(ROLLOUTS, State), (VERDICTS, Verdict)])
def test_no_event_is_silently_ignored(table, kind):
    for state in kind:
        for event in Event:
            if (state, event) in table:
                assert next_state(table, state, event) is table[state, event]
            else:
                with pytest.raises(TransitionError, match=f"cannot {event} in state {state}"):
                    next_state(table, state, event)


def test_every_event_is_used():
    assert {event for _, event in ROLLOUTS} | {event for _, event in VERDICTS} == set(Event)


def test_an_end_of_a_rollout_frees_its_slot():
    assert OPEN.isdisjoint(TERMINAL)
    assert State.COMPLETED not in OPEN
    assert {State(verdict) for verdict in ON_TRIAL} < OPEN


@pytest.mark.parametrize(
    ("verdicts", "shown"),
    [
        (["COMPLETED", "COMPLETED"], "COMPLETED"),
        (["ROLLED_BACK", "ROLLED_BACK"], "ROLLED_BACK"),
        (["COMPLETED", "ROLLED_BACK"], "COMPLETED"),
        (["COMPLETED", "ROLLING_BACK"], "ROLLING_BACK"),
        (["ROLLED_BACK", "ROLLBACK_INCOMPLETE"], "ROLLBACK_INCOMPLETE"),
        (["SOAK", "CANARY"], "CANARY"),
        (["ROLLED_BACK", "SOAK"], "SOAK"),
        (["PAUSED", "STAGE"], "STAGE"),
        (["PAUSED", "COMPLETED"], "PAUSED"),
        (["HALTED", "PAUSED"], "PAUSED"),
    ],
)
def test_a_rollout_shows_what_its_profiles_amount_to(verdicts, shown):
    assert summary(Verdict(each) for each in verdicts) == shown


@pytest.mark.parametrize("ending", [State.CANCELLED, State.SUPERSEDED])
def test_an_end_is_called_by_its_cause_once_nothing_is_left_to_prove(ending):
    assert summary([Verdict.ROLLING_BACK, Verdict.ROLLED_BACK], ending) is State.ROLLING_BACK
    assert summary([Verdict.ROLLBACK_INCOMPLETE], ending) is State.ROLLBACK_INCOMPLETE
    assert summary([Verdict.ROLLED_BACK, Verdict.ROLLED_BACK], ending) is ending
    assert summary([Verdict.ROLLED_BACK, Verdict.COMPLETED], ending) is State.COMPLETED


@pytest.mark.parametrize("table", [ROLLOUTS, VERDICTS])
def test_from_every_state_an_end_can_be_reached(table):
    ends = set(TERMINAL) | {Verdict.ROLLED_BACK, Verdict.CLOSED}
    reaching, grown = set(ends), True
    while grown:
        before = {source for (source, _), after in table.items() if after in reaching} - reaching
        reaching |= before
        grown = bool(before)
    assert {source for source, _ in table} <= reaching


@pytest.mark.parametrize("state", sorted(set(State) - TERMINAL - {State.COMPLETED}))
def test_whatever_is_no_end_can_be_brought_to_one_by_a_person_or_by_proof(state):
    leaving = {Event.CANCEL, Event.PROVE, Event.VALIDATE, Event.REQUEST_APPROVAL}
    assert any((state, event) in ROLLOUTS for event in leaving)


def documented(heading: str) -> dict:
    """The transitions that docs/rollout.md tells in the table after `heading`."""
    text = (Path(__file__).resolve().parents[3] / "docs" / "rollout.md").read_text().split(heading, 1)[1]
    rows = text.split("|---|---|---|\n", 1)[1].split("\n\n", 1)[0].splitlines()
    found = {}
    for row in rows:
        events, sources, target = (cell.strip() for cell in row.strip("|").split("|"))
        for event in events.replace("`", "").split(", "):
            found |= {(source, event): target for source in sources.split(", ")}
    return found


def test_the_docs_tell_every_transition_and_no_other():
    silent = {Event.RETRY}
    verdicts = {key: after for key, after in VERDICTS.items() if key[1] not in silent}
    assert documented("each hardware profile moves by itself") == verdicts
    before = {key: after for key, after in ROLLOUTS.items() if key[0] in UNSTARTED}
    assert documented("a rollout moves as a whole") == before


def test_a_rollout_can_always_follow_its_profiles():
    """Random walks of three profiles: whatever one of them does, the rollout's table has the event."""
    rng = random.Random(3)
    for _ in range(300):
        profiles, state = [Verdict.CANARY] * 3, State.CANARY
        for _ in range(40):
            index = rng.randrange(3)
            possible = [after for (before, _), after in VERDICTS.items() if before is profiles[index]]
            if possible:
                profiles[index] = rng.choice(possible)
            target = summary(profiles)
            event = event_between(state, target)
            state = state if event is None else next_state(ROLLOUTS, state, event)
            assert state is target


def test_a_jump_that_the_table_does_not_have_is_refused():
    with pytest.raises(TransitionError, match="DRAFT to COMPLETED"):
        event_between(State.DRAFT, State.COMPLETED)


def test_resuming_goes_to_where_the_profile_was():
    assert [resume_event(stage, 2) for stage in (0, 1, 2, 3)] == [
        Event.RESUME_CANARY,
        Event.RESUME_STAGE,
        Event.RESUME_STAGE,
        Event.RESUME_SOAK,
    ]


def test_who_is_refused_is_told_what_people_can_do_and_nothing_else():
    with pytest.raises(TransitionError, match=r"expected one of approve, cancel, halt, pause, roll-back, supersede\Z"):
        next_state(ROLLOUTS, State.CANARY, Event.START)
    with pytest.raises(TransitionError, match="nobody can do anything"):
        next_state(ROLLOUTS, State.CANCELLED, Event.START)
