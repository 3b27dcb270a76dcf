"""Whom the device believes: the tenant's TUF metadata, its policy, and the targets that they name.

Upholds: the root that the device was enrolled with is always the start (`bootstrap`); metadata comes through `TufClient`,
above the agent's own fsynced floors, and is judged by a clock that never goes back behind what was signed; foreign
exceptions end below, as classes of `signer.errors` or as `TransferError`.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from modelfleet.agent_client.errors import HttpStatusError
from modelfleet.agent_client.floors import FloorStore
from modelfleet.agent_client.storage import Disk
from modelfleet.agent_client.transport import Transport
from modelfleet.agent_client.tuf_cache import MetadataCache
from modelfleet.agent_client.tuf_client import REFRESH_SECONDS, TufClient
from modelfleet.signer.dsse import MAX_ENVELOPE_BYTES
from modelfleet.signer.errors import DigestError, FormatError, ScopeError, SignatureError
from modelfleet.signer.manifest import MAX_MANIFEST_BYTES
from modelfleet.signer.metadata import TargetFile, Timestamp, parse_metadata, require_target
from modelfleet.signer.names import PATH_PATTERN, require, sha256_of
from modelfleet.signer.statements import POLICY_PATH, TrustPolicy
from modelfleet.signer.trust import MAX_POLICY_BYTES, parse_policy, policy_of

PRUNED = frozenset({404, 410})


class Believed(Protocol):
    """What the agent asks of whom it believes: `Trust`, or a simulated fleet's."""

    def now(self) -> datetime:
        """As `Trust.now`."""
        ...

    def refresh(self, *, seconds: float = REFRESH_SECONDS) -> None:
        """As `Trust.refresh`."""
        ...

    def policy(self) -> TrustPolicy:
        """As `Trust.policy`."""
        ...

    def manifest(self, path: str) -> tuple[bytes, TargetFile]:
        """As `Trust.manifest`."""
        ...

    def blob(self, sha256: str) -> bytes:
        """As `Trust.blob`."""
        ...

    def blob_url(self, sha256: str) -> str:
        """As `Trust.blob_url`."""
        ...

    def timestamp_expires(self) -> datetime:
        """As `Trust.timestamp_expires`."""
        ...


class Trust:
    """The device's TUF client for one tenant.

    Args:
        folder: `trust/` of the agent's folder: TUF's cache, which may be wiped, and the policy last accepted.
        bootstrap: the root's bytes that the device was enrolled with.
        server: base URL; metadata lies at `{server}/tuf/{tenant}/metadata/`.
        clock: the device's clock, aware UTC.
    """

    def __init__(
        self,
        folder: Path,
        *,
        bootstrap: bytes,
        tenant: str,
        server: str,
        client: Transport,
        floors: FloorStore,
        disk: Disk,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._folder = folder
        self._tenant = tenant
        self._server = server.rstrip("/")
        self._client = client
        self._floors = floors
        self._disk = disk
        self._clock = clock
        self._cache = MetadataCache(folder / "metadata", disk)
        self._tuf = TufClient(
            self._cache,
            bootstrap=bootstrap,
            metadata_url=f"{self._server}/tuf/{tenant}/metadata",
            transport=client,
            floors=floors,
            clock=self.now,
        )
        self._policy = self._policy_on_disk()
        self._current = False

    def now(self) -> datetime:
        """Return the time to judge expiry by."""
        return self._floors.now(self._clock())

    def refresh(self, *, seconds: float = REFRESH_SECONDS) -> None:
        """Bring metadata and policy up to date, within `seconds`.

        Raises:
            ReplayError, ExpiredError, SignatureError, DigestError, FormatError: the repository is not to be believed.
            TransferError: it did not answer.
        """
        self._current = False
        self._tuf.refresh(seconds=seconds)
        self._accept_policy()
        self._current = True

    def policy(self) -> TrustPolicy:
        """Return the policy accepted last; the first call ever refreshes (errors as `refresh`)."""
        if self._policy is None:
            self.refresh()
        assert self._policy is not None
        return self._policy

    def manifest(self, path: str) -> tuple[bytes, TargetFile]:
        """Return the bytes of the TUF target at `path`, and what the releases role signed of it.

        `refresh` comes before it, in the same update.

        Raises:
            SignatureError: the releases role has signed no such target. Others as `refresh`.
        """
        require(path, PATH_PATTERN, "a manifest's path")
        target = self._manifest_target(path)
        if target is None:
            raise SignatureError(f"expected a target {path} signed by the releases role, got none")
        return self._download(target, MAX_MANIFEST_BYTES), target

    def blob(self, sha256: str) -> bytes:
        """Return the small blob (an approval) of this digest (DigestError: the server sent another)."""
        data = self._client.get(f"{self._server}/v1/blobs/{sha256}", max_bytes=MAX_ENVELOPE_BYTES).body
        if sha256_of(data) != sha256:
            raise DigestError(f"blob: expected sha256 {sha256}, got {sha256_of(data)}")
        return data

    def blob_url(self, sha256: str) -> str:
        """Return where the blob of this digest lies."""
        return f"{self._server}/v1/blobs/{sha256}"

    def timestamp_expires(self) -> datetime:
        """Return until when the timestamp last accepted holds: nothing signed later is a true time."""
        verified = self._tuf.timestamp
        if verified is not None:
            return verified.expires
        try:
            return parse_metadata(self._cache.read(Timestamp.type) or b"", Timestamp).signed.expires
        except FormatError:
            return self._clock()

    def _manifest_target(self, path: str) -> TargetFile | None:
        if not self._current:
            self.refresh()
        try:
            return self._tuf.target(path)
        except HttpStatusError as error:
            if error.status not in PRUNED:
                raise
            # A newer bin was published meanwhile, and the registry has removed the one that our snapshot names.
            self.refresh()
            return self._tuf.target(path)

    def _accept_policy(self) -> None:
        target = self._tuf.targets.targets.get(POLICY_PATH)  # there alone: what it delegates names no policy
        if target is None:
            raise FormatError(f"expected targets.json to name {POLICY_PATH}, it does not")
        if self._policy is None or target.hashes.get("sha256") != sha256_of(self._kept_policy()):
            data = self._download(target, MAX_POLICY_BYTES)
            policy = policy_of(self._tuf.targets, data, tenant=self._tenant)
            self._disk.write(self._folder / "policy.json", data)
            self._policy = policy

    def _policy_on_disk(self) -> TrustPolicy | None:
        try:
            return parse_policy(self._kept_policy(), tenant=self._tenant)
        except (FormatError, ScopeError):
            return None

    def _kept_policy(self) -> bytes:
        try:
            return (self._folder / "policy.json").read_bytes()
        except OSError:  # missing, or a sector that does not read: it is fetched again
            return b""

    def _download(self, target: TargetFile, max_bytes: int) -> bytes:
        if target.length > max_bytes:
            raise DigestError(f"{target.path}: expected at most {max_bytes} bytes, got {target.length} signed")
        url = f"{self._server}/tuf/{self._tenant}/targets/{target.get_prefixed_paths()[0]}"
        data = self._client.get(url, max_bytes=target.length, public=True).body
        require_target(target, data)
        return data
