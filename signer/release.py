"""What the signer checks again before it signs a variant, from statements alone: it reads no table of the registry.

The publisher vouches for the source, a gate key for the variant's files; both must speak of the same model, version and
source, and the release counter must grow. Pure: the state comes in as `counters`.
"""

from collections.abc import Mapping, Sequence

from modelfleet.signer.attestations import verify_gate, verify_source
from modelfleet.signer.errors import DigestError, GateFailedError, ReplayError, RevokedError, ScopeError, SignatureError
from modelfleet.signer.manifest import Manifest, parse_manifest
from modelfleet.signer.names import sha256_of
from modelfleet.signer.statements import GateStatement, Source, TrustPolicy

Counters = Mapping[str, Mapping[str, int]]
"""Model -> version -> release counter, of everything that the signer has signed so far."""


def check_release(
    manifest_bytes: bytes,
    source_envelope: bytes,
    gate_envelopes: Sequence[bytes],
    policy: TrustPolicy,
    counters: Counters,
) -> Manifest:
    """Return the manifest, which may be signed.

    Raises:
        FormatError, SignatureError: a statement is none, or by nobody whom the policy names.
        ScopeError: the three do not speak of the same tenant, model, version, profile or precision.
        DigestError: source, golden set or files differ between them. GateFailedError: a gate did not pass.
        ReplayError: the counter does not grow. RevokedError: revoked, or below the policy's minimum counter.
    """
    manifest = parse_manifest(manifest_bytes)
    if manifest.tenant != policy.tenant:
        raise ScopeError(f"expected a manifest of tenant {policy.tenant}, got one of {manifest.tenant}")
    source = verify_source(source_envelope, policy)
    _require_source(manifest, source)
    if not gate_envelopes:
        raise SignatureError("expected one gate attestation at least, got none")
    for envelope in gate_envelopes:
        _require_gate(manifest, source, verify_gate(envelope, policy))
    _require_counter(manifest, counters.get(manifest.model, {}))
    require_allowed(manifest, sha256_of(manifest_bytes), policy)
    return manifest


def _require_source(manifest: Manifest, source: Source) -> None:
    expected = (source.model, source.version, source.channel)
    found = (manifest.model, manifest.version, manifest.channel)
    if found != expected:
        raise ScopeError(f"expected what the publisher signed, {expected}, got a manifest of {found}")
    if manifest.source_sha256 != source.source_sha256:
        raise DigestError(f"source: expected {source.source_sha256[:12]}, got {manifest.source_sha256[:12]}")


def _require_gate(manifest: Manifest, source: Source, gate: GateStatement) -> None:
    said = gate.predicate
    expected = (manifest.model, manifest.version, manifest.profile, manifest.precision)
    found = (said.model, said.version, said.profile, said.precision)
    if found != expected:
        raise ScopeError(f"expected a gate attestation of {expected}, got one of {found}")
    if (said.source_sha256, said.golden_sha256) != (source.source_sha256, source.golden_sha256):
        raise DigestError("expected the gates to have run on the publisher's source and golden set, got others")
    files = {file.name: {"sha256": file.content_sha256} for file in manifest.files}
    subjects = {subject.name: subject.digest for subject in gate.subject}
    if subjects != files or len(gate.subject) != len(manifest.files):
        raise DigestError(f"expected the gates to name all {len(files)} files of the manifest, they name others")
    if not said.passed:
        raise GateFailedError(f"{manifest.model} {manifest.version} on {manifest.profile} did not pass its gates")


def _require_counter(manifest: Manifest, versions: Mapping[str, int]) -> None:
    known = versions.get(manifest.version)
    if known is not None and manifest.counter != known:
        raise ReplayError(f"expected the release counter {known} of {manifest.version}, got {manifest.counter}")
    highest = max(versions.values(), default=-1)
    if known is None and manifest.counter <= highest:
        raise ReplayError(f"{manifest.model}: expected a release counter > {highest}, got {manifest.counter}")


def require_allowed(manifest: Manifest, sha256: str, policy: TrustPolicy) -> None:
    """Refuse what the policy disowns (RevokedError: its digest, or every counter as low as its own)."""
    least = policy.minimum_counter.get(manifest.model, 0)
    if manifest.counter < least:
        raise RevokedError(f"{manifest.model}: expected a release counter >= {least}, got {manifest.counter}")
    if sha256 in policy.revoked:
        raise RevokedError(f"the trust policy revokes {sha256[:12]}")
