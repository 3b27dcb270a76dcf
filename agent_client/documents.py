"""The desired state that the device has accepted: its assignment, and the document of its group.

Both are on the disk, and their floors too, before anything is done about them. A document by an unknown key or of an
unknown epoch makes the trust metadata be refreshed once (DESIGN section 5, rule 8).
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from modelfleet.agent_client.errors import StorageError
from modelfleet.agent_client.floors import FloorStore
from modelfleet.agent_client.identity import Identity
from modelfleet.agent_client.record import SlotRecord, rejected_digests
from modelfleet.agent_client.storage import Disk
from modelfleet.agent_client.trust import Believed
from modelfleet.signer.desired import Assignment, GroupDocument, Release, device_scope, group_scope
from modelfleet.signer.errors import UnknownKeyError
from modelfleet.signer.verify import Opening, Wanted, accept_document, open_document, select

log = logging.getLogger(__name__)

REFRESH_PAUSE_SECONDS = 5.0
"""A hostile broker's forgeries make the device refresh its metadata no more often than that."""

DocumentT = TypeVar("DocumentT", GroupDocument, Assignment)


class Documents:
    """What the device was told last, and believes.

    Args:
        opening: `open_document`, or what remembers its answers for a whole simulated fleet.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: Identity,
        trust: Believed,
        floors: FloorStore,
        disk: Disk,
        monotonic: Callable[[], float] = time.monotonic,
        opening: Opening = open_document,
    ) -> None:
        self._folder = folder
        self._identity = identity
        self._trust = trust
        self._floors = floors
        self._disk = disk
        self._monotonic = monotonic
        self._opening = opening
        self._refreshed_at = -REFRESH_PAUSE_SECONDS
        disk.make_folder(folder)
        self.assignment = _read(disk, folder / "assignment.json", Assignment)
        self.group = _read(disk, folder / "group.json", GroupDocument)

    def accept_assignment(self, envelope: bytes) -> Assignment:
        """Believe and keep the device's assignment, and return it.

        Raises:
            UntrustedError: it is refused; what was believed before stays.
            TransferError: whether to believe it cannot be said before the trust metadata can be fetched.
        """
        accepted = self._accept(envelope, Assignment, device_scope(self._identity.device))
        self._disk.keep(self._folder / "assignment.json", accepted)
        self.assignment = accepted
        return accepted

    def accept_group(self, envelope: bytes) -> GroupDocument:
        """Believe and keep the document of the group and profile that the assignment names (errors as above)."""
        accepted = self._accept(envelope, GroupDocument, self.group_scope())
        self._disk.keep(self._folder / "group.json", accepted)
        self.group = accepted
        return accepted

    def group_scope(self) -> str:
        """Return the scope of the group document that the device listens to."""
        group, profile = self.steered_by()
        return group_scope(group, profile)

    def steered_by(self) -> tuple[str, str]:
        """Return the group and profile that steer the device: the assignment's, before the first the enrolment's."""
        if self.assignment is not None:
            return self.assignment.group, self.assignment.profile
        return self._identity.group, self._identity.profile

    def slots(self) -> set[str]:
        """Return the slots that desired state names."""
        group = set(self.group.slots) if self.group is not None else set[str]()
        return group | (set(self.assignment.pins) if self.assignment is not None else set())

    def select(self, slot: str, record: SlotRecord, active: str | None) -> Wanted | None:
        """Return what the slot should hold, or None while nothing steers the device."""
        if self.assignment is None:
            return None
        return select(
            self.group,
            self.assignment,
            slot=slot,
            device=self._identity.device,
            active=active,
            rejected=rejected_digests(record, self._named(slot)),
            now=self._trust.now(),
        )

    def metrics_seconds(self, slot: str, default: float) -> float:
        """Return the interval of counters: the shortest of the slot's candidates, so that both sides are compared alike."""
        candidates = self.group.slots[slot].candidates if self.group is not None and slot in self.group.slots else ()
        return min((candidate.limits.metrics_seconds for candidate in candidates), default=default)

    def _named(self, slot: str) -> list[Release]:
        found: list[Release | None] = []
        if self.assignment is not None:
            found.append(self.assignment.pins.get(slot))
        if self.group is not None and slot in self.group.slots:
            found.append(self.group.slots[slot].stable)
            found.extend(candidate.release for candidate in self.group.slots[slot].candidates)
        return [release for release in found if release is not None]

    def _accept(self, envelope: bytes, kind: type[DocumentT], scope: str) -> DocumentT:
        try:
            return self._believe(envelope, kind, scope)
        except UnknownKeyError:
            if self._monotonic() - self._refreshed_at < REFRESH_PAUSE_SECONDS:
                raise
            self._refreshed_at = self._monotonic()
            self._trust.refresh()
            return self._believe(envelope, kind, scope)

    def _believe(self, envelope: bytes, kind: type[DocumentT], scope: str) -> DocumentT:
        accepted = accept_document(
            envelope,
            kind,
            tenant=self._identity.tenant,
            scope=scope,
            policy=self._trust.policy(),
            floors=self._floors.floors(),
            opening=self._opening,
        )
        self._floors.keep(accepted.floors, latest_possible=self._trust.timestamp_expires())
        return accepted.document


def _read(disk: Disk, path: Path, kind: type[DocumentT]) -> DocumentT | None:
    """Return what was kept; what has rotted on the disk comes again from the server, being retained there."""
    try:
        return disk.kept(path, kind)
    except StorageError as error:
        log.warning("%s", error)
        return None
