"""A confidential variant's data key for one device: given only where desired state names that variant for that device.

The device is one that is enrolled and not revoked; the key is wrapped to its encryption key, and bound to the manifest. Every
key that goes out is in the audit trail, and so is every refusal.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NoReturn

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from modelfleet.registry import audit
from modelfleet.registry.auth import DeviceIdentity, current_device, registry_of
from modelfleet.registry.context import Registry
from modelfleet.registry.data_keys import data_key, variant_scope
from modelfleet.registry.errors import ConflictError, ForbiddenError, NotFoundError, RegistryError
from modelfleet.registry.tables import Device, Variant
from modelfleet.rollout.tables import DesiredDocument
from modelfleet.signer.confidential import wrap_key
from modelfleet.signer.desired import Assignment, GroupDocument, Slot, device_scope, group_scope, takes

router = APIRouter(prefix="/v1", tags=["device"])


@router.get("/device/keys/{manifest_sha256}")
def read_key(request: Request, manifest_sha256: str, device: DeviceIdentity = Depends(current_device)) -> Response:  # noqa: B008
    """Return the data key of a confidential variant, wrapped for the device that asks."""
    wrapped = wrapped_key(
        registry_of(request),
        device.device,
        manifest_sha256,
        actor=f"device:{device.device}",
        now=datetime.now(UTC),
    )
    return Response(wrapped, media_type="application/json", headers={"Cache-Control": "no-store"})


def wrapped_key(registry: Registry, device: str, manifest_sha256: str, *, actor: str, now: datetime) -> bytes:
    """Return the data key of the variant with that manifest, wrapped for the device; the trail says who asked.

    Args:
        actor: the device itself (`device:<id>`), or who takes the key to it in a bundle.

    Raises:
        ForbiddenError: the device's desired state does not name the manifest, or the device is revoked.
        ConflictError: the device has no encryption key. NotFoundError: no such device, or no confidential variant.
        KekError: the key-encryption key does not open.
    """
    with registry.sessions() as session:
        row = session.get(Device, device)
        if row is None or row.tenant != registry.tenant:
            raise NotFoundError(f"no device {device[:64]}")
        refused = _obstacle(session, row, manifest_sha256)
        public, variant = row.encryption_key, _variant(session, registry.tenant, manifest_sha256)
    if refused is not None:
        _refuse(registry, device, manifest_sha256, refused, actor=actor, now=now)
    if variant is None:
        raise NotFoundError(f"no variant has the manifest {manifest_sha256[:64]}")
    assert public is not None
    scope = variant_scope(variant.model, variant.version, variant.profile)
    key = data_key(registry, scope)
    wrapped = wrap_key(key, public, tenant=registry.tenant, device=device, manifest_sha256=manifest_sha256)
    _audit(registry, "device-key.send", scope, device, manifest_sha256, actor=actor, now=now)
    return wrapped


def named_manifests(group: GroupDocument | None, assignment: Assignment | None, device: str) -> frozenset[str]:
    """Return the manifest digests that a device's two documents name for it: pins, stables, candidates that it takes."""
    pins = {} if assignment is None else assignment.pins
    slots = {} if group is None else group.slots
    found = {release.sha256 for release in pins.values() if release is not None}
    for name, slot in slots.items():
        if name not in pins:
            found.update(_named(slot, device))
    return frozenset(found)


def _named(slot: Slot, device: str) -> Iterator[str]:
    if slot.stable is not None:
        yield slot.stable.sha256
    for candidate in slot.candidates:
        if takes(candidate, device):
            yield candidate.release.sha256


def _obstacle(session: Session, device: Device, manifest_sha256: str) -> RegistryError | None:
    if device.revoked_at is not None:
        return ForbiddenError(f"device {device.id} is revoked: it gets no key")
    group = _document(session, device.tenant, group_scope(device.group, device.profile))
    assignment = _document(session, device.tenant, device_scope(device.id))
    named = named_manifests(
        None if group is None else msgspec.json.decode(group, type=GroupDocument),
        None if assignment is None else msgspec.json.decode(assignment, type=Assignment),
        device.id,
    )
    if manifest_sha256 not in named:
        return ForbiddenError(f"the desired state of device {device.id} does not name the manifest that it asks for")
    if device.encryption_key is None:
        return ConflictError(f"device {device.id} has no encryption key: enrol it again with an agent of this version")
    return None


def _document(session: Session, tenant: str, scope: str) -> bytes | None:
    row = session.get(DesiredDocument, (tenant, scope))
    return None if row is None else row.payload


def _variant(session: Session, tenant: str, manifest_sha256: str) -> Variant | None:
    query = select(Variant).where(Variant.tenant == tenant, Variant.manifest_sha256 == manifest_sha256)
    return session.scalars(query.limit(1)).one_or_none()


def _refuse(
    registry: Registry, device: str, manifest_sha256: str, error: RegistryError, *, actor: str, now: datetime
) -> NoReturn:
    _audit(registry, "device-key.refuse", f"device/{device}", device, manifest_sha256, actor=actor, now=now)
    raise error


def _audit(
    registry: Registry, action: str, subject: str, device: str, manifest_sha256: str, *, actor: str, now: datetime
) -> None:
    detail = {"device": device, "manifest_sha256": manifest_sha256[:64]}
    with registry.sessions.begin() as session:
        audit.append(
            session, tenant=registry.tenant, actor=actor, action=action, subject=subject, detail=detail, now=now
        )
