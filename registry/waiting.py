"""Why a version is not built yet: what each of its variants waits for, in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select

from modelfleet.registry import build, catalog, workers
from modelfleet.registry.context import Registry
from modelfleet.registry.tables import Variant, Version

NO_CONTROLLER = "waits for a controller: no live process is one"


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A variant that nobody works on. `kind` is that of the worker that it needs; `offered` whether there is a live one."""

    profile: str
    kind: str
    offered: bool
    reason: str


def waiting_of(registry: Registry, version_id: int, now: datetime) -> Sequence[Waiting]:
    """Return what the variants wait for that are not READY, not FAILED, and not being converted."""
    with registry.sessions() as session:
        version = session.get_one(Version, version_id)
        if version.state != catalog.BUILDING:
            return []
        rows = session.scalars(select(Variant).where(Variant.version_id == version_id)).all()
        offered = workers.kinds_offered(session, registry.tenant, now, registry.lost_after)
        led = workers.any_controller(session, registry.tenant, now, registry.lost_after)
    states = {row.profile: row for row in rows}
    found: list[Waiting] = []
    for profile, kind in build.variant_kinds(registry, version_id):
        reason = _reason(registry, states.get(profile), kind, offered) if led else NO_CONTROLLER
        if reason:
            found.append(Waiting(profile=profile, kind=kind, offered=kind in offered, reason=reason))
    return found


def _reason(registry: Registry, row: Variant | None, kind: str, offered: frozenset[str]) -> str:
    if row is None or (row.state == catalog.BUILDING and row.stage is None and row.manifest_sha256 is None):
        return (
            f"waits for its turn at {kind}"
            if kind in offered
            else f"waits for a worker of {kind}: no live one offers it"
        )
    if row.state == catalog.BUILDING and row.manifest_sha256 is not None:
        earlier = build.earlier_version(registry, row.version_id)
        return f"is converted; waits for {earlier}, which has to be released first" if earlier else ""
    return ""
