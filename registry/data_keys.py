"""Data keys: one per confidential variant, and one per confidential version for its source and golden set.

The database holds them wrapped by the key-encryption key, bound to tenant and scope; in the clear they exist only in the
memory of whoever encrypts, builds or wraps for a device.
"""

import secrets
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from modelfleet.registry.context import Registry
from modelfleet.registry.errors import KekError, NotFoundError
from modelfleet.registry.kek import FileKek, Kek, key_of, open_kek
from modelfleet.registry.tables import DataKey
from modelfleet.signer.files import folder_lock
from modelfleet.signer.segments import KEY_BYTES


def variant_scope(model: str, version: str, profile: str) -> str:
    """Return the scope of a variant's data key."""
    return f"variant/{model}@{version}/{profile}"


def version_scope(model: str, version: str) -> str:
    """Return the scope of the data key of a version's source and golden set."""
    return f"version/{model}@{version}"


def make_data_key(registry: Registry, scope: str) -> bytes:
    """Return the data key of the scope, made if there is none yet; whoever asks gets the same.

    Raises:
        KekError: it cannot be wrapped, or unwrapped.
    """
    kek = open_kek(registry.kek_uri)
    with wrapping(kek), registry.sessions() as session:
        found = session.get(DataKey, (registry.tenant, scope))
        if found is None:
            found = _insert(session, registry.tenant, scope, kek)
        return kek.unwrap(found.wrapped, _context(registry.tenant, scope))


def data_key(registry: Registry, scope: str) -> bytes:
    """Return the data key of the scope.

    Raises:
        NotFoundError: there is none. KekError: it cannot be unwrapped.
    """
    with registry.sessions() as session:
        found = session.get(DataKey, (registry.tenant, scope))
    if found is None:
        raise NotFoundError(f"no data key of {scope}")
    return open_kek(registry.kek_uri).unwrap(found.wrapped, _context(registry.tenant, scope))


def rotate_file(sessions: sessionmaker[Session], tenant: str, path: Path) -> tuple[int, list[str]]:
    """Make a new primary key in the file, wrap the tenant's data keys anew, drop the old keys that nothing uses any more.

    Again after a crash is safe.

    Returns:
        How many data keys were wrapped anew, and the ids of the dropped keys.

    Raises:
        KekError: a data key does not open; nothing is dropped then.
    """
    kek = FileKek(path)
    with wrapping(kek):
        if not path.exists():
            kek.make()
            return 0, []
        kek.add()
        number = rewrap(sessions, tenant, kek, kek)
        with sessions() as session:
            used = {key_of(wrapped) for wrapped in session.scalars(select(DataKey.wrapped))}
        return number, kek.drop(used)


def rewrap(sessions: sessionmaker[Session], tenant: str, old: Kek, new: Kek) -> int:
    """Wrap the tenant's data keys with `new`, all or none, and return how many there were; those that `new` wrapped stay.

    Raises:
        KekError: one opens under neither.
    """
    with sessions.begin() as session:
        rows = session.scalars(select(DataKey).where(DataKey.tenant == tenant)).all()
        for row in rows:
            context = _context(row.tenant, row.scope)
            row.wrapped = new.wrap(_opened(row.wrapped, context, old, new), context)
        return len(rows)


@contextmanager
def wrapping(kek: Kek) -> Generator[None]:
    """Hold the key's file while a data key is wrapped and stored, so that no rotation drops its key in between."""
    if not isinstance(kek, FileKek):
        yield
        return
    with folder_lock(kek.path.with_name(f"{kek.path.name}.lock")):
        yield


def _insert(session: Session, tenant: str, scope: str, kek: Kek) -> DataKey:
    wrapped = kek.wrap(secrets.token_bytes(KEY_BYTES), _context(tenant, scope))
    row = DataKey(tenant=tenant, scope=scope, wrapped=wrapped, created_at=datetime.now(UTC))
    try:
        session.add(row)
        session.commit()
    except IntegrityError:  # another process was faster
        session.rollback()
        return session.get_one(DataKey, (tenant, scope))
    return row


def _opened(wrapped: str, context: str, old: Kek, new: Kek) -> bytes:
    try:
        return old.unwrap(wrapped, context)
    except KekError:
        return new.unwrap(wrapped, context)


def _context(tenant: str, scope: str) -> str:
    return f"{tenant}/{scope}"
