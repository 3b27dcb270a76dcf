"""What a simulation has seen: devices per state over time, how long deployments took, what the controller thought of it."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from modelfleet.agent_client.device import StateChange
from modelfleet.agent_client.protocol import DeviceState

GUARDRAILS = ("errors", "relative", "install", "silence", "slow")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One moment: devices by state, by what they run (a label), and per profile the rollout's verdict, stage and e-values.

    e_values: profile -> guardrail -> natural logarithm; limits: profile -> the logarithm at which the alarm is raised.
    """

    seconds: float
    states: Mapping[str, int]
    running: Mapping[str, int]
    online: int
    state: str
    verdicts: Mapping[str, str] = field(default_factory=dict[str, str])
    cohort: Mapping[str, float] = field(default_factory=dict[str, float])
    e_values: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])
    limits: Mapping[str, float] = field(default_factory=dict[str, float])
    messages: int = 0


@dataclass
class Ledger:
    """Filled by devices and by the loop.

    Attributes:
        deployed: profile -> seconds from first seeing the rollout's desired state to active, one a device.
        back: seconds of the simulation at which devices were back from a candidate.
        ended: profile -> how trials ended on devices.
    """

    states: Counter[DeviceState] = field(default_factory=Counter[DeviceState])
    deployed: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict[str, list[float]](list))
    ended: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict[str, Counter[str]](Counter))
    failures: Counter[str] = field(default_factory=Counter[str])
    refusals: Counter[str] = field(default_factory=Counter[str])
    restarts: int = 0
    samples: list[Sample] = field(default_factory=list[Sample])
    events: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])

    def entered(self, profile: str, before: DeviceState, change: StateChange) -> None:
        """Count a device from one state into another."""
        self.states[before] -= 1
        self.states[change.state] += 1
        if change.state is DeviceState.FAILED and change.error is not None:
            self.failures[change.error.kind] += 1
        if change.about is None or not change.about.rollout:
            return
        if change.state is DeviceState.PROBATION:
            self.deployed[profile].append(change.seconds)
        elif change.state in (DeviceState.COMMITTED, DeviceState.REJECTED, DeviceState.ROLLED_BACK):
            self.ended[profile][change.state.value] += 1


def share_at(values: list[float], share: float) -> float:
    """Return the smallest value that at least this share does not exceed; NaN where there is none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
