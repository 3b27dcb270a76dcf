"""`modelfleet confidential`: the key-encryption key of confidential versions, with or without a service that runs."""

import json
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, sessionmaker

    from modelfleet.service.settings import Settings

Command = Callable[..., None]


def data_options(command: Command) -> Command:
    """Add --data and --json."""
    command = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)
    folder = click.Path(path_type=Path)
    return click.option("--data", type=folder, help="Data folder (MODELFLEET_DATA).")(command)


@click.group()
def confidential() -> None:
    """Confidential versions: the key that wraps their data keys.

    Example: modelfleet confidential rotate-kek --data ./fleet
    """


@confidential.command("rotate-kek")
@data_options
@click.option("--to", "target", metavar="URI", help="Move to this key (file:... or awskms:...) in place of a new one.")
def rotate_kek(data: Path | None, target: str | None, as_json: bool) -> None:
    """Wrap every data key anew: with a new key in the file, or with the key that --to names.

    Makes the file where there is none. Blobs, manifests and what devices hold stay as they are. Safe to repeat after a
    crash, and while the service runs.

    Example: modelfleet confidential rotate-kek --data ./fleet --to awskms:alias/modelfleet
    """
    from modelfleet.registry.data_keys import rotate_file
    from modelfleet.registry.kek import OPENERS

    with _opened(data) as (settings, sessions):
        scheme, _, path = settings.kek.partition(":")
        if target is not None:
            rewrapped, dropped = _move(sessions, settings.kek, target), list[str]()
        elif scheme == "file":
            rewrapped, dropped = rotate_file(sessions, Path(path))
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
def status(data: Path | None, as_json: bool) -> None:
    """Show which key wraps how many data keys, and how many devices could not open a confidential version.

    Example: modelfleet confidential status --data ./fleet --json
    """
    from sqlalchemy import func, select

    from modelfleet.registry.kek import key_of
    from modelfleet.registry.tables import DataKey, Device

    with _opened(data) as (settings, sessions), sessions() as session:
        keys = Counter(key_of(wrapped) for wrapped in session.scalars(select(DataKey.wrapped)))
        lacking = select(func.count()).where(Device.encryption_key.is_(None), Device.revoked_at.is_(None))
        without = session.scalar(lacking.select_from(Device)) or 0
    if as_json:
        click.echo(json.dumps({"kek": settings.kek, "data_keys": keys, "devices_without_key": without}))
        return
    click.echo(f"key-encryption key: {settings.kek}")
    for name, number in sorted(keys.items()):
        click.echo(f"{name}: wraps {number} data keys")
    click.echo(f"devices without an encryption key, to be enrolled again: {without}")


def _move(sessions: "sessionmaker[Session]", source: str, target: str) -> int:
    from modelfleet.registry.data_keys import rewrap, wrapping
    from modelfleet.registry.kek import FileKek, open_kek

    old, new = open_kek(source), open_kek(target)
    if isinstance(new, FileKek) and not new.path.exists():
        new.make()
    with wrapping(old):
        return rewrap(sessions, old, new)


@contextmanager
def _opened(data: Path | None) -> "Generator[tuple[Settings, sessionmaker[Session]]]":
    from modelfleet.registry.errors import RegistryError
    from modelfleet.service.compose import require_initialised
    from modelfleet.service.database import open_database, session_factory
    from modelfleet.service.errors import ServiceError
    from modelfleet.service.settings import Settings

    try:
        settings = Settings() if data is None else Settings(data=data)
        require_initialised(settings)
        engine = open_database(settings.sqlalchemy_url)
        try:
            yield settings, session_factory(engine)
        finally:
            engine.dispose()
    except (RegistryError, ServiceError) as error:
        raise click.ClickException(str(error)) from error
