"""The device's state machine of one slot, as one table, and its record on disk.

The record is written (fsync before each act) when a state is entered: after a crash the agent reads what it was doing
and resumes or goes back. Every state has a timer; every state before the switch can be pre-empted by a newer desired
state. Resting states wait for one: their timer only makes the agent look again.
"""

import enum
from collections.abc import Mapping
from types import MappingProxyType

from modelfleet.agent_client.protocol import DeviceState


class Event(enum.StrEnum):
    """What happens to a slot.

    START: desired state names a release that is not active. RETURN: it names one that the slot must go back to.
    PASSED: the state's act succeeded. LOCAL: every file is already there. REFUSED: never again with this digest.
    TRANSIENT: this time it did not work. NEWER: a newer desired state wants something else. LATE: the deadline of the
    rollout passed. TIMEOUT: the state's timer ran out. UNHEALTHY: it runs, and it is wrong.
    """

    START = "start"
    RETURN = "return"
    PASSED = "passed"
    LOCAL = "local"
    REFUSED = "refused"
    TRANSIENT = "transient"
    NEWER = "newer"
    LATE = "late"
    TIMEOUT = "timeout"
    UNHEALTHY = "unhealthy"


S, E = DeviceState, Event

RESTING = frozenset({S.IDLE, S.COMMITTED, S.ROLLED_BACK, S.REJECTED, S.FAILED, S.CANCELLED, S.EXPIRED})
"""States in which nothing is going on."""

WORKING = frozenset({S.PREFLIGHT, S.DOWNLOADING, S.VERIFYING, S.BENCHMARKING})
"""States before the switch: the old model is active, and all of it may be dropped."""

TRANSITIONS: Mapping[tuple[DeviceState, Event], DeviceState] = MappingProxyType(
    {
        **{(state, E.START): S.PREFLIGHT for state in RESTING},
        **{(state, E.RETURN): S.ROLLING_BACK for state in RESTING | {S.PROBATION}},
        (S.PREFLIGHT, E.PASSED): S.DOWNLOADING,
        (S.PREFLIGHT, E.LOCAL): S.VERIFYING,
        (S.DOWNLOADING, E.PASSED): S.VERIFYING,
        (S.VERIFYING, E.PASSED): S.BENCHMARKING,
        (S.BENCHMARKING, E.PASSED): S.ACTIVATING,
        **{(state, E.REFUSED): S.REJECTED for state in WORKING},
        **{(state, E.TRANSIENT): S.FAILED for state in WORKING},
        **{(state, E.TIMEOUT): S.FAILED for state in WORKING},
        **{(state, E.LATE): S.EXPIRED for state in WORKING | {S.FAILED}},
        **{(state, E.NEWER): S.CANCELLED for state in WORKING | {S.FAILED}},
        (S.ACTIVATING, E.PASSED): S.PROBATION,
        **{(S.ACTIVATING, event): S.ROLLING_BACK for event in (E.REFUSED, E.TRANSIENT, E.TIMEOUT, E.UNHEALTHY)},
        # A switch is never cut in half: it ends, and the newer desired state acts on its outcome.
        (S.ACTIVATING, E.NEWER): S.ACTIVATING,
        (S.PROBATION, E.PASSED): S.COMMITTED,
        (S.PROBATION, E.TIMEOUT): S.COMMITTED,
        (S.PROBATION, E.UNHEALTHY): S.ROLLING_BACK,
        (S.PROBATION, E.START): S.PREFLIGHT,
        (S.PROBATION, E.NEWER): S.PROBATION,
        (S.ROLLING_BACK, E.PASSED): S.ROLLED_BACK,
        **{(S.ROLLING_BACK, event): S.FAILED for event in (E.TRANSIENT, E.TIMEOUT)},
        (S.ROLLING_BACK, E.NEWER): S.ROLLING_BACK,
        **{(state, E.NEWER): state for state in RESTING - {S.FAILED}},
        **{(state, E.TIMEOUT): state for state in RESTING},
    }
)

TIMER_SECONDS: Mapping[DeviceState, float] = MappingProxyType(
    {
        S.PREFLIGHT: 60.0,
        S.DOWNLOADING: 3600.0,
        S.VERIFYING: 3600.0,  # what a device must build for itself is built here: minutes, and at most a recipe's 3,000 s
        S.BENCHMARKING: 600.0,
        S.ACTIVATING: 120.0,
        S.PROBATION: 7 * 86400.0,  # the candidate's own probation_seconds is shorter
        S.ROLLING_BACK: 600.0,
        **dict.fromkeys(RESTING, 86400.0),
    }
)
"""How long a state may last, in seconds."""


def next_state(state: DeviceState, event: Event) -> DeviceState:
    """Return the state after `event`.

    Raises:
        ValueError: the table has no such transition, which is a defect of the agent.
    """
    found = TRANSITIONS.get((state, event))
    if found is None:
        raise ValueError(f"expected an event that {state} knows, got {event}")
    return found
