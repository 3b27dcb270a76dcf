"""Enrol: a claim token and a certificate request become a device.

The server makes the id; the device keeps its key. A token's uses are taken by compare-and-set, so that as many devices
enrol as it allows, however many ask at once. A request that comes again, because the answer was lost, is answered alike.
"""

import hashlib
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import CursorResult, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from modelfleet.hardware_profiles.errors import FactsError
from modelfleet.hardware_profiles.facts import DeviceFacts, parse_facts
from modelfleet.policies.compatibility import require_compatible
from modelfleet.registry import audit, catalog
from modelfleet.registry.auth import token_sha256
from modelfleet.registry.context import Registry
from modelfleet.registry.errors import BadInputError, ClaimTokenError, ConflictError, CsrError
from modelfleet.registry.tables import ClaimToken, Device
from modelfleet.signer.errors import FormatError
from modelfleet.signer.keys import public_key_of_pem

MAX_CSR_BYTES = 8 * 1024


@dataclass(frozen=True, kw_only=True)
class Enrolment:
    """What a device asks: `csr` is PEM, `facts` what it detected about itself, `agent` its agent's version.

    `encryption_key` is the public PEM of its second key; an agent that opens no confidential version has none.
    """

    token: str
    csr: str
    profile: str
    facts: Mapping[str, Any]
    agent: str
    encryption_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """What it is answered: who it is, where it belongs, and the root that it trusts from now on."""

    device: str
    tenant: str
    group: str
    profile: str
    root: str
    server: str
    mqtt: str


@dataclass(frozen=True, kw_only=True)
class DeviceKey:
    """A P-256 public key: its PEM, and the SHA-256 of its DER."""

    pem: str
    sha256: str


def enroll(registry: Registry, asked: Enrolment, now: datetime) -> Enrolled:
    """Make the asking device one of the fleet; the same key with the same token is the same device again.

    Raises:
        ClaimTokenError: unknown, used up or expired. CsrError: no P-256 request signed by its own key.
        BadInputError: unknown profile, or facts that are none. IncompatibleError: the device is not of the profile.
        ConflictError: the key is enrolled already, by another token.
    """
    key = parse_csr(asked.csr)
    _require_encryption_key(asked.encryption_key)
    _require_profile(registry, asked)
    device = _enrolled(registry, asked, key, now)
    for changed in registry.on_device_changed:  # also for a repeated request: the first may have ended before this
        changed(device.id)
    return Enrolled(
        device=device.id,
        tenant=device.tenant,
        group=device.group,
        profile=device.profile,
        root=newest_root(registry),
        server=registry.public_url,
        mqtt=registry.mqtt_url,
    )


def parse_csr(pem: str) -> DeviceKey:
    """Return the key of a PKCS#10 request.

    Raises:
        CsrError: not PEM, another kind of key than P-256, or not signed by that key.
    """
    try:
        data = pem.encode("ascii")
        if len(data) > MAX_CSR_BYTES:
            raise CsrError(f"csr: expected at most {MAX_CSR_BYTES} bytes, got {len(data)}")
        request = x509.load_pem_x509_csr(data)
        public = request.public_key()
        signed = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise CsrError(f"csr: expected a PKCS#10 request in PEM: {error}") from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise CsrError("csr: expected a key on the curve P-256, got another kind of key")
    if not signed:
        raise CsrError("csr: expected to be signed by its own key, it is not")
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    text = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    return DeviceKey(pem=text, sha256=hashlib.sha256(der).hexdigest())


def make_claim_token(
    session: Session, tenant: str, *, group: str, uses: int, hours: float, actor: str, now: datetime
) -> tuple[str, ClaimToken]:
    """Return a new claim token, shown this once, and its row (NotFoundError: no such group)."""
    catalog.require_group(session, tenant, group)
    token = "mfc_" + secrets.token_urlsafe(24)
    row = ClaimToken(
        sha256=token_sha256(token),
        tenant=tenant,
        group=group,
        uses_left=uses,
        expires_at=now + timedelta(hours=hours),
        created_by=actor,
    )
    session.add(row)
    detail = {"uses": uses, "expires_at": row.expires_at.isoformat(), "sha256": row.sha256}
    subject = f"group/{group}"
    audit.append(
        session, tenant=tenant, actor=actor, action="claim-token.create", subject=subject, detail=detail, now=now
    )
    return token, row


def newest_root(registry: Registry) -> str:
    """Return the text of the tenant's newest root metadata: what a new device starts to trust."""
    found = (registry.trust_dir / "metadata").glob("*.root.json")
    return max(found, key=lambda path: int(path.name.split(".")[0])).read_text()


def _require_encryption_key(pem: str | None) -> None:
    try:
        if pem is not None:
            public_key_of_pem(pem)
    except FormatError as error:
        raise BadInputError(f"encryption_key: {error}") from error


def _require_profile(registry: Registry, asked: Enrolment) -> None:
    profile = registry.profiles.get(asked.profile)
    if profile is None:
        known = ", ".join(sorted(registry.profiles))
        raise BadInputError(f"profile: unknown profile {asked.profile[:80]!r}; known are {known}")
    require_compatible(profile, _parse_facts(asked.facts))


def _parse_facts(facts: Mapping[str, Any]) -> DeviceFacts:
    try:
        return parse_facts(facts)
    except FactsError as error:
        raise BadInputError(str(error)) from error


def _enrolled(registry: Registry, asked: Enrolment, key: DeviceKey, now: datetime) -> Device:
    claim = token_sha256(asked.token)
    found = _known_device(registry, key, claim)
    if found is not None:
        return found
    try:
        return _new_device(registry, asked, key, claim, now)
    except IntegrityError:  # the same key came twice at once; the other request's transaction won
        found = _known_device(registry, key, claim)
        if found is None:
            raise
        return found


def _known_device(registry: Registry, key: DeviceKey, claim: str) -> Device | None:
    with registry.sessions() as session:
        found = session.scalars(select(Device).where(Device.key_sha256 == key.sha256)).one_or_none()
        if found is not None:
            session.expunge(found)
    if found is None:
        return None
    if (found.tenant, found.claim_sha256) != (registry.tenant, claim) or found.revoked_at is not None:
        raise ConflictError("this key is enrolled already: delete the agent's folder to enrol it as a new device")
    return found


def _new_device(registry: Registry, asked: Enrolment, key: DeviceKey, claim: str, now: datetime) -> Device:
    with registry.sessions.begin() as session:
        group = _take_use(session, registry.tenant, claim, now)
        device = Device(
            id=str(uuid.uuid4()),
            tenant=registry.tenant,
            group=group,
            profile=asked.profile,
            public_key=key.pem,
            key_sha256=key.sha256,
            claim_sha256=claim,
            encryption_key=asked.encryption_key,
            facts=_parse_facts(asked.facts).to_dict(),
            agent_version=asked.agent,
            enrolled_at=now,
        )
        session.add(device)
        _audit(session, device, now)
        session.flush()
        session.refresh(device)
        session.expunge(device)
    return device


def _take_use(session: Session, tenant: str, claim: str, now: datetime) -> str:
    usable = (ClaimToken.sha256 == claim, ClaimToken.tenant == tenant, ClaimToken.expires_at > now)
    taken = session.execute(
        update(ClaimToken)
        .where(*usable, ClaimToken.uses_left > 0)
        .values(uses_left=ClaimToken.uses_left - 1)
        .execution_options(synchronize_session=False)
    )
    assert isinstance(taken, CursorResult)
    if taken.rowcount != 1:
        raise ClaimTokenError("the claim token is unknown, used up or expired: ask for a new one")
    return session.scalars(select(ClaimToken.group).where(ClaimToken.sha256 == claim)).one()


def _audit(session: Session, device: Device, now: datetime) -> None:
    audit.append(
        session,
        tenant=device.tenant,
        actor=f"device:{device.id}",
        action="device.enroll",
        subject=f"device/{device.id}",
        detail={"group": device.group, "profile": device.profile, "claim_sha256": device.claim_sha256},
        now=now,
    )
