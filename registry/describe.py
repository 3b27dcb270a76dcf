"""What a version asks of the converter, and the manifest of what came out of it. Pure: data in, data out."""

from collections.abc import Sequence
from pathlib import Path

from modelfleet.converters.build import AskedLimits, BuildRequest, BuildResult
from modelfleet.hardware_profiles.profile import HardwareProfile
from modelfleet.policies.gates import Evidence, parse_evidence
from modelfleet.registry.card import Card
from modelfleet.registry.tables import Variant
from modelfleet.signer.manifest import CONFIDENTIAL_FORMAT, PLAIN_FORMAT, Manifest, ManifestFile


def build_request(
    card: Card,
    profile: HardwareProfile,
    *,
    tenant: str,
    source: Path,
    golden: Path,
    gate_key_uri: str,
    baseline: Evidence | None,
) -> BuildRequest:
    """Return the request to build the card's version, from local copies, for one profile."""
    limits = card.limits
    return BuildRequest(
        tenant=tenant,
        model=card.name,
        version=card.version,
        profile=profile,
        source=source,
        golden=golden,
        gate_key_uri=gate_key_uri,
        limits=AskedLimits(latency_ms=limits.latency_ms, accuracy=limits.accuracy, memory_bytes=limits.memory_bytes),
        baseline=baseline,
    )


def manifest_of(
    card: Card,
    result: BuildResult,
    files: Sequence[ManifestFile],
    *,
    tenant: str,
    profile: str,
    counter: int,
    source_sha256: str,
) -> Manifest:
    """Return the manifest of a built variant: what the signer checks, and devices verify everything against.

    Args:
        files: as they lie in the store: those of a confidential version are ciphertext.
    """
    return Manifest(
        format=CONFIDENTIAL_FORMAT if card.confidential else PLAIN_FORMAT,
        tenant=tenant,
        model=card.name,
        version=card.version,
        channel=card.channel,
        profile=profile,
        runtime=result.runtime,
        precision=result.precision,
        counter=counter,
        source_sha256=source_sha256,
        files=tuple(files),
        entry=result.entry,
        golden=result.golden,
        inputs=result.inputs,
        outputs=result.outputs,
        limits=result.limits,
        tolerance=result.tolerance,
        parameters=card.parameters,
    )


def plain_files(result: BuildResult) -> tuple[ManifestFile, ...]:
    """Return the files of a variant that is not confidential as its manifest names them."""
    return tuple(
        ManifestFile(name=file.name, sha256=file.sha256, length=file.length, role=file.role) for file in result.files
    )


def baseline_of(stable: Variant | None) -> Evidence | None:
    """Return the evidence that a candidate is compared with: that of the stable variant, None where there is none."""
    if stable is None or stable.evidence is None:
        return None
    return parse_evidence(stable.evidence["gate"])
