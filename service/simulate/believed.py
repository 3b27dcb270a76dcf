"""Whom a simulated fleet believes: one trust policy and one set of releases, looked up and verified once for all its devices.

A device asks for metadata as the agent does, which takes time and may fail. What it would verify again to the same answer (the
same group document under the same policy, the same manifest and approvals) is verified once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from modelfleet.agent_client.errors import TransferError
from modelfleet.agent_client.floors import FloorStore
from modelfleet.agent_client.tuf_client import REFRESH_SECONDS
from modelfleet.registry.store import BlobStore
from modelfleet.signer.desired import GroupDocument
from modelfleet.signer.dsse import MAX_ENVELOPE_BYTES
from modelfleet.signer.errors import SignatureError
from modelfleet.signer.manifest import Manifest
from modelfleet.signer.metadata import TargetFile
from modelfleet.signer.names import sha256_of
from modelfleet.signer.statements import TrustPolicy
from modelfleet.signer.verify import Opening, open_document

MAX_REMEMBERED = 512


@dataclass
class Shelf:
    """What the tenant has published: manifests by path, approvals in the store, the policy as it is now."""

    policy: TrustPolicy
    store: BlobStore
    expires: datetime
    manifests: dict[str, bytes] = field(default_factory=dict[str, bytes])
    verified: dict[tuple[str, ...], tuple[Manifest, bytes]] = field(
        default_factory=dict[tuple[str, ...], tuple[Manifest, bytes]]
    )
    incompatibilities: dict[tuple[str, str], list[str]] = field(default_factory=dict[tuple[str, str], list[str]])
    _blobs: dict[str, bytes] = field(default_factory=dict[str, bytes])

    def manifest(self, path: str) -> tuple[bytes, TargetFile]:
        """Return the manifest at `path` and its entry (SignatureError: there is none)."""
        data = self.manifests.get(path)
        if data is None:
            raise SignatureError(f"expected a target {path} signed by the releases role, got none")
        return data, TargetFile(length=len(data), hashes={"sha256": sha256_of(data)}, path=path)

    def blob(self, sha256: str) -> bytes:
        """Return an approval."""
        if sha256 not in self._blobs:
            with self.store.open(sha256) as file:
                self._blobs[sha256] = file.read(MAX_ENVELOPE_BYTES)
        return self._blobs[sha256]


class DeviceTrust:
    """One device's view of the shelf (`agent_client.trust.Believed`).

    Args:
        fetch: takes the time of a request, and raises what keeps it from being answered.
    """

    __slots__ = ("_clock", "_fetch", "_floors", "_shelf")

    def __init__(
        self, shelf: Shelf, floors: FloorStore, clock: Callable[[], datetime], fetch: Callable[[], None]
    ) -> None:
        self._shelf, self._floors, self._clock, self._fetch = shelf, floors, clock, fetch

    def now(self) -> datetime:
        """See `Trust.now`."""
        latest = self._floors.record.latest_signed
        return max(latest, self._clock())

    def refresh(self, *, seconds: float = REFRESH_SECONDS) -> None:
        """See `Trust.refresh`."""
        if seconds <= 0:
            raise TransferError("expected an answer, got no time for it")
        self._fetch()

    def policy(self) -> TrustPolicy:
        """See `Trust.policy`."""
        return self._shelf.policy

    def manifest(self, path: str) -> tuple[bytes, TargetFile]:
        """See `Trust.manifest`."""
        return self._shelf.manifest(path)

    def blob(self, sha256: str) -> bytes:
        """See `Trust.blob`."""
        return self._shelf.blob(sha256)

    def blob_url(self, sha256: str) -> str:
        """See `Trust.blob_url`."""
        return f"memory:{sha256}"

    def timestamp_expires(self) -> datetime:
        """See `Trust.timestamp_expires`."""
        return self._shelf.expires


def shared_opening() -> Opening:
    """Return `open_document` that remembers what it answered of group documents: a fleet gets the same one."""
    known: dict[tuple[bytes, int], tuple[TrustPolicy, Any]] = {}

    def opened(envelope: bytes, kind: Any, policy: TrustPolicy, *, max_bytes: int = MAX_ENVELOPE_BYTES) -> Any:
        if kind is not GroupDocument:
            return open_document(envelope, kind, policy, max_bytes=max_bytes)
        key = (envelope, id(policy))
        if key not in known:
            if len(known) >= MAX_REMEMBERED:
                known.clear()
            known[key] = (
                policy,
                open_document(envelope, kind, policy, max_bytes=max_bytes),
            )  # kept: its id is not given anew
        return known[key][1]

    return opened
