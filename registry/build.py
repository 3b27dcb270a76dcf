"""Build: one version, one profile, from stored bytes to a signed variant that devices can fetch.

Every step may run again after a crash: a variant that is READY or FAILED stays so; what was built is recorded before it is
signed, so that a second run signs the same manifest; blobs, signing and publishing are idempotent. A model that cannot be
converted or fails its gates makes the variant FAILED, and the other profiles go on; what may pass by itself (signer or
store away, no space) is raised, for the durable queue to try again.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import CursorResult, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from modelfleet.benchmarks.errors import GoldenSetError
from modelfleet.converters.build import Attestation, BuildRequest, BuildResult, run_build
from modelfleet.converters.errors import ConversionError, GateError, ScanError
from modelfleet.policies.gates import Evidence
from modelfleet.registry import audit, catalog
from modelfleet.registry.card import Card
from modelfleet.registry.confidential import Owner, SourcePart, fetch_source, keep_variant
from modelfleet.registry.context import Registry
from modelfleet.registry.describe import baseline_of, build_request, manifest_of, plain_files
from modelfleet.registry.errors import NotFoundError
from modelfleet.registry.publish import profiles_of
from modelfleet.registry.tables import Variant, Version
from modelfleet.signer.errors import UntrustedError
from modelfleet.signer.files import folder_lock
from modelfleet.signer.manifest import ManifestFile, encode_manifest
from modelfleet.signer.names import manifest_path, sha256_of
from modelfleet.signer.statements import GATE_PREDICATE_TYPE

REFUSALS = (ScanError, GoldenSetError, ConversionError, GateError, UntrustedError)
"""What makes a variant FAILED: trying again would end alike."""
_ACTOR = "system"


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


def variant_profiles(registry: Registry, version_id: int) -> list[str]:
    """Return the profiles that the version is built for, sorted (NotFoundError: no such version)."""
    with registry.sessions() as session:
        version = _version(session, version_id)
        card = msgspec.convert(version.card, Card)
        begun = session.scalars(select(Variant.profile).where(Variant.version_id == version_id)).all()
    return sorted({*begun, *profiles_of(registry, card.profiles)})


def build_variant(registry: Registry, version_id: int, profile: str) -> None:
    """Make the variant READY, or FAILED with the reason; does nothing where it is either already.

    Raises:
        SignerUnavailableError, StoreError: try again later; nothing that was done is lost.
    """
    job = _begin(registry, version_id, profile)
    if job is None:
        return
    try:
        digest = job.manifest_sha256 or _build(registry, job)
        _build_earlier(registry, job)
        _release(registry, job, digest)
    except REFUSALS as error:
        _fail(registry, job, error)


def finish_version(registry: Registry, version_id: int) -> None:
    """Make the version READY if one of its variants is, else FAILED; does nothing where it is either already."""
    now = datetime.now(UTC)
    with registry.sessions.begin() as session:
        version = _version(session, version_id)
        found = session.scalars(select(Variant).where(Variant.version_id == version_id)).all()
        states = {variant.profile: variant.state for variant in found}
        state = catalog.READY if catalog.READY in states.values() else catalog.FAILED
        if not _change(session, Version, version_id, state=state):
            return
        audit.append(
            session,
            tenant=version.tenant,
            actor=_ACTOR,
            action=f"version.{state.lower()}",
            subject=f"version/{version.model}@{version.version}",
            detail={"variants": states},
            now=now,
        )


def _begin(registry: Registry, version_id: int, profile: str) -> Job | None:
    try:
        with registry.sessions.begin() as session:
            version = _version(session, version_id)
            variant = _find(session, version_id, profile)
            if variant is None:
                variant = _new_variant(version, profile)
                session.add(variant)
                session.flush()
                _audit(
                    session, registry, _job(session, version, variant), "variant.begin", {"counter": version.counter}
                )
            return _job(session, version, variant) if variant.state == catalog.BUILDING else None
    except IntegrityError:  # another worker began it between our reading and writing
        return _begin(registry, version_id, profile)


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


def _job(session: Session, version: Version, variant: Variant) -> Job:
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


def _build(registry: Registry, job: Job) -> str:
    """Convert, prove and judge in a folder that is removed; store what came out, and record it (compare-and-set)."""
    registry.work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=registry.work_dir, prefix="build-") as name:
        folder = Path(name)
        source, golden = folder / "source.onnx", folder / "golden.npz"
        _fetch(registry, job, "source.onnx", source)
        _fetch(registry, job, "golden.npz", golden)
        result = run_build(
            _request(registry, job, source, golden),
            folder / "out",
            timeout_seconds=registry.build_limits.timeout_seconds,
            memory_bytes=registry.build_limits.memory_bytes,
        )
        files = _keep(registry, job, result)
    described = manifest_of(
        job.card,
        result,
        files,
        tenant=registry.tenant,
        profile=job.profile,
        counter=job.counter,
        source_sha256=job.source_sha256,
    )
    manifest = encode_manifest(described)
    registry.store.put(manifest)
    return _record_built(registry, job, result, files, manifest, registry.store.put(result.gate_envelope))


def _request(registry: Registry, job: Job, source: Path, golden: Path) -> BuildRequest:
    profile = registry.profiles.get(job.profile)
    if profile is None:
        raise ConversionError("", job.profile, "this profile is no longer there")
    return build_request(
        job.card,
        profile,
        tenant=registry.tenant,
        source=source,
        golden=golden,
        gate_key_uri=registry.gate_key_uri,
        baseline=job.baseline,
    )


def _fetch(registry: Registry, job: Job, part: SourcePart, target: Path) -> None:
    plain, sealed = (
        (job.source_sha256, job.source_blob) if part == "source.onnx" else (job.golden_sha256, job.golden_blob)
    )
    if sealed is not None:
        fetch_source(registry, job.owner, part, sealed, target)
        return
    with registry.store.open(plain) as blob, target.open("wb") as file:
        shutil.copyfileobj(blob, file)


def _keep(registry: Registry, job: Job, result: BuildResult) -> Sequence[ManifestFile]:
    """Store the variant's files, and return them as the manifest names them."""
    if job.card.confidential:
        _require_one_model_file(job, result)
        return keep_variant(registry, job.owner, job.profile, result.files)
    for file in result.files:
        with file.path.open("rb") as blob:
            registry.store.put(blob)
    return plain_files(result)


def _require_one_model_file(job: Job, result: BuildResult) -> None:
    """Refuse what a device could not open from memory: a runtime finds a second file by its name in a folder."""
    others = sorted({file.name for file in result.files} - {result.entry, result.golden})
    if others:
        raise ConversionError("", job.profile, f"a confidential variant has one model file, this has also {others}")


def _build_earlier(registry: Registry, job: Job) -> None:
    """Bring earlier versions of the model to their end first: the signer signs release counters in order only."""
    with registry.sessions() as session:
        earlier = session.scalars(
            select(Version.id)
            .where(Version.tenant == registry.tenant, Version.model == job.model)
            .where(Version.counter < job.counter, Version.state == catalog.BUILDING)
            .order_by(Version.counter)
        ).all()
    for version_id in earlier:
        for profile in variant_profiles(registry, version_id):
            build_variant(registry, version_id, profile)


def _release(registry: Registry, job: Job, manifest_sha256: str) -> None:
    with registry.sessions() as session:
        variant = session.get_one(Variant, job.variant_id)
        attestation, path = variant.attestation_sha256, variant.path
    assert attestation is not None
    assert path is not None
    manifest = _read(registry, manifest_sha256)
    now = datetime.now(UTC)
    with folder_lock(registry.work_dir / "releasing"):  # bins are published in the order in which they were signed
        signed = registry.signer.release(
            manifest=manifest,
            source_envelope=_read(registry, job.statement_sha256),
            gate_envelopes=[_read(registry, attestation)],
            policy_chain=registry.repository.policy_chain(),
        )
        registry.repository.publish(signed.bins, {path: manifest}, now)
    bundles = {
        "bundle_sha256": registry.store.put(signed.bundle),
        "entry_bundle_sha256": registry.store.put(signed.entry_bundle),
    }
    with registry.sessions.begin() as session:
        if _change(session, Variant, job.variant_id, state=catalog.READY, ready_at=now, **bundles):
            _audit(session, registry, job, "variant.ready", {"manifest_sha256": manifest_sha256, **bundles})


def _fail(registry: Registry, job: Job, error: Exception) -> None:
    reason = f"{type(error).__name__}: {error}"[:4000]
    with registry.sessions.begin() as session:
        if _change(session, Variant, job.variant_id, state=catalog.FAILED, error=reason):
            _audit(session, registry, job, "variant.failed", {"error": reason})


def _record_built(
    registry: Registry,
    job: Job,
    result: BuildResult,
    files: Sequence[ManifestFile],
    manifest: bytes,
    attestation_sha256: str,
) -> str:
    values: Mapping[str, Any] = {
        "precision": result.precision,
        "path": manifest_path(job.model, job.version, job.profile),
        "manifest_sha256": sha256_of(manifest),
        "manifest_length": len(manifest),
        "attestation_sha256": attestation_sha256,
        "files": [msgspec.to_builtins(file) for file in files],
        "size_bytes": sum(file.length for file in result.files if file.role != "golden"),
        "evidence": dict(result.evidence),
        "attestations": _keep_attestations(registry, result),
    }
    with registry.sessions.begin() as session:
        if _change(session, Variant, job.variant_id, Variant.manifest_sha256.is_(None), **values):
            told = ("precision", "manifest_sha256", "attestation_sha256", "attestations", "evidence")
            detail = {key: values[key] for key in told}
            _audit(session, registry, job, "variant.built", detail)
        recorded = session.get_one(Variant, job.variant_id, populate_existing=True).manifest_sha256
    assert recorded is not None  # ours, or that of a worker that was faster
    return recorded


def _keep_attestations(registry: Registry, result: BuildResult) -> list[dict[str, Any]]:
    """Store the worker's attestations, and return what the catalog says of them; the gate's own is the first."""
    gate = Attestation(name="gate", predicate_type=GATE_PREDICATE_TYPE, envelope=result.gate_envelope)
    return [
        {
            "name": each.name,
            "predicate_type": each.predicate_type,
            "sha256": registry.store.put(each.envelope),
            "length": len(each.envelope),
        }
        for each in (gate, *result.attestations)
    ]


def _change(session: Session, table: type[Variant] | type[Version], row_id: int, *only: Any, **values: Any) -> bool:
    """Change a row that is still BUILDING (compare-and-set); whether it was."""
    done = session.execute(
        update(table)
        .where(table.id == row_id, table.state == catalog.BUILDING, *only)
        .values(**values)
        .execution_options(synchronize_session=False)
    )
    assert isinstance(done, CursorResult)
    return done.rowcount == 1


def _audit(session: Session, registry: Registry, job: Job, action: str, detail: Mapping[str, Any]) -> None:
    audit.append(
        session,
        tenant=registry.tenant,
        actor=_ACTOR,
        action=action,
        subject=job.subject,
        detail=detail,
        now=datetime.now(UTC),
    )


def _read(registry: Registry, sha256: str) -> bytes:
    with registry.store.open(sha256) as blob:
        return blob.read()


def _version(session: Session, version_id: int) -> Version:
    found = session.get(Version, version_id)
    if found is None:
        raise NotFoundError(f"no version with the id {version_id}")
    return found
