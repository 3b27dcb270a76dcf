"""The device's own memory of what it has accepted, below which it refuses: fsynced, and independent of TUF's cache.

Python-tuf forgets when its cache is lost and fsyncs nothing; an attacker who can wipe a cache must not be able to make
a device accept what was superseded (DESIGN section 4). A role's floor falls only when the keys of that role were
rotated (TUF 5.3.11: fast-forward recovery).
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec

from modelfleet.agent_client.storage import Disk, encode_struct, read_struct
from modelfleet.signer.desired import Moment
from modelfleet.signer.errors import ReplayError
from modelfleet.signer.names import Count, Sha256
from modelfleet.signer.verify import Floor, Floors

EPOCH_START = datetime(2020, 1, 1, tzinfo=UTC)


class RoleFloor(msgspec.Struct, frozen=True, kw_only=True):
    """The highest version of a TUF role, and which keys were to sign it."""

    version: Count
    keys: Annotated[str, msgspec.Meta(max_length=64)]


class ScopeFloor(msgspec.Struct, frozen=True, kw_only=True):
    """The highest (epoch, seq) of a scope, and the digest of the payload that carried it."""

    epoch: Count
    seq: Count
    sha256: Sha256


class FloorsRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the file holds; `latest_signed` is the clock's floor."""

    format: str = "1.0"
    roles: dict[str, RoleFloor] = {}
    scopes: dict[str, ScopeFloor] = {}
    latest_signed: Moment = EPOCH_START


class FloorStore:
    """The floors on disk; every raise of one is durable when the method returns."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self._path = path
        self._disk = disk
        self._record = read_struct(path, FloorsRecord) or FloorsRecord()

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

    def raise_roles(self, found: Mapping[str, RoleFloor]) -> None:
        """Accept these versions of TUF roles, all or none.

        Raises:
            ReplayError: one is below its floor, and its keys are the same.
        """
        for role, floor in found.items():
            old = self._record.roles.get(role)
            if old is not None and floor.version < old.version and floor.keys == old.keys:
                raise ReplayError(f"{role} metadata: expected version >= {old.version}, got {floor.version}")
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
        record = msgspec.structs.replace(self._record, **changes)
        if record != self._record:
            self._disk.write(self._path, encode_struct(record))
            self._record = record
