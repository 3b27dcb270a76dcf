"""Making a bundle: everything that devices without a network need to converge, signed for as long as was asked.

Whatever can be missing is looked for first. Then one transaction signs the documents, has their online twins signed one seq
above, and writes the audit record: who made it, for whom, until when, and the digest of the table of contents, which names
every file by its digest. Bytes of models are only named here, and streamed afterwards (`bundle_archive`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from modelfleet.policies.offline import MAX_DEVICES, require_devices, require_validity
from modelfleet.registry import audit, catalog
from modelfleet.registry.context import Registry
from modelfleet.registry.tables import Device
from modelfleet.rollout.bundles.contents import Contents, contents_of, ends_before, releases_for
from modelfleet.rollout.changes.direction import Direction
from modelfleet.rollout.desired.documents import OfflineDocuments, wanted_slots
from modelfleet.rollout.errors import RolloutConflictError, RolloutInputError
from modelfleet.signer.desired import Release
from modelfleet.signer.names import sha256_of
from modelfleet.signer.offline import (
    INDEX_NAME,
    Index,
    IndexedFile,
    assignment_name,
    blob_name,
    encode_index,
    group_document_name,
    metadata_name,
    padding,
    tar_header,
)

MAX_NAMED_IN_AUDIT = 200


@dataclass(frozen=True, kw_only=True)
class BundleRequest:
    """A bundle that is asked for: for some devices, or for all of a group."""

    devices: Sequence[str]
    group: str | None
    valid_for: timedelta


@dataclass(frozen=True, kw_only=True)
class PreparedBundle:
    """A bundle that is signed and recorded, ready to be streamed.

    Attributes:
        index: its table of contents; `data` are its bytes.
        small: name -> bytes of every file that is no blob of the store.
    """

    index: Index
    data: bytes
    small: Mapping[str, bytes]

    @property
    def sha256(self) -> str:
        """The digest of the table of contents: what the audit record names."""
        return sha256_of(self.data)

    @property
    def archive_length(self) -> int:
        """How many bytes the archive has."""
        lengths = [len(self.data), *(file.length for file in self.index.files)]
        return sum(len(tar_header(INDEX_NAME, 0)) + length + padding(length) for length in lengths) + 1024


def prepare(direction: Direction, request: BundleRequest, *, actor: str, now: datetime) -> PreparedBundle:
    """Sign and record a bundle, or nothing; the caller publishes the online documents that were signed anew.

    Raises:
        OfflineRefusedError: for too long, or for too many. RolloutInputError, NotFoundError: no such devices or group.
        RolloutConflictError: a file of a release is not in the store, or desired state changed meanwhile.
    """
    require_validity(request.valid_for)
    registry, desk = direction.registry, direction.desk()
    expires = now.replace(microsecond=0) + request.valid_for
    contents = contents_of(registry, _wanted(registry, request), actor=actor, now=now)
    with registry.sessions.begin() as session:
        devices = _devices(session, registry.tenant, request)
        documents = desk.sign_offline(session, devices, now, expires)
        _require_covered(documents, devices, contents)
        small = {**_signed(documents, devices), **_metadata(registry, contents, expires, now), **contents.small}
        index = Index(
            tenant=registry.tenant,
            made=now,
            expires=expires,
            notes=ends_before(expires, small, contents.approvals),
            devices=tuple(device.id for device in devices),
            files=_files(small, contents),
        )
        made = PreparedBundle(index=index, data=encode_index(index), small=small)
        _record(session, made, request, actor, now)
    return made


def _wanted(registry: Registry, request: BundleRequest) -> dict[str, tuple[Release, ...]]:
    """Return what each device may be asked to run now."""
    with registry.sessions() as session:
        devices = _devices(session, registry.tenant, request)
        places = sorted({(device.group, device.profile) for device in devices})
        slots = {place: wanted_slots(session, registry.tenant, *place) for place in places}
        return {device.id: releases_for(slots[device.group, device.profile], device.id) for device in devices}


def _require_covered(documents: OfflineDocuments, devices: Iterable[Device], contents: Contents) -> None:
    """Refuse where a rollout moved between looking and signing: the documents would name what the bundle lacks."""
    held = {release.sha256 for release in contents.releases}
    for device in devices:
        slots = documents.groups[device.group, device.profile].slots
        if not {release.sha256 for release in releases_for(slots, device.id)} <= held:
            raise RolloutConflictError("desired state changed while the bundle was made: make it again")


def _devices(session: Session, tenant: str, request: BundleRequest) -> Sequence[Device]:
    if (request.group is None) == (not request.devices):
        raise RolloutInputError("expected either devices or a group to make a bundle for")
    if request.group is not None:
        catalog.require_group(session, tenant, request.group)
        found = catalog.devices(session, tenant, group=request.group, limit=MAX_DEVICES + 1)
        if not found:
            raise RolloutInputError(f"group {request.group} has no devices: enrol them first")
    else:
        require_devices(len(request.devices))
        wanted = select(Device).where(
            Device.tenant == tenant, Device.revoked_at.is_(None), Device.id.in_(request.devices)
        )
        found = session.scalars(wanted.order_by(Device.id)).all()
        missing = sorted(set(request.devices) - {device.id for device in found})
        if missing:
            raise RolloutInputError(f"no such device, or it was revoked: {', '.join(missing[:5])}")
    require_devices(len(found))
    return found


def _signed(documents: OfflineDocuments, devices: Iterable[Device]) -> dict[str, bytes]:
    groups = {group_document_name(*place): data for place, data in documents.signed_groups.items()}
    return groups | {assignment_name(device.id): documents.assignments[device.id] for device in devices}


def _metadata(registry: Registry, contents: Contents, expires: datetime, now: datetime) -> dict[str, bytes]:
    files = registry.repository.offline_files(expires, now, [release.path for release in contents.releases])
    policy = registry.repository.policy_chain().policy
    named = {metadata_name(name): data for name, data in files.items()}
    return {**named, blob_name(sha256_of(policy)): policy}


def _files(small: Mapping[str, bytes], contents: Contents) -> tuple[IndexedFile, ...]:
    """Return all files, the big ones last."""
    listed = [IndexedFile(name=name, length=len(data), sha256=sha256_of(data)) for name, data in sorted(small.items())]
    stored = sorted(contents.blobs.items())
    return (*listed, *(IndexedFile(name=blob_name(sha), length=length, sha256=sha) for sha, length in stored))


def _record(session: Session, made: PreparedBundle, request: BundleRequest, actor: str, now: datetime) -> None:
    devices = made.index.devices
    audit.append(
        session,
        tenant=made.index.tenant,
        actor=actor,
        action="bundle.make",
        subject=f"bundle/{made.sha256}",
        detail={
            "group": request.group,
            "devices": list(devices[:MAX_NAMED_IN_AUDIT]),
            "device_count": len(devices),
            "expires": made.index.expires.isoformat(),
            "valid_for_seconds": int(request.valid_for.total_seconds()),
            "files": len(made.index.files),
            "notes": list(made.index.notes),
        },
        now=now,
    )
