"""The two signed documents of the desired state (DESIGN section 5): the group document and the assignment.

Both are DSSE payloads. This module says what they contain; `verify` says whether to believe them.
"""

import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated

import msgspec

from modelfleet.signer.names import Count, ManifestPath, ModelName, Name, SemVer, Sha256
from modelfleet.signer.windows import MAX_WINDOWS, Conditions, Window

GROUP_PAYLOAD_TYPE = "application/vnd.modelfleet.group+json"
ASSIGNMENT_PAYLOAD_TYPE = "application/vnd.modelfleet.assignment+json"

BUCKETS = 2**32
WINDOWS, CONDITIONS = "windows", "conditions"
"""Names in a group document's `must_understand`: a device that does not know what it names refuses it whole."""

Moment = Annotated[datetime, msgspec.Meta(tz=True)]
Bucket = Annotated[int, msgspec.Meta(ge=0, le=BUCKETS)]
Windows = Annotated[tuple[Window, ...], msgspec.Meta(max_length=MAX_WINDOWS)]


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """One signed variant to run: its manifest by TUF path and digest, and the digests of its approvals."""

    model: ModelName
    version: SemVer
    counter: Count
    path: ManifestPath
    sha256: Sha256
    length: Count
    approvals: Annotated[tuple[Sha256, ...], msgspec.Meta(max_length=16)]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a device holds a candidate to, beside the manifest's own limits (the stricter of the two wins).

    latency_ms: p95 of one inference. accuracy: share of the golden set. error_share: of the inferences in probation,
    judged from probation_inferences on. probation_seconds: how long after activation the device itself may go back.
    metrics_seconds: the interval at which it sends counters.
    """

    latency_ms: Annotated[float, msgspec.Meta(gt=0)] = 100.0
    accuracy: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    error_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5
    probation_seconds: Annotated[float, msgspec.Meta(ge=0, le=7 * 86400)] = 60.0
    probation_inferences: Count = 20
    metrics_seconds: Annotated[float, msgspec.Meta(gt=0, le=86400)] = 30.0


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A release on trial: devices whose bucket lies in [from, below) take it while `accept` holds.

    windows: when a device may start (none: always). conditions: what must hold until its files are there.
    """

    rollout: Annotated[str, msgspec.Meta(max_length=64)]
    release: Release
    salt: Annotated[str, msgspec.Meta(max_length=64)]
    from_bucket: Bucket = msgspec.field(name="from")
    below: Bucket
    accept: bool
    not_before: Moment
    deadline: Moment
    spread_seconds: Count = 0
    limits: Limits = Limits()
    windows: Windows | msgspec.UnsetType = msgspec.UNSET
    conditions: Conditions | msgspec.UnsetType = msgspec.UNSET


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """What a slot of the group should run: `stable` (null: nothing), and candidates on trial.

    windows and conditions hold for a device that runs something older than the stable release, which its rollout had not
    reached; an empty slot, and a way back, wait for nothing.
    """

    stable: Release | None = None
    candidates: Annotated[tuple[Candidate, ...], msgspec.Meta(max_length=8)] = ()
    windows: Windows | msgspec.UnsetType = msgspec.UNSET
    conditions: Conditions | msgspec.UnsetType = msgspec.UNSET


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Something asked of one device; `id` makes it happen once. Kinds: retry, cancel, re-benchmark, collect-logs."""

    id: Annotated[str, msgspec.Meta(max_length=64)]
    kind: Name


class GroupDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What the slots of one group and profile should run. scope = `g/{group}/{profile}`."""

    format: str = "1.0"
    tenant: Name
    scope: Annotated[str, msgspec.Meta(max_length=160)]
    epoch: Count
    seq: Count
    issued: Moment
    expires: Moment
    must_understand: Annotated[tuple[str, ...], msgspec.Meta(max_length=16)] = ()
    slots: Annotated[dict[Name, Slot], msgspec.Meta(max_length=32)]


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """Which group, profile and pins one device has. scope = `d/{device}`."""

    format: str = "1.0"
    tenant: Name
    scope: Annotated[str, msgspec.Meta(max_length=160)]
    epoch: Count
    seq: Count
    issued: Moment
    expires: Moment
    must_understand: Annotated[tuple[str, ...], msgspec.Meta(max_length=16)] = ()
    group: Name
    profile: Name
    not_below_seq: Count = 0
    pins: Annotated[dict[Name, Release | None], msgspec.Meta(max_length=32)] = {}
    requests: Annotated[tuple[Request, ...], msgspec.Meta(max_length=16)] = ()


def group_scope(group: str, profile: str) -> str:
    """Return the scope of a group document."""
    return f"g/{group}/{profile}"


def device_scope(device: str) -> str:
    """Return the scope of an assignment."""
    return f"d/{device}"


def bucket_of(salt: str, device: str) -> int:
    """Return the device's bucket under `salt`: the first 32 bits of SHA-256(salt || 0x00 || device), 0..2**32-1."""
    digest = hashlib.sha256(salt.encode() + b"\x00" + device.encode()).digest()
    return int.from_bytes(digest[:4], "big")


def needs_of(slots: Iterable[Slot]) -> tuple[str, ...]:
    """Return what a device must understand to act on these slots: the names for `must_understand`."""
    parts = [part for slot in slots for part in (slot, *slot.candidates)]
    found = {
        WINDOWS: any(part.windows for part in parts),
        CONDITIONS: any(part.conditions is not msgspec.UNSET for part in parts),
    }
    return tuple(sorted(name for name, used in found.items() if used))


def takes(candidate: Candidate, device: str) -> bool:
    """Whether the device's bucket lies in the candidate's range (DESIGN section 5, rule 2)."""
    return candidate.from_bucket <= bucket_of(candidate.salt, device) < candidate.below
