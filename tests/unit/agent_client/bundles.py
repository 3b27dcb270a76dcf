"""Bundles of the test fleet, as the server makes them: a folder that a test may bend, and the archive of it."""

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from modelfleet.signer.desired import Release
from modelfleet.signer.manifest import parse_manifest
from modelfleet.signer.names import sha256_of
from modelfleet.signer.offline import (
    END,
    INDEX_NAME,
    Index,
    IndexedFile,
    assignment_name,
    blob_name,
    encode_index,
    group_document_name,
    metadata_name,
    padding,
    tar_header,
)
from modelfleet.signer.sign import sign_assignment, sign_group
from tests.unit.agent_client.fleet import GROUP, TENANT, Fleet, now

VALID_FOR = timedelta(days=30)


def make_bundle(
    fleet: Fleet,
    folder: Path,
    devices: Sequence[str],
    releases: Sequence[Release],
    *,
    valid_for: timedelta = VALID_FOR,
    made: datetime | None = None,
) -> Path:
    """Make the bundle that brings these devices to what the fleet wants now, and return its folder."""
    made = made or now()
    expires = made + valid_for
    files: dict[str, bytes] = {}
    metadata = fleet.keys.repository().offline_files(expires, made, [release.path for release in releases])
    files |= {metadata_name(name): data for name, data in metadata.items()}
    policy = fleet.keys.repository().policy_chain().policy
    files[blob_name(sha256_of(policy))] = policy
    for release in releases:
        manifest = manifest_bytes(fleet, release)
        blobs = [*release.approvals, *(entry.sha256 for entry in parse_manifest(manifest).files)]
        files[blob_name(release.sha256)] = manifest
        files |= {blob_name(sha256): fleet.server.blobs[sha256] for sha256 in blobs}
    document = fleet.group_document(expires=expires)
    files[group_document_name(GROUP, fleet.profile)] = sign_group(document, fleet.director)
    for device in devices:
        assignment = fleet.assignment(device, expires=expires)
        files[assignment_name(device)] = sign_assignment(assignment, fleet.director)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    reindex(folder, devices, made, expires)
    return folder


def reindex(folder: Path, devices: Sequence[str], made: datetime, expires: datetime, *, tenant: str = TENANT) -> None:
    """Write a table of contents of what lies in the folder, as anybody can: it is not signed."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != INDEX_NAME]
    entries = tuple(
        IndexedFile(
            name=str(path.relative_to(folder)),
            length=path.stat().st_size,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in files
    )
    index = Index(tenant=tenant, made=made, expires=expires, devices=tuple(devices), files=entries)
    (folder / INDEX_NAME).write_bytes(encode_index(index))


def archive_of(folder: Path) -> Path:
    """Pack the folder into an archive beside it, the table of contents first."""
    path = folder.with_suffix(".mfbundle")
    with path.open("wb") as file:
        names = sorted(str(found.relative_to(folder)) for found in folder.rglob("*") if found.is_file())
        for name in sorted(names, key=lambda name: name != INDEX_NAME):
            data = (folder / name).read_bytes()
            file.write(tar_header(name, len(data)) + data + bytes(padding(len(data))))
        file.write(END)
    return path


def manifest_bytes(fleet: Fleet, release: Release) -> bytes:
    folder, name = release.path.rsplit("/", 1)
    return (fleet.keys.targets_dir / folder / f"{release.sha256}.{name}").read_bytes()
