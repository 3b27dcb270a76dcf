"""The device's key and certificate as they stand, and how they are renewed without ever being without a pair that works.

A renewal makes the new key first (`next-key.pem`), asks for its certificate with a token that the present key signs and that
names the request, keeps it (`next-certificate.pem`), shows the server a token by the new key, and only then replaces the
present pair. The server holds both keys good until that token. Whatever is cut off is finished at the next start (`_finish`), or
asked for again with the same new key.
"""

import hashlib
import logging
import ssl
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import AttributeOID, NameOID

from modelfleet.agent_client.errors import EnrolmentError, HttpStatusError, StorageError
from modelfleet.agent_client.http_answer import problem_detail
from modelfleet.agent_client.http_client import HttpClient
from modelfleet.agent_client.identity import (
    Identity,
    ca_path,
    certificate_path,
    device_token,
    key_path,
    make_key,
    read_key,
)
from modelfleet.agent_client.storage import Disk
from modelfleet.signer.desired import bucket_of
from modelfleet.signer.keys import Signer, load_signer
from modelfleet.signer.parse import parse_struct

RENEW_AFTER_SHARE = 2 / 3
SPREAD_SHARE = 0.05
"""A fleet that enrolled in one day renews over days: each device at a place of its own in this share of the life."""

FIRST_RETRY, LONGEST_RETRY = timedelta(minutes=1), timedelta(hours=6)
MAX_ANSWER_BYTES = 64 * 1024

log = logging.getLogger(__name__)

Text = Annotated[str, msgspec.Meta(max_length=16 * 1024)]


class Renewed(msgspec.Struct, frozen=True, kw_only=True):
    """The server's answer: a certificate for the key that was asked for, and the fleet CA's (PEM)."""

    certificate: Text
    ca: Text


class Credentials:
    """The key pair and certificate of an enrolled device, present and next.

    Args:
        on_renewed: called after the present pair was replaced, so that connections and signers follow.

    Raises:
        StorageError: a file is missing or damaged.
    """

    def __init__(
        self, root: Path, identity: Identity, disk: Disk, *, on_renewed: Callable[[], None] = lambda: None
    ) -> None:
        self._root, self._identity, self._disk = root, identity, disk
        self._on_renewed = on_renewed
        self._retry_at: datetime | None = None
        self._failures = 0
        self._context: ssl.SSLContext | None = None
        self._finish()
        self._load()

    @property
    def expires_at(self) -> datetime | None:
        """When the certificate expires; None where the device has none."""
        return self._certificate.not_valid_after_utc if self._certificate is not None else None

    def token(self) -> str:
        """Return a fresh token by the present key."""
        return device_token(self._identity.device, self._key)

    def signer(self) -> Signer:
        """Return what signs reports: the present key."""
        return load_signer(f"file:{key_path(self._root).absolute()}")

    def tls(self) -> ssl.SSLContext:
        """Return the context of the connection to the broker; it follows each renewal.

        Only the fleet's CA is believed, and the device shows its certificate.

        Raises:
            StorageError: the device has no certificate: it enrolled with a server that gave none.
        """
        if self._context is None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._context.minimum_version = ssl.TLSVersion.TLSv1_2
            try:
                self._context.load_verify_locations(ca_path(self._root))
            except (OSError, ssl.SSLError) as error:
                self._context = None
                raise StorageError(
                    f"{ca_path(self._root)}: expected the fleet CA's certificate, got {error}"
                ) from error
            self._show_certificate(self._context)
        return self._context

    def due(self, now: datetime) -> bool:
        """Whether to renew now: after two thirds of the life, and not too soon after a failure."""
        if self._certificate is None or (self._retry_at is not None and now < self._retry_at):
            return False
        begin, end = self._certificate.not_valid_before_utc, self._certificate.not_valid_after_utc
        place = bucket_of("renewal", self._identity.device) / 2**32
        return now >= begin + (end - begin) * (RENEW_AFTER_SHARE + SPREAD_SHARE * place)

    def renew(self, now: datetime) -> None:
        """Replace the present pair by a new one.

        Raises:
            TransferError: the server did not answer. EnrolmentError: it refused; the message says what to do.
        """
        self._failures += 1
        self._retry_at = now + min(LONGEST_RETRY, FIRST_RETRY * 2 ** min(self._failures - 1, 16))
        try:
            self._ask()
            self._confirm()
        except HttpStatusError as error:
            if error.status >= 500:
                raise
            raise EnrolmentError(f"the server refused a new certificate: {problem_detail(error)}") from error
        self._finish()
        self._load()
        self._failures, self._retry_at = 0, None
        log.info("device %s: certificate renewed until %s", self._identity.device, self.expires_at)
        self._on_renewed()

    def _ask(self) -> None:
        """Have a certificate for the next key, and keep it."""
        key = make_key(self._next_key, self._disk)
        csr = signing_request(key)
        token = device_token(self._identity.device, self._key, csr=hashlib.sha256(csr.encode()).hexdigest())
        client = HttpClient(token=lambda: token, server=self._identity.server)
        try:
            data = client.post_json(self._url, {"csr": csr}, max_bytes=MAX_ANSWER_BYTES)
        finally:
            client.close()
        answer = parse_struct(data, Renewed, max_bytes=MAX_ANSWER_BYTES)
        require_own(answer.certificate, key, self._identity.device, self._url)
        self._disk.write(ca_path(self._root), answer.ca.encode())
        self._disk.write(self._next_certificate, answer.certificate.encode())

    def _confirm(self) -> None:
        """Show the server a token by the next key: from here on it is the device's."""
        key = read_key(self._next_key)
        client = HttpClient(token=lambda: device_token(self._identity.device, key), server=self._identity.server)
        try:
            client.get(self._url, max_bytes=MAX_ANSWER_BYTES)
        except HttpStatusError as error:
            if error.status == 401:  # it does not know what it issued: its database went back in time
                self._disk.remove(self._next_certificate)
            raise
        finally:
            client.close()

    def _finish(self) -> None:
        """Put the next pair in the present one's place, if there is a whole one; every step may be repeated."""
        if self._next_certificate.exists() and self._next_key.exists():
            certificate = self._next_certificate.read_bytes()
            if parse_certificate(certificate.decode(), str(self._next_certificate)).public_key() == (
                read_key(self._next_key).public_key()
            ):
                self._disk.write(key_path(self._root), self._next_key.read_bytes(), mode=0o600)
                self._disk.write(certificate_path(self._root), certificate)
            self._disk.remove(self._next_certificate)
        if self._next_key.exists() and self._next_key.read_bytes() == key_path(self._root).read_bytes():
            self._disk.remove(self._next_key)

    def _load(self) -> None:
        self._key = read_key(key_path(self._root))
        path = certificate_path(self._root)
        self._certificate = parse_certificate(path.read_text(), str(path)) if path.exists() else None
        if self._context is not None:
            self._show_certificate(self._context)

    def _show_certificate(self, context: ssl.SSLContext) -> None:
        try:
            context.load_cert_chain(certificate_path(self._root), key_path(self._root))
        except (OSError, ssl.SSLError) as error:
            self._context = None
            raise StorageError(
                f"{certificate_path(self._root)}: expected the device's certificate, got {error};"
                " run `modelfleet-agent enroll --again`"
            ) from error

    @property
    def _url(self) -> str:
        return f"{self._identity.server.rstrip('/')}/v1/device/certificate"

    @property
    def _next_key(self) -> Path:
        return self._root / "next-key.pem"

    @property
    def _next_certificate(self) -> Path:
        return self._root / "next-certificate.pem"


def signing_request(key: ec.EllipticCurvePrivateKey, *, challenge: str = "") -> str:
    """Return a PKCS#10 request for the key, PEM; the name in it is the server's to give.

    Args:
        challenge: what the key signs besides (PKCS#9's challengePassword).
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "modelfleet device")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if challenge:
        builder = builder.add_attribute(AttributeOID.CHALLENGE_PASSWORD, challenge.encode())
    request = builder.sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode("ascii")


def parse_certificate(pem: str, source: str) -> x509.Certificate:
    """Return the certificate (StorageError: `source` holds none)."""
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except (ValueError, x509.InvalidVersion) as error:
        raise StorageError(f"{source}: expected a certificate in PEM, got {error}") from error


def require_own(pem: str, key: ec.EllipticCurvePrivateKey, device: str, source: str) -> None:
    """Return if the certificate is this device's, for this key of it.

    Raises:
        EnrolmentError: `source` gave somebody else's, or another key's. StorageError: it gave none.
    """
    found = parse_certificate(pem, source)
    if found.public_key() != key.public_key() or _common_name(found) != device:
        raise EnrolmentError(f"{source}: expected a certificate of this device's key, got another one")


def _common_name(certificate: x509.Certificate) -> str:
    """Return whose certificate it is: a device's id."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""
