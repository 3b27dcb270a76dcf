"""The registry of a fleet whose releases are made, not built: of simulations, benchmarks and tests of rollouts."""

from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy.orm import Session, sessionmaker

from modelfleet.hardware_profiles.profile import load_profiles
from modelfleet.registry.audit_log import AuditLog
from modelfleet.registry.context import Registry
from modelfleet.registry.fleet_ca import create_ca
from modelfleet.registry.store import FolderStore
from modelfleet.signer.client import SignerClient
from modelfleet.signer.key_book import CeremonyResult
from modelfleet.signer.keys import generate_key, load_signer

NOWHERE = "http://127.0.0.1:1"


class NoBuilds:
    """Takes no version."""

    def enqueue(self, version_id: int) -> None:
        """Refuse (RuntimeError): who publishes here has taken the wrong way."""
        raise RuntimeError(f"nothing is built here, and version {version_id} was to be")


def registry_without_builds(
    folder: Path, ceremony: CeremonyResult, sessions: sessionmaker[Session], *, public_url: str = NOWHERE
) -> Registry:
    """Return a registry that decides over real trust, and neither builds nor signs: no signer process answers.

    Args:
        folder: `ca/`, `audit.pem` and `blobs/` are made in it where they are not there yet.
        ceremony: the tenant, with its keys as files in the clear.
        public_url: what it says of itself; nobody is served there.
    """
    audit_key = folder / "audit.pem"
    if not audit_key.exists():
        generate_key(audit_key)
    return Registry(
        tenant=ceremony.tenant,
        sessions=sessions,
        store=FolderStore(folder / "blobs"),
        signer=SignerClient(folder / "signer.sock"),
        repository=ceremony.repository(),
        builds=NoBuilds(),
        profiles=load_profiles(),
        gate_key_uri=ceremony.gate_key,
        work_dir=folder,
        trust_dir=ceremony.metadata_dir.parent,
        public_url=public_url,
        mqtt_url="",
        ca=create_ca(folder / "ca", ceremony.tenant, datetime.now(UTC)),
        audit_log=AuditLog(
            sessions, ceremony.tenant, load_signer(f"file:{audit_key.absolute()}"), folder / "audit.checkpoint"
        ),
    )
