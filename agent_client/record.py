"""What a slot is doing, on disk: written before each act, so that a restart knows what was going on."""

from typing import Annotated

import msgspec

from modelfleet.agent_client.protocol import Bench, DeviceState, ReportedError
from modelfleet.signer.desired import Limits, Moment, Release
from modelfleet.signer.names import Count, Sha256, sha256_of

MAX_REMEMBERED = 64


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """A release that the slot should hold, and why; `seen_at` is when the device first saw that it should.

    promoted: it was on trial when it came, and has been named stable since.
    """

    release: Release
    rollout: Annotated[str, msgspec.Meta(max_length=64)] = ""
    limits: Limits = Limits()
    seen_at: Moment
    promoted: bool = False

    def was_left_behind_for(self, goal: "Goal") -> bool:
        """Whether this is a candidate that never became stable, given up for the older release of `goal`."""
        older = goal.release.counter <= self.release.counter
        return bool(self.rollout) and not self.promoted and not goal.rollout and older


class Rejection(msgspec.Struct, frozen=True, kw_only=True):
    """Why a digest is not tried again; `release` is the digest of the one `Release` that it holds for, empty: of all.

    What was measured holds for the digest, whoever names it. What is wrong with a release's approvals or names ends
    when another desired state names the same digest rightly.
    """

    error: ReportedError
    release: Annotated[str, msgspec.Meta(max_length=64)] = ""


class SlotRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one slot.

    goal: what is being worked on, or was last. running: what the pointer names. former: what ran before, and may lie
    in the other directory. leaving: what is being gone back from. benchmarks: tries that began and did not end.
    """

    format: str = "1.0"
    state: DeviceState = DeviceState.IDLE
    since: Moment | None = None
    goal: Goal | None = None
    running: Goal | None = None
    former: Goal | None = None
    leaving: Goal | None = None
    activation: Count = 0
    attempts: Count = 0
    benchmarks: Count = 0
    bench: Bench | None = None
    error: ReportedError | None = None
    rejected: dict[Sha256, Rejection] = {}
    accepted: tuple[Sha256, ...] = ()


def release_key(release: Release) -> str:
    """Return what tells one naming of a digest from another: its approvals, path and counter with it."""
    return sha256_of(msgspec.json.encode(release, order="deterministic"))


def with_rejection(record: SlotRecord, goal: Goal, error: ReportedError, *, for_all: bool) -> SlotRecord:
    """Return the record with that digest rejected; the oldest are forgotten beyond 64."""
    rejection = Rejection(error=error, release="" if for_all else release_key(goal.release))
    rejected = {**record.rejected, goal.release.sha256: rejection}
    newest = dict(list(rejected.items())[-MAX_REMEMBERED:])
    return msgspec.structs.replace(record, rejected=newest)


def rejected_digests(record: SlotRecord, named: list[Release]) -> set[str]:
    """Return the digests that are rejected, given how desired state names them now."""
    keys = {release_key(release) for release in named}
    return {
        digest for digest, rejection in record.rejected.items() if not rejection.release or rejection.release in keys
    }
