"""What is to be simulated, and the world that follows from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import numpy as np

from modelfleet.hardware_profiles.profile import HardwareProfile, load_profiles
from modelfleet.service.simulate.faults import Faults
from modelfleet.service.simulate.scheduler import Scheduler
from modelfleet.service.simulate.world import Behaviour, Kind, World, facts_for


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is simulated.

    Attributes:
        mix: profile -> share of the fleet.
        plan: of the rollout, as `parse_plan` takes it; None: the default plan.
        faults: what goes wrong, by rate. seed: of every chance.
        stable, candidate: how the two versions behave. kind: how every kind of device works; profile and share are the mix's.
        size_bytes: of the model file. database_url: empty: SQLite in a temporary folder.
        tick_seconds: how often the controller decides.
        max_seconds: the simulation ends then, whatever the rollout does. settle_seconds: how long it goes on after its end.
    """

    devices: int = 1000
    mix: Mapping[str, float] = field(default_factory=lambda: {"linux-cpu-int8": 1.0})
    faults: Faults = field(default_factory=Faults)
    plan: Mapping[str, Any] | str | None = None
    seed: int = 1
    stable: Behaviour = field(default_factory=Behaviour)
    candidate: Behaviour = field(default_factory=Behaviour)
    kind: Kind = field(default_factory=lambda: Kind(profile="", share=1.0))
    size_bytes: int = 20_000_000
    tenant: str = "simulation"
    database_url: str = ""
    tick_seconds: float = 10.0
    max_seconds: float = 7 * 86400.0
    settle_seconds: float = 300.0
    began_at: datetime | None = None


def make_world(setup: Setup, scheduler: Scheduler) -> World:
    """Return the world of a setup."""
    profiles: dict[str, HardwareProfile] = load_profiles()
    return World(
        scheduler=scheduler,
        kinds={name: replace(setup.kind, profile=name, share=share) for name, share in setup.mix.items()},
        faults=setup.faults,
        rng=np.random.default_rng(setup.seed),
        facts={name: facts_for(profiles[name]) for name in setup.mix},
        profiles=profiles,
    )
