"""The fleet's own certificate authority: one P-256 key and one certificate per tenant, for devices, brokers and the controller.

Upholds: a device's certificate names its id and can only be a client's; a server's can only be a server's; nothing that was
issued can issue. The key is a file (`<data>/ca/key.pem`), since certificates are signed by the cryptography library.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from modelfleet.registry.errors import FleetCaError
from modelfleet.signer.files import write_durably

CA_LIFE = timedelta(days=3650)
CERTIFICATE_LIFE = timedelta(days=90)
SERVER_LIFE = timedelta(days=397)
"""Longer than a device's: brokers' certificates are renewed by people."""

CRL_LIFE = timedelta(days=7)
BACKDATED = timedelta(minutes=5)
"""A certificate is valid from a little before it was made: clocks differ."""

KEY_FILE, CERTIFICATE_FILE = "key.pem", "certificate.pem"


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A certificate as it was issued: `serial` in hexadecimal, `pem` its text."""

    serial: str
    pem: str
    issued_at: datetime
    expires_at: datetime


@dataclass(frozen=True, kw_only=True)
class RevokedSerial:
    """One line of a revocation list; `reason` is one of RFC 5280's names, such as `key_compromise`."""

    serial: str
    revoked_at: datetime
    reason: str


class FleetCa:
    """Signs certificates and revocation lists of one tenant.

    Attributes:
        tenant: stands as O in every certificate.
        pem: the CA certificate: what devices and brokers trust.
        expires: when it ends.
    """

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate, self._key = certificate, key
        self.tenant = str(certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value)
        self.pem = certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")
        self.expires = certificate.not_valid_after_utc

    def client_certificate(self, name: str, key: ec.EllipticCurvePublicKey, now: datetime) -> Issued:
        """Return a certificate with which the holder of `key` connects as `name`: a device's id, or the controller's name."""
        return self._issue(name, key, now, ExtendedKeyUsageOID.CLIENT_AUTH, CERTIFICATE_LIFE, ())

    def server_certificate(self, names: Sequence[str], key: ec.EllipticCurvePublicKey, now: datetime) -> Issued:
        """Return a certificate for a server that is reached as `names`: host names and addresses."""
        return self._issue(names[0][:64], key, now, ExtendedKeyUsageOID.SERVER_AUTH, SERVER_LIFE, names)

    def revocation_list(self, revoked: Iterable[RevokedSerial], now: datetime) -> bytes:
        """Return the list (RFC 5280, PEM) of what is revoked and has not expired; it is valid for `CRL_LIFE`."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now - BACKDATED)
            .next_update(now + CRL_LIFE)
            .add_extension(x509.CRLNumber(int(now.timestamp() * 1000)), critical=False)
            .add_extension(self._authority(), critical=False)
        )
        for each in revoked:
            builder = builder.add_revoked_certificate(_revoked(each))
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _issue(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        now: datetime,
        usage: x509.ObjectIdentifier,
        life: timedelta,
        names: Sequence[str],
    ) -> Issued:
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(self.tenant, name))
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + life)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(self._authority(), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([_general(each) for each in names]), False)
        made = builder.sign(self._key, hashes.SHA256())
        return Issued(
            serial=f"{made.serial_number:x}",
            pem=made.public_bytes(serialization.Encoding.PEM).decode("ascii"),
            issued_at=now,
            expires_at=made.not_valid_after_utc,
        )

    def _authority(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())


def create_ca(folder: Path, tenant: str, now: datetime) -> FleetCa:
    """Make a tenant's CA in `folder` and return it; one that is there already is returned as it is.

    Raises:
        FleetCaError: there is a key of something else, or of another tenant.
    """
    if not (folder / CERTIFICATE_FILE).exists():
        key = load_or_make_key(folder / KEY_FILE)
        # After the key: a certificate is there only when both are.
        write_durably(folder / CERTIFICATE_FILE, _own_certificate(key, tenant, now), mode=0o600)
    ca = load_ca(folder)
    if ca.tenant != tenant:
        raise FleetCaError(f"{folder}: expected the CA of tenant {tenant!r}, found that of {ca.tenant!r}")
    return ca


def load_ca(folder: Path) -> FleetCa:
    """Return the CA in `folder`.

    Raises:
        FleetCaError: it is missing or damaged, or key and certificate do not belong together.
    """
    try:
        certificate = x509.load_pem_x509_certificate((folder / CERTIFICATE_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise FleetCaError(f"{folder}: expected the fleet CA's key.pem and certificate.pem: {error}") from error
    key = _load_key(folder / KEY_FILE)
    if key.public_key() != certificate.public_key():
        raise FleetCaError(f"{folder}: expected a P-256 key that belongs to certificate.pem, found another one")
    return FleetCa(certificate, key)


def load_or_make_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the P-256 key in the file, made (PKCS#8 PEM, mode 0600) where there is none.

    Raises:
        FleetCaError: something else lies there.
    """
    if not path.exists():
        made = ec.generate_private_key(ec.SECP256R1())
        write_durably(path, private_pem(made), mode=0o600)
        return made
    return _load_key(path)


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        found = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise FleetCaError(f"{path}: expected an unencrypted P-256 key in PEM: {error}") from error
    if not isinstance(found, ec.EllipticCurvePrivateKey) or not isinstance(found.curve, ec.SECP256R1):
        raise FleetCaError(f"{path}: expected a P-256 key, found another kind")
    return found


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the key as unencrypted PKCS#8 PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _own_certificate(key: ec.EllipticCurvePrivateKey, tenant: str, now: datetime) -> bytes:
    name = _name(tenant, f"modelfleet {tenant} fleet CA")
    public = key.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _name(tenant: str, common_name: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, tenant), x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _revoked(each: RevokedSerial) -> x509.RevokedCertificate:
    entry = x509.RevokedCertificateBuilder().serial_number(int(each.serial, 16)).revocation_date(each.revoked_at)
    reason = x509.ReasonFlags[each.reason]
    if reason is not x509.ReasonFlags.unspecified:  # RFC 5280, 5.3.1: left out in place of said
        entry = entry.add_extension(x509.CRLReason(reason), critical=False)
    return entry.build()
