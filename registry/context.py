"""What the registry's routes and jobs work with, put together once by the composition root (`service`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sqlalchemy.orm import Session, sessionmaker

from modelfleet.hardware_profiles.profile import HardwareProfile

if TYPE_CHECKING:
    from modelfleet.registry.store import BlobStore
    from modelfleet.signer.client import SignerClient
    from modelfleet.signer.repository import OnlineRepository


class BuildQueue(Protocol):
    """Where a published version waits to be built; the durable queue of `service` stands behind it."""

    def enqueue(self, version_id: int) -> None:
        """Have every variant of the version built, once, also after a crash."""
        ...


@dataclass(frozen=True, kw_only=True)
class Registry:
    """The registry's collaborators.

    gate_key_uri is only handed on to the converter worker's process. public_url and mqtt_url are what a device is told
    at enrolment.
    """

    tenant: str
    sessions: sessionmaker[Session]
    store: "BlobStore"
    signer: "SignerClient"
    repository: "OnlineRepository"
    builds: BuildQueue
    profiles: Mapping[str, HardwareProfile]
    gate_key_uri: str
    work_dir: Path
    public_url: str
    mqtt_url: str
