"""Whether an update may start here and now: its windows, and the plan's conditions on network, power and battery.

Pure: what the device knows of its surroundings comes in as `Facts`. What it does not know, it takes to hold: without a battery it
is on mains, and a network that nobody calls metered is not. Only a way forward waits; a way back never asks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

from modelfleet.agent_client.errors import ConditionsError
from modelfleet.agent_client.protocol import WaitReason
from modelfleet.agent_client.record import SlotRecord
from modelfleet.signer.wanted import Reason, Wanted
from modelfleet.signer.windows import Conditions, Window, described, is_open

MEANINGS = {
    "window": "its maintenance window",
    "network": "a network that is not metered",
    "power": "external power",
    "battery": "a charged battery",
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The device's surroundings.

    battery_share: charge, 0..1; None: no battery. zone: what `device` means in a window. attended: somebody stands by who
    asked for the update now, so that nothing is waited for.
    """

    external_power: bool = True
    battery_share: float | None = None
    metered: bool = False
    zone: tzinfo = UTC
    attended: bool = False


def unmet(windows: Sequence[Window], conditions: Conditions, facts: Facts, now: datetime) -> tuple[WaitReason, ...]:
    """Return what an update has to wait for; empty: it may start."""
    if facts.attended:
        return ()
    closed: tuple[WaitReason, ...] = () if is_open(windows, now, facts.zone) else ("window",)
    return (*closed, *unmet_conditions(conditions, facts))


def unmet_conditions(conditions: Conditions, facts: Facts) -> tuple[WaitReason, ...]:
    """Return which of the conditions does not hold; windows are not asked, they bound the start only."""
    if facts.attended:
        return ()
    battery = facts.battery_share
    lacking: dict[WaitReason, bool] = {
        "network": conditions.network == "unmetered" and facts.metered,
        "power": conditions.power == "external" and not facts.external_power,
        "battery": battery is not None and battery < conditions.battery_at_least,
    }
    return tuple(reason for reason, lacks in lacking.items() if lacks)


def require_conditions(conditions: Conditions, facts: Facts) -> None:
    """Return if the conditions hold (ConditionsError: wait for those that do not)."""
    lacking = unmet_conditions(conditions, facts)
    if lacking:
        raise waiting_error(lacking)


def waiting_error(reasons: Sequence[WaitReason], windows: Sequence[Window] = ()) -> ConditionsError:
    """Return the error that says what is waited for."""
    told = "; ".join(MEANINGS[reason] for reason in reasons)
    when = f" ({'; '.join(described(window) for window in windows)})" if "window" in reasons else ""
    return ConditionsError(f"waits for {told}{when}", reasons=tuple(reasons))


def moves_forward(wanted: Wanted, record: SlotRecord) -> bool:
    """Whether `wanted` is an update that may be kept waiting.

    A candidate is. A stable release is one where it is newer than the release of the same model that the device has settled
    on. An empty slot, a pin, what ran before, and whatever leads back from a candidate wait for nothing.
    """
    if wanted.reason is Reason.CANDIDATE:
        return True
    running, former = record.running, record.former
    if wanted.release is None or wanted.reason is Reason.PINNED or (former and former.release == wanted.release):
        return False
    if running is None or (running.rollout and not running.promoted):
        return False
    return running.release.model == wanted.release.model and running.release.counter < wanted.release.counter
