"""Enrolment: a one-time claim token becomes an identity.

The key is written before the request, and `identity.json` last: after a crash anywhere in between, the same command
with the same key finishes the work (the server answers the same key and token with the same identity).
"""

from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from modelfleet.agent_client.errors import EnrolmentError, HttpStatusError
from modelfleet.agent_client.fetch import HttpClient
from modelfleet.agent_client.identity import (
    Identity,
    encryption_key_path,
    identity_path,
    key_path,
    load_encryption_key,
    load_identity,
    load_key,
    read_key,
    root_metadata_path,
)
from modelfleet.agent_client.storage import Disk, encode_struct, locked
from modelfleet.agent_client.version import agent_version
from modelfleet.hardware_profiles.detect import detect, matching
from modelfleet.hardware_profiles.profile import load_profiles
from modelfleet.signer.errors import FormatError
from modelfleet.signer.parse import parse_json, parse_struct

MAX_ANSWER_BYTES = 1024 * 1024


class EnrolmentAnswer(Identity, frozen=True, kw_only=True):
    """The server's answer: the identity, and the text of the tenant's TUF root."""

    root: str


def enroll(root: Path, server_url: str, claim_token: str, profile: str | None = None) -> Identity:
    """Enrol the device whose folder is `root`, and return its identity; an enrolled folder is returned as it is.

    Args:
        root: the agent's folder, made if it is not there.
        server_url: the fleet's server, `https://host`.
        claim_token: what an administrator made with `modelfleet devices token`; it is used once.
        profile: a hardware profile's name; by default the first that this machine matches.

    Raises:
        EnrolmentError: the server refused; the message says why.
        TransferError: the server did not answer: try again.
        LockedError: an agent works in this folder.
    """
    disk = Disk()
    disk.make_folder(root)
    with locked(root):
        if identity_path(root).exists():
            return load_identity(root)
        make_key(key_path(root), disk)
        make_key(encryption_key_path(root), disk)
        answer = _ask(root, server_url, claim_token, profile or detected_profile())
        return _keep(root, disk, answer)


def detected_profile() -> str:
    """Return the first hardware profile, by name, that this machine matches.

    Raises:
        EnrolmentError: it matches none.
    """
    facts = detect()
    found = matching(facts, load_profiles())
    if not found:
        raise EnrolmentError(f"expected a machine of a known hardware profile, got {facts}; name one with --profile")
    return found[0]


def make_key(path: Path, disk: Disk) -> ec.EllipticCurvePrivateKey:
    """Return the key at `path`, made if there is none yet (StorageError: something else lies there)."""
    if path.exists():
        return read_key(path)
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    disk.write(path, pem, mode=0o600)
    return key


def _signing_request(root: Path) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "modelfleet device")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(load_key(root), hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode("ascii")


def _public_pem(key: ec.EllipticCurvePrivateKey) -> str:
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return public.decode("ascii")


def _ask(root: Path, server_url: str, claim_token: str, profile: str) -> EnrolmentAnswer:
    question = {
        "token": claim_token,
        "csr": _signing_request(root),
        "encryption_key": _public_pem(load_encryption_key(root)),
        "profile": profile,
        "facts": msgspec.to_builtins(detect()),
        "agent": agent_version(),
    }
    client = HttpClient()
    try:
        data = client.post_json(f"{server_url.rstrip('/')}/v1/enroll", question, max_bytes=MAX_ANSWER_BYTES)
    except HttpStatusError as error:
        if error.status >= 500:
            raise
        raise EnrolmentError(f"{server_url} refused the enrolment: {_detail(error)}") from error
    finally:
        client.close()
    try:
        return parse_struct(data, EnrolmentAnswer, max_bytes=MAX_ANSWER_BYTES)
    except FormatError as error:
        raise EnrolmentError(f"{server_url}: expected an identity, got something else: {error}") from error


def _detail(error: HttpStatusError) -> str:
    try:
        problem = parse_json(error.body)
    except FormatError:
        return str(error)
    if isinstance(problem, dict) and isinstance(problem.get("detail"), str):  # pyright: ignore[reportUnknownMemberType]
        return str(problem["detail"])  # pyright: ignore[reportUnknownArgumentType]
    return str(error)


def _keep(root: Path, disk: Disk, answer: EnrolmentAnswer) -> Identity:
    identity = Identity(
        device=answer.device,
        tenant=answer.tenant,
        group=answer.group,
        profile=answer.profile,
        server=answer.server,
        mqtt=answer.mqtt,
    )
    disk.write(root_metadata_path(root), answer.root.encode())
    disk.write(identity_path(root), encode_struct(identity))  # last: now the device is enrolled
    return identity
