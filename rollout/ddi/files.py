"""Which bytes a device may fetch: those of the action that it is to install now, and no others."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select

from modelfleet.registry.context import Registry
from modelfleet.rollout.ddi.choose import UNFINISHED
from modelfleet.rollout.ddi.errors import NoSuchActionError
from modelfleet.rollout.ddi.tables import DdiAction, DdiModule


def artifacts_for(registry: Registry, device_id: str, module_id: int) -> Sequence[dict[str, Any]]:
    """Return the artifacts of the module that the device is to install (NoSuchActionError: it is not to)."""
    return _artifacts(registry, device_id, module_id, None)


def artifact_for(
    registry: Registry, device_id: str, module_id: int, filename: str, *, fetched_at: datetime | None = None
) -> dict[str, Any]:
    """Return one artifact of the module that the device is to install (NoSuchActionError: there is none).

    Args:
        fetched_at: now, where its bytes are asked for: only then a success is believed.
    """
    known = {each["filename"]: each for each in _artifacts(registry, device_id, module_id, None)}
    if filename not in known:
        raise NoSuchActionError(f"no artifact {filename[:80]!r} in module {module_id}")
    if fetched_at is not None:
        _artifacts(registry, device_id, module_id, fetched_at)
    return known[filename]


def _artifacts(
    registry: Registry, device_id: str, module_id: int, fetched_at: datetime | None
) -> Sequence[dict[str, Any]]:
    mine = select(DdiAction).where(
        DdiAction.device == device_id, DdiAction.module == module_id, DdiAction.state.in_(UNFINISHED)
    )
    with registry.sessions.begin() as session:
        action = session.scalars(mine).one_or_none()
        if action is None:
            raise NoSuchActionError(f"no module {module_id} that this device is to install now: poll again")
        if fetched_at is not None and action.fetched_at is None:
            action.fetched_at = fetched_at
        return session.get_one(DdiModule, module_id).artifacts
