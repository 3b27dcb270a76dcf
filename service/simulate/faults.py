"""What goes wrong in a fleet, by rate: some faults are a device's for good, some strike single acts or messages."""

from dataclasses import dataclass

import numpy as np

from modelfleet.service.errors import ServiceError

MEANINGS = {
    "offline": "share of the devices that is offline at any time, each for 10 minutes on average",
    "slow": "share of the devices that downloads at a twentieth of its kind's bandwidth",
    "wrong_answers": "share of the devices on which the candidate's outputs differ from the original's",
    "crash_loop": "share of the devices whose agent is taken down by every benchmark of the candidate",
    "stale_clock": "share of the devices whose clock stands more than a year behind",
    "full_disk": "share of the devices that has no space for a new model until somebody frees some, 20 minutes on average",
    "transient": "chance that a step of an update fails, and succeeds when it is tried again",
    "power_cut": "chance that the power is cut in the middle of a step of an update",
    "duplicate": "chance that a report is delivered twice",
    "reorder": "chance that a report is overtaken by later ones, by up to 20 seconds",
    "loss": "chance that counters are lost (QoS 0)",
}
"""Fault -> what its rate means."""


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Rates, 0..1 each; `MEANINGS` says of what."""

    offline: float = 0.0
    slow: float = 0.0
    wrong_answers: float = 0.0
    crash_loop: float = 0.0
    stale_clock: float = 0.0
    full_disk: float = 0.0
    transient: float = 0.0
    power_cut: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    loss: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Ailments:
    """What one device has for good."""

    slow: bool
    wrong_answers: bool
    crash_loop: bool
    stale_clock: bool
    full_disk: bool


def parse_faults(given: list[str]) -> Faults:
    """Return the rates of `NAME=RATE` texts; `-` and `_` are the same.

    Raises:
        ServiceError: no such fault, or no rate within 0..1.
    """
    rates: dict[str, float] = {}
    for text in given:
        name, _, value = text.partition("=")
        known = name.strip().replace("-", "_")
        if known not in MEANINGS:
            raise ServiceError(
                f"--fault: expected one of {', '.join(sorted(MEANINGS)).replace('_', '-')}, got {name!r}"
            )
        try:
            rate = float(value)
        except ValueError:
            rate = -1.0
        if not 0.0 <= rate <= 1.0:
            raise ServiceError(f"--fault {name}: expected a rate from 0 to 1, got {value!r}")
        rates[known] = rate
    return Faults(**rates)


def draw(faults: Faults, rng: np.random.Generator) -> Ailments:
    """Return what a new device has."""
    drawn = rng.random(5)
    return Ailments(
        slow=bool(drawn[0] < faults.slow),
        wrong_answers=bool(drawn[1] < faults.wrong_answers),
        crash_loop=bool(drawn[2] < faults.crash_loop),
        stale_clock=bool(drawn[3] < faults.stale_clock),
        full_disk=bool(drawn[4] < faults.full_disk),
    )
