"""`modelfleet init`: a data folder with keys, signed metadata, a database and its first users."""

import shutil
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypedDict

from modelfleet.policies.roles import Role
from modelfleet.registry.bootstrap import bootstrap
from modelfleet.registry.fleet_ca import create_ca
from modelfleet.registry.kek import FileKek
from modelfleet.service.database import prepare_database, session_factory
from modelfleet.service.errors import ServiceError, SettingsError
from modelfleet.service.keep_audit import make_audit_key
from modelfleet.service.settings import Settings
from modelfleet.signer.ceremony import CeremonyPlan, hold_ceremony
from modelfleet.signer.keys import write_public
from modelfleet.signer.passphrase import Secrets, ask_passphrase


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
    plan: CeremonyPlan,
    *,
    users: dict[str, Role],
    now: datetime,
    secrets: Secrets = ask_passphrase,
    new_passphrase: Callable[[str], str | None] = lambda _uri: None,
) -> Made:
    """Make the data folder of one tenant, readable by this user only; on any error the folder is as empty as before.

    Args:
        plan: the keys to make; `modelfleet init` and `modelfleet keys init` differ in nothing else.
        secrets, new_passphrase: as `hold_ceremony` takes them.

    Raises:
        ServiceError: the folder is not empty; nothing is changed.
        SignerError, RegistryError: a name or number is not allowed.
    """
    data = settings.data
    if data.exists() and any(data.iterdir()):
        raise ServiceError(f"{data} is not empty: choose another --data, or serve the fleet that it holds")
    data.mkdir(parents=True, exist_ok=True)
    data.chmod(0o700)
    try:
        paths = hold_ceremony(data, plan, now, secrets=secrets, new_passphrase=new_passphrase)
        create_ca(settings.ca_folder, settings.tenant, now)
        make_audit_key(data)
        FileKek(settings.kek_file).make()
        write_public(data / "releases.pub", paths.releases_key, secrets)
        tokens = _make_users(settings, users, now)
    except BaseException:
        _empty(data)
        raise
    return Made(data=str(data), tenant=settings.tenant, tokens=tokens)


def _make_users(settings: Settings, users: dict[str, Role], now: datetime) -> dict[str, str]:
    engine = prepare_database(settings.sqlalchemy_url)
    try:
        return bootstrap(session_factory(engine), tenant=settings.tenant, users=users, now=now)
    finally:
        engine.dispose()


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
