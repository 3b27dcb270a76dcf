"""The device's own memory of what it has accepted, below which it refuses: fsynced, and independent of TUF's cache.

A TUF client that only has its cache forgets when that is lost; an attacker who can wipe a cache must not be able to make
a device accept what was superseded (DESIGN section 4). A role's floor falls only when the keys whose word it is were
rotated (TUF 5.3.11: fast-forward recovery).

There are two copies on the disk, written one after the other, each with a checksum: when one is lost or has rotted the
other one counts, and mends it. When both are gone the agent still works, and says so: what is left below it then is TUF's
cache and the desired state that it has kept.
"""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec

from modelfleet.agent_client.errors import StorageError
from modelfleet.agent_client.storage import Disk
from modelfleet.signer.desired import Moment
from modelfleet.signer.errors import ReplayError
from modelfleet.signer.names import Count, Sha256
from modelfleet.signer.verify import Floor, Floors

EPOCH_START = datetime(2020, 1, 1, tzinfo=UTC)

log = logging.getLogger(__name__)


class RoleFloor(msgspec.Struct, frozen=True, kw_only=True):
    """The highest version of a TUF role, and a digest of the keys whose word that is."""

    version: Count
    keys: Annotated[str, msgspec.Meta(max_length=64)]


class ScopeFloor(msgspec.Struct, frozen=True, kw_only=True):
    """The highest (epoch, seq) of a scope, and the digest of the payload that carried it."""

    epoch: Count
    seq: Count
    sha256: Sha256


class FloorsRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What each copy holds; `latest_signed` is the clock's floor, `writes` tells the newer copy."""

    format: str = "1.0"
    writes: Count = 0
    roles: dict[str, RoleFloor] = {}
    scopes: dict[str, ScopeFloor] = {}
    latest_signed: Moment = EPOCH_START


class FloorStore:
    """The floors on disk; every raise of one is durable, twice, when the method returns.

    Args:
        copy: where the second copy lies; by default `floors.copy.json` beside `floors.json`.
    """

    def __init__(self, path: Path, disk: Disk, *, copy: Path | None = None) -> None:
        self._paths = (path, copy or path.with_name(f"{path.stem}.copy{path.suffix}"))
        self._disk = disk
        found = [_read(disk, each) for each in self._paths]
        sound = [record for record in found if record is not None]
        self._record = max(sound, key=lambda record: record.writes, default=FloorsRecord())
        if not sound and any(disk.exists(each) for each in self._paths):
            log.error(
                "%s and %s are both damaged: what was superseded is now told from TUF's cache and the kept desired state"
                " alone; enrol the device again if its disk was in somebody's hands",
                *self._paths,
            )
        elif sound and any(record != self._record for record in found):
            self._mend(found)

    @property
    def record(self) -> FloorsRecord:
        """The floors as they stand."""
        return self._record

    def floors(self) -> Floors:
        """Return the floors of the documents, as `accept_document` takes them."""
        scopes = {
            scope: Floor(epoch=floor.epoch, seq=floor.seq, sha256=floor.sha256)
            for scope, floor in self._record.scopes.items()
        }
        return Floors(scopes=scopes, latest_signed=self._record.latest_signed)

    def now(self, clock: datetime) -> datetime:
        """Return the time to judge by: the clock's, but never before the latest time that was signed."""
        return self.floors().clock(clock)

    def require(self, role: str, found: RoleFloor) -> None:
        """Return if this version of a TUF role is not below its floor (ReplayError: it is, and the keys are the same)."""
        old = self._record.roles.get(role)
        if old is not None and found.version < old.version and found.keys == old.keys:
            raise ReplayError(f"{role[:80]} metadata: expected version >= {old.version}, got {found.version}")

    def raise_roles(self, found: Mapping[str, RoleFloor]) -> None:
        """Accept these versions of TUF roles, all or none.

        Raises:
            ReplayError: one is below its floor, and its keys are the same.
        """
        for role, floor in found.items():
            self.require(role, floor)
        self._keep(roles=self._record.roles | dict(found))

    def keep(self, accepted: Floors, *, latest_possible: datetime) -> None:
        """Store the floors that `accept_document` returned, before anything is done about the document.

        Args:
            accepted: what `accept_document` returned.
            latest_possible: bounds the clock's floor: a director's clock that is years ahead must not make every
                metadata look expired.
        """
        scopes = {
            scope: ScopeFloor(epoch=floor.epoch, seq=floor.seq, sha256=floor.sha256)
            for scope, floor in accepted.scopes.items()
        }
        signed = min(accepted.latest_signed, latest_possible)
        self._keep(scopes=scopes, latest_signed=max(self._record.latest_signed, signed))

    def _keep(self, **changes: object) -> None:
        changed = msgspec.structs.replace(self._record, **changes)
        if changed == self._record:
            return
        record = msgspec.structs.replace(changed, writes=self._record.writes + 1)
        first, second = self._paths
        self._disk.keep(first, record)
        self._record = record
        self._disk.keep(second, record)

    def _mend(self, found: list[FloorsRecord | None]) -> None:
        """Write the copies that are missing, damaged or older; where the disk is full, the next raise does it."""
        for path, record in zip(self._paths, found, strict=True):
            if record == self._record:
                continue
            log.warning("%s is lost or older than its copy: written again from the copy", path)
            try:
                self._disk.keep(path, self._record)
            except OSError as error:
                log.warning("%s: %s", path, error)


def _read(disk: Disk, path: Path) -> FloorsRecord | None:
    try:
        return disk.kept(path, FloorsRecord)
    except (StorageError, OSError) as error:
        log.warning("%s", error)
        return None
