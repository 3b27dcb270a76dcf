"""`modelfleet confidential`: the key-encryption key of confidential versions, with or without a service that runs."""

import json
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelfleet.signer.command import data_options, json_option

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, sessionmaker

    from modelfleet.service.settings import Settings


@click.group()
def confidential() -> None:
    """Confidential versions: the key that wraps their data keys.

    Example: modelfleet confidential rotate-kek --data ./fleet --tenant acme
    """


@confidential.command("rotate-kek")
@data_options
@json_option
@click.option("--to", "target", metavar="URI", help="Move to this key (file:... or awskms:...) in place of a new one.")
def rotate_kek(data: Path, tenant: str, target: str | None, as_json: bool) -> None:
    """Wrap the tenant's data keys anew: with a new key in the file, or with the key that --to names.

    Makes the file where there is none. Blobs, manifests and what devices hold stay as they are. Safe to repeat after a
    crash, and while the service runs.

    Example: modelfleet confidential rotate-kek --data ./fleet --tenant acme --to awskms:alias/modelfleet
    """
    from modelfleet.registry.data_keys import rotate_file
    from modelfleet.registry.kek import OPENERS

    with _opened(data, tenant) as (settings, sessions):
        scheme, _, path = settings.kek.partition(":")
        if target is not None:
            rewrapped, dropped = _move(sessions, settings.tenant, settings.kek, target), list[str]()
        elif scheme == "file":
            rewrapped, dropped = rotate_file(sessions, settings.tenant, Path(path))
        else:
            known = ", ".join(sorted(OPENERS))
            raise click.ClickException(f"{settings.kek} rotates its key itself; name another with --to ({known})")
    if as_json:
        click.echo(json.dumps({"kek": target or settings.kek, "rewrapped": rewrapped, "dropped": dropped}))
        return
    click.echo(f"wrapped {rewrapped} data keys anew, dropped {len(dropped)} old keys")
    if target is not None:
        click.echo(f"next: set MODELFLEET_KEK_URI={target}, restart the service, then destroy the old key")


@confidential.command()
@data_options
@json_option
def status(data: Path, tenant: str, as_json: bool) -> None:
    """Show which key wraps how many data keys, and how many devices could not open a confidential version.

    Example: modelfleet confidential status --data ./fleet --tenant acme --json
    """
    from sqlalchemy import func, select

    from modelfleet.registry.kek import key_of
    from modelfleet.registry.tables import DataKey, Device

    with _opened(data, tenant) as (settings, sessions), sessions() as session:
        wrapped = session.scalars(select(DataKey.wrapped).where(DataKey.tenant == settings.tenant))
        keys = Counter(map(key_of, wrapped))
        of_fleet = (Device.tenant == settings.tenant, Device.revoked_at.is_(None))
        lacking = select(func.count()).select_from(Device).where(*of_fleet, Device.encryption_key.is_(None))
        without = session.scalar(lacking) or 0
    if as_json:
        click.echo(json.dumps({"kek": settings.kek, "data_keys": keys, "devices_without_key": without}))
        return
    click.echo(f"key-encryption key: {settings.kek}")
    for name, number in sorted(keys.items()):
        click.echo(f"{name}: wraps {number} data keys")
    click.echo(f"devices without an encryption key, to be enrolled again: {without}")


def _move(sessions: "sessionmaker[Session]", tenant: str, source: str, target: str) -> int:
    from modelfleet.registry.data_keys import rewrap, wrapping
    from modelfleet.registry.kek import FileKek, open_kek

    old, new = open_kek(source), open_kek(target)
    if isinstance(new, FileKek) and not new.path.exists():
        new.make()
    with wrapping(old):
        return rewrap(sessions, tenant, old, new)


@contextmanager
def _opened(data: Path, tenant: str) -> "Generator[tuple[Settings, sessionmaker[Session]]]":
    from modelfleet.registry.errors import RegistryError
    from modelfleet.service.compose import require_initialised
    from modelfleet.service.database import open_database, session_factory
    from modelfleet.service.errors import ServiceError
    from modelfleet.service.settings import Settings

    try:
        settings = Settings(data=data, tenant=tenant)
        require_initialised(settings)
        engine = open_database(settings.sqlalchemy_url)
        try:
            yield settings, session_factory(engine)
        finally:
            engine.dispose()
    except (RegistryError, ServiceError) as error:
        raise click.ClickException(str(error)) from error
