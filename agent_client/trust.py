"""Whom the device believes: TUF metadata fetched by the agent's own downloads, and its own floors under it.

Upholds: the root that the device was enrolled with is always the start (`bootstrap`); a refresh ends at its deadline;
after every refresh the versions are held against the fsynced floors, and expiry against a clock that never goes back
behind what was signed; foreign exceptions end here, as classes of `signer.errors` or as `TransferError`.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import tuf.api.exceptions as tuf_errors
from securesystemslib.exceptions import Error as SecureSystemsError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from modelfleet.agent_client.errors import HttpStatusError, TransferError
from modelfleet.agent_client.fetch import HttpClient
from modelfleet.agent_client.floors import FloorStore, RoleFloor
from modelfleet.agent_client.storage import Disk
from modelfleet.signer.dsse import MAX_ENVELOPE_BYTES
from modelfleet.signer.errors import DigestError, ExpiredError, FormatError, ReplayError, SignatureError
from modelfleet.signer.manifest import MAX_MANIFEST_BYTES
from modelfleet.signer.metadata import RoleT, Root, Snapshot, TargetFile, Targets, Timestamp, parse_metadata
from modelfleet.signer.names import sha256_of
from modelfleet.signer.statements import POLICY_PATH, TrustPolicy
from modelfleet.signer.trust import MAX_POLICY_BYTES, bin_of, parse_policy

REFRESH_SECONDS = 60.0


class DeadlineFetcher(FetcherInterface):
    """Python-tuf's way to the network, under one deadline for all requests of a refresh."""

    def __init__(self, client: HttpClient, seconds: float) -> None:
        self._client = client
        self._ends = time.monotonic() + seconds

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            yield from self._client.stream(url, seconds=self._ends - time.monotonic())
        except HttpStatusError as error:
            raise tuf_errors.DownloadHTTPError(str(error), error.status) from error
        except TransferError as error:
            raise tuf_errors.DownloadError(str(error)) from error


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
        client: HttpClient,
        floors: FloorStore,
        disk: Disk,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._folder = folder
        self._cache = folder / "metadata"
        self._bootstrap = bootstrap
        self._tenant = tenant
        self._server = server.rstrip("/")
        self._client = client
        self._floors = floors
        self._disk = disk
        self._clock = clock
        self._updater: Updater | None = None
        self._policy = self._policy_on_disk()
        disk.make_folder(self._cache)
        self._remove_leftovers()

    def now(self) -> datetime:
        """Return the time to judge expiry by."""
        return self._floors.now(self._clock())

    def refresh(self, *, seconds: float = REFRESH_SECONDS) -> None:
        """Bring metadata and policy up to date, within `seconds`.

        Raises:
            ReplayError, ExpiredError, SignatureError, DigestError, FormatError: the repository is not to be believed.
            TransferError: it did not answer.
        """
        self._updater = None
        with _foreign_errors():
            updater = Updater(
                str(self._cache),
                f"{self._server}/tuf/{self._tenant}/metadata/",
                fetcher=DeadlineFetcher(self._client, seconds),
                config=UpdaterConfig(root_max_length=512_000, timestamp_max_length=16_384),
                bootstrap=self._bootstrap,
            )
            updater.refresh()
        self._hold_against_floors()
        self._accept_policy(updater)
        self._updater = updater

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
        if self._updater is None:
            self.refresh()
        assert self._updater is not None
        with _foreign_errors():
            target = self._updater.get_targetinfo(path)
        if target is None:
            raise SignatureError(f"expected a target {path} signed by the releases role, got none")
        self._hold_bin_against_floors(path)
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
        try:
            return self._cached(Timestamp.type, Timestamp).expires
        except FormatError:
            return self._clock()

    def _accept_policy(self, updater: Updater) -> None:
        with _foreign_errors():
            target = updater.get_targetinfo(POLICY_PATH)
        if target is None:
            raise FormatError(f"expected targets.json to name {POLICY_PATH}, it does not")
        path = self._folder / "policy.json"
        data = path.read_bytes() if path.exists() else b""
        if self._policy is None or target.hashes.get("sha256") != sha256_of(data):
            data = self._download(target, MAX_POLICY_BYTES)
            policy = parse_policy(data, tenant=self._tenant)
            self._disk.write(path, data)
            self._policy = policy

    def _policy_on_disk(self) -> TrustPolicy | None:
        try:
            return parse_policy((self._folder / "policy.json").read_bytes(), tenant=self._tenant)
        except (FileNotFoundError, FormatError):
            return None

    def _download(self, target: TargetFile, max_bytes: int) -> bytes:
        if target.length > max_bytes:
            raise DigestError(f"{target.path}: expected at most {max_bytes} bytes, got {target.length} signed")
        url = f"{self._server}/tuf/{self._tenant}/targets/{target.get_prefixed_paths()[0]}"
        data = self._client.get(url, max_bytes=max_bytes).body
        with _foreign_errors():
            target.verify_length_and_hashes(data)
        return data

    def _hold_against_floors(self) -> None:
        root = self._cached(Root.type, Root)
        versions = {
            Root.type: self._fresh(Root.type, Root).version,
            Timestamp.type: self._fresh(Timestamp.type, Timestamp).version,
            Snapshot.type: self._fresh(Snapshot.type, Snapshot).version,
            Targets.type: self._fresh(Targets.type, Targets).version,
        }
        found = {role: RoleFloor(version=version, keys=_keys_of(root, role)) for role, version in versions.items()}
        # The root's own chain of signatures lets nothing fall: its floor counts whoever signs it.
        found[Root.type] = RoleFloor(version=root.version, keys="")
        self._floors.raise_roles(found)

    def _hold_bin_against_floors(self, path: str) -> None:
        targets = self._cached(Targets.type, Targets)
        role = bin_of(targets, path)
        version = self._fresh(role, Targets).version
        delegations = targets.delegations
        keys = delegations.succinct_roles.keyids if delegations and delegations.succinct_roles else []
        self._floors.raise_roles({role: RoleFloor(version=version, keys=_digest_of_names(keys))})

    def _fresh(self, role: str, kind: type[RoleT]) -> RoleT:
        signed = self._cached(role, kind)
        if signed.is_expired(self.now()):
            raise ExpiredError(
                f"{role} metadata: expected to be valid at {self.now():%F %T}, got expired at {signed.expires}"
            )
        return signed

    def _cached(self, role: str, kind: type[RoleT]) -> RoleT:
        """Return what python-tuf has just verified and put into its cache."""
        try:
            return parse_metadata((self._cache / f"{role}.json").read_bytes(), kind).signed
        except OSError as error:
            raise FormatError(f"{role} metadata: expected it in the cache, got {error.strerror}") from error

    def _remove_leftovers(self) -> None:
        for path in self._cache.glob("tmp*"):  # python-tuf's, after a kill
            path.unlink(missing_ok=True)


def _keys_of(root: Root, role: str) -> str:
    return _digest_of_names(root.roles[role].keyids)


def _digest_of_names(keyids: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(keyids)).encode()).hexdigest()


@contextlib.contextmanager
def _foreign_errors() -> Generator[None]:
    """Let only our own errors out: what python-tuf and securesystemslib raise is wrapped here, once."""
    try:
        yield
    except tuf_errors.ExpiredMetadataError as error:
        raise ExpiredError(f"TUF: {error}") from error
    except tuf_errors.BadVersionNumberError as error:
        raise ReplayError(f"TUF: {error}") from error
    except tuf_errors.UnsignedMetadataError as error:
        raise SignatureError(f"TUF: {error}") from error
    except (tuf_errors.LengthOrHashMismatchError, tuf_errors.DownloadLengthMismatchError) as error:
        raise DigestError(f"TUF: {error}") from error
    except tuf_errors.DownloadError as error:
        raise TransferError(f"TUF: {error}") from error
    except (tuf_errors.RepositoryError, SecureSystemsError, ValueError) as error:
        raise FormatError(f"TUF: {error}") from error
