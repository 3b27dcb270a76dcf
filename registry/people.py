"""Users and groups: made by an administrator, recorded in the audit trail."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from modelfleet.policies.roles import Role
from modelfleet.registry import audit
from modelfleet.registry.auth import make_token
from modelfleet.registry.errors import BadInputError, ConflictError, NotFoundError
from modelfleet.registry.tables import Group, User
from modelfleet.signer.errors import FormatError
from modelfleet.signer.names import NAME_PATTERN, require


def make_user(session: Session, tenant: str, *, name: str, role: Role, actor: str, now: datetime) -> tuple[User, str]:
    """Add a user; return the row and the API token, of which only the hash is kept (ConflictError: the name is taken)."""
    if session.scalars(select(User.id).where(User.tenant == tenant, User.name == name)).first() is not None:
        raise ConflictError(f"there is a user {name!r} already: choose another name")
    token, hashed = make_token()
    user = User(tenant=tenant, name=name, role=role.value, token_sha256=hashed, created_at=now)
    session.add(user)
    detail = {"role": role.value}
    audit.append(
        session, tenant=tenant, actor=actor, action="user.create", subject=f"user/{name}", detail=detail, now=now
    )
    session.flush()
    return user, token


def disable_user(session: Session, tenant: str, name: str, *, actor: str, now: datetime) -> User:
    """Refuse the user's token from now on; disabling again changes nothing.

    Raises:
        NotFoundError: no such user. ConflictError: nobody would be left who can enable users.
    """
    user = _find(session, tenant, name)
    if user.disabled_at is None:
        if user.role == Role.ADMIN and not _other_admins(session, user):
            raise ConflictError(f"{name!r} is the only admin who is not disabled: make another one first")
        user.disabled_at = now
        _note(session, user, actor, "user.disable", now)
    return user


def enable_user(session: Session, tenant: str, name: str, *, actor: str, now: datetime) -> User:
    """Accept the user's token again (NotFoundError: no such user)."""
    user = _find(session, tenant, name)
    if user.disabled_at is not None:
        user.disabled_at = None
        _note(session, user, actor, "user.enable", now)
    return user


def new_token(session: Session, tenant: str, name: str, *, actor: str, now: datetime) -> tuple[User, str]:
    """Return the user and a new API token; the former one is refused from now on (NotFoundError: no such user)."""
    user = _find(session, tenant, name)
    token, user.token_sha256 = make_token()
    _note(session, user, actor, "user.new-token", now)
    return user, token


def _find(session: Session, tenant: str, name: str) -> User:
    found = session.scalars(select(User).where(User.tenant == tenant, User.name == name)).one_or_none()
    if found is None:
        raise NotFoundError(f"no user {name[:80]!r}: `modelfleet users list` shows them")
    return found


def _other_admins(session: Session, user: User) -> bool:
    others = select(User.id).where(
        User.tenant == user.tenant, User.role == Role.ADMIN.value, User.disabled_at.is_(None), User.id != user.id
    )
    return session.scalars(others).first() is not None


def _note(session: Session, user: User, actor: str, action: str, now: datetime) -> None:
    subject = f"user/{user.name}"
    audit.append(session, tenant=user.tenant, actor=actor, action=action, subject=subject, detail={}, now=now)


def users(session: Session, tenant: str) -> Sequence[User]:
    """Return the tenant's users by name."""
    return session.scalars(select(User).where(User.tenant == tenant).order_by(User.name)).all()


def make_group(session: Session, tenant: str, *, name: str, actor: str, now: datetime) -> Group:
    """Add a group (BadInputError: no valid name; ConflictError: it is there already)."""
    try:
        require(name, NAME_PATTERN, "group")
    except FormatError as error:  # nothing is wrong with anybody's signature: a person mistyped
        raise BadInputError(str(error)) from error
    if session.scalars(select(Group.id).where(Group.tenant == tenant, Group.name == name)).first() is not None:
        raise ConflictError(f"there is a group {name!r} already: choose another name")
    group = Group(tenant=tenant, name=name, created_at=now)
    session.add(group)
    audit.append(
        session, tenant=tenant, actor=actor, action="group.create", subject=f"group/{name}", detail={}, now=now
    )
    session.flush()
    return group
