"""The acts of an update, one function each, in the order in which `reconcile` does them; none knows a state.

Each raises what says how it ends: a class of `signer.errors` or `BenchmarkError` or `IncompatibleReleaseError` (reject),
`TransferError` (try again).
"""

import contextlib
import shutil
from collections.abc import Callable, Generator
from pathlib import Path

from modelfleet.agent_client.confidential import reasons_against, require_key, require_opens, unwrap_for
from modelfleet.agent_client.device import Device
from modelfleet.agent_client.errors import (
    BytesRefusedError,
    IncompatibleReleaseError,
    KeyRefusedError,
    MetadataRefusedError,
    NoSpaceError,
)
from modelfleet.agent_client.local_build import reasons_against_build, space_bytes
from modelfleet.agent_client.record import Goal
from modelfleet.agent_client.slots import SlotStore
from modelfleet.policies.compatibility import manifest_incompatibilities
from modelfleet.signer.confidential import MAX_WRAPPED_KEY_BYTES
from modelfleet.signer.errors import DigestError, ExpiredError, ReplayError, UntrustedError
from modelfleet.signer.manifest import Manifest, ManifestFile
from modelfleet.signer.verify import verify_release

SPARE_BYTES = 1024 * 1024
"""What must stay free on the disk beyond the files themselves, for records and reports."""


def verify(device: Device, goal: Goal, *, accepted_before: bool) -> tuple[Manifest, bytes]:
    """Return the manifest that desired state, fresh TUF metadata and k approvals agree on, parsed and as bytes.

    Raises:
        UntrustedError: they do not agree. MetadataRefusedError: the repository is not to be believed as it stands.
        BytesRefusedError: other bytes came than those signed. TransferError: it did not answer.
    """
    release = goal.release
    try:
        device.trust.refresh()
    except UntrustedError as error:
        raise MetadataRefusedError(str(error)) from error
    try:
        with _as_received():
            data, target = device.trust.manifest(release.path)
            approvals = [device.trust.blob(sha256) for sha256 in release.approvals]
    except (ExpiredError, ReplayError) as error:  # of the metadata that names it: no fault of the release
        raise MetadataRefusedError(str(error)) from error
    group, profile = device.documents.steered_by()
    manifest = verify_release(
        release,
        data,
        approvals,
        tenant=device.identity.tenant,
        group=group,
        profile=profile,
        policy=device.trust.policy(),
        target=(target.hashes.get("sha256", ""), target.length),
        # A clock that jumps ahead after the refresh must not make approvals look expired, which would reject them for good.
        now=min(device.trust.now(), device.trust.timestamp_expires()),
        already_accepted=accepted_before,
    )
    return manifest, data


def require_compatible(device: Device, manifest: Manifest) -> None:
    """Return if this machine is of the profile, and can open the variant (IncompatibleReleaseError: it is not)."""
    _, name = device.documents.steered_by()
    profile = device.profiles.get(name)
    if profile is None:
        raise IncompatibleReleaseError(f"expected a known hardware profile, got {name!r}: upgrade the agent")
    reasons = manifest_incompatibilities(manifest, profile, device.facts)
    if manifest.runtime not in device.openers:
        reasons.append(f"runtime: expected one of {sorted(device.openers)}, got {manifest.runtime}")
    if manifest.confidential:
        reasons += reasons_against(device.root, manifest.runtime) + reasons_against_build(device.builds, manifest)
    if reasons:
        raise IncompatibleReleaseError(f"{manifest.model} {manifest.version}: {'; '.join(reasons)}")


def require_space(device: Device, store: SlotStore, manifest: Manifest) -> None:
    """Return if the disk can take what is to be fetched (NoSpaceError: it cannot)."""
    folder = store.path(store.idle())
    held = sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0
    wanted = sum(entry.length for entry in manifest.files) + space_bytes(device.builds, manifest)
    free = shutil.disk_usage(store.folder).free + held
    if free < wanted + SPARE_BYTES:
        raise NoSpaceError(
            f"expected {wanted + SPARE_BYTES} bytes free for {manifest.model} {manifest.version}, got {free};"
            " free some, the active model is untouched"
        )


def fetch(device: Device, folder: Path, missing: list[ManifestFile], on_piece: Callable[[int], None]) -> None:
    """Fetch the files by their digests into the folder (BytesRefusedError: others came; TransferError: they did not come)."""
    for entry in missing:
        with _as_received():
            device.client.fetch_file(
                device.trust.blob_url(entry.sha256),
                folder / entry.name,
                sha256=entry.sha256,
                length=entry.length,
                on_piece=on_piece,
            )


def fetch_key(device: Device, store: SlotStore, folder: Path, manifest: Manifest, sha256: str) -> None:
    """Have the wrapped key of a confidential variant beside its files; it is kept only if it opens them.

    Args:
        folder: holds the files, verified.
        sha256: the manifest's digest.

    Raises:
        KeyRefusedError: it was wrapped for somebody else, or opens something else. HttpStatusError: the server gives this
            device no key. TransferError: it did not answer.
    """
    if not manifest.confidential or _holds_key(folder, sha256):
        return
    url = f"{device.identity.server.rstrip('/')}/v1/device/keys/{sha256}"
    wrapped = device.client.get(url, max_bytes=MAX_WRAPPED_KEY_BYTES).body
    try:
        require_opens(folder, manifest, unwrap_for(device.root, wrapped, sha256))
    except UntrustedError as error:
        raise KeyRefusedError(str(error)) from error
    store.keep_key(folder, wrapped)


@contextlib.contextmanager
def _as_received() -> Generator[None]:
    try:
        yield
    except DigestError as error:
        raise BytesRefusedError(str(error)) from error


def _holds_key(folder: Path, sha256: str) -> bool:
    try:
        require_key(folder, sha256)
    except DigestError:
        return False
    return True
