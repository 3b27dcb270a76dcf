"""What the slots of one device share: identity, trust, disk, network, runtimes, and how to speak up."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from modelfleet.agent_client.conditions import Facts
from modelfleet.agent_client.documents import Documents
from modelfleet.agent_client.floors import FloorStore
from modelfleet.agent_client.identity import Identity
from modelfleet.agent_client.model import SessionOpener
from modelfleet.agent_client.protocol import Bench, DeviceState, ReportedError
from modelfleet.agent_client.record import Goal
from modelfleet.agent_client.storage import Disk
from modelfleet.agent_client.transport import Transport
from modelfleet.agent_client.trust import Believed, Trust
from modelfleet.benchmarks.runtimes.local_build import LocalBuild
from modelfleet.hardware_profiles.detect import detect
from modelfleet.hardware_profiles.facts import DeviceFacts
from modelfleet.hardware_profiles.profile import HardwareProfile, load_profiles


@dataclass(frozen=True, kw_only=True)
class StateChange:
    """What a report says of a slot, before it is numbered and signed."""

    slot: str
    state: DeviceState
    about: Goal | None
    active: str | None
    seconds: float
    bench: Bench | None
    error: ReportedError | None


@dataclass(frozen=True, kw_only=True)
class Device:
    """The device as its slots see it.

    root: the agent's folder.
    report: called at each state change, after the record is on the disk. refuse: keeps a refusal for `status`.
    look: takes in what arrived meanwhile; called often while a slot works, so that newer desired state can pre-empt it.
    alive: goes on telling what is counted while a slot works, where nothing may be taken in; it raises nothing.
    clock: aware UTC; may be wrong, and may jump. monotonic: seconds, by which everything is timed.
    surroundings: power, battery, network and time zone as they are now; by default, nothing that an update waits for.
    """

    root: Path
    identity: Identity
    disk: Disk
    client: Transport
    trust: Believed
    documents: Documents
    openers: Mapping[str, SessionOpener]
    builds: Mapping[str, LocalBuild]
    facts: DeviceFacts
    profiles: Mapping[str, HardwareProfile]
    clock: Callable[[], datetime]
    report: Callable[[StateChange], None]
    refuse: Callable[[Exception], None]
    look: Callable[[], None]
    alive: Callable[[], None] = lambda: None
    monotonic: Callable[[], float] = time.monotonic
    surroundings: Callable[[], Facts] = Facts


def make_device(
    root: Path,
    identity: Identity,
    *,
    bootstrap: bytes,
    client: Transport,
    disk: Disk,
    openers: Mapping[str, SessionOpener],
    builds: Mapping[str, LocalBuild],
    clock: Callable[[], datetime],
    report: Callable[[StateChange], None],
    refuse: Callable[[Exception], None],
    look: Callable[[], None],
    alive: Callable[[], None] = lambda: None,
    surroundings: Callable[[], Facts] = Facts,
) -> Device:
    """Return the device of an enrolled folder, with the trust, floors and documents that lie there.

    Args:
        bootstrap: the root metadata of its enrolment.
    """
    disk.make_folder(root / "trust")
    copy = root / "floors.copy.json"  # outside `trust`: what removes that folder leaves the floors
    floors = FloorStore(root / "trust" / "floors.json", disk, copy=copy)
    trust = Trust(
        root / "trust",
        bootstrap=bootstrap,
        tenant=identity.tenant,
        server=identity.server,
        client=client,
        floors=floors,
        disk=disk,
        clock=clock,
    )
    return Device(
        root=root,
        identity=identity,
        disk=disk,
        client=client,
        trust=trust,
        documents=Documents(root / "desired", identity=identity, trust=trust, floors=floors, disk=disk),
        openers=openers,
        builds=builds,
        facts=detect(),
        profiles=load_profiles(),
        clock=clock,
        report=report,
        refuse=refuse,
        look=look,
        alive=alive,
        surroundings=surroundings,
    )
