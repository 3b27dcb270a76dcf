"""The states of a rollout and of its verdict per hardware profile, each machine one table (DESIGN section 6).

`CANARY` is the first stage, `STAGE` every later one (25 %, 50 %, 100 %: the stage number says which). What is not in a table
is refused with `TransitionError`: no event is ignored. A rollout follows its profiles (`summary`): while any profile is on trial
it shows the least advanced of those, then whatever is still rolling back, then the best end that one of them reached.

A running rollout that is cancelled or superseded goes the way of a rollback, with the same proof per device; only the name of its
end differs (`Rollout.ending`). What had completed in it stays stable: that is for `rollback`.
"""

import enum
from collections.abc import Iterable, Mapping
from typing import TypeVar

from modelfleet.rollout.errors import TransitionError


class State(enum.StrEnum):
    """Where a rollout is."""

    DRAFT = "DRAFT"
    VALIDATING = "VALIDATING"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    SCHEDULED = "SCHEDULED"
    CANARY = "CANARY"
    STAGE = "STAGE"
    SOAK = "SOAK"
    COMPLETED = "COMPLETED"
    PAUSED = "PAUSED"
    HALTED = "HALTED"
    ROLLING_BACK = "ROLLING_BACK"
    ROLLED_BACK = "ROLLED_BACK"
    ROLLBACK_INCOMPLETE = "ROLLBACK_INCOMPLETE"
    SUPERSEDED = "SUPERSEDED"
    CANCELLED = "CANCELLED"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"


class Event(enum.StrEnum):
    """What moves a rollout or a profile's verdict."""

    VALIDATE = "validate"
    CHANGE = "change"
    REQUEST_APPROVAL = "request-approval"
    APPROVE = "approve"
    WITHDRAW = "withdraw"
    LAPSE = "lapse"
    REJECT = "reject"
    START = "start"
    ADVANCE = "advance"
    SOAK = "soak"
    COMPLETE = "complete"
    PAUSE = "pause"
    RESUME_CANARY = "resume-canary"
    RESUME_STAGE = "resume-stage"
    RESUME_SOAK = "resume-soak"
    HALT = "halt"
    RETRY = "retry"
    ROLL_BACK = "roll-back"
    PROVE = "prove"
    PROVE_CANCEL = "prove-cancel"
    PROVE_SUPERSEDE = "prove-supersede"
    OVERDUE = "overdue"
    SUPERSEDE = "supersede"
    CANCEL = "cancel"
    EXPIRE = "expire"


class Verdict(enum.StrEnum):
    """Where one hardware profile is in a rollout; `CLOSED` is one whose rollout ended before it began."""

    PENDING = "PENDING"
    CANARY = "CANARY"
    STAGE = "STAGE"
    SOAK = "SOAK"
    COMPLETED = "COMPLETED"
    PAUSED = "PAUSED"
    HALTED = "HALTED"
    ROLLING_BACK = "ROLLING_BACK"
    ROLLED_BACK = "ROLLED_BACK"
    ROLLBACK_INCOMPLETE = "ROLLBACK_INCOMPLETE"
    CLOSED = "CLOSED"


_S, _V, _E = State, Verdict, Event

VERDICTS: Mapping[tuple[Verdict, Event], Verdict] = {
    (_V.PENDING, _E.START): _V.CANARY,
    (_V.PENDING, _E.CANCEL): _V.CLOSED,
    (_V.PENDING, _E.REJECT): _V.CLOSED,
    (_V.PENDING, _E.EXPIRE): _V.CLOSED,
    (_V.PENDING, _E.SUPERSEDE): _V.CLOSED,
    (_V.CANARY, _E.ADVANCE): _V.STAGE,
    (_V.STAGE, _E.ADVANCE): _V.STAGE,
    (_V.CANARY, _E.SOAK): _V.SOAK,
    (_V.STAGE, _E.SOAK): _V.SOAK,
    (_V.SOAK, _E.COMPLETE): _V.COMPLETED,
    **{(state, _E.PAUSE): _V.PAUSED for state in (_V.CANARY, _V.STAGE, _V.SOAK)},
    **{(state, _E.HALT): _V.HALTED for state in (_V.CANARY, _V.STAGE, _V.SOAK, _V.PAUSED)},
    **{(state, _E.RESUME_CANARY): _V.CANARY for state in (_V.PAUSED, _V.HALTED)},
    **{(state, _E.RESUME_STAGE): _V.STAGE for state in (_V.PAUSED, _V.HALTED)},
    **{(state, _E.RESUME_SOAK): _V.SOAK for state in (_V.PAUSED, _V.HALTED)},
    **{(state, _E.RETRY): state for state in (_V.CANARY, _V.STAGE, _V.SOAK, _V.PAUSED, _V.COMPLETED)},
    **{
        (state, _E.ROLL_BACK): _V.ROLLING_BACK
        for state in (_V.CANARY, _V.STAGE, _V.SOAK, _V.PAUSED, _V.HALTED, _V.COMPLETED)
    },
    **{
        (state, event): _V.ROLLING_BACK
        for state in (_V.CANARY, _V.STAGE, _V.SOAK, _V.PAUSED, _V.HALTED)
        for event in (_E.CANCEL, _E.SUPERSEDE)
    },
    (_V.ROLLING_BACK, _E.SUPERSEDE): _V.ROLLING_BACK,
    (_V.ROLLING_BACK, _E.PROVE): _V.ROLLED_BACK,
    (_V.ROLLING_BACK, _E.OVERDUE): _V.ROLLBACK_INCOMPLETE,
    (_V.ROLLBACK_INCOMPLETE, _E.PROVE): _V.ROLLED_BACK,
}
"""The verdict of one hardware profile."""

_ON_TRIAL = (_S.CANARY, _S.STAGE, _S.SOAK, _S.PAUSED, _S.HALTED)
_UNSTARTED = (_S.AWAITING_APPROVAL, _S.SCHEDULED)

ROLLOUTS: Mapping[tuple[State, Event], State] = {
    (_S.DRAFT, _E.VALIDATE): _S.VALIDATING,
    (_S.VALIDATING, _E.REQUEST_APPROVAL): _S.AWAITING_APPROVAL,
    **{(state, _E.CHANGE): _S.VALIDATING for state in _UNSTARTED},
    (_S.AWAITING_APPROVAL, _E.APPROVE): _S.SCHEDULED,
    (_S.AWAITING_APPROVAL, _E.REJECT): _S.REJECTED,
    **{(state, _E.WITHDRAW): _S.AWAITING_APPROVAL for state in _UNSTARTED},
    (_S.SCHEDULED, _E.LAPSE): _S.AWAITING_APPROVAL,
    (_S.SCHEDULED, _E.START): _S.CANARY,
    **{(state, _E.CANCEL): _S.CANCELLED for state in _UNSTARTED},
    **{(state, _E.SUPERSEDE): _S.SUPERSEDED for state in _UNSTARTED},
    **{(state, _E.EXPIRE): _S.EXPIRED for state in _UNSTARTED},
    # Approvals end: what runs, or has completed and stays stable, can be approved anew.
    **{(state, _E.APPROVE): state for state in (*_ON_TRIAL, _S.COMPLETED)},
    # From here on a rollout follows its profiles: the one that it shows may change when another one ends.
    **{(state, _E.RESUME_CANARY): _S.CANARY for state in _ON_TRIAL if state is not _S.CANARY},
    **{(state, _E.ADVANCE): _S.STAGE for state in (_S.CANARY, _S.STAGE)},
    **{(state, _E.RESUME_STAGE): _S.STAGE for state in (_S.PAUSED, _S.HALTED, _S.SOAK)},
    **{(state, _E.SOAK): _S.SOAK for state in (_S.CANARY, _S.STAGE)},
    **{(state, _E.RESUME_SOAK): _S.SOAK for state in (_S.PAUSED, _S.HALTED)},
    **{(state, _E.PAUSE): _S.PAUSED for state in _ON_TRIAL if state is not _S.PAUSED},
    **{(state, _E.HALT): _S.HALTED for state in _ON_TRIAL if state is not _S.HALTED},
    **{(state, _E.COMPLETE): _S.COMPLETED for state in (*_ON_TRIAL, _S.ROLLING_BACK, _S.ROLLBACK_INCOMPLETE)},
    **{(state, _E.ROLL_BACK): _S.ROLLING_BACK for state in (*_ON_TRIAL, _S.COMPLETED)},
    **{(state, _E.PROVE): _S.ROLLED_BACK for state in (*_ON_TRIAL, _S.ROLLING_BACK, _S.ROLLBACK_INCOMPLETE)},
    **{(state, _E.OVERDUE): _S.ROLLBACK_INCOMPLETE for state in (*_ON_TRIAL, _S.ROLLING_BACK)},
    **{(state, event): _S.ROLLING_BACK for state in _ON_TRIAL for event in (_E.CANCEL, _E.SUPERSEDE)},
    (_S.ROLLING_BACK, _E.SUPERSEDE): _S.ROLLING_BACK,
    **{(state, _E.PROVE_CANCEL): _S.CANCELLED for state in (_S.ROLLING_BACK, _S.ROLLBACK_INCOMPLETE)},
    **{(state, _E.PROVE_SUPERSEDE): _S.SUPERSEDED for state in (_S.ROLLING_BACK, _S.ROLLBACK_INCOMPLETE)},
}
"""A rollout, from its draft to its end."""

TERMINAL = frozenset({_S.ROLLED_BACK, _S.SUPERSEDED, _S.CANCELLED, _S.REJECTED, _S.EXPIRED})
"""States with no way out. COMPLETED is an end as well, but can still be rolled back."""
OPEN = frozenset(State) - TERMINAL - {_S.COMPLETED, _S.ROLLBACK_INCOMPLETE}
"""States that hold their groups' slot: a second rollout there is refused, or supersedes."""
UNSTARTED = frozenset({_S.DRAFT, _S.VALIDATING, *_UNSTARTED})
"""States in which no device has been told anything."""
RUNNING = frozenset({_V.CANARY, _V.STAGE, _V.SOAK})
"""Verdicts in which a profile advances by itself."""
ON_TRIAL = RUNNING | {_V.PAUSED, _V.HALTED}
"""Verdicts in which the candidate stands in the group documents, and the guardrails watch it."""
LEAVING = frozenset({_V.ROLLING_BACK, _V.ROLLBACK_INCOMPLETE})
"""Verdicts in which devices are still to prove that they are back."""

OF_PEOPLE = frozenset(
    {_E.CHANGE, _E.APPROVE, _E.WITHDRAW, _E.REJECT, _E.START, _E.PAUSE, _E.HALT, _E.ROLL_BACK, _E.CANCEL, _E.SUPERSEDE}
)
"""Events that a person asks for; the rest follow from them, from what devices say, or from the time."""

StateT = TypeVar("StateT", State, Verdict)


def next_state(table: Mapping[tuple[StateT, Event], StateT], state: StateT, event: Event) -> StateT:
    """Return where `event` leads from `state`.

    Raises:
        TransitionError: nowhere; says what is possible instead.
    """
    try:
        return table[state, event]
    except KeyError:
        possible = ", ".join(sorted(known for source, known in table if source is state and known in OF_PEOPLE))
        expected = f"expected one of {possible}" if possible else "nobody can do anything with it now"
        raise TransitionError(f"cannot {event} in state {state}: {expected}") from None


def resume_event(stage: int, last_stage: int) -> Event:
    """Return the event that resumes at `stage`; one past the last stage is the soak."""
    if stage > last_stage:
        return Event.RESUME_SOAK
    return Event.RESUME_CANARY if stage == 0 else Event.RESUME_STAGE


_SHOWN_FIRST = (
    _V.CANARY,
    _V.STAGE,
    _V.SOAK,
    _V.PAUSED,
    _V.HALTED,
    _V.ROLLING_BACK,
    _V.COMPLETED,
    _V.ROLLBACK_INCOMPLETE,
)


def summary(verdicts: Iterable[Verdict], ending: State | None = None) -> State:
    """Return the state of a started rollout whose profiles have these verdicts.

    Args:
        verdicts: of its profiles.
        ending: what it is called once all are back, where a cancel or a newer rollout took it back.
    """
    present = set(verdicts)
    for verdict in _SHOWN_FIRST:
        if verdict in present:
            return State(verdict)
    return ending or State.ROLLED_BACK


def event_between(state: State, target: State) -> Event | None:
    """Return the event that takes a rollout from `state` to `target`, or None where it is there already.

    Raises:
        TransitionError: the table has no such event.
    """
    if state is target:
        return None
    for (source, event), reached in ROLLOUTS.items():
        if source is state and reached is target:
            return event
    raise TransitionError(f"no event takes a rollout from {state} to {target}")
