"""Enrol: a claim token and a certificate request become a device with a certificate of the fleet's own CA.

The server makes the id; the device keeps its key. A request that comes again, because the answer was lost, is answered alike.
A device that has lost its certificate, or let it expire, enrols again with a new claim token and its old key: it is the same
device as before, in the group where it was.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from modelfleet.hardware_profiles.errors import FactsError
from modelfleet.hardware_profiles.facts import DeviceFacts, parse_facts
from modelfleet.policies.compatibility import require_compatible
from modelfleet.registry import audit
from modelfleet.registry.auth import token_sha256
from modelfleet.registry.certificates import DeviceKey, issue, parse_csr, valid
from modelfleet.registry.claims import require_serial, take_use
from modelfleet.registry.context import Registry
from modelfleet.registry.errors import BadInputError, ConflictError
from modelfleet.registry.tables import Device, DeviceCertificate
from modelfleet.signer.confidential import enrolment_challenge
from modelfleet.signer.errors import FormatError
from modelfleet.signer.keys import public_key_of_pem
from modelfleet.signer.metadata import root_files


@dataclass(frozen=True, kw_only=True)
class Enrolment:
    """What a device asks: `csr` is PEM, `facts` what it detected about itself, `agent` its agent's version.

    `encryption_key` is the public PEM of its second key; an agent that opens no confidential version has none. `serial` is what
    it says its serial number is.
    """

    token: str
    csr: str
    profile: str
    facts: Mapping[str, Any]
    agent: str
    encryption_key: str | None = None
    serial: str | None = None


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """What it is answered: who it is, where it belongs, and what it trusts from now on.

    `certificate` is the device's, `ca` the fleet CA's (PEM), by which it knows the broker; `root` is the TUF root.
    """

    device: str
    tenant: str
    group: str
    profile: str
    root: str
    server: str
    mqtt: str
    certificate: str
    ca: str


def enroll(registry: Registry, asked: Enrolment, now: datetime) -> Enrolled:
    """Make the asking device one of the fleet; the same key with the same token is the same device again.

    Raises:
        ClaimTokenError: unknown, used up, expired, revoked, or for other serial numbers.
        CsrError: no P-256 request signed by its own key.
        BadInputError: unknown profile, or facts that are none. IncompatibleError: the device is not of the profile.
        ConflictError: the key is a revoked device's, or was replaced; the serial number has enrolled with this token.
    """
    key = parse_csr(asked.csr)
    asked = replace(asked, serial=require_serial(asked.serial))
    _require_encryption_key(asked.encryption_key)
    _require_profile(registry, asked)
    device, certificate = _enrolled(registry, asked, key, now)
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
        certificate=certificate,
        ca=registry.ca.pem,
    )


def newest_root(registry: Registry) -> str:
    """Return the text of the tenant's newest root metadata: what a new device starts to trust."""
    found = root_files(registry.trust_dir / "metadata")
    return found[max(found)].read_text()


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


def _enrolled(registry: Registry, asked: Enrolment, key: DeviceKey, now: datetime) -> tuple[Device, str]:
    """Return the device and its certificate, whether it is new, asks again, or comes back."""
    claim = token_sha256(asked.token)
    try:
        return _one_device(registry, asked, key, claim, now)
    except IntegrityError:  # the same key or serial number came twice at once; the other request's transaction won
        return _one_device(registry, asked, key, claim, now)


def _one_device(registry: Registry, asked: Enrolment, key: DeviceKey, claim: str, now: datetime) -> tuple[Device, str]:
    with registry.sessions.begin() as session:
        known = _known_device(session, registry.tenant, key)
        certificate = _present_certificate(session, known, key, claim, now) if known is not None else None
        if known is not None and certificate is not None:
            device = known
        else:
            group = take_use(session, registry.tenant, claim, asked.serial, now)
            _require_first(session, claim, asked.serial, known)
            if known is not None:
                device = _come_back(session, known, asked, key, claim, now)
            else:
                device = _new_device(session, registry.tenant, asked, key, claim, group, now)
            certificate = issue(session, registry.ca, device, key, now).certificate
        session.flush()
        session.refresh(device)
        session.expunge(device)
    return device, certificate


def _known_device(session: Session, tenant: str, key: DeviceKey) -> Device | None:
    found = session.scalars(select(Device).where(Device.key_sha256 == key.sha256)).one_or_none()
    used = select(DeviceCertificate.device).where(DeviceCertificate.key_sha256 == key.sha256).limit(1)
    if found is None and session.scalars(used).first() is None:
        return None
    if found is None or found.tenant != tenant or found.revoked_at is not None:
        raise ConflictError(
            "this key is or was in use: a revoked device stays revoked; delete the agent's folder to enrol it as a new one"
        )
    return found


def _present_certificate(session: Session, device: Device, key: DeviceKey, claim: str, now: datetime) -> str | None:
    """Return what the device was answered when it came with this very token before; None: it has to enrol again."""
    if device.claim_sha256 != claim:
        return None
    mine = [row.certificate for row in valid(session, device.id, now) if row.key_sha256 == key.sha256]
    return mine[0] if mine else None


def _new_device(
    session: Session, tenant: str, asked: Enrolment, key: DeviceKey, claim: str, group: str, now: datetime
) -> Device:
    device = Device(
        id=str(uuid.uuid4()),
        tenant=tenant,
        group=group,
        profile=asked.profile,
        public_key=key.pem,
        key_sha256=key.sha256,
        claim_sha256=claim,
        serial=asked.serial,
        encryption_key=asked.encryption_key,
        facts=_parse_facts(asked.facts).to_dict(),
        agent_version=asked.agent,
        enrolled_at=now,
    )
    session.add(device)
    session.flush()
    _audit(session, device, "device.enroll", now)
    return device


def _require_first(session: Session, claim: str, serial: str | None, known: Device | None) -> None:
    if serial is not None and _came_before(session, claim, serial, known):
        raise ConflictError(f"serial number {serial!r} has enrolled with this claim token: ask for a new token")


def _came_before(session: Session, claim: str, serial: str, known: Device | None) -> bool:
    query = select(Device.id).where(Device.claim_sha256 == claim, Device.serial == serial)
    return any(device != (known.id if known is not None else "") for device in session.scalars(query))


def _come_back(session: Session, device: Device, asked: Enrolment, key: DeviceKey, claim: str, now: datetime) -> Device:
    """Take the device in again under a new token: it stays in its group, and keeps what it is."""
    _require_vouched(device, asked, key)
    device.claim_sha256, device.serial = claim, asked.serial
    device.agent_version = asked.agent
    device.encryption_key = asked.encryption_key or device.encryption_key
    _audit(session, device, "device.enroll-again", now)
    return device


def _require_vouched(device: Device, asked: Enrolment, key: DeviceKey) -> None:
    """Refuse an encryption key that the device's own key has not signed: a request can be recorded and sent again."""
    if asked.encryption_key is None or asked.encryption_key == device.encryption_key:
        return
    if key.challenge != enrolment_challenge(asked.token, asked.encryption_key):
        raise ConflictError(
            "encryption_key: expected the one that the device has, or one that its request names, got another:"
            " enrol again with an agent of this version"
        )


def _audit(session: Session, device: Device, action: str, now: datetime) -> None:
    detail = {
        "group": device.group,
        "profile": device.profile,
        "claim_sha256": device.claim_sha256,
        "serial": device.serial,
    }
    subject = f"device/{device.id}"
    audit.append(
        session,
        tenant=device.tenant,
        actor=f"device:{device.id}",
        action=action,
        subject=subject,
        detail=detail,
        now=now,
    )
