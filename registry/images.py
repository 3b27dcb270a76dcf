"""Data images: the signer makes and signs their headers; the registry brings it what the release was signed with."""

from collections.abc import Sequence
from datetime import datetime

from modelfleet.registry import audit, catalog
from modelfleet.registry.context import Registry
from modelfleet.registry.errors import ConflictError
from modelfleet.registry.tables import Version
from modelfleet.signer.image import parse_header


def sign_image(
    registry: Registry,
    variant: tuple[str, str, str],
    *,
    group: str,
    approvals: Sequence[bytes],
    downgrade: bool,
    actor: str,
    now: datetime,
) -> bytes:
    """Return the signed header of a READY variant's data image; what follows it is the variant's `weights.bin`.

    Args:
        variant: model, version, profile.
        approvals: DSSE envelopes; the signer counts them.

    Raises:
        NotFoundError, ConflictError: there is no such variant, or it is not built. UntrustedError, PlanError: the signer refuses.
        SignerUnavailableError: it does not answer.
    """
    model, version, profile = variant
    with registry.sessions() as session:
        row = catalog.variant_of(session, registry.tenant, model, version, profile)
        published = session.get_one(Version, row.version_id)
        digests = (row.manifest_sha256, published.statement_sha256, row.attestation_sha256)
    manifest, statement, attestation = (_blob(registry, digest) for digest in digests)
    header = registry.signer.image(
        manifest=manifest,
        source_envelope=statement,
        gate_envelopes=[attestation],
        policy_chain=registry.repository.policy_chain(),
        group=group,
        approvals=approvals,
        downgrade=downgrade,
    )
    said = parse_header(header)
    detail = {
        "group": said.group,
        "serial": said.serial,
        "counter": said.counter,
        "replaces": said.replaces,
        "manifest_sha256": said.manifest_sha256,
    }
    with registry.sessions.begin() as session:
        audit.append(
            session,
            tenant=registry.tenant,
            actor=actor,
            action="image.sign",
            subject=f"variant/{model}@{version}/{profile}",
            detail=detail,
            now=now,
        )
    return header


def _blob(registry: Registry, sha256: str | None) -> bytes:
    if sha256 is None:
        raise ConflictError("expected a variant with its statements, it has none")
    with registry.store.open(sha256) as blob:
        return blob.read()
