"""A release verified from root.json down, for whoever takes it into a product: the manifest's digest is then one to rely on.

root.json -> targets.json -> the bin -> the manifest -> its files. Timestamp and snapshot are for those who ask what is newest;
here somebody names a version, and only who signed it counts.
"""

import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from modelfleet.registry.client import ApiClient
from modelfleet.registry.errors import NotFoundError
from modelfleet.signer.errors import DigestError, ExpiredError, FormatError, ScopeError
from modelfleet.signer.keys import Key
from modelfleet.signer.manifest import MAX_MANIFEST_BYTES, Manifest, parse_manifest
from modelfleet.signer.metadata import Snapshot, Targets, Timestamp, parse_metadata, require_signed, require_target
from modelfleet.signer.names import SHA256_PATTERN, require, sha256_of
from modelfleet.signer.release import require_allowed
from modelfleet.signer.trust import PolicyChain, TrustedPolicy, bin_of, follow_roots, trusted_policy, trusted_root

MAX_FILE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A manifest that the releases key signed in its bin. keys: which keys may sign there."""

    manifest: Manifest
    sha256: str
    keys: tuple[Key, ...]


def verify_release_of(
    client: ApiClient, variant: tuple[str, str, str], chain: PolicyChain, root: bytes, now: datetime
) -> Verified:
    """Return the manifest of a variant (model, version, profile), believed under `root`.

    Raises:
        NotFoundError: there is none. UntrustedError: it is not signed as it must be, has expired, or is revoked.
    """
    model, version, profile = variant
    data = _manifest_bytes(client, model, version, profile)
    manifest = parse_manifest(data)
    if (manifest.model, manifest.version, manifest.profile) != variant:
        raise ScopeError(f"expected the manifest of {variant}, got that of {manifest.path}")
    newest, _ = follow_roots(trusted_root(root), chain.roots)
    trusted = trusted_policy(newest, chain, tenant=manifest.tenant, now=now)
    _require_in_bin(client, manifest, data, trusted, now)
    require_allowed(manifest, sha256_of(data), trusted.policy)
    return Verified(manifest=manifest, sha256=sha256_of(data), keys=_bin_keys(trusted.targets))


def fetch_files(client: ApiClient, manifest: Manifest) -> dict[str, bytes]:
    """Return name -> bytes of the variant's files but the golden set, each of the manifest's digest (DigestError)."""
    return {
        file.name: _fetch(client, f"/v1/blobs/{file.sha256}", file.name, MAX_FILE_BYTES, file.sha256)
        for file in manifest.files
        if file.name != manifest.golden
    }


def _manifest_bytes(client: ApiClient, model: str, version: str, profile: str) -> bytes:
    found: list[dict[str, Any]] = client.get("/v1/variants", model=model, version=version, profile=profile)["variants"]
    if not found or found[0]["manifest_sha256"] is None:
        raise NotFoundError(f"no built variant of {model}@{version} for profile {profile}: see `modelfleet variants`")
    sha256 = require(str(found[0]["manifest_sha256"]), SHA256_PATTERN, "digest")
    return _fetch(client, f"/v1/blobs/{sha256}", "manifest", MAX_MANIFEST_BYTES, sha256)


def _require_in_bin(client: ApiClient, manifest: Manifest, data: bytes, trusted: TrustedPolicy, now: datetime) -> None:
    role = bin_of(trusted.targets, manifest.path)
    folder = f"/tuf/{quote(manifest.tenant)}/metadata"
    # Which file holds the bin is the server's word; what the file says is believed for its signature alone.
    timestamp = parse_metadata(_metadata(client, f"{folder}/timestamp.json"), Timestamp).signed
    snapshot = parse_metadata(
        _metadata(client, f"{folder}/{timestamp.snapshot_meta.version}.snapshot.json"), Snapshot
    ).signed
    meta = snapshot.meta.get(f"{role}.json")
    if meta is None:
        raise FormatError(f"expected the snapshot to name {role}, it does not")
    found = parse_metadata(_metadata(client, f"{folder}/{meta.version}.{role}.json"), Targets)
    require_signed(trusted.targets, role, found)
    if found.signed.is_expired(now):
        raise ExpiredError(f"{role} expired at {found.signed.expires}: is the signer running?")
    target = found.signed.targets.get(manifest.path)
    if target is None:
        raise DigestError(f"expected {manifest.path} in its signed bin, it is not there")
    require_target(target, data)


def _bin_keys(targets: Targets) -> tuple[Key, ...]:
    assert targets.delegations is not None  # `bin_of` has looked
    assert targets.delegations.succinct_roles is not None
    return tuple(targets.delegations.keys[keyid] for keyid in sorted(targets.delegations.succinct_roles.keyids))


def _metadata(client: ApiClient, path: str) -> bytes:
    return _fetch(client, path, path.rpartition("/")[2], MAX_FILE_BYTES, None)


def _fetch(client: ApiClient, path: str, name: str, most: int, sha256: str | None) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "file"
        found = client.download(path, target)
        if sha256 is not None and found != sha256:
            raise DigestError(f"{name}: expected sha256 {sha256}, got {found}")
        if target.stat().st_size > most:
            raise FormatError(f"{name}: expected at most {most} bytes, got {target.stat().st_size}")
        return target.read_bytes()
