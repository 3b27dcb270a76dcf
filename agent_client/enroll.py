"""Enrolment: a one-time claim token becomes an identity.

The key is written before the request, and `identity.json` last: after a crash anywhere in between, the same command
with the same key finishes the work (the server answers the same key and token with the same identity).
"""

from datetime import UTC, datetime
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from modelfleet.agent_client.certificates import parse_certificate, require_own, signing_request
from modelfleet.agent_client.errors import EnrolmentError, HttpStatusError
from modelfleet.agent_client.http_answer import problem_detail
from modelfleet.agent_client.http_client import HttpClient
from modelfleet.agent_client.identity import (
    Identity,
    ca_path,
    certificate_path,
    encryption_key_path,
    identity_path,
    key_path,
    load_encryption_key,
    load_identity,
    load_key,
    make_key,
    root_metadata_path,
)
from modelfleet.agent_client.secure_url import require_secure
from modelfleet.agent_client.storage import Disk, encode_struct, locked
from modelfleet.agent_client.version import agent_version
from modelfleet.hardware_profiles.detect import detect, detect_serial, matching
from modelfleet.hardware_profiles.profile import load_profiles
from modelfleet.signer.confidential import enrolment_challenge
from modelfleet.signer.errors import FormatError
from modelfleet.signer.parse import parse_struct

MAX_ANSWER_BYTES = 1024 * 1024


class EnrolmentAnswer(Identity, frozen=True, kw_only=True):
    """The server's answer: the identity, the tenant's TUF root, the device's certificate and the fleet CA's (PEM)."""

    root: str
    certificate: str = ""
    ca: str = ""


def enroll(
    root: Path,
    server_url: str,
    claim_token: str,
    profile: str | None = None,
    *,
    serial: str | None = None,
    again: bool = False,
) -> Identity:
    """Enrol the device whose folder is `root`, and return its identity.

    An enrolled folder is returned as it is, unless its certificate has expired: then the same key gets a new certificate, and the
    device stays the same.

    Args:
        root: the agent's folder, made if it is not there.
        server_url: the fleet's server, `https://host`.
        claim_token: what an administrator made with `modelfleet tokens create`.
        profile: a hardware profile's name; by default the first that this machine matches.
        serial: the device's serial number; by default what the machine says.
        again: ask for a new certificate although there is one.

    Raises:
        EnrolmentError: the server refused; the message says why.
        TransferError: the server did not answer: try again.
        InsecureUrlError: it is to be reached over plain http, from another machine.
        LockedError: an agent works in this folder.
    """
    require_secure(server_url)
    disk = Disk()
    disk.make_folder(root)
    with locked(root):
        if identity_path(root).exists() and not again and not _expired(root):
            return load_identity(root)
        make_key(key_path(root), disk)
        make_key(encryption_key_path(root), disk)
        answer = _ask(root, server_url, claim_token, profile or detected_profile(), serial or detect_serial())
        require_secure(answer.server)
        return _keep(root, disk, answer)


def _expired(root: Path) -> bool:
    path = certificate_path(root)
    if not path.exists():
        return False
    return parse_certificate(path.read_text(), str(path)).not_valid_after_utc <= datetime.now(UTC)


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


def _public_pem(key: ec.EllipticCurvePrivateKey) -> str:
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return public.decode("ascii")


def _ask(root: Path, server_url: str, claim_token: str, profile: str, serial: str | None) -> EnrolmentAnswer:
    encryption_key = _public_pem(load_encryption_key(root))
    question = {
        "token": claim_token,
        "csr": signing_request(load_key(root), challenge=enrolment_challenge(claim_token, encryption_key)),
        "encryption_key": encryption_key,
        "profile": profile,
        "facts": msgspec.to_builtins(detect()),
        "agent": agent_version(),
        "serial": serial,
    }
    client = HttpClient()
    try:
        data = client.post_json(f"{server_url.rstrip('/')}/v1/enroll", question, max_bytes=MAX_ANSWER_BYTES)
    except HttpStatusError as error:
        if error.status >= 500:
            raise
        raise EnrolmentError(f"{server_url} refused the enrolment: {problem_detail(error)}") from error
    finally:
        client.close()
    try:
        return parse_struct(data, EnrolmentAnswer, max_bytes=MAX_ANSWER_BYTES)
    except FormatError as error:
        raise EnrolmentError(f"{server_url}: expected an identity, got something else: {error}") from error


def _keep(root: Path, disk: Disk, answer: EnrolmentAnswer) -> Identity:
    identity = Identity(
        device=answer.device,
        tenant=answer.tenant,
        group=answer.group,
        profile=answer.profile,
        server=answer.server,
        mqtt=answer.mqtt,
    )
    if not identity_path(root).exists():  # a device that comes back keeps the root that it trusts
        disk.write(root_metadata_path(root), answer.root.encode())
    if answer.certificate:
        require_own(answer.certificate, load_key(root), answer.device, answer.server)
        disk.write(ca_path(root), answer.ca.encode())
        disk.write(certificate_path(root), answer.certificate.encode())
    disk.write(identity_path(root), encode_struct(identity))  # last: now the device is enrolled
    return identity
