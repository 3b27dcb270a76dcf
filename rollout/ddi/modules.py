"""What a release is delivered as: one `.swu` for swupdate, or the variant's files as they are. Made once, kept by digest.

The signer describes and signs the container; here its members are only put one after the other. sha1 and md5 are what DDI's
clients check a download by: they say that nothing was lost on the way, not who made it.
"""

import hashlib
import io
import tempfile
import threading
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from modelfleet.registry import audit
from modelfleet.registry.context import Registry
from modelfleet.registry.errors import ConflictError, NotFoundError, RegistryError
from modelfleet.registry.tables import Variant, Version
from modelfleet.rollout.ddi.container import CHUNK_BYTES, Member, write_archive
from modelfleet.rollout.ddi.devices import SWU
from modelfleet.rollout.ddi.tables import DdiModule
from modelfleet.signer.desired import Release
from modelfleet.signer.errors import SignerError
from modelfleet.signer.manifest import Manifest, parse_manifest
from modelfleet.signer.swu import (
    DESCRIPTION_NAME,
    MANIFEST_NAME,
    SCRIPT_NAME,
    SIGNATURE_NAME,
    archived_name,
)
from modelfleet.signer.wire import SwuReply

REFUSED_FOR = timedelta(minutes=1)
"""What could not be made is tried again after this long, however many devices ask for it meanwhile."""
_making = threading.Lock()
"""One container at a time: as many devices as poll at once wait for the one that they all need."""
_refused: dict[tuple[str, str, str, str], tuple[datetime, Exception]] = {}
"""(tenant, manifest, slot, kind) -> when it could not be made, and why; only used with the lock held."""


def module_of(registry: Registry, release: Release, *, slot: str, kind: str, group: str, now: datetime) -> int:
    """Return the number of the module that delivers the release into the slot, made where there is none yet.

    Args:
        group: the group for which the release was approved.

    Raises:
        NotFoundError, ConflictError: a part of the release is not in the store.
        UntrustedError, PlanError, SignerUnavailableError: the signer signs no container of it, or did not answer.
    """
    with registry.sessions() as session:
        known = _find(session, registry.tenant, release.sha256, slot, kind)
    if known is not None:
        return known
    with _making:
        with registry.sessions() as session:
            known = _find(session, registry.tenant, release.sha256, slot, kind)
            variant = None if known is not None else _variant(session, registry.tenant, release.sha256)
        if known is not None:
            return known
        assert variant is not None
        place = (registry.tenant, release.sha256, slot, kind)
        _require_not_refused(place, now)
        try:
            artifacts = _artifacts(registry, release, variant, slot=slot, kind=kind, group=group)
        except (RegistryError, SignerError) as error:
            _refused[place] = now, error
            raise
        return _keep(registry, release, artifacts, slot=slot, kind=kind, now=now)


def _require_not_refused(place: tuple[str, str, str, str], now: datetime) -> None:
    for known in [each for each, (since, _) in _refused.items() if now - since >= REFUSED_FOR]:
        del _refused[known]
    if place in _refused:
        raise _refused[place][1]


def _artifacts(
    registry: Registry, release: Release, variant: tuple[str, str], *, slot: str, kind: str, group: str
) -> list[dict[str, Any]]:
    data = _read(registry, release.sha256)
    manifest = parse_manifest(data)
    if manifest.confidential:
        raise ConflictError(f"{manifest.path} is confidential: a hawkBit client cannot open it")
    if kind == SWU:
        return [_container(registry, release, manifest, data, variant, slot=slot, group=group)]
    files = [(file.name, file.sha256) for file in manifest.files]
    return [_artifact(registry, name, sha256) for name, sha256 in [*files, (MANIFEST_NAME, release.sha256)]]


def _container(
    registry: Registry,
    release: Release,
    manifest: Manifest,
    data: bytes,
    variant: tuple[str, str],
    *,
    slot: str,
    group: str,
) -> dict[str, Any]:
    statement, attestation = variant
    signed = registry.signer.swu(
        manifest=data,
        source_envelope=_read(registry, statement),
        gate_envelopes=[_read(registry, attestation)],
        policy_chain=registry.repository.policy_chain(),
        slot=slot,
        group=group,
        approvals=[_read(registry, sha256) for sha256 in release.approvals],
    )
    with tempfile.TemporaryFile(dir=registry.work_dir) as made:
        write_archive(made, _members(registry, manifest, data, signed))  # pyright: ignore[reportArgumentType]
        made.seek(0)
        sha256 = registry.store.put(made)  # pyright: ignore[reportArgumentType]
    name = f"{manifest.model.replace('/', '-')}-{manifest.version}-{manifest.profile}.swu"
    return _artifact(registry, name, sha256)


def _members(registry: Registry, manifest: Manifest, data: bytes, signed: SwuReply) -> Iterator[Member]:
    yield _small(DESCRIPTION_NAME, signed.description)
    yield _small(SIGNATURE_NAME, signed.signature)
    for index, file in enumerate(manifest.files):
        name = archived_name(index, file.name)
        yield Member(name=name, length=file.length, open=partial(registry.store.open, file.sha256))
    yield _small(MANIFEST_NAME, data)
    yield _small(SCRIPT_NAME, signed.script)


def _small(name: str, data: bytes) -> Member:
    return Member(name=name, length=len(data), open=partial(io.BytesIO, data))


def _artifact(registry: Registry, name: str, sha256: str) -> dict[str, Any]:
    sha1, md5, size = hashlib.sha1(usedforsecurity=False), hashlib.md5(usedforsecurity=False), 0
    with registry.store.open(sha256) as file:
        while chunk := file.read(CHUNK_BYTES):
            sha1.update(chunk)
            md5.update(chunk)
            size += len(chunk)
    return {"filename": name, "size": size, "sha256": sha256, "sha1": sha1.hexdigest(), "md5": md5.hexdigest()}


def _keep(
    registry: Registry, release: Release, artifacts: Sequence[dict[str, Any]], *, slot: str, kind: str, now: datetime
) -> int:
    row = DdiModule(
        tenant=registry.tenant, slot=slot, digest=release.sha256, kind=kind, artifacts=list(artifacts), made_at=now
    )
    try:
        with registry.sessions.begin() as session:
            session.add(row)
            session.flush()
            number = row.id
            audit.append(
                session,
                tenant=registry.tenant,
                actor="system:controller",
                action="ddi-module.make",
                subject=f"variant/{release.model}@{release.version}",
                detail={"slot": slot, "kind": kind, "manifest_sha256": release.sha256, "artifacts": list(artifacts)},
                now=now,
            )
    except IntegrityError:  # another process made it meanwhile
        with registry.sessions() as session:
            found = _find(session, registry.tenant, release.sha256, slot, kind)
        assert found is not None
        return found
    return number


def _find(session: Session, tenant: str, digest: str, slot: str, kind: str) -> int | None:
    query = select(DdiModule.id).where(
        DdiModule.tenant == tenant, DdiModule.digest == digest, DdiModule.slot == slot, DdiModule.kind == kind
    )
    return session.scalar(query)


def _variant(session: Session, tenant: str, digest: str) -> tuple[str, str]:
    """Return the digests of the publisher's statement and the gate's attestation."""
    query = (
        select(Version.statement_sha256, Variant.attestation_sha256)
        .join(Variant, Variant.version_id == Version.id)
        .where(Variant.tenant == tenant, Variant.manifest_sha256 == digest)
    )
    found = session.execute(query.limit(1)).one_or_none()
    statement, attestation = (None, None) if found is None else (found[0], found[1])
    if statement is None or attestation is None:
        raise NotFoundError(f"no variant has the manifest {digest[:12]}")
    return statement, attestation


def _read(registry: Registry, sha256: str) -> bytes:
    with registry.store.open(sha256) as blob:
        return blob.read()
