"""The first rows of a tenant: itself, and its first users with their tokens. Used by `modelfleet init`."""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy.orm import Session, sessionmaker

from modelfleet.policies.roles import Role
from modelfleet.registry import audit
from modelfleet.registry.people import make_user
from modelfleet.registry.tables import Tenant
from modelfleet.signer.names import NAME_PATTERN, require


def bootstrap(
    sessions: sessionmaker[Session], *, tenant: str, users: Mapping[str, Role], now: datetime
) -> dict[str, str]:
    """Make the tenant, if it is not there, and the users; return name -> API token, which is shown this once.

    Raises:
        FormatError: `tenant` is no name. ConflictError: one of the users is there already; nothing was made.
    """
    require(tenant, NAME_PATTERN, "tenant")
    with sessions.begin() as session:
        if session.get(Tenant, tenant) is None:
            session.add(Tenant(name=tenant, created_at=now))
            session.flush()
            audit.append(
                session,
                tenant=tenant,
                actor="system",
                action="tenant.create",
                subject=f"tenant/{tenant}",
                detail={},
                now=now,
            )
        made = {
            name: make_user(session, tenant, name=name, role=role, actor="system", now=now)
            for name, role in users.items()
        }
        return {name: token for name, (_, token) in made.items()}
