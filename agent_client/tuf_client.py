"""The device's TUF client: the specification's client workflow (section 5), over the agent's own transport, disk and floors.

Upholds: the bootstrap root is always the start; each answer is capped before it is parsed, and parsed strictly before
python-tuf sees it; root, timestamp, snapshot, targets and delegated roles are verified in this order, each by the keys that
the one before names; nothing that is below a floor, expired, or not what was named gets into the cache; all requests of an
update end at one deadline. `modelfleet-tuf-client` is this class behind the public conformance suite's command line.
"""

import hashlib
import time
from collections.abc import Callable
from datetime import datetime
from urllib.parse import quote

from modelfleet.agent_client.errors import HttpStatusError, TooLongError, TransferError
from modelfleet.agent_client.floors import FloorStore, RoleFloor
from modelfleet.agent_client.transport import Answer, Headers, Transport
from modelfleet.agent_client.tuf_cache import MetadataCache
from modelfleet.signer.errors import DigestError, ExpiredError, ReplayError, SignatureError, UntrustedError
from modelfleet.signer.metadata import (
    Metadata,
    MetaFile,
    RoleT,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
    etag_of,
    parse_metadata,
    require_meta,
    require_signed,
)
from modelfleet.signer.trust import follow_roots, trusted_root

REFRESH_SECONDS = 60.0
MAX_ROOT_ROTATIONS = 256  # followed in one update; the next one goes on from there
MAX_DELEGATIONS = 32
MAX_ROOT_BYTES = 512 * 1024
MAX_TIMESTAMP_BYTES = 16 * 1024
MAX_SNAPSHOT_BYTES = 4 * 1024 * 1024
MAX_TARGETS_BYTES = 4 * 1024 * 1024
NO_NEWER_ROOT = frozenset({403, 404})


class TufClient:
    """One repository as the device believes it.

    Args:
        bootstrap: the root that the device was given; all trust comes from it.
        metadata_url: where metadata lies.
        clock: the time to judge expiry by, aware UTC.
    """

    def __init__(
        self,
        cache: MetadataCache,
        *,
        bootstrap: bytes,
        metadata_url: str,
        transport: Transport,
        floors: FloorStore,
        clock: Callable[[], datetime],
    ) -> None:
        self._cache = cache
        self._bootstrap = bootstrap
        self._url = metadata_url.rstrip("/")
        self._transport = transport
        self._floors = floors
        self._clock = clock
        self._update: _Update | None = None

    @property
    def root(self) -> Root:
        """The root of the last update that succeeded."""
        return self._current().root

    @property
    def targets(self) -> Targets:
        """The top-level targets of the last update that succeeded."""
        return self._current().targets[Root.type, Targets.type]

    @property
    def timestamp(self) -> Timestamp | None:
        """The timestamp of the last update that succeeded, None before the first one of this process."""
        return self._update.timestamp if self._update is not None else None

    def refresh(self, *, seconds: float = REFRESH_SECONDS) -> None:
        """Bring root, timestamp, snapshot and targets up to date, within `seconds`, and raise the floors.

        Raises:
            ReplayError, ExpiredError, SignatureError, DigestError, FormatError: the repository is not to be believed.
            TransferError: it did not answer.
        """
        self._update = None  # what a failed update leaves is not looked up in
        fetch = _Fetch(self._transport, self._url, seconds)
        root = self._newest_root(fetch)
        now = self._clock()
        _require_fresh(Root.type, root, now)
        timestamp = self._newest_timestamp(fetch, root, now)
        snapshot = self._newest_snapshot(fetch, root, timestamp, now)
        update = _Update(root, timestamp, snapshot)
        self._load_targets(fetch, update, Targets.type, Root.type, now)
        self._floors.raise_roles(
            {
                role: _floor(update.root, role, version)
                for role, version in (
                    (Root.type, root.version),
                    (Timestamp.type, timestamp.version),
                    (Snapshot.type, snapshot.version),
                    (Targets.type, update.targets[Root.type, Targets.type].version),
                )
            }
        )
        self._update = update

    def target(self, path: str, *, seconds: float = REFRESH_SECONDS) -> TargetFile | None:
        """Return what the most trusted role says about a target, None where none names it (5.6.7; errors as `refresh`).

        `refresh` comes before it.
        """
        update, now = self._current(), self._clock()
        fetch = _Fetch(self._transport, self._url, seconds)
        to_visit, visited = [(Targets.type, Root.type)], dict[str, int]()
        found: TargetFile | None = None
        while to_visit and len(visited) <= MAX_DELEGATIONS and found is None:
            role, delegator = to_visit.pop()
            if role in visited:
                continue
            targets = self._load_targets(fetch, update, role, delegator, now)
            visited[role] = targets.version
            found = targets.targets.get(path)
            children, ends = _delegated(targets, path)
            to_visit = [*([] if ends else to_visit), *((child, role) for child in reversed(children))]
        self._floors.raise_roles(
            {role: _floor(update.root, role, version) for role, version in visited.items() if role != Targets.type}
        )
        return found

    def _current(self) -> "_Update":
        if self._update is None:
            raise TransferError("expected metadata that is up to date, got none: refresh first")
        return self._update

    def _newest_root(self, fetch: "_Fetch") -> Root:
        """Follow the roots, one version at a time, each signed by the one before (5.3)."""
        root, newest = trusted_root(self._bootstrap), self._bootstrap
        try:
            self._cache.keep_root(root.version, newest)
            for version in range(root.version + 1, root.version + 1 + MAX_ROOT_ROTATIONS):
                step = self._kept_root(root, version) or self._fetched_root(fetch, root, version)
                if step is None:
                    break
                root, newest = step
        finally:
            self._cache.keep(Root.type, newest)
        self._floors.require(Root.type, _floor(root, Root.type, root.version))
        return root

    def _kept_root(self, root: Root, version: int) -> tuple[Root, bytes] | None:
        data = self._cache.root(version)
        if data is None:
            return None
        try:
            return _next_root(root, data), data
        except UntrustedError:  # rot, or a root of another chain: it is fetched
            return None

    def _fetched_root(self, fetch: "_Fetch", root: Root, version: int) -> tuple[Root, bytes] | None:
        try:
            data = fetch(f"{version}.{Root.type}", MAX_ROOT_BYTES).body
        except HttpStatusError as error:
            if error.status in NO_NEWER_ROOT:
                return None
            raise
        newer = _next_root(root, data)
        self._cache.keep_root(version, data)
        return newer, data

    def _newest_timestamp(self, fetch: "_Fetch", root: Root, now: datetime) -> Timestamp:
        """Fetch the timestamp, unless the repository still has the one that is kept (5.4)."""
        kept = self._cache.read(Timestamp.type)
        old = _verified(kept, Timestamp, root, Timestamp.type, MAX_TIMESTAMP_BYTES) if kept is not None else None
        asked = {"If-None-Match": etag_of(kept)} if kept is not None and old is not None else {}
        answer = fetch(Timestamp.type, MAX_TIMESTAMP_BYTES, asked)
        if answer.status == 304:
            if old is None:
                raise TransferError(f"{self._url}: expected a timestamp, got HTTP 304, which was not asked for")
            new = old
        else:
            new = _require_verified(answer.body, Timestamp, root, Timestamp.type, MAX_TIMESTAMP_BYTES)
            if old is not None:
                _require_version(Timestamp.type, new.version, old.version)
                if new.version == old.version:
                    new = old  # the repository may not change what it has published: the kept one stays
                _require_version(Snapshot.type, new.snapshot_meta.version, old.snapshot_meta.version)
        self._floors.require(Timestamp.type, _floor(root, Timestamp.type, new.version))
        _require_fresh(Timestamp.type, new, now)
        if new is not old:
            self._cache.keep(Timestamp.type, answer.body)
        return new

    def _newest_snapshot(self, fetch: "_Fetch", root: Root, timestamp: Timestamp, now: datetime) -> Snapshot:
        """Return the snapshot that the timestamp names, kept or fetched (5.5)."""
        meta = timestamp.snapshot_meta
        kept = self._cache.read(Snapshot.type)
        old = _verified(kept, Snapshot, root, Snapshot.type, MAX_SNAPSHOT_BYTES) if kept is not None else None
        if old is not None and old.version == meta.version and not old.is_expired(now):
            new, data = old, kept
        else:
            name = _versioned(root, Snapshot.type, meta)
            data = fetch(name, min(meta.length or MAX_SNAPSHOT_BYTES, MAX_SNAPSHOT_BYTES)).body
            require_meta(Snapshot.type, meta, data)
            new = _require_verified(data, Snapshot, root, Snapshot.type, MAX_SNAPSHOT_BYTES)
        if old is not None:
            _require_no_rollback(old, new)
        _require_named(Snapshot.type, new.version, meta.version)
        self._floors.require(Snapshot.type, _floor(root, Snapshot.type, new.version))
        _require_fresh(Snapshot.type, new, now)
        assert data is not None
        self._cache.keep(Snapshot.type, data)
        return new

    def _load_targets(self, fetch: "_Fetch", update: "_Update", role: str, delegator: str, now: datetime) -> Targets:
        """Return a targets role as its delegator vouches for it, kept or fetched (5.6)."""
        # By delegator: one that two roles delegate to must be signed by the keys of both.
        if (delegator, role) in update.targets:
            return update.targets[delegator, role]
        signers = update.delegator(delegator)
        meta = update.snapshot.meta.get(f"{role}.json")
        if meta is None:
            raise SignatureError(f"{role[:80]}: expected a role that the snapshot names, it does not")
        kept = self._cache.read(role)
        found = _verified(kept, Targets, signers, role, MAX_TARGETS_BYTES, meta) if kept is not None else None
        data = kept
        if found is None or found.version != meta.version or found.is_expired(now):
            name = _versioned(update.root, role, meta)
            data = fetch(name, min(meta.length or MAX_TARGETS_BYTES, MAX_TARGETS_BYTES)).body
            require_meta(role, meta, data)
            found = _require_verified(data, Targets, signers, role, MAX_TARGETS_BYTES)
        _require_named(role, found.version, meta.version)
        self._floors.require(role, _floor(update.root, role, found.version))
        _require_fresh(role, found, now)
        assert data is not None
        self._cache.keep(role, data)
        update.targets[delegator, role] = found
        return found


class _Update:
    """What one update has verified so far."""

    def __init__(self, root: Root, timestamp: Timestamp, snapshot: Snapshot) -> None:
        self.root = root
        self.timestamp = timestamp
        self.snapshot = snapshot
        self.targets: dict[tuple[str, str], Targets] = {}

    def delegator(self, name: str) -> Root | Targets:
        """Return the role that delegates, as it was verified."""
        if name == Root.type:
            return self.root
        return next(targets for (_, role), targets in self.targets.items() if role == name)


class _Fetch:
    """Fetches metadata files, all of them before one deadline."""

    def __init__(self, transport: Transport, url: str, seconds: float) -> None:
        self._transport = transport
        self._url = url
        self._ends = time.monotonic() + seconds

    def __call__(self, name: str, max_bytes: int, headers: Headers | None = None) -> Answer:
        url = f"{self._url}/{quote(name, safe='')}.json"
        left = self._ends - time.monotonic()
        if left <= 0:
            raise TransferError(f"{url}: expected the metadata within the deadline of an update, it has passed")
        try:
            answer = self._transport.get(url, max_bytes=max_bytes, headers=headers, seconds=left, public=True)
        except TooLongError as error:
            raise DigestError(f"{url}: {error}") from error
        if answer.status == 304 and not headers:
            raise TransferError(f"{url}: expected the file, got HTTP 304, which was not asked for")
        return answer


def _next_root(root: Root, data: bytes) -> Root:
    newer, accepted = follow_roots(root, [data])
    if accepted is None:
        raise ReplayError(f"root: expected version {root.version + 1}, got one that is not newer")
    return newer


def _verified(
    data: bytes, kind: type[RoleT], delegator: Root | Targets, role: str, max_bytes: int, meta: MetaFile | None = None
) -> RoleT | None:
    """Return what the cache holds if it is still to be believed."""
    try:
        if meta is not None:
            require_meta(role, meta, data)
        return _require_verified(data, kind, delegator, role, max_bytes)
    except UntrustedError:
        return None


def _require_verified(data: bytes, kind: type[RoleT], delegator: Root | Targets, role: str, max_bytes: int) -> RoleT:
    metadata: Metadata[RoleT] = parse_metadata(data, kind, max_bytes=max_bytes)
    require_signed(delegator, role, metadata)
    return metadata.signed


def _require_no_rollback(old: Snapshot, new: Snapshot) -> None:
    for name, meta in old.meta.items():
        found = new.meta.get(name)
        if found is None:
            raise ReplayError(f"snapshot: expected it to name {name[:80]} as the one before did, it does not")
        _require_version(name, found.version, meta.version)


def _require_version(role: str, found: int, least: int) -> None:
    if found < least:
        raise ReplayError(f"{role[:80]} metadata: expected version >= {least}, got {found}")


def _require_named(role: str, found: int, named: int) -> None:
    if found != named:
        raise ReplayError(f"{role[:80]} metadata: expected version {named} as it was named, got {found}")


def _require_fresh(role: str, signed: Root | Timestamp | Snapshot | Targets, now: datetime) -> None:
    if signed.is_expired(now):
        raise ExpiredError(
            f"{role[:80]} metadata: expected to be valid at {now:%F %T}, got expired at {signed.expires}"
        )


def _versioned(root: Root, role: str, meta: MetaFile) -> str:
    return f"{meta.version}.{role}" if root.consistent_snapshot else role


def _delegated(targets: Targets, path: str) -> tuple[list[str], bool]:
    """Return the roles that `targets` delegates the path to, in order, and whether no other role may be asked then."""
    found: list[str] = []
    if targets.delegations is not None:
        for name, terminating in targets.delegations.get_roles_for_target(path):
            found.append(name)
            if terminating:
                return found, True
    return found, False


def _floor(root: Root, role: str, version: int) -> RoleFloor:
    """Return a version and whose word it is: a floor falls when those keys were rotated (5.3.11)."""
    if role == Root.type:  # its own chain of signatures lets nothing fall, whoever signs it
        return RoleFloor(version=version, keys="")
    # The versions of targets and of all that it delegates are snapshot's word.
    keyids = root.roles[Timestamp.type if role == Timestamp.type else Snapshot.type].keyids
    return RoleFloor(version=version, keys=hashlib.sha256("\n".join(sorted(keyids)).encode()).hexdigest())
