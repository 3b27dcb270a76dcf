"""`modelfleet init`: a data folder with keys, signed metadata, a database and its first users."""

from collections.abc import Sequence
from datetime import datetime
from typing import TypedDict

from modelfleet.policies.roles import Role
from modelfleet.registry.bootstrap import bootstrap
from modelfleet.service.database import prepare_database, session_factory
from modelfleet.service.errors import ServiceError, SettingsError
from modelfleet.service.settings import Settings
from modelfleet.signer.ceremony import create_repository


class Made(TypedDict):
    """What `initialise` made: the folder, the tenant, and a token per user, shown this once."""

    data: str
    tenant: str
    tokens: dict[str, str]


def parse_users(given: Sequence[str]) -> dict[str, Role]:
    """Return name -> role of `NAME:ROLE` texts.

    Raises:
        SettingsError: a text has no such form, or names no role.
    """
    users: dict[str, Role] = {}
    for text in given:
        name, colon, role = text.partition(":")
        if not (name and colon) or role not in list(Role):
            raise SettingsError(f"expected NAME:ROLE with a role of {', '.join(Role)}, got {text!r}")
        users[name] = Role(role)
    return users


def initialise(
    settings: Settings,
    *,
    bits: int,
    approvers: Sequence[str],
    approvals_required: int,
    users: dict[str, Role],
    now: datetime,
) -> Made:
    """Make the data folder of one tenant.

    Raises:
        ServiceError: the folder holds a fleet already; nothing is changed.
    """
    if (settings.data / "root.json").exists():
        raise ServiceError(f"{settings.data} holds a fleet already: choose another --data, or serve it")
    settings.data.mkdir(parents=True, exist_ok=True)
    create_repository(
        settings.data, settings.tenant, bits=bits, approvers=approvers, approvals_required=approvals_required, now=now
    )
    engine = prepare_database(settings.sqlalchemy_url)
    try:
        tokens = bootstrap(session_factory(engine), tenant=settings.tenant, users=users, now=now)
    finally:
        engine.dispose()
    return Made(data=str(settings.data), tenant=settings.tenant, tokens=tokens)
