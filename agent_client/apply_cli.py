"""What `modelfleet-agent apply` prints, and its exit status: progress on standard error, then what came of it."""

import dataclasses
import json
import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from modelfleet.agent_client import errors as agent_errors
from modelfleet.agent_client.apply import OfflineAgent, Outcome, SlotOutcome, encode_reports
from modelfleet.agent_client.bundle import open_bundle
from modelfleet.agent_client.errors import HttpStatusError, NoSpaceError, StorageError, TransferError
from modelfleet.agent_client.storage import Disk
from modelfleet.signer import errors as signer_errors
from modelfleet.signer.errors import UntrustedError

APPLIED, FAILED, UNTRUSTED, UNREADABLE = 0, 1, 3, 4
TELL_EVERY_BYTES = 8 * 1024 * 1024


def apply_bundle(
    root: Path, path: Path, stop: threading.Event, *, as_json: bool, wait: bool, reports_to: Path | None
) -> int:
    """Apply the bundle at `path`, tell it, and return the exit status."""
    logging.getLogger("modelfleet").addHandler(logging.NullHandler())  # `say` tells what the log would repeat
    bundle = open_bundle(path)
    try:
        say = _silent if as_json else _say
        agent = OfflineAgent(root, bundle, wait=wait, say=say, on_bytes=_progress(say))
        outcome = agent.apply(stop)
    finally:
        bundle.close()
    if reports_to is not None:
        _write_reports(reports_to, agent)
    status = exit_status(outcome)
    if as_json:
        click.echo(json.dumps({**msgspec.to_builtins(dataclasses.asdict(outcome)), "status": status}, indent=2))
    else:
        for slot in outcome.slots:
            click.echo(slot_line(slot))
        click.echo(last_line(outcome))
    return status


def exit_status(outcome: Outcome) -> int:
    """Return 0 where every slot holds what the bundle asks for, else what the first that does not failed of."""
    if outcome.ok:
        return APPLIED
    kinds = [slot.error.kind for slot in outcome.slots if slot.error is not None]
    return status_of(kinds[0]) if kinds else FAILED


def status_of(kind: str) -> int:
    """Return the exit status for the class of error of this name."""
    found: object = getattr(signer_errors, kind, None) or getattr(agent_errors, kind, None)
    if not isinstance(found, type):
        return FAILED
    if issubclass(found, UntrustedError):
        return UNTRUSTED
    unreadable = issubclass(found, TransferError) and not issubclass(found, NoSpaceError | HttpStatusError)
    return UNREADABLE if unreadable else FAILED


def slot_line(slot: SlotOutcome) -> str:
    """Return how a slot stands, as one line."""
    runs = f"{slot.model} {slot.version}" if slot.version is not None else "no model"
    line = f"{slot.slot}: {runs}  {slot.state}{'' if slot.changed else '  (as before)'}"
    if slot.error is not None:
        return f"{line}\n  {slot.error.kind}: {slot.error.message}"
    return f"{line}  {slot.note}" if slot.note else line


def last_line(outcome: Outcome) -> str:
    """Return what came of it, as one line."""
    if not outcome.finished:
        return "interrupted: apply the bundle again; what runs is whole"
    if not outcome.ok:
        bad = [slot.slot for slot in outcome.slots if not slot.settled]
        return f"not applied in {', '.join(bad)}: the former model goes on where there was one"
    changed = sum(slot.changed for slot in outcome.slots)
    return f"applied: {changed} of {len(outcome.slots)} slots changed; the bundle holds until {outcome.expires}"


def _write_reports(path: Path, agent: OfflineAgent) -> None:
    try:
        Disk().write(path, encode_reports(agent.identity.device, agent.reports()))
    except OSError as error:
        raise StorageError(
            f"{path}: the reports cannot be written: {error.strerror}; they wait on the device"
        ) from error


def _progress(say: Callable[[str], None]) -> Callable[[int], None]:
    told = 0

    def tell(copied: int) -> None:
        nonlocal told
        if copied - told >= TELL_EVERY_BYTES:
            told = copied
            say(f"{copied / 1e6:.0f} MB copied")

    return tell


def _say(line: str) -> None:
    click.echo(line, err=True)
    sys.stderr.flush()


def _silent(_line: str) -> None:
    pass
