"""A variant that is to be built: the job as it is read once, and its row changed by compare-and-set with an audit record."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import CursorResult, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from modelfleet.converters.build import Progress
from modelfleet.policies.gates import Evidence
from modelfleet.registry import audit, catalog
from modelfleet.registry.card import Card
from modelfleet.registry.confidential import Owner
from modelfleet.registry.context import Registry
from modelfleet.registry.describe import baseline_of
from modelfleet.registry.errors import CancelledError, NotFoundError
from modelfleet.registry.tables import Variant, Version

SYSTEM = "system"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One variant to build, read once: what follows needs no session."""

    variant_id: int
    version_id: int
    model: str
    version: str
    channel: str
    profile: str
    counter: int
    card: Card
    source_sha256: str
    golden_sha256: str
    source_blob: str | None
    golden_blob: str | None
    statement_sha256: str
    manifest_sha256: str | None
    baseline: Evidence | None

    @property
    def owner(self) -> Owner:
        """The version that it is a variant of."""
        return Owner(model=self.model, version=self.version)

    @property
    def subject(self) -> str:
        """The variant's name in the audit trail."""
        return f"variant/{self.model}@{self.version}/{self.profile}"


def begin(registry: Registry, version_id: int, profile: str) -> Job | None:
    """Enter the variant where it is not there, and return its job; None where it is READY or FAILED."""
    try:
        with registry.sessions.begin() as session:
            version = version_by_id(session, version_id)
            variant = _find(session, version_id, profile)
            if variant is None:
                variant = _new_variant(version, profile)
                session.add(variant)
                session.flush()
                record(
                    session, registry, job_of(session, version, variant), "variant.begin", {"counter": version.counter}
                )
            return job_of(session, version, variant) if variant.state == catalog.BUILDING else None
    except IntegrityError:  # another worker began it between our reading and writing
        return begin(registry, version_id, profile)


def _find(session: Session, version_id: int, profile: str) -> Variant | None:
    query = select(Variant).where(Variant.version_id == version_id, Variant.profile == profile)
    return session.scalars(query).one_or_none()


def _new_variant(version: Version, profile: str) -> Variant:
    return Variant(
        version_id=version.id,
        tenant=version.tenant,
        model=version.model,
        version=version.version,
        profile=profile,
        state=catalog.BUILDING,
        counter=version.counter,
        created_at=datetime.now(UTC),
    )


def job_of(session: Session, version: Version, variant: Variant) -> Job:
    """Return what the build of this variant needs to know."""
    stable = catalog.stable_variant(session, version.tenant, version.model, variant.profile)
    return Job(
        variant_id=variant.id,
        version_id=version.id,
        model=version.model,
        version=version.version,
        channel=version.channel,
        profile=variant.profile,
        counter=version.counter,
        card=msgspec.convert(version.card, Card),
        source_sha256=version.source_sha256,
        golden_sha256=version.golden_sha256,
        source_blob=version.source_blob,
        golden_blob=version.golden_blob,
        statement_sha256=version.statement_sha256,
        manifest_sha256=variant.manifest_sha256,
        baseline=baseline_of(stable),
    )


def fail(registry: Registry, job: Job, error: Exception, *, actor: str = SYSTEM) -> bool:
    """Make the variant FAILED with the reason; whether it was still to be built."""
    reason = f"{type(error).__name__}: {error}"[:4000]
    with registry.sessions.begin() as session:
        if not change(session, Variant, job.variant_id, state=catalog.FAILED, error=reason, stage=None):
            return False
        record(session, registry, job, "variant.failed", {"error": reason}, actor=actor)
    return True


def note_stage(registry: Registry, job: Job, progress: Progress) -> None:
    """Tell how far the build is; one that was given up meanwhile ends here (CancelledError)."""
    with registry.sessions.begin() as session:
        going = change(session, Variant, job.variant_id, stage=f"{progress.step} {progress.precision}".strip())
    if not going:
        raise CancelledError("expected a variant that is to be built, it was given up or built elsewhere meanwhile")


def change(session: Session, table: type[Variant] | type[Version], row_id: int, *only: Any, **values: Any) -> bool:
    """Change a row that is still BUILDING (compare-and-set); whether it was."""
    done = session.execute(
        update(table)
        .where(table.id == row_id, table.state == catalog.BUILDING, *only)
        .values(**values)
        .execution_options(synchronize_session=False)
    )
    assert isinstance(done, CursorResult)
    return done.rowcount == 1


def record(
    session: Session, registry: Registry, job: Job, action: str, detail: Mapping[str, Any], *, actor: str = SYSTEM
) -> None:
    """Append what happened to the variant to the audit trail."""
    audit.append(
        session,
        tenant=registry.tenant,
        actor=actor,
        action=action,
        subject=job.subject,
        detail=detail,
        now=datetime.now(UTC),
    )


def version_by_id(session: Session, version_id: int) -> Version:
    """Return the version (NotFoundError: there is none)."""
    found = session.get(Version, version_id)
    if found is None:
        raise NotFoundError(f"no version with the id {version_id}")
    return found
