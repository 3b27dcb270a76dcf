"""A detached CMS signature (RFC 5652) and a self-signed certificate for it, by any key that `keys.load_signer` opens.

swupdate verifies `sw-description` by CMS. The cryptography library signs CMS and certificates only with a private key in memory,
and ours may lie on a token: so the structures are written here, and only the signature itself comes from the key. The form is
fixed: DER, one signer, ECDSA P-256 with SHA-256, signed attributes content type and message digest, no time (a device's clock may
lag), the certificate inside.
"""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from modelfleet.signer.errors import FormatError
from modelfleet.signer.keys import Signer, p256_of_pem

CERTIFICATE_YEARS: Final = 20
"""As long as a device may live: swupdate knows no way to a newer certificate but an update."""
_OID_SIGNED_DATA: Final = bytes.fromhex("2a864886f70d010702")
_OID_DATA: Final = bytes.fromhex("2a864886f70d010701")
_OID_CONTENT_TYPE: Final = bytes.fromhex("2a864886f70d010903")
_OID_MESSAGE_DIGEST: Final = bytes.fromhex("2a864886f70d010904")
_OID_SHA256: Final = bytes.fromhex("608648016503040201")
_OID_ECDSA_SHA256: Final = bytes.fromhex("2a8648ce3d040302")
_INTEGER, _BIT_STRING, _OCTETS, _OID, _SEQUENCE, _SET = 0x02, 0x03, 0x04, 0x06, 0x30, 0x31
_CONTEXT_0 = 0xA0


def sign_detached(content: bytes, signer: Signer, certificate: bytes) -> bytes:
    """Return the DER of a CMS SignedData over `content`, which is not in it.

    Args:
        certificate: the signer's own, PEM or DER (FormatError: another key's).
    """
    issued = read_certificate(certificate)
    _require_same_key(issued, signer)
    digest = hashlib.sha256(content).digest()
    attributes = b"".join(
        (
            _attribute(_OID_CONTENT_TYPE, _der(_OID, _OID_DATA)),
            _attribute(_OID_MESSAGE_DIGEST, _der(_OCTETS, digest)),
        )
    )
    # RFC 5652, 5.4: what is signed is the attributes as a SET, what travels is the same with an implicit tag.
    signature = _sign(signer, _der(_SET, attributes))
    identity = _der(_SEQUENCE, issued.issuer.public_bytes() + _integer(issued.serial_number))
    info = b"".join(
        (
            _integer(1),
            identity,
            _algorithm(_OID_SHA256),
            _der(_CONTEXT_0, attributes),
            _algorithm(_OID_ECDSA_SHA256),
            _der(_OCTETS, signature),
        )
    )
    signed_data = b"".join(
        (
            _integer(1),
            _der(_SET, _algorithm(_OID_SHA256)),
            _der(_SEQUENCE, _der(_OID, _OID_DATA)),
            _der(_CONTEXT_0, issued.public_bytes(Encoding.DER)),
            _der(_SET, _der(_SEQUENCE, info)),
        )
    )
    return _der(_SEQUENCE, _der(_OID, _OID_SIGNED_DATA) + _der(_CONTEXT_0, _der(_SEQUENCE, signed_data)))


def self_signed(signer: Signer, name: str, now: datetime) -> bytes:
    """Return a certificate (PEM) of the signer's key by that key itself, for the purposes that swupdate asks for."""
    public = p256_of_pem(str(signer.public_key.keyval["public"]))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,  # it is its own issuer, and OpenSSL wants that of an issuer
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    purposes = [ExtendedKeyUsageOID.EMAIL_PROTECTION, ExtendedKeyUsageOID.CODE_SIGNING]
    start = now.astimezone(UTC).replace(microsecond=0)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - timedelta(days=1))
        .not_valid_after(start + timedelta(days=365 * CERTIFICATE_YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    # The body does not depend on who signs it, only on the algorithm: a passing key has it written, ours signs it.
    body = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).tbs_certificate_bytes
    signature = _der(_BIT_STRING, b"\0" + _sign(signer, body))
    der = _der(_SEQUENCE, body + _algorithm(_OID_ECDSA_SHA256) + signature)
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)


def read_certificate(data: bytes) -> x509.Certificate:
    """Return the certificate in PEM or DER (FormatError: there is none)."""
    try:
        pem = data.lstrip().startswith(b"-----BEGIN")
        return x509.load_pem_x509_certificate(data) if pem else x509.load_der_x509_certificate(data)
    except ValueError as error:
        raise FormatError(f"expected an X.509 certificate, PEM or DER: {error}") from error


def _require_same_key(certificate: x509.Certificate, signer: Signer) -> None:
    own = p256_of_pem(str(signer.public_key.keyval["public"]))
    if certificate.public_key() != own:
        raise FormatError("expected the certificate of the key that signs, got another key's")


def _sign(signer: Signer, data: bytes) -> bytes:
    return bytes.fromhex(signer.sign(data).signature)


def _attribute(kind: bytes, value: bytes) -> bytes:
    return _der(_SEQUENCE, _der(_OID, kind) + _der(_SET, value))


def _algorithm(oid: bytes) -> bytes:
    # RFC 5754 and 5758: SHA-256 and ECDSA have no parameters.
    return _der(_SEQUENCE, _der(_OID, oid))


def _integer(value: int) -> bytes:
    return _der(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _der(tag: int, value: bytes) -> bytes:
    length = len(value)
    if length < 0x80:
        return bytes((tag, length)) + value
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(size))) + size + value
