"""A device without its thread: the agent's own trust, documents and install steps, over real HTTP to a real server.

Attacks are judged by what these raise; `tests/unit/agent_client/fleet.py` runs the whole agent where its behaviour matters.
"""

import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from modelfleet.agent_client import install
from modelfleet.agent_client.device import Device, StateChange
from modelfleet.agent_client.documents import Documents
from modelfleet.agent_client.enroll import enroll
from modelfleet.agent_client.floors import FloorStore
from modelfleet.agent_client.http_client import Deadlines, HttpClient
from modelfleet.agent_client.identity import load_identity, root_metadata_path
from modelfleet.agent_client.model import OPENERS
from modelfleet.agent_client.record import Goal
from modelfleet.agent_client.storage import Disk
from modelfleet.agent_client.trust import Trust
from modelfleet.hardware_profiles.detect import detect
from modelfleet.hardware_profiles.profile import load_profiles
from modelfleet.signer.desired import Assignment, GroupDocument, Release
from modelfleet.signer.manifest import Manifest
from modelfleet.signer.sign import sign_assignment, sign_group
from tests.unit.agent_client.fleet import Fleet, now


class Machine:
    """One enrolled device; `restart` is the same device after a reboot."""

    def __init__(self, fleet: Fleet, root: Path, *, clock: Callable[[], datetime] = now) -> None:
        self.fleet, self.root, self.clock = fleet, root, clock
        self.identity = enroll(root, fleet.server.url, "claim", fleet.profile)
        self.http = HttpClient(deadlines=Deadlines(stall_seconds=10.0, total_seconds=30.0))
        self.restart()

    def restart(self) -> None:
        """Begin again from what lies on the disk."""
        disk = Disk()
        disk.make_folder(self.root / "trust")
        self.floors = FloorStore(self.root / "trust" / "floors.json", disk)
        self.trust = Trust(
            self.root / "trust",
            bootstrap=root_metadata_path(self.root).read_bytes(),
            tenant=self.identity.tenant,
            server=self.identity.server,
            client=self.http,
            floors=self.floors,
            disk=disk,
            clock=lambda: self.clock(),
        )
        self.documents = Documents(
            self.root / "desired", identity=self.identity, trust=self.trust, floors=self.floors, disk=disk
        )

    def lose(self, what: str) -> None:
        """Restart with one of the device's two memories wiped: TUF's `cache`, or the `floors` (or `nothing`)."""
        if what == "cache":
            shutil.rmtree(self.root / "trust" / "metadata")
        elif what == "floors":
            for path in (self.root / "trust").glob("floors*.json"):
                path.unlink()
        self.restart()

    @property
    def id(self) -> str:
        return self.identity.device

    def is_assigned(self, **changes: Any) -> Assignment:
        """The director assigns the device, and it believes it."""
        return self.documents.accept_assignment(
            sign_assignment(self.fleet.assignment(self.id, **changes), self.fleet.director)
        )

    def hears(self, document: GroupDocument) -> GroupDocument:
        """The device gets this document of its group, signed by the director."""
        return self.documents.accept_group(sign_group(document, self.fleet.director))

    def verify(self, release: Release) -> Manifest:
        """The device decides whether to install `release`: every check between desired state and download."""
        goal = Goal(release=release, seen_at=now())
        manifest, _ = install.verify(self._device(), goal, accepted_before=False)
        return manifest

    def fetch(self, manifest: Manifest, folder: Path) -> None:
        """The device fetches the files of a manifest that it has verified."""
        folder.mkdir(exist_ok=True)
        install.fetch(self._device(), folder, list(manifest.files), lambda _length: None)

    def close(self) -> None:
        self.http.close()

    def _device(self) -> Device:
        return Device(
            root=self.root,
            identity=load_identity(self.root),
            disk=Disk(),
            client=self.http,
            trust=self.trust,
            documents=self.documents,
            openers=OPENERS,
            builds={},
            facts=detect(),
            profiles=load_profiles(),
            clock=self.clock,
            report=_ignore,
            refuse=_ignore,
            look=lambda: None,
        )


def _ignore(_: StateChange | Exception) -> None:
    pass
