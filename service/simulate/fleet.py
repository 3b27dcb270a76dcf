"""The devices of a simulation: made from a seed, registered at once, switched on one after another, and losing their network."""

import random
from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric import ec

from modelfleet.agent_client.identity import Identity
from modelfleet.registry.register_many import NewDevice, device_id
from modelfleet.service.simulate.believed import Shelf, shared_opening
from modelfleet.service.simulate.device import SimulatedDevice
from modelfleet.service.simulate.ledger import Ledger
from modelfleet.service.simulate.line import Exchange
from modelfleet.service.simulate.world import Kind, World
from modelfleet.signer.desired import Release

OFFLINE_SECONDS = 600.0
"""How long a device is offline at a time, on average."""


class Fleet:
    """All devices.

    Args:
        group: the one that they are in.
        seed: of ids, kinds and every chance.
    """

    def __init__(self, world: World, ledger: Ledger, *, tenant: str, group: str, count: int, seed: int) -> None:
        self.world, self.ledger = world, ledger
        self._tenant, self._group, self._seed = tenant, group, seed
        random.seed(seed)  # the agent's own jitter
        self._kinds = _kinds(world.kinds, count)
        self._keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(count)]
        self.devices: list[SimulatedDevice] = []

    def registrations(self) -> list[NewDevice]:
        """Return what the registry has to know of the devices."""
        return [
            NewDevice(
                id=device_id(place, self._seed, self._tenant),
                group=self._group,
                profile=kind.profile,
                key=self._keys[place].public_key(),
            )
            for place, kind in enumerate(self._kinds)
        ]

    def make(self, exchange: Exchange, shelf: Shelf, stable: Mapping[str, Release]) -> None:
        """Make the devices, which run `stable` of their profile, and are switched off."""
        opening = shared_opening()
        at = self.world.scheduler.clock()
        for place, kind in enumerate(self._kinds):
            identity = Identity(
                device=device_id(place, self._seed, self._tenant),
                tenant=self._tenant,
                group=self._group,
                profile=kind.profile,
                server="https://simulated.invalid",
            )
            device = SimulatedDevice(
                self.world,
                kind,
                identity,
                self._keys[place],
                exchange=exchange,
                shelf=shelf,
                opening=opening,
                ledger=self.ledger,
                place=place,
            )
            device.has_installed(stable[kind.profile], at)
            self.devices.append(device)

    def switch_on(self, within_seconds: float) -> None:
        """Switch every device on, spread over the time; some have no network then."""
        world = self.world
        for device in self.devices:
            device.machine.online = not world.chance(world.faults.offline)
            world.scheduler.at(world.scheduler.now() + within_seconds * float(world.rng.random()), device.switch_on)
            if world.faults.offline > 0:
                self._change_network(device)

    def online(self) -> int:
        """Return how many devices have a network."""
        return sum(device.machine.online for device in self.devices)

    def running(self) -> dict[str | None, int]:
        """Return manifest digest -> how many devices run it."""
        found: dict[str | None, int] = {}
        for device in self.devices:
            found[device.active] = found.get(device.active, 0) + 1
        return found

    def _change_network(self, device: SimulatedDevice) -> None:
        """Have the device's network go or come back at a time of its own, again and again."""
        world, offline = self.world, self.world.faults.offline
        mean = OFFLINE_SECONDS * ((1 - offline) / offline if device.machine.online else 1.0)
        if mean <= 0:
            return  # always offline

        def change() -> None:
            if device.machine.online:
                device.go_offline()
            else:
                device.go_online()
            self._change_network(device)

        world.scheduler.at(world.scheduler.now() + float(world.rng.exponential(mean)), change)


def _kinds(kinds: Mapping[str, Kind], count: int) -> list[Kind]:
    """Return the kind of each device: every profile has its share, rounded, and none is left out that can be there."""
    found: list[Kind] = []
    total = 0.0
    for kind in kinds.values():
        total += kind.share
        found += [kind] * (max(round(total * count), len(found) + 1) - len(found))
    return found[:count]
