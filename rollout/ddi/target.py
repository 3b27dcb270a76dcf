"""Who polls: the device that a target or gateway token, or a proxy's word, stands for. Tenant, name and token are one question.

A proxy's word counts only where the operator has named its header, and then only as the name in the verified certificate: it
has to be the name in the path. The proxy must drop that header where a client sends it itself.
"""

import hmac
from dataclasses import dataclass
from datetime import UTC, datetime

from fastapi import Request

from modelfleet.registry.auth import registry_of
from modelfleet.rollout.ddi.devices import known_device
from modelfleet.rollout.ddi.errors import DdiUnauthenticatedError
from modelfleet.rollout.ddi.tokens import holds

_REFUSAL = "expected a target or gateway token of this device: Authorization: TargetToken <token>"


@dataclass(frozen=True, kw_only=True)
class Target:
    """The device that asks: its id, and what it calls itself."""

    device: str
    tenant: str
    controller_id: str


def current_target(request: Request, tenant: str, controller_id: str) -> Target:
    """Return the device of this name whose credential came with the request (DdiUnauthenticatedError)."""
    registry, now = registry_of(request), datetime.now(UTC)
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    with registry.sessions() as session:
        known = known_device(session, registry.tenant, controller_id) if tenant == registry.tenant else None
        if known is None:
            raise DdiUnauthenticatedError(_REFUSAL)
        row, device = known
        vouched = _vouched(request, registry.ddi_proxy_header, row.controller_id)
        if not vouched and not holds(session, device, scheme, token.strip(), now):
            raise DdiUnauthenticatedError(_REFUSAL)
        return Target(device=device.id, tenant=tenant, controller_id=row.controller_id)


def _vouched(request: Request, header: str, controller_id: str) -> bool:
    if not header:
        return False
    said = request.headers.getlist(header)
    return len(said) == 1 and hmac.compare_digest(said[0].encode(), controller_id.encode())
