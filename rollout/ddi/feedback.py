"""Feedback: what a client says of an action, read as widely as clients write it, and believed as narrowly as it may be.

Only `closed` ends an action, and `closed` with `success` counts only after the device has asked for the bytes: swupdate, told to
confirm at its start, confirms whatever action it is offered. "All Chunks Installed" is progress.
"""

import enum
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from modelfleet.agent_client.protocol import DeviceState
from modelfleet.registry.context import Registry
from modelfleet.rollout.ddi.actions import move, own_action
from modelfleet.rollout.ddi.choose import ABANDONED, CANCELLED, CANCELLING, FAILED, OPEN, SUCCEEDED, UNFINISHED
from modelfleet.rollout.ddi.errors import ActionGoneError, FeedbackError, TooManyReportsError
from modelfleet.rollout.ddi.report import printable, report
from modelfleet.rollout.ddi.tables import DdiAction

MAX_BODY_BYTES = 256 * 1024
MAX_REPORTS = 500
"""Progress that is taken of one action; its end always is."""
MAX_INSTALLS = 3
"""A device that installs so often without ever closing the action would go on for ever."""
MAX_DETAILS, DETAIL_CHARACTERS = 8, 120
INSTALLED = "All Chunks Installed."
"""swupdate's last progress before it has restarted and confirms."""

log = logging.getLogger(__name__)


class Word(enum.StrEnum):
    """What a feedback comes to."""

    SUCCESS = "success"
    FAILURE = "failure"
    GIVEN_UP = "given-up"
    REFUSED = "refused"
    DOWNLOADING = "downloading"
    DOWNLOADED = "downloaded"
    INSTALLED = "installed"
    PROGRESS = "progress"


@dataclass(frozen=True, kw_only=True)
class Told:
    """A feedback: the word, and the last of its details as one short text."""

    word: Word
    details: str


_OPEN_WORDS: Mapping[str, Word] = {
    "proceeding": Word.PROGRESS,
    "scheduled": Word.PROGRESS,
    "resumed": Word.PROGRESS,
    "download": Word.DOWNLOADING,
    "downloaded": Word.DOWNLOADED,
    "canceled": Word.GIVEN_UP,
    "rejected": Word.REFUSED,
}
"""Execution -> what it comes to; `closed` depends on its result."""


def read_feedback(body: bytes) -> Told:
    """Return what the body says (FeedbackError: it is no feedback).

    Control characters within texts are let through: swupdate sends its log as it is.
    """
    try:
        found = json.loads(body.decode("utf-8", "replace"), strict=False)
    except (ValueError, RecursionError) as error:
        raise FeedbackError("expected a JSON object, got something else") from error
    status = _object(_object(found, "body").get("status"), "status")
    execution = status.get("execution")
    result = _object(status.get("result"), "status.result").get("finished")
    if execution != "closed" and (not isinstance(execution, str) or execution not in _OPEN_WORDS):
        known = ", ".join(["closed", *_OPEN_WORDS])
        raise FeedbackError(f"status.execution: expected one of {known}, got {str(execution)[:40]!r}")
    if result not in ("success", "failure", "none"):
        raise FeedbackError(f"status.result.finished: expected success, failure or none, got {str(result)[:40]!r}")
    lines = _lines(status.get("details"))
    if execution == "closed":
        word = Word.SUCCESS if result == "success" else Word.FAILURE
    else:
        word = Word.INSTALLED if INSTALLED in lines else _OPEN_WORDS[execution]
    return Told(word=word, details="; ".join(line[:DETAIL_CHARACTERS] for line in lines[-MAX_DETAILS:]))


def take_feedback(registry: Registry, device_id: str, action_id: int, told: Told, now: datetime) -> None:
    """Move the device's action by what it said of it.

    Raises:
        NoSuchActionError: it is none of the device's. ActionGoneError: it has ended otherwise.
        TooManyReportsError: so much progress is not kept.
    """
    with registry.sessions.begin() as session:
        action = own_action(session, device_id, action_id)
        if action.state not in UNFINISHED:
            _require_same_end(action, told)
            return
        actor = f"device:{device_id}"
        match told.word:
            case Word.SUCCESS if action.fetched_at is None:
                what = {"device": device_id, "action": action_id}
                log.warning("a success of what the device never asked for is not believed", extra=what)
            case Word.SUCCESS:
                move(session, action, SUCCEEDED, "", actor, now)
                session.flush()
                report(session, action, DeviceState.COMMITTED, now)
            case Word.FAILURE | Word.REFUSED:
                move(session, action, FAILED, told.details, actor, now)
                kind = "DdiFailure" if told.word is Word.FAILURE else "DdiRejection"
                report(session, action, DeviceState.REJECTED, now, kind=kind, message=told.details)
            case Word.GIVEN_UP:
                move(session, action, ABANDONED, told.details, actor, now)
                report(session, action, DeviceState.CANCELLED, now)
            case _:
                _progress(action, told.word)
                if action.installs >= MAX_INSTALLS:
                    why = f"installed {action.installs} times and never confirmed"
                    move(session, action, FAILED, why, "system:controller", now)
                    report(session, action, DeviceState.REJECTED, now, kind="DdiUnconfirmed", message=why)
                else:
                    report(session, action, _state(action, told.word), now)


def take_cancel_feedback(registry: Registry, device_id: str, action_id: int, told: Told, now: datetime) -> None:
    """Take the device's answer to a cancellation: it has stopped, or it goes on (raises as `take_feedback`)."""
    with registry.sessions.begin() as session:
        action = own_action(session, device_id, action_id)
        if action.state == CANCELLED and told.word in (Word.SUCCESS, Word.GIVEN_UP):
            return
        if action.state != CANCELLING:
            raise ActionGoneError(f"action {action_id} is {action.state.lower()}: poll again")
        actor = f"device:{device_id}"
        if told.word in (Word.SUCCESS, Word.GIVEN_UP):
            move(session, action, CANCELLED, told.details, actor, now)
            report(session, action, DeviceState.CANCELLED, now)
        elif told.word in (Word.FAILURE, Word.REFUSED):
            action.keeps = True
            move(session, action, OPEN, f"the device does not cancel it: {told.details}", actor, now)


def _progress(action: DdiAction, word: Word) -> None:
    if action.reports >= MAX_REPORTS:
        raise TooManyReportsError(f"action {action.id} has {MAX_REPORTS} reports: only its end is taken")
    action.reports += 1
    if word is Word.INSTALLED and action.fetched_at is not None:
        action.installs += 1


def _state(action: DdiAction, word: Word) -> DeviceState:
    if action.installs > 0:
        return DeviceState.ACTIVATING
    if word is Word.DOWNLOADED:
        return DeviceState.VERIFYING
    return DeviceState.DOWNLOADING


def _require_same_end(action: DdiAction, told: Told) -> None:
    """Let an end be told again, whose answer was lost; everything else comes too late."""
    ends = {Word.SUCCESS: SUCCEEDED, Word.FAILURE: FAILED, Word.REFUSED: FAILED, Word.GIVEN_UP: ABANDONED}
    if ends.get(told.word) != action.state:
        raise ActionGoneError(f"action {action.id} is {action.state.lower()}: poll again")


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise FeedbackError(f"{what}: expected an object, got {type(value).__name__}")
    return cast("Mapping[str, Any]", value)


def _lines(details: Any) -> list[str]:
    """Return the details as texts: hawkBit says a list, some clients send one text, or none."""
    if isinstance(details, str):
        return [printable(details)]
    if not isinstance(details, list):
        return []
    return [printable(line) for line in cast("list[Any]", details) if isinstance(line, str)]
