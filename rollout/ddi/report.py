"""What a DDI device said, written as every device's reports are: the same rows in the same order.

The device signs nothing. Where its plan accepts that (`accept_unsigned`) its word counts as far as the token that it showed;
where not, it is shown and decides nothing. Which of both an action is was settled when it was offered.
"""

from datetime import datetime

from sqlalchemy.orm import Session

from modelfleet.agent_client.protocol import DeviceState, Report, ReportedError
from modelfleet.rollout.ddi.choose import actions_of, running_digest
from modelfleet.rollout.ddi.tables import DdiAction, DdiDevice
from modelfleet.rollout.ingest.write_reports import Said, write_reports

BOOT = 1
MESSAGE_CHARACTERS = 1024


def report(
    session: Session, action: DdiAction, state: DeviceState, now: datetime, *, kind: str = "", message: str = ""
) -> None:
    """Write in the session's transaction that the device is in `state` with the action.

    Args:
        kind, message: why it failed.
    """
    row = session.get_one(DdiDevice, action.device)
    row.seq += 1
    session.flush()
    opened = action.seen_at or action.opened_at
    said = Report(
        device=action.device,
        boot=BOOT,
        seq=row.seq,
        slot=action.slot,
        state=state,
        rollout=action.rollout if action.counts else "",
        model=action.model,
        version=action.version,
        digest=action.digest,
        active=running_digest(actions_of(session, action.device, action.slot)),
        seconds=max(0.0, (now - opened).total_seconds()),
        error=ReportedError(kind=kind[:64], message=message[:MESSAGE_CHARACTERS]) if kind else None,
    )
    write_reports(session, [Said(report=said, signed=action.counts)], action.tenant, now)


def printable(text: str) -> str:
    """Return a device's text as it can be stored and shown anywhere: other characters are blanks."""
    return "".join(character if character.isprintable() else " " for character in text)
