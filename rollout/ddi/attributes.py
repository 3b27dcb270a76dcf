"""configData: what a device says of itself, kept as its attributes; they steer nothing but its time zone (`choose.TIMEZONE`)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from modelfleet.registry.context import Registry
from modelfleet.rollout.ddi.devices import keep_attributes
from modelfleet.rollout.ddi.errors import FeedbackError
from modelfleet.rollout.ddi.report import printable
from modelfleet.rollout.ddi.tables import DdiDevice

MODES = ("merge", "replace", "remove")


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """What came: the attributes, and what to do with them (hawkBit's modes)."""

    data: Mapping[str, Any]
    mode: str


def read_attributes(body: bytes) -> Attributes:
    """Return what the body says (FeedbackError: it is no configData)."""
    try:
        found: Any = json.loads(body.decode("utf-8", "replace"), strict=False)
    except (ValueError, RecursionError) as error:
        raise FeedbackError("expected a JSON object, got something else") from error
    if not isinstance(found, dict):
        raise FeedbackError("expected a JSON object, got something else")
    told = cast("Mapping[str, Any]", found)
    data, mode = told.get("data"), told.get("mode", "merge")
    if not isinstance(data, dict) or mode not in MODES:
        raise FeedbackError(f"expected `data`, an object, and a `mode` of {', '.join(MODES)}")
    shown = {printable(name): _printable(value) for name, value in cast("Mapping[str, Any]", data).items()}
    return Attributes(data=shown, mode=str(mode))


def _printable(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value


def take_attributes(registry: Registry, device_id: str, told: Attributes, now: datetime) -> None:
    """Keep the device's attributes (BadInputError: too many, or too long)."""
    with registry.sessions.begin() as session:
        row = session.get_one(DdiDevice, device_id)
        if told.mode == "remove":
            left = {name: value for name, value in row.attributes.items() if name not in told.data}
            keep_attributes(session, row, left, now, merge=False)
        else:
            keep_attributes(session, row, told.data, now, merge=told.mode == "merge")
