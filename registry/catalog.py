"""What exists, read: versions, variants, devices; and the two questions that rollouts ask of it.

Every query names its tenant. Functions take a session and never commit.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session

from modelfleet.registry import audit
from modelfleet.registry.errors import ConflictError, NotFoundError
from modelfleet.registry.tables import Device, Group, Variant, Version
from modelfleet.signer.desired import Release

BUILDING = "BUILDING"
READY = "READY"
FAILED = "FAILED"


def versions(session: Session, tenant: str, *, model: str | None = None) -> Sequence[Version]:
    """Return the tenant's versions, the newest first."""
    query = select(Version).where(Version.tenant == tenant)
    if model is not None:
        query = query.where(Version.model == model)
    return session.scalars(query.order_by(Version.id.desc())).all()


def find_version(session: Session, tenant: str, model: str, version: str) -> Version | None:
    """Return the version, or None where there is none."""
    query = select(Version).where(Version.tenant == tenant, Version.model == model, Version.version == version)
    return session.scalars(query).one_or_none()


def version_of(session: Session, tenant: str, model: str, version: str) -> Version:
    """Return the version (NotFoundError: there is none)."""
    found = find_version(session, tenant, model, version)
    if found is None:
        raise NotFoundError(f"no version {model}@{version}: see `modelfleet versions`")
    return found


def variants(
    session: Session,
    tenant: str,
    *,
    model: str | None = None,
    version: str | None = None,
    profile: str | None = None,
) -> Sequence[Variant]:
    """Return the tenant's variants, the newest version first, by profile."""
    query = select(Variant).where(Variant.tenant == tenant)
    for column, wanted in ((Variant.model, model), (Variant.version, version), (Variant.profile, profile)):
        if wanted is not None:
            query = query.where(column == wanted)
    return session.scalars(query.order_by(Variant.version_id.desc(), Variant.profile)).all()


def variant_of(session: Session, tenant: str, model: str, version: str, profile: str) -> Variant:
    """Return the READY variant.

    Raises:
        NotFoundError: there is none for this profile.
        ConflictError: it is still being built, or its build failed.
    """
    found = session.scalars(
        _variants_of(tenant, model).where(Variant.version == version, Variant.profile == profile)
    ).one_or_none()
    if found is None:
        raise NotFoundError(f"no variant of {model}@{version} for profile {profile}: see `modelfleet variants`")
    if found.state != READY:
        why = f": {found.error}" if found.error else ""
        raise ConflictError(f"expected a READY variant of {model}@{version} for {profile}, it is {found.state}{why}")
    return found


def release_of(session: Session, tenant: str, model: str, version: str, profile: str) -> Release:
    """Return the release of a READY variant, without approvals (raises as `variant_of`)."""
    variant = variant_of(session, tenant, model, version, profile)
    assert variant.path is not None
    assert variant.manifest_sha256 is not None
    assert variant.manifest_length is not None
    return Release(
        model=variant.model,
        version=variant.version,
        counter=variant.counter,
        path=variant.path,
        sha256=variant.manifest_sha256,
        length=variant.manifest_length,
        approvals=(),
    )


def mark_released(
    session: Session,
    tenant: str,
    model: str,
    version: str,
    profile: str,
    now: datetime,
    *,
    actor: str = "system",
) -> None:
    """Make the variant the stable one of its model and profile, and record it; raises as `variant_of`."""
    variant = variant_of(session, tenant, model, version, profile)
    variant.released_at = now
    subject = f"variant/{model}@{version}/{profile}"
    audit.append(session, tenant=tenant, actor=actor, action="variant.release", subject=subject, detail={}, now=now)


def withdraw_released(
    session: Session, tenant: str, model: str, version: str, profile: str, now: datetime, *, actor: str = "system"
) -> None:
    """Have the variant no longer count as released, and record it; does nothing where it did not."""
    found = session.scalars(
        _variants_of(tenant, model).where(Variant.version == version, Variant.profile == profile)
    ).one_or_none()
    if found is None or found.released_at is None:
        return
    found.released_at = None
    subject = f"variant/{model}@{version}/{profile}"
    audit.append(session, tenant=tenant, actor=actor, action="variant.withdraw", subject=subject, detail={}, now=now)


def stable_variant(session: Session, tenant: str, model: str, profile: str) -> Variant | None:
    """Return the variant that was released last for this profile, or None: what gates compare with."""
    query = _variants_of(tenant, model).where(
        Variant.profile == profile, Variant.state == READY, Variant.released_at.is_not(None)
    )
    return session.scalars(query.order_by(Variant.released_at.desc()).limit(1)).one_or_none()


def unfinished_versions(session: Session, tenant: str) -> Sequence[int]:
    """Return the ids of versions that are still BUILDING, the oldest first."""
    query = select(Version.id).where(Version.tenant == tenant, Version.state == BUILDING)
    return session.scalars(query.order_by(Version.id)).all()


def devices(
    session: Session, tenant: str, *, limit: int, group: str | None = None, profile: str | None = None
) -> Sequence[Device]:
    """Return the tenant's devices that are not revoked, by group and id, at most `limit`."""
    query = select(Device).where(*_of_fleet(tenant, group, profile))
    return session.scalars(query.order_by(Device.group, Device.id).limit(limit)).all()


def device_page(
    session: Session,
    tenant: str,
    fields: Sequence[str],
    *,
    group: str | None = None,
    profile: str | None = None,
    after: str = "",
    limit: int = 100,
) -> list[dict[str, Any]]:
    """Return those attributes of at most `limit` of `devices` whose id comes after `after`, by id."""
    query = select(*(getattr(Device, field) for field in fields)).where(*_of_fleet(tenant, group, profile))
    page = query.where(Device.id > after).order_by(Device.id).limit(limit)
    return [dict(row) for row in session.execute(page).mappings()]


def _of_fleet(tenant: str, group: str | None, profile: str | None) -> list[ColumnElement[bool]]:
    wanted = [Device.tenant == tenant, Device.revoked_at.is_(None)]
    if group is not None:
        wanted.append(Device.group == group)
    if profile is not None:
        wanted.append(Device.profile == profile)
    return wanted


def enrolled_profiles(session: Session, tenant: str) -> list[str]:
    """Return the names of the profiles that enrolled devices have, sorted."""
    return profiles_in(session, tenant, [group.name for group in groups(session, tenant)])


def profiles_in(session: Session, tenant: str, names: Sequence[str]) -> list[str]:
    """Return the profiles that these groups' devices have, sorted: one step in the index for each, not one for each device."""
    return sorted({profile for name in names for profile in _profiles_of(session, tenant, name)})


def _profiles_of(session: Session, tenant: str, group: str) -> Iterator[str]:
    wanted = (Device.tenant == tenant) & (Device.group == group) & Device.revoked_at.is_(None)
    found = session.scalar(select(func.min(Device.profile)).where(wanted))
    while found is not None:
        yield found
        found = session.scalar(select(func.min(Device.profile)).where(wanted, Device.profile > found))


def groups(session: Session, tenant: str) -> Sequence[Group]:
    """Return the tenant's groups by name."""
    return session.scalars(select(Group).where(Group.tenant == tenant).order_by(Group.name)).all()


def require_group(session: Session, tenant: str, name: str) -> Group:
    """Return the group (NotFoundError: there is none)."""
    found = session.scalars(select(Group).where(Group.tenant == tenant, Group.name == name)).one_or_none()
    if found is None:
        raise NotFoundError(f"no group {name[:80]!r}: make it with `modelfleet groups create`")
    return found


def _variants_of(tenant: str, model: str) -> Select[Variant]:
    return select(Variant).where(Variant.tenant == tenant, Variant.model == model)
