"""Build: one version, one profile, from stored bytes to a signed variant that devices can fetch.

Two steps, on two machines where need be: `convert_variant` wants the right hardware and the gate key, `release_variant` the
signer process and the tenant's metadata.

Every step may run again after a crash: a variant that is READY or FAILED stays so; what was built is recorded before it is
signed, so that a second run signs the same manifest; blobs, signing and publishing are idempotent. A model that cannot be
converted or fails its gates makes the variant FAILED, and the other profiles go on; what may pass by itself (signer or
store away, no space) is raised, for the durable queue to try again.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from modelfleet.benchmarks.errors import GoldenSetError
from modelfleet.converters.build import Attestation, BuildRequest, BuildResult, run_build
from modelfleet.converters.errors import ConversionError, GateError, ScanError
from modelfleet.hardware_profiles.profile import ANY_MACHINE
from modelfleet.registry import audit, catalog
from modelfleet.registry.build_job import SYSTEM, Job, begin, change, fail, note_stage, record, version_by_id
from modelfleet.registry.card import Card
from modelfleet.registry.confidential import SourcePart, fetch_source, keep_variant
from modelfleet.registry.context import Registry
from modelfleet.registry.describe import build_request, manifest_of, plain_files
from modelfleet.registry.errors import CancelledError
from modelfleet.registry.publish import profiles_of
from modelfleet.registry.tables import Variant, Version
from modelfleet.signer.errors import UntrustedError
from modelfleet.signer.files import folder_lock
from modelfleet.signer.manifest import ManifestFile, encode_manifest
from modelfleet.signer.names import manifest_path, sha256_of
from modelfleet.signer.statements import GATE_PREDICATE_TYPE

REFUSALS = (ScanError, GoldenSetError, ConversionError, GateError, UntrustedError, CancelledError)
"""What makes a variant FAILED: trying again would end alike."""


def variant_profiles(registry: Registry, version_id: int) -> list[str]:
    """Return the profiles that the version is built for, sorted (NotFoundError: no such version)."""
    with registry.sessions() as session:
        version = version_by_id(session, version_id)
        card = msgspec.convert(version.card, Card)
        begun = session.scalars(select(Variant.profile).where(Variant.version_id == version_id)).all()
    return sorted({*begun, *profiles_of(registry, card.profiles)})


def variant_kinds(registry: Registry, version_id: int) -> list[tuple[str, str]]:
    """Return (profile, kind of worker that it is built on) of `variant_profiles`."""
    names = variant_profiles(registry, version_id)
    return [(name, registry.profiles[name].builds_on if name in registry.profiles else ANY_MACHINE) for name in names]


def build_variant(registry: Registry, version_id: int, profile: str) -> None:
    """Make the variant READY, or FAILED with the reason, and earlier versions of the model first; all of it on this machine.

    Raises:
        SignerUnavailableError, StoreError: try again later; nothing that was done is lost.
    """
    convert_variant(registry, version_id, profile)
    while earlier := release_variant(registry, version_id, profile):
        for each in variant_profiles(registry, earlier):
            build_variant(registry, earlier, each)
        finish_version(registry, earlier)


def convert_variant(registry: Registry, version_id: int, profile: str) -> None:
    """Have the variant's files built, proved and recorded, or make it FAILED with the reason; does nothing where it is done.

    Raises:
        StoreError: try again later; nothing that was done is lost.
    """
    job = begin(registry, version_id, profile)
    if job is None or job.manifest_sha256 is not None:
        return
    try:
        _build(registry, job)
    except REFUSALS as error:
        fail(registry, job, error)


def release_variant(registry: Registry, version_id: int, profile: str) -> int | None:
    """Make a converted variant READY, or FAILED with the reason; does nothing where it is either already.

    Returns:
        The id of an earlier version of the model that has to be released first, where there is one; else None. The signer
        signs the first variant of each version in the order of the release counters.

    Raises:
        SignerUnavailableError, StoreError: try again later; nothing that was done is lost.
    """
    job = begin(registry, version_id, profile)
    if job is None or job.manifest_sha256 is None:
        return None
    earlier = _earlier(registry, job)
    if earlier is None:
        try:
            _release(registry, job, job.manifest_sha256)
        except REFUSALS as error:
            fail(registry, job, error)
    return earlier


def give_up_variant(registry: Registry, version_id: int, profile: str, reason: str, actor: str) -> bool:
    """Make a variant that is still to be built FAILED; whether it was. A worker that is at it finds it so, and stops."""
    job = begin(registry, version_id, profile)
    return job is not None and fail(registry, job, CancelledError(reason), actor=actor)


def finish_version(registry: Registry, version_id: int) -> None:
    """Make the version READY if one of its variants is, else FAILED; does nothing where it is either already."""
    now = datetime.now(UTC)
    with registry.sessions.begin() as session:
        version = version_by_id(session, version_id)
        found = session.scalars(select(Variant).where(Variant.version_id == version_id)).all()
        states = {variant.profile: variant.state for variant in found}
        state = catalog.READY if catalog.READY in states.values() else catalog.FAILED
        if not change(session, Version, version_id, state=state):
            return
        audit.append(
            session,
            tenant=version.tenant,
            actor=SYSTEM,
            action=f"version.{state.lower()}",
            subject=f"version/{version.model}@{version.version}",
            detail={"variants": states},
            now=now,
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
            on_progress=lambda progress: note_stage(registry, job, progress),
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


def _earlier(registry: Registry, job: Job) -> int | None:
    with registry.sessions() as session:
        found = _before(session, registry.tenant, job.model, job.counter)
    return None if found is None else found.id


def earlier_version(registry: Registry, version_id: int) -> str | None:
    """Return `model@version` of the version that has to be released before this one, where there is one."""
    with registry.sessions() as session:
        version = version_by_id(session, version_id)
        found = _before(session, registry.tenant, version.model, version.counter)
    return None if found is None else f"{found.model}@{found.version}"


def _before(session: Session, tenant: str, model: str, counter: int) -> Version | None:
    """Return the first version below `counter` that is being built and has nothing released; None: this one may follow."""
    released = select(Variant.version_id).where(Variant.state == catalog.READY)
    return session.scalars(
        select(Version)
        .where(Version.tenant == tenant, Version.model == model)
        .where(Version.counter < counter, Version.state == catalog.BUILDING)
        .where(Version.id.not_in(released))
        .order_by(Version.counter)
        .limit(1)
    ).one_or_none()


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
        if change(session, Variant, job.variant_id, state=catalog.READY, ready_at=now, stage=None, **bundles):
            record(session, registry, job, "variant.ready", {"manifest_sha256": manifest_sha256, **bundles})


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
        if change(session, Variant, job.variant_id, Variant.manifest_sha256.is_(None), **values):
            told = ("precision", "manifest_sha256", "attestation_sha256", "attestations", "evidence")
            detail = {key: values[key] for key in told}
            record(session, registry, job, "variant.built", detail)
        recorded = session.get_one(Variant, job.variant_id, populate_existing=True).manifest_sha256
    if recorded is None:  # else it is ours, or that of a worker that was faster
        raise CancelledError("expected a variant that is to be built, it was given up meanwhile")
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


def _read(registry: Registry, sha256: str) -> bytes:
    with registry.store.open(sha256) as blob:
        return blob.read()
