"""The signer's own memory: its bins, the release counters, the newest root followed, the newest targets.json seen.

The registry cannot roll it back, because the signer never takes a bin from anybody. Each method returns after fsync.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from modelfleet.signer.errors import FormatError
from modelfleet.signer.files import write_durably
from modelfleet.signer.metadata import Metadata, Targets, parse_metadata
from modelfleet.signer.names import Count, ModelName, Name, SemVer, Sha256
from modelfleet.signer.parse import parse_struct
from modelfleet.signer.trust import BIN_PREFIX

MAX_STATE_BYTES = 64 * 1024 * 1024


class GroupMark(msgspec.Struct, frozen=True, kw_only=True):
    """The newest data image of a group, and the highest release counter of any that was signed for it."""

    serial: Count
    counter: Count
    manifest_sha256: Sha256
    replaces: Count = 0


class ImageMarks(msgspec.Struct, frozen=True, kw_only=True):
    """The data images of one model and profile: the highest serial, and each group's mark."""

    serial: Count = 0
    groups: dict[Name, GroupMark] = {}


class StateRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`counters.json`: model -> version -> release counter, and the highest version of targets.json seen.

    images: model -> profile -> what was signed as data images.
    """

    format: str = "1.0"
    targets_version: Count = 0
    counters: dict[ModelName, dict[SemVer, Count]] = {}
    images: dict[ModelName, dict[Name, ImageMarks]] = {}


@dataclass(frozen=True, kw_only=True)
class BinFacts:
    """What is asked of every bin again and again: its version, end, number of targets, and the keys that signed it."""

    version: int
    expires: datetime
    targets: int
    keyids: frozenset[str]


class SignerState:
    """The signer's state folder; no other process writes to it.

    Raises:
        FormatError: the folder holds no bins, or files that are not the signer's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._record_path = folder / "counters.json"
        self._root_path = folder / "root.json"
        self._facts: dict[str, BinFacts] = {}
        self._record = StateRecord()
        if self._record_path.exists():
            self._record = parse_struct(self._record_path.read_bytes(), StateRecord, max_bytes=MAX_STATE_BYTES)
        self.roles: tuple[str, ...] = tuple(sorted(path.stem for path in folder.glob(f"{BIN_PREFIX}-*.json")))
        """The names of the bins."""
        if not self.roles:
            raise FormatError(f"expected the signer's bins in {folder}, found none: run the key ceremony")

    @property
    def record(self) -> StateRecord:
        """The counters and the floor of targets.json."""
        return self._record

    def root_bytes(self) -> bytes | None:
        """Return the newest root that was followed, None before the first one."""
        return self._root_path.read_bytes() if self._root_path.exists() else None

    def keep_root(self, data: bytes) -> None:
        """Remember the root that is trusted from now on."""
        write_durably(self._root_path, data)

    def bin_bytes(self, role: str) -> bytes:
        """Return the signed metadata of a bin.

        Raises:
            FormatError: there is no such bin.
        """
        if role not in self.roles:
            raise FormatError(
                f"expected one of {len(self.roles)} bins, got {role[:40]!r}: were the bins' bits changed?"
            )
        return (self._folder / f"{role}.json").read_bytes()

    def bin(self, role: str) -> Metadata[Targets]:
        """Return a bin (FormatError as `bin_bytes`)."""
        return parse_metadata(self.bin_bytes(role), Targets)

    def facts(self, role: str) -> BinFacts:
        """Return the facts of a bin, read from the disk once (FormatError as `bin_bytes`)."""
        if role not in self._facts:
            metadata = self.bin(role)
            self._facts[role] = BinFacts(
                version=metadata.signed.version,
                expires=metadata.signed.expires,
                targets=len(metadata.signed.targets),
                keyids=frozenset(metadata.signatures),
            )
        return self._facts[role]

    def keep_bin(self, role: str, data: bytes) -> None:
        """Replace a bin."""
        self._facts.pop(role, None)
        write_durably(self._folder / f"{role}.json", data)

    def keep_targets_version(self, version: int) -> None:
        """Remember the newest targets.json."""
        if version > self._record.targets_version:
            self._keep(msgspec.structs.replace(self._record, targets_version=version))

    def keep_counter(self, model: str, version: str, counter: int) -> None:
        """Remember the release counter of a version."""
        versions = self._record.counters.get(model, {})
        if version not in versions:
            counters = {**self._record.counters, model: {**versions, version: counter}}
            self._keep(msgspec.structs.replace(self._record, counters=counters))

    def image_marks(self, model: str, profile: str) -> ImageMarks:
        """Return what was signed as data images of this model and profile."""
        return self._record.images.get(model, {}).get(profile, ImageMarks())

    def keep_image_marks(self, model: str, profile: str, marks: ImageMarks) -> None:
        """Remember a data image before it leaves."""
        if marks != self.image_marks(model, profile):
            profiles = {**self._record.images.get(model, {}), profile: marks}
            images = {**self._record.images, model: profiles}
            self._keep(msgspec.structs.replace(self._record, images=images))

    def _keep(self, record: StateRecord) -> None:
        write_durably(self._record_path, msgspec.json.encode(record, order="deterministic"))
        self._record = record
