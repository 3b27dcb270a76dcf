"""The served TUF repository in the hands of whoever holds which keys: nothing is checked, everything is signed as asked."""

import shutil
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from modelfleet.signer.ceremony import CeremonyResult
from modelfleet.signer.desired import Release
from modelfleet.signer.keys import CryptoSigner, Signer, load_signer
from modelfleet.signer.manifest import Manifest, parse_manifest
from modelfleet.signer.metadata import (
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    Targets,
    Timestamp,
    parse_metadata,
    root_files,
    sign_metadata,
)
from modelfleet.signer.trust import bin_of
from tests.unit.agent_client.bundles import manifest_bytes
from tests.unit.agent_client.fleet import Fleet, now

KINDS: dict[str, Any] = {"root": Root, "timestamp": Timestamp, "snapshot": Snapshot}


def nothing(_signed: object) -> None:
    """Change nothing but version and expiry."""


def take_over(root: Root, key: Signer) -> None:
    """Let one key sign for root and targets: a root that it signs holds by its own word."""
    for role in ("root", "targets"):
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        root.add_key(key.public_key, role)
        root.roles[role].threshold = 1


class Forger:
    """Signs the metadata in `folder` (default: what is served) anew, with the role's own keys unless others are given."""

    def __init__(self, keys: CeremonyResult, folder: Path | None = None) -> None:
        self.folder = folder or keys.metadata_dir
        self.keys: dict[str, list[Signer]] = {
            "root": [load_signer(uri) for uri in keys.root_keys[:2]],
            "targets": [load_signer(uri) for uri in keys.targets_keys[:2]],
            "snapshot": [load_signer(keys.snapshot_key)],
            "timestamp": [load_signer(keys.timestamp_key)],
            "releases": [load_signer(keys.releases_key)],
        }

    def bin_of(self, path: str) -> str:
        """Return the bin that holds a target path."""
        return bin_of(self.load("targets").signed, path)

    def file(self, role: str) -> Path:
        """Return the served file of a role, as the timestamp leads to it."""
        if role == "timestamp":
            return self.folder / "timestamp.json"
        if role == "root":
            return [*root_files(self.folder).values()][-1]
        if role == "snapshot":
            return self.folder / f"{self.load('timestamp').signed.snapshot_meta.version}.snapshot.json"
        return self.folder / f"{self.load('snapshot').signed.meta[f'{role}.json'].version}.{role}.json"

    def load(self, role: str) -> Metadata[Any]:
        """Return the served metadata of a role."""
        return parse_metadata(self.file(role).read_bytes(), KINDS.get(role, Targets))

    def renew(
        self,
        role: str,
        change: Callable[[Any], object] = nothing,
        *,
        version: int | None = None,
        expires: datetime | None = None,
        signers: Sequence[Signer] | None = None,
    ) -> None:
        """Serve a role's metadata anew, its version one higher, and have snapshot and timestamp lead to it."""
        metadata = self.load(role)
        metadata.signed.version = metadata.signed.version + 1 if version is None else version
        metadata.signed.expires = (expires or now() + timedelta(hours=12)).replace(microsecond=0)
        change(metadata.signed)
        new = metadata.signed.version
        name = "timestamp.json" if role == "timestamp" else f"{new}.{role}.json"
        (self.folder / name).write_bytes(sign_metadata(metadata, signers or self._signers(role)))
        if role == "snapshot":
            self.renew("timestamp", lambda signed: setattr(signed, "snapshot_meta", MetaFile(new)))
        elif role not in KINDS:
            self.renew("snapshot", lambda signed: signed.meta.update({f"{role}.json": MetaFile(new)}))

    def rotate(self, role: str) -> None:
        """The root keys name a new key for `role`, in place of the old one, in the next root."""
        new = CryptoSigner.generate_ecdsa()
        self.keys[role] = [new]

        def replace_key(root: Root) -> None:
            for keyid in list(root.roles[role].keyids):
                root.revoke_key(keyid, role)
            root.add_key(new.public_key, role)

        self.renew("root", replace_key, expires=now() + timedelta(days=300))

    def saved(self, folder: Path) -> Path:
        """Return a copy of all that is served now."""
        return Path(shutil.copytree(self.folder, folder))

    def restore(self, copy: Path) -> None:
        """Serve that copy again."""
        shutil.rmtree(self.folder)
        shutil.copytree(copy, self.folder)

    def _signers(self, role: str) -> list[Signer]:
        return self.keys[role if role in self.keys else "releases"]


def manifest_of(fleet: Fleet, release: Release) -> Manifest:
    """Return the manifest that is served for a release."""
    return parse_manifest(manifest_bytes(fleet, release))
