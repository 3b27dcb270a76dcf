"""Device certificates in the database: issued, renewed, confirmed by use, revoked; and the list of the revoked.

A renewal may bring a new key. Until the device has used it, both keys are good, so that a crash on either side leaves the device
with a key that works; the first use of the new one ends the old one (`confirm`). A key is only ever replaced by a request that
the current key has signed (`auth.require_csr_claim`), so that a token that was overheard is worth no certificate.
"""

import functools
import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import AttributeOID
from sqlalchemy import ColumnElement, and_, bindparam, func, or_, select, update
from sqlalchemy.orm import Session, sessionmaker

from modelfleet.registry import audit
from modelfleet.registry.errors import ConflictError, CsrError, NotFoundError
from modelfleet.registry.fleet_ca import CRL_LIFE, FleetCa, RevokedSerial
from modelfleet.registry.revocation import SUPERSEDED
from modelfleet.registry.rows import bound, dialect_of, new_rows, only_checked, table_of
from modelfleet.registry.tables import Device, DeviceCertificate

MAX_CSR_BYTES = 8 * 1024
CRL_FRESH = timedelta(days=1)
SOONEST_RENEWAL = timedelta(minutes=1)


@dataclass(frozen=True, kw_only=True)
class DeviceKey:
    """A P-256 public key: its PEM, the SHA-256 of its DER, and itself; `challenge` is what its request says besides."""

    pem: str
    sha256: str
    public: ec.EllipticCurvePublicKey
    challenge: str = ""


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
        challenge = _challenge(request)
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature, x509.InvalidVersion) as error:
        raise CsrError(f"csr: expected a PKCS#10 request in PEM: {error}") from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise CsrError("csr: expected a key on the curve P-256, got another kind of key")
    if not signed:
        raise CsrError("csr: expected to be signed by its own key, it is not")
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    text = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    return DeviceKey(pem=text, sha256=hashlib.sha256(der).hexdigest(), public=public, challenge=challenge)


def _challenge(request: x509.CertificateSigningRequest) -> str:
    try:
        found = request.attributes.get_attribute_for_oid(AttributeOID.CHALLENGE_PASSWORD)
    except x509.AttributeNotFound:
        return ""
    return found.value.decode("ascii", "replace")


def issue(session: Session, ca: FleetCa, device: Device, key: DeviceKey, now: datetime) -> DeviceCertificate:
    """Add a certificate of the device for `key` to the transaction, with its audit record."""
    made = ca.client_certificate(device.id, key.public, now)
    row = DeviceCertificate(
        serial=made.serial,
        tenant=device.tenant,
        device=device.id,
        key_sha256=key.sha256,
        public_key=key.pem,
        certificate=made.pem,
        issued_at=now,
        expires_at=made.expires_at,
    )
    session.add(row)
    _audit(
        session,
        device,
        actor=f"device:{device.id}",
        action="certificate.issue",
        now=now,
        serial=row.serial,
        key_sha256=key.sha256,
        expires_at=row.expires_at.isoformat(),
    )
    return row


def renew(session: Session, ca: FleetCa, device_id: str, csr: str, now: datetime) -> DeviceCertificate:
    """Return a certificate for the request's key, the device's present one or a new one; the same request is answered alike.

    Raises:
        CsrError: no P-256 request signed by its own key.
        ConflictError: the key is another device's, or was this one's before; or the last renewal is under a minute ago.
    """
    key = parse_csr(csr)
    device = session.get_one(Device, device_id)
    mine = valid(session, device_id, now)
    newest = max(mine, key=lambda row: row.issued_at, default=None)
    if newest is not None and now - newest.issued_at < SOONEST_RENEWAL:
        if newest.key_sha256 == key.sha256:
            return newest
        raise ConflictError("the last certificate is under a minute old: try again in a minute")
    _require_free(session, device, key)
    waiting = [row for row in mine if row.key_sha256 not in (device.key_sha256, key.sha256)]
    for row in waiting:  # asked for and never used: the device has lost that key
        _revoke_row(row, SUPERSEDED, now)
    return issue(session, ca, device, key, now)


def valid(session: Session, device_id: str, now: datetime) -> list[DeviceCertificate]:
    """Return the device's certificates that are neither revoked nor expired, the newest first."""
    query = select(DeviceCertificate).where(
        DeviceCertificate.device == device_id,
        DeviceCertificate.revoked_at.is_(None),
        DeviceCertificate.expires_at > now,
    )
    return list(session.scalars(query.order_by(DeviceCertificate.issued_at.desc())))


def confirm(sessions: sessionmaker[Session], serial: str, now: datetime) -> None:
    """Take note that the device has used this certificate: its key is the device's from now on, and no other is."""
    with sessions.begin() as session:
        row = session.get_one(DeviceCertificate, serial)
        device = session.get_one(Device, row.device)
        if row.revoked_at is not None or row.key_sha256 == device.key_sha256:
            return
        before = device.key_sha256
        device.public_key, device.key_sha256 = row.public_key, row.key_sha256
        for other in valid(session, device.id, now):
            if other.key_sha256 != row.key_sha256:
                _revoke_row(other, SUPERSEDED, now)
        detail = {"serial": serial, "key_sha256": row.key_sha256, "replaces": before}
        _audit(session, device, actor=f"device:{device.id}", action="device.key-changed", now=now, **detail)


def revoke_device(session: Session, tenant: str, device_id: str, *, reason: str, actor: str, now: datetime) -> Device:
    """Refuse the device from now on, for good, with all its certificates; revoking it again changes nothing.

    Raises:
        NotFoundError: no such device in this tenant.
    """
    device = session.get(Device, device_id)
    if device is None or device.tenant != tenant:
        raise NotFoundError(f"no device {device_id[:80]!r}: `modelfleet devices` lists them")
    if device.revoked_at is not None:
        return device
    device.revoked_at = now
    session.execute(
        update(DeviceCertificate)
        .where(DeviceCertificate.device == device_id, DeviceCertificate.revoked_at.is_(None))
        .values(revoked_at=now, reason=reason)
        .execution_options(synchronize_session=False)
    )
    _audit(session, device, actor=actor, action="device.revoke", now=now, reason=reason)
    return device


def accepts(sessions: sessionmaker[Session], tenant: str, device_id: str, serial: str, now: datetime) -> bool:
    """Whether a certificate with this serial, shown in TLS, is one of the device's that is good now; its use is confirmed."""
    with sessions() as session:
        device = session.get(Device, device_id)
        if device is None or device.tenant != tenant or device.revoked_at is not None:
            return False
        found = [row for row in valid(session, device_id, now) if row.serial == serial]
        new_key = bool(found) and found[0].key_sha256 != device.key_sha256
    if new_key:
        confirm(sessions, serial, now)
    return bool(found)


def keys_of_reports(session: Session, devices: set[str], tenant: str) -> dict[str, list[str]]:
    """Return device id -> public keys (PEM), the present one first, by which a report may be signed.

    A report that waited while the key was replaced bears the old key's signature; it counts unless that key was revoked.
    """
    parameters = {**bound([{"id": device} for device in sorted(devices)]), "tenant_name": tenant}
    found: dict[str, list[str]] = {}
    for row in session.connection().execute(_keys(dialect_of(session)), parameters):
        keys = found.setdefault(row.id, [row.public_key])
        if row.further is not None and row.further not in keys:
            keys.append(row.further)
    return found


@functools.cache
def _keys(dialect: str) -> Any:
    """Return what finds (device, its present key, another one or null): a row for each other key, one at least."""
    rows: Any = new_rows(dialect, table_of(Device), ("id",))
    mine = (Device.tenant == bindparam("tenant_name")) & Device.revoked_at.is_(None)
    unrevoked = or_(DeviceCertificate.revoked_at.is_(None), DeviceCertificate.reason == SUPERSEDED)
    further = and_(DeviceCertificate.key_sha256 != Device.key_sha256, unrevoked)
    return (
        select(Device.id, Device.public_key, DeviceCertificate.public_key.label("further"))
        .outerjoin(DeviceCertificate, (DeviceCertificate.device == Device.id) & only_checked(further))
        .where(Device.id.in_(select(rows.c.id)), only_checked(mine))
    )


class RevocationList:
    """The tenant's list of revoked certificates: made anew when something was revoked, and daily.

    It is valid for a week, so a broker that fetches it hourly has six days to notice that it no longer can.
    """

    def __init__(self, ca: FleetCa, sessions: sessionmaker[Session]) -> None:
        self._ca, self._sessions = ca, sessions
        self._lock = threading.Lock()
        self._made: tuple[tuple[int, datetime | None], datetime, bytes] | None = None

    def pem(self, now: datetime) -> bytes:
        """Return the list as of `now`."""
        with self._lock, self._sessions() as session:
            state = self._state(session, now)
            if self._made is None or self._made[0] != state or not timedelta(0) <= now - self._made[1] < CRL_FRESH:
                self._made = (state, now, self._ca.revocation_list(self._revoked(session, now), now))
            return self._made[2]

    def _state(self, session: Session, now: datetime) -> tuple[int, datetime | None]:
        row = DeviceCertificate
        query = select(func.count(), func.max(row.revoked_at)).where(*self._listed(now))
        count, latest = session.execute(query).one()
        return count, latest

    def _revoked(self, session: Session, now: datetime) -> Sequence[RevokedSerial]:
        row = DeviceCertificate
        query = select(row.serial, row.revoked_at, row.reason).where(*self._listed(now)).order_by(row.serial)
        return [
            RevokedSerial(serial=found.serial, revoked_at=found.revoked_at, reason=found.reason or "unspecified")
            for found in session.execute(query)
        ]

    def _listed(self, now: datetime) -> tuple[ColumnElement[bool], ...]:
        row = DeviceCertificate
        # RFC 5280, 3.3: listed once more after it has expired.
        return row.tenant == self._ca.tenant, row.revoked_at.is_not(None), row.expires_at > now - CRL_LIFE


def _require_free(session: Session, device: Device, key: DeviceKey) -> None:
    elsewhere = select(Device.id).where(Device.key_sha256 == key.sha256, Device.id != device.id)
    used = select(DeviceCertificate.serial).where(
        DeviceCertificate.key_sha256 == key.sha256,
        or_(DeviceCertificate.device != device.id, DeviceCertificate.revoked_at.is_not(None)),
    )
    if session.scalars(elsewhere).first() is not None or session.scalars(used).first() is not None:
        raise ConflictError("csr: this key is or was in use: make a new one")


def _revoke_row(row: DeviceCertificate, reason: str, now: datetime) -> None:
    row.revoked_at, row.reason = now, reason


def _audit(session: Session, device: Device, *, actor: str, action: str, now: datetime, **detail: str) -> None:
    subject = f"device/{device.id}"
    audit.append(session, tenant=device.tenant, actor=actor, action=action, subject=subject, detail=detail, now=now)
