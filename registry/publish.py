"""Publish: four uploaded files become one immutable version, or nothing at all.

Every check runs on the received files before the first blob is stored; the row comes last, in one transaction, and its
unique key decides between requests that arrive at the same time. The version number's place in SemVer order is not
judged: a lower one may follow a higher one in the same channel (a fix for an older line); the release counter, which is what
devices order by, grows with every publication.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO

import msgspec
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from modelfleet.registry import audit, catalog
from modelfleet.registry.card import Card, parse_card
from modelfleet.registry.confidential import Owner, keep_source
from modelfleet.registry.context import Registry
from modelfleet.registry.errors import PublishError, StoreError, VersionConflictError
from modelfleet.registry.source import check_source
from modelfleet.registry.tables import Version
from modelfleet.registry.upload import ReceivedFile, Upload
from modelfleet.registry.views import VersionView
from modelfleet.signer.attestations import verify_source
from modelfleet.signer.statements import Source

_ATTEMPTS = 8
"""How often a publication may lose its release counter to another one of the same model."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What publish answers; `created` is false where the same bytes were published before."""

    id: int
    version: VersionView
    created: bool


def publish(registry: Registry, upload: Upload, *, actor: str, now: datetime) -> Published:
    """Make the upload a version and have its variants built; the same bytes again are the same version.

    Raises:
        PublishError, ScanError, GoldenSetError: a file is not publishable. UntrustedError: the statement is not a
            publisher's, or speaks of other bytes. VersionConflictError: the version exists with other bytes.
        StoreFullError, StoreError: nothing was published; try again later.
    """
    card = parse_card(upload.card.path.read_bytes())
    source = verified_source(registry, upload.statement.path.read_bytes())
    require_agreement(source, _expected(registry, card, upload))
    found = _existing(registry, source)
    if found is None:
        _require_profiles(registry, card)
        check_source(upload.model.path, upload.golden.path, max_bytes=registry.upload_limits.model_bytes)
        found = _record(registry, card, source, _store(registry, card, upload), actor=actor, now=now)
    if found.version.state == catalog.BUILDING:
        registry.builds.enqueue(found.id)
    return found


def verified_source(registry: Registry, envelope: bytes) -> Source:
    """Return the publisher's statement (UntrustedError: not one by a key that the trust policy names as publisher)."""
    return verify_source(envelope, registry.repository.policy())


def require_agreement(source: Source, expected: Mapping[str, object]) -> None:
    """Refuse a statement that is about something else than what was uploaded (PublishError, every difference named)."""
    stated = msgspec.structs.asdict(source)
    faults = [
        f"{name}: expected {value}, the statement says {stated[name]}"
        for name, value in expected.items()
        if stated[name] != value
    ]
    if faults:
        raise PublishError(f"the statement is about something else than was uploaded: {'; '.join(faults)}", faults)


def _expected(registry: Registry, card: Card, upload: Upload) -> Mapping[str, object]:
    return {
        "tenant": registry.tenant,
        "model": card.name,
        "version": card.version,
        "channel": card.channel,
        "source_sha256": upload.model.sha256,
        "source_length": upload.model.length,
        "card_sha256": upload.card.sha256,
        "golden_sha256": upload.golden.sha256,
    }


def _existing(registry: Registry, source: Source) -> Published | None:
    with registry.sessions() as session:
        found = catalog.find_version(session, registry.tenant, source.model, source.version)
        return None if found is None else _same(found, source)


def _same(found: Version, source: Source) -> Published:
    faults = [
        f"{name}: published {getattr(found, name)}, got {getattr(source, name)}"
        for name in ("source_sha256", "card_sha256", "golden_sha256")
        if getattr(found, name) != getattr(source, name)
    ]
    if faults:
        raise VersionConflictError(
            f"{source.model}@{source.version} exists with other bytes ({'; '.join(faults)}): "
            "versions are immutable, publish under a new version number"
        )
    return Published(id=found.id, version=VersionView.model_validate(found), created=False)


def _require_profiles(registry: Registry, card: Card) -> None:
    unknown = [name for name in card.profiles if name not in registry.profiles]
    if unknown:
        known = ", ".join(sorted(registry.profiles))
        faults = [f"profiles: unknown profile {name}; known are {known}" for name in unknown]
        raise PublishError("; ".join(faults), faults)
    if not profiles_of(registry, card.profiles):
        raise PublishError(
            'no device is enrolled yet, so the card must name its profiles: profiles = ["linux-cpu-float"]'
        )


def profiles_of(registry: Registry, named: Sequence[str]) -> list[str]:
    """Return the profiles to build: those that the card names, else those of the enrolled devices."""
    if named:
        return sorted(set(named))
    with registry.sessions() as session:
        return [name for name in catalog.enrolled_profiles(session, registry.tenant) if name in registry.profiles]


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """Where a publication lies; source and golden set of one that is not confidential lie under their own digests."""

    statement_sha256: str
    source_blob: str | None = None
    golden_blob: str | None = None


def _store(registry: Registry, card: Card, upload: Upload) -> _Stored:
    if card.confidential:
        owner = Owner(model=card.name, version=card.version)
        source_blob = keep_source(registry, owner, "source.onnx", upload.model.path)
        golden_blob = keep_source(registry, owner, "golden.npz", upload.golden.path)
        _put(registry, upload.card)
        statement = _put(registry, upload.statement)
        return _Stored(statement_sha256=statement, source_blob=source_blob, golden_blob=golden_blob)
    # The longest file first: when space runs out, nothing was stored yet.
    for part in sorted((upload.model, upload.card, upload.golden), key=lambda part: -part.length):
        _put(registry, part)
    return _Stored(statement_sha256=_put(registry, upload.statement))


def _put(registry: Registry, part: ReceivedFile) -> str:
    with part.path.open("rb") as file:
        reader: BinaryIO = file
        stored = registry.store.put(reader)
    if stored != part.sha256:
        raise StoreError(f"expected to store {part.sha256}, stored {stored}: check the disk")
    return stored


def _record(registry: Registry, card: Card, source: Source, stored: _Stored, *, actor: str, now: datetime) -> Published:
    for _ in range(_ATTEMPTS):
        try:
            with registry.sessions.begin() as session:
                version = _new_version(session, card, source)
                version.statement_sha256, version.published_by, version.published_at = (
                    stored.statement_sha256,
                    actor,
                    now,
                )
                version.source_blob, version.golden_blob = stored.source_blob, stored.golden_blob
                session.add(version)
                _audit(session, version)
                session.flush()
                return Published(id=version.id, version=VersionView.model_validate(version), created=True)
        except IntegrityError:  # another publication came first: of this version, or one that took the counter
            found = _existing(registry, source)
            if found is not None:
                return found
    raise StoreError(f"{card.name} is being published too often at once: try again")


def _new_version(session: Session, card: Card, source: Source) -> Version:
    highest = select(func.max(Version.counter)).where(Version.tenant == source.tenant, Version.model == source.model)
    return Version(
        tenant=source.tenant,
        model=source.model,
        version=source.version,
        channel=source.channel,
        counter=(session.scalar(highest) or 0) + 1,
        state=catalog.BUILDING,
        card=msgspec.to_builtins(card),
        source_sha256=source.source_sha256,
        source_length=source.source_length,
        card_sha256=source.card_sha256,
        golden_sha256=source.golden_sha256,
    )


def _audit(session: Session, version: Version) -> None:
    audit.append(
        session,
        tenant=version.tenant,
        actor=version.published_by,
        action="version.publish",
        subject=f"version/{version.model}@{version.version}",
        detail={
            "channel": version.channel,
            "counter": version.counter,
            "source_sha256": version.source_sha256,
            "golden_sha256": version.golden_sha256,
            "statement_sha256": version.statement_sha256,
        },
        now=version.published_at,
    )
