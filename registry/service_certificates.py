"""Certificates that the service gives itself and its broker: made at the start, renewed at two thirds of their life.

The keys lie beside the certificates and stay the same over renewals; deleting a key file has a new one made.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from modelfleet.registry.fleet_ca import FleetCa, Issued, load_or_make_key
from modelfleet.signer.files import write_durably
from modelfleet.signer.names import sha256_of

RENEW_AFTER_SHARE = 2 / 3
ONLY_EXECUTOR = "modelfleet"
"""Name of the process where there is one."""
LONGEST_NAME = 64
"""X.509's limit of a common name."""


@dataclass(frozen=True, kw_only=True)
class KeptCertificate:
    """Where a certificate and its key lie (PEM)."""

    certificate: Path
    key: Path


def controller_name(tenant: str, executor: str = ONLY_EXECUTOR) -> str:
    """Return a controller's common name, which is its client id: broker-wide unique, and no device's.

    Args:
        executor: the process' name among those of the tenant that run at once (`Settings.executor`).
    """
    name = f"controller.{tenant}" if executor == ONLY_EXECUTOR else f"controller.{tenant}@{executor}"
    if len(name) <= LONGEST_NAME:
        return name
    told = tenant if executor == ONLY_EXECUTOR else f"{tenant}@{executor}"
    return f"controller.{sha256_of(told.encode())[:32]}"


def keep_controller(ca: FleetCa, folder: Path, now: datetime, executor: str = ONLY_EXECUTOR) -> KeptCertificate:
    """Return the rollout controller's certificate in `folder`, made or renewed where it is time."""
    stem = "controller" if executor == ONLY_EXECUTOR else f"controller@{executor}"
    name = controller_name(ca.tenant, executor)
    return _keep(ca, folder, stem, lambda key: ca.client_certificate(name, key, now), now)


def keep_server(ca: FleetCa, folder: Path, names: Sequence[str], now: datetime) -> KeptCertificate:
    """Return a server's certificate in `folder` for these host names and addresses, made or renewed where it is time."""
    return _keep(ca, folder, "broker", lambda key: ca.server_certificate(names, key, now), now, names)


def _keep(
    ca: FleetCa,
    folder: Path,
    stem: str,
    issue: Callable[[ec.EllipticCurvePublicKey], Issued],
    now: datetime,
    names: Sequence[str] = (),
) -> KeptCertificate:
    kept = KeptCertificate(certificate=folder / f"{stem}.pem", key=folder / f"{stem}-key.pem")
    key = load_or_make_key(kept.key).public_key()
    if not _is_good(kept.certificate, ca, key, names, now):
        write_durably(kept.certificate, issue(key).pem.encode(), mode=0o600)
    return kept


def _is_good(path: Path, ca: FleetCa, key: ec.EllipticCurvePublicKey, names: Sequence[str], now: datetime) -> bool:
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
        found.verify_directly_issued_by(x509.load_pem_x509_certificate(ca.pem.encode()))
    except (OSError, ValueError, TypeError, InvalidSignature):
        return False
    begin, end = found.not_valid_before_utc, found.not_valid_after_utc
    return (
        found.public_key() == key
        and begin <= now < begin + (end - begin) * RENEW_AFTER_SHARE
        and _names_of(found) >= set(names)
    )


def _names_of(certificate: x509.Certificate) -> set[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {str(name.value) for name in names}
