"""What a canary's figures would have been, thousands of times: counts of both arms per half minute, drawn from a seed.

One profile of 100 devices, 5 of them canaries, as many inferences per device in both arms. A look is what a metrics interval
brings. Good: 0.5 % of the inferences err in both arms, 3 % are slower than the limit of the 95th percentile, one install in 300
fails, a device is silent at 1 % of the looks. Bad: the candidate's errors alone are other ones, from a given minute on.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LOOK_MINUTES = 0.5
DEVICES, CANARIES = 100, 5
GOOD_ERRORS, GOOD_SLOW, GOOD_INSTALL_FAILURES, GOOD_SILENT = 0.005, 0.03, 1 / 300, 0.01
LOOKS_PER_SILENCE = 3
"""A device is silent after three metrics intervals."""

Whole = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A release under traffic: the cohort's inferences per minute, and the candidate's error share from `fault_minute` on."""

    name: str
    rate: int
    minutes: int
    errors: float = GOOD_ERRORS
    fault_minute: int = 0
    stable_errors: float = GOOD_ERRORS

    @property
    def looks(self) -> int:
        """How often somebody looks."""
        return round(self.minutes / LOOK_MINUTES)

    @property
    def per_look(self) -> int:
        """The cohort's inferences between two looks."""
        return round(self.rate * LOOK_MINUTES)

    @property
    def stable_per_look(self) -> int:
        """The inferences of the devices on stable between two looks."""
        return self.per_look * (DEVICES - CANARIES) // CANARIES


@dataclass(frozen=True, kw_only=True, eq=False)
class Traffic:
    """What `runs` rollouts counted; counts per look have shape (runs, looks), installs (runs,), silences (runs, spans)."""

    scenario: Scenario
    errors: Whole
    slow: Whole
    stable_errors: Whole
    failed: Whole
    silent: Whole
    stable_silent: Whole


def draw(scenario: Scenario, runs: int, random: np.random.Generator) -> Traffic:
    """Return what `runs` rollouts would have counted."""
    shape, spans = (runs, scenario.looks), -(-scenario.looks // LOOKS_PER_SILENCE)
    before = round(scenario.fault_minute / LOOK_MINUTES)
    shares = np.where(np.arange(scenario.looks) < before, GOOD_ERRORS, scenario.errors)

    def drawn(n: int, share: float | NDArray[np.float64], size: tuple[int, ...]) -> Whole:
        return random.binomial(n, share, size).astype(np.int32)

    return Traffic(
        scenario=scenario,
        errors=drawn(scenario.per_look, shares, shape),
        slow=drawn(scenario.per_look, GOOD_SLOW, shape),
        stable_errors=drawn(scenario.stable_per_look, scenario.stable_errors, shape),
        failed=drawn(CANARIES, GOOD_INSTALL_FAILURES, (runs,)),
        silent=drawn(CANARIES, GOOD_SILENT, (runs, spans)),
        stable_silent=drawn(DEVICES - CANARIES, GOOD_SILENT, (runs, spans)),
    )
