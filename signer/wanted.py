"""What a device should run in a slot: rules 1 to 4 of DESIGN section 5, as one pure function.

The documents are already believed (`verify.accept_document`). Nothing here expires a running model: `expires` of the
answer only says until when an update may *start*.
"""

import enum
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from modelfleet.signer.desired import (
    BUCKETS,
    Assignment,
    Candidate,
    GroupDocument,
    Limits,
    Release,
    Slot,
    bucket_of,
    group_scope,
    takes,
)
from modelfleet.signer.windows import ANY_CONDITIONS, Conditions, Window

DEFAULT_LIMITS = Limits()


class Reason(enum.StrEnum):
    """Why a slot is wanted to be as `Wanted` says."""

    PINNED = "pinned"
    CANDIDATE = "candidate"
    STABLE = "stable"
    HALTED = "halted"
    """The candidate takes nobody new: stable."""
    NOT_YET = "not-yet"
    """The candidate's `not_before`, or this device's turn in `spread_seconds`, lies ahead: stable until then."""
    TOO_LATE = "too-late"
    """The candidate's deadline has passed: stable."""
    REJECTED = "rejected"
    """This device has rejected the digest: it keeps what runs, or goes to a stable release that it has not rejected."""
    NOT_STEERED = "not-steered"
    """No group document for this slot that the assignment names: keep what runs."""
    BEHIND = "behind"
    """The group document is older than the assignment asks for: keep what runs until a newer one comes."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the slot should hold.

    keep: change nothing, whatever runs. Otherwise the slot should hold `release` (None: nothing), which is no change where
    that digest is active already. `rollout` is empty but for a candidate. `limits` are those to hold it to. `changes_at`
    is when the same documents will say something else, if ever. `expires` is until when an update may start
    (`verify.require_startable`). An update waits for `windows` to start, and for `conditions` until its files are there;
    `meanwhile` is what the slot should hold where it waits for a candidate.
    """

    reason: Reason
    keep: bool = False
    release: Release | None = None
    rollout: str = ""
    limits: Limits = DEFAULT_LIMITS
    changes_at: datetime | None = None
    expires: datetime
    windows: tuple[Window, ...] = ()
    conditions: Conditions = ANY_CONDITIONS
    meanwhile: "Wanted | None" = None


def select(
    group: GroupDocument | None,
    assignment: Assignment,
    *,
    slot: str,
    device: str,
    active: str | None,
    rejected: Collection[str],
    now: datetime,
) -> Wanted:
    """Return what `slot` should hold on `device`.

    Args:
        group: the last accepted group document, if any.
        active: manifest digest that runs in the slot, None: nothing.
        rejected: manifest digests that this device has rejected and was not asked to retry.
    """
    if slot in assignment.pins:
        return _pinned(assignment.pins[slot], rejected, assignment.expires)
    if group is None or group.scope != group_scope(assignment.group, assignment.profile) or slot not in group.slots:
        return Wanted(reason=Reason.NOT_STEERED, keep=True, expires=assignment.expires)
    expires = min(group.expires, assignment.expires)
    if group.seq < assignment.not_below_seq:
        return Wanted(reason=Reason.BEHIND, keep=True, expires=expires)
    return _steered(group.slots[slot], device, active, rejected, now, expires)


def start_at(candidate: Candidate, device: str) -> datetime:
    """Return when `device` may start on the candidate: `not_before`, plus its share of `spread_seconds`."""
    share = bucket_of(f"{candidate.salt}/spread", device) / BUCKETS
    return candidate.not_before + timedelta(seconds=candidate.spread_seconds * share)


def _pinned(release: Release | None, rejected: Collection[str], expires: datetime) -> Wanted:
    if release is not None and release.sha256 in rejected:
        return Wanted(reason=Reason.REJECTED, keep=True, expires=expires)
    return Wanted(reason=Reason.PINNED, release=release, expires=expires)


def _steered(
    slot: Slot, device: str, active: str | None, rejected: Collection[str], now: datetime, expires: datetime
) -> Wanted:
    candidate = _first_taken(slot.candidates, device)
    if candidate is None:
        return _stable(slot, rejected, Reason.STABLE, None, expires)
    obstacle = _obstacle(candidate, device, active, rejected, now)
    if obstacle is None:
        return Wanted(
            reason=Reason.CANDIDATE,
            release=candidate.release,
            rollout=candidate.rollout,
            limits=candidate.limits,
            expires=expires,
            windows=candidate.windows or (),
            conditions=candidate.conditions or ANY_CONDITIONS,
            meanwhile=_stable(slot, rejected, Reason.NOT_YET, None, expires),
        )
    changes_at = start_at(candidate, device) if obstacle is Reason.NOT_YET else None
    return _stable(slot, rejected, obstacle, changes_at, expires)


def _first_taken(candidates: Iterable[Candidate], device: str) -> Candidate | None:
    return next((candidate for candidate in candidates if takes(candidate, device)), None)


def _obstacle(
    candidate: Candidate, device: str, active: str | None, rejected: Collection[str], now: datetime
) -> Reason | None:
    if candidate.release.sha256 in rejected:
        return Reason.REJECTED
    if candidate.release.sha256 == active:  # rule 3: who has activated stays, also past the deadline
        return None
    if not candidate.accept:
        return Reason.HALTED
    if now >= candidate.deadline:
        return Reason.TOO_LATE
    return Reason.NOT_YET if now < start_at(candidate, device) else None


def _stable(
    slot: Slot, rejected: Collection[str], reason: Reason, changes_at: datetime | None, expires: datetime
) -> Wanted:
    if slot.stable is not None and slot.stable.sha256 in rejected:  # rule 4: also when it has become stable
        return Wanted(reason=Reason.REJECTED, keep=True, changes_at=changes_at, expires=expires)
    return Wanted(
        reason=reason,
        release=slot.stable,
        changes_at=changes_at,
        expires=expires,
        windows=slot.windows or (),
        conditions=slot.conditions or ANY_CONDITIONS,
    )
