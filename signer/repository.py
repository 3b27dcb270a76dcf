"""The online half of a tenant's TUF repository: what the registry may sign by itself, snapshot and timestamp.

Rules: bins come signed by the signer process and are checked here before anybody sees them; target files are written
first, then bins, then the snapshot, the timestamp last, so that a crash leaves clients on the former state; a published
bin never goes back. Python-tuf's `Metadata` API only.
"""

import threading
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import cast

from modelfleet.signer.errors import DigestError, FormatError, ReplayError, SignatureError
from modelfleet.signer.files import folder_lock, write_durably
from modelfleet.signer.keys import Signer
from modelfleet.signer.metadata import (
    Metadata,
    MetaFile,
    RoleT,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
    next_version,
    parse_metadata,
    require_signed,
    require_target,
    root_files,
    sign_metadata,
)
from modelfleet.signer.pruning import prune
from modelfleet.signer.statements import POLICY_PATH, TrustPolicy
from modelfleet.signer.trust import PolicyChain, bin_of, follow_roots, policy_of

SNAPSHOT_LIFE = timedelta(days=7)
TIMESTAMP_LIFE = timedelta(hours=24)
PRUNE_EVERY = 256


class OnlineRepository:
    """One tenant's metadata and target files as devices fetch them; safe among threads and processes.

    Args:
        metadata_dir: what is served under `/tuf/{tenant}/metadata/`.
        targets_dir: what is served under `/tuf/{tenant}/targets/`, each file under `<folder>/<sha256>.<name>`.
    """

    def __init__(
        self, metadata_dir: Path, targets_dir: Path, snapshot_signer: Signer, timestamp_signer: Signer
    ) -> None:
        self._metadata_dir = metadata_dir
        self._targets_dir = targets_dir
        self._snapshot_signer = snapshot_signer
        self._timestamp_signer = timestamp_signer
        self._lock = threading.RLock()
        self._held = False
        self._served = 0
        self._parsed: dict[str, tuple[Path, tuple[int, int, int], object]] = {}

    def publish(self, bin_metadata: Mapping[str, bytes], targets: Mapping[str, bytes], now: datetime) -> None:
        """Serve new bins and the target files that they name; nothing changes where all of it is there already.

        Args:
            bin_metadata: role name -> signed metadata, as the signer process returned it.
            targets: target path -> bytes; each must be named by one of `bin_metadata`.

        Raises:
            SignatureError: a bin is not signed by the releases key. DigestError: a target is not what a bin names.
            ReplayError: a bin is older than the published one, or differs under the same version.
        """
        with self._exclusive():
            parent = self._targets().signed
            bins = {role: _checked_bin(parent, role, data) for role, data in bin_metadata.items()}
            files = [_named_target(bins.values(), path, data) for path, data in targets.items()]
            published = self._snapshot().signed
            newer = {
                role: data for role, data in bin_metadata.items() if self._is_newer(published, role, bins[role], data)
            }
            for target, data in files:
                self._write_target(target, data)
            self._serve(newer, {role: bins[role].version for role in newer}, now)

    def publish_change(
        self,
        *,
        root: bytes,
        targets: bytes,
        policy: bytes,
        bins: Mapping[str, bytes],
        now: datetime,
        keep: Callable[[], None],
    ) -> None:
        """Serve a new root, and with it all that other keys sign from now on, in one step; safe to repeat after a crash.

        A role whose keys change may go back in version: that recovers from a fast-forward (TUF 5.3.11).

        Args:
            root, targets, policy: signed offline; what does not change is what is published.
            bins: every bin where their key changes, else none.
            keep: called under the lock, after all checks and before anything is served.

        Raises:
            SignatureError: not signed by enough keys, or the service's own keys are not those that `root` names.
            ReplayError: not the next root. DigestError: another policy. FormatError: a bin is left out.
        """
        with self._exclusive():
            new_root = self._next_root(root)
            metadata = parse_metadata(targets, Targets)
            require_signed(new_root, Targets.type, metadata)
            policy_of(metadata.signed, policy)
            versions = {role: _checked_bin(metadata.signed, role, data).version for role, data in bins.items()}
            self._require_every_bin(metadata.signed, versions)
            keep()
            self._write_target(metadata.signed.targets[POLICY_PATH], policy)
            for role, data in bins.items():
                write_durably(self._path(role, versions[role]), data)
            write_durably(self._path(Targets.type, metadata.signed.version), targets)
            version = self._write_snapshot(versions | {Targets.type: metadata.signed.version}, now)
            write_durably(self._path(Root.type, new_root.version), root)  # clients ask for it before anything else
            self._sign_timestamp(now, version)

    def offline_metadata(self, expires: datetime, now: datetime) -> tuple[bytes, bytes]:
        """Return a timestamp and a snapshot that hold until `expires`, for devices that never reach this server.

        They are never served here. The online ones are signed again at once, one version above: a device that comes back
        online goes on from there, and one that was online since refuses what was made offline before.
        """
        with self._exclusive():
            snapshot, timestamp = self._take(self._snapshot()), self._take(self._timestamp())
            offline_snapshot = _renewed(snapshot, self._snapshot_signer, expires)
            timestamp.signed.snapshot_meta = MetaFile(snapshot.signed.version)
            offline_timestamp = _renewed(timestamp, self._timestamp_signer, expires)
            online_snapshot = _renewed(snapshot, self._snapshot_signer, now + SNAPSHOT_LIFE)
            timestamp.signed.snapshot_meta = MetaFile(snapshot.signed.version)
            online_timestamp = _renewed(timestamp, self._timestamp_signer, now + TIMESTAMP_LIFE)
            write_durably(self._path(Snapshot.type, snapshot.signed.version), online_snapshot)
            write_durably(self._metadata_dir / "timestamp.json", online_timestamp)
            return offline_timestamp, offline_snapshot

    def offline_files(self, expires: datetime, now: datetime, paths: Collection[str]) -> dict[str, bytes]:
        """Return the metadata that leads from any root to these targets until `expires`: file name -> bytes.

        Raises:
            FormatError: targets.json delegates no bins.
        """
        with self._exclusive():
            timestamp, snapshot = self.offline_metadata(expires, now)
            named = parse_metadata(snapshot, Snapshot).signed
            targets = self._targets().signed
            roles = {Targets.type} | {bin_of(targets, path) for path in paths}
            files = {"timestamp.json": timestamp, f"{named.version}.{Snapshot.type}.json": snapshot}
            for data in self._roots():
                files[f"{parse_metadata(data, Root).signed.version}.{Root.type}.json"] = data
            for role in sorted(roles):
                path = self._path(role, named.meta[f"{role}.json"].version)
                files[path.name] = path.read_bytes()
            return files

    def refresh(self, now: datetime) -> None:
        """Re-sign the timestamp when less than half of its life is left, the snapshot likewise; remove old files."""
        with self._exclusive():
            if self._snapshot().signed.expires - now < SNAPSHOT_LIFE / 2:
                self._sign_snapshot({}, now)
            elif self._timestamp().signed.expires - now < TIMESTAMP_LIFE / 2:
                self._sign_timestamp(now)
            prune(self._metadata_dir, self.versions(), now)

    def policy(self) -> TrustPolicy:
        """Return the published trust policy."""
        with self._exclusive():
            return policy_of(self._targets().signed, self.policy_chain().policy)

    def policy_chain(self) -> PolicyChain:
        """Return what the signer process needs to verify the policy by itself, from its own root."""
        with self._exclusive():
            version = self._snapshot().signed.meta[f"{Targets.type}.json"].version
            data = self._path(Targets.type, version).read_bytes()
            target = self._targets().signed.targets[POLICY_PATH]
            policy = (self._targets_dir / target.get_prefixed_paths()[0]).read_bytes()
            return PolicyChain(targets=data, policy=policy, roots=self._roots())

    def versions(self) -> dict[str, int]:
        """Return role -> published version, of the snapshot, the timestamp and all that the snapshot names."""
        with self._exclusive():
            snapshot, timestamp = self._snapshot().signed, self._timestamp().signed
            named = {name.removesuffix(".json"): meta.version for name, meta in snapshot.meta.items()}
            return named | {Snapshot.type: snapshot.version, Timestamp.type: timestamp.version}

    @contextmanager
    def _exclusive(self) -> Generator[None]:
        with self._lock:
            if self._held:
                yield
                return
            with folder_lock(self._metadata_dir.parent):
                self._held = True
                try:
                    yield
                finally:
                    self._held = False

    def _path(self, role: str, version: int) -> Path:
        return self._metadata_dir / f"{version}.{role}.json"

    def _roots(self) -> tuple[bytes, ...]:
        return tuple(path.read_bytes() for path in root_files(self._metadata_dir).values())

    def _root(self) -> Root:
        return parse_metadata(self._roots()[-1], Root).signed

    def _timestamp(self) -> Metadata[Timestamp]:
        return self._load(self._metadata_dir / "timestamp.json", Timestamp)

    def _snapshot(self) -> Metadata[Snapshot]:
        return self._load(self._path(Snapshot.type, self._timestamp().signed.snapshot_meta.version), Snapshot)

    def _targets(self) -> Metadata[Targets]:
        version = self._snapshot().signed.meta[f"{Targets.type}.json"].version
        return self._load(self._path(Targets.type, version), Targets)

    def _load(self, path: Path, kind: type[RoleT]) -> Metadata[RoleT]:
        """Return a file's metadata, parsed once for as long as the file is the same; whoever changes it calls `_take`."""
        status = path.stat()
        same = (status.st_ino, status.st_mtime_ns, status.st_size)
        known = self._parsed.get(kind.type)
        if known is None or known[:2] != (path, same):
            known = self._parsed[kind.type] = (path, same, parse_metadata(path.read_bytes(), kind))
        return cast("Metadata[RoleT]", known[2])  # kept under its own type

    def _take(self, metadata: Metadata[RoleT]) -> Metadata[RoleT]:
        """Return what was loaded as the caller's own: nobody is given it again."""
        self._parsed.pop(metadata.signed.type, None)
        return metadata

    def _is_newer(self, published: Snapshot, role: str, found: Targets, data: bytes) -> bool:
        meta = published.meta.get(f"{role}.json")
        if meta is None:
            raise FormatError(f"expected a role that the snapshot names, got {role[:40]!r}")
        if found.version < meta.version:
            raise ReplayError(f"{role}: expected version >= {meta.version}, got {found.version}")
        if found.version == meta.version and self._path(role, meta.version).read_bytes() != data:
            raise ReplayError(f"{role}: version {meta.version} is published with other bytes")
        return found.version > meta.version

    def _write_target(self, target: TargetFile, data: bytes) -> None:
        path = self._targets_dir / target.get_prefixed_paths()[0]
        if not path.exists():  # the name holds the digest: what is there is right
            write_durably(path, data)

    def _serve(self, metadata: Mapping[str, bytes], versions: Mapping[str, int], now: datetime) -> None:
        for role, data in metadata.items():
            write_durably(self._path(role, versions[role]), data)
        if versions:
            self._sign_snapshot(versions, now)
            self._served += 1
            if self._served % PRUNE_EVERY == 0:  # a busy day must not wait for the next `refresh`
                prune(self._metadata_dir, self.versions(), now)

    def _next_root(self, data: bytes) -> Root:
        present = self._roots()[-1]
        root, _ = follow_roots(parse_metadata(present, Root).signed, [data])
        if data != present and root.version == parse_metadata(present, Root).signed.version:
            raise ReplayError(
                f"root: expected version {root.version + 1}, got {parse_metadata(data, Root).signed.version}"
            )
        for role, signer in ((Snapshot.type, self._snapshot_signer), (Timestamp.type, self._timestamp_signer)):
            if signer.public_key.keyid not in root.roles[role].keyids:
                raise SignatureError(
                    f"{role}: the service holds key {signer.public_key.keyid[:12]}, the root names"
                    f" {', '.join(keyid[:12] for keyid in root.roles[role].keyids)}: check keys.json"
                )
        return root

    def _require_every_bin(self, targets: Targets, given: Mapping[str, int]) -> None:
        delegations = targets.delegations
        if delegations is None or delegations.succinct_roles is None:
            raise FormatError("expected targets.json to delegate hash bins, it does not")
        published = self._targets().signed.delegations
        same_key = (
            published is not None
            and published.succinct_roles is not None
            and published.succinct_roles.keyids == delegations.succinct_roles.keyids
        )
        missing = set(delegations.succinct_roles.get_roles()) - set(given)
        if missing and not (same_key and not given):
            raise FormatError(f"expected all bins under their new key, {len(missing)} are left out")

    def _sign_snapshot(self, versions: Mapping[str, int], now: datetime) -> None:
        self._sign_timestamp(now, self._write_snapshot(versions, now))

    def _write_snapshot(self, versions: Mapping[str, int], now: datetime) -> int:
        metadata = self._take(self._snapshot())
        for role, version in versions.items():
            metadata.signed.meta[f"{role}.json"] = MetaFile(version)
        data = _renewed(metadata, self._snapshot_signer, now + SNAPSHOT_LIFE)
        write_durably(self._path(Snapshot.type, metadata.signed.version), data)
        return metadata.signed.version

    def _sign_timestamp(self, now: datetime, snapshot_version: int | None = None) -> None:
        metadata = self._take(self._timestamp())
        if snapshot_version is not None:
            metadata.signed.snapshot_meta = MetaFile(snapshot_version)
        data = _renewed(metadata, self._timestamp_signer, now + TIMESTAMP_LIFE)
        write_durably(self._metadata_dir / "timestamp.json", data)


def _renewed(metadata: Metadata[RoleT], signer: Signer, expires: datetime) -> bytes:
    metadata.signed.version = next_version(metadata.signed.version)
    metadata.signed.expires = expires.replace(microsecond=0)
    return sign_metadata(metadata, [signer])


def _checked_bin(parent: Targets, role: str, data: bytes) -> Targets:
    metadata = parse_metadata(data, Targets)
    require_signed(parent, role, metadata)
    return metadata.signed


def _named_target(bins: Collection[Targets], path: str, data: bytes) -> tuple[TargetFile, bytes]:
    target = next((found.targets[path] for found in bins if path in found.targets), None)
    if target is None:
        raise DigestError(f"expected a target that the given bins name, got {path[:120]!r}")
    require_target(target, data)
    return target, data
