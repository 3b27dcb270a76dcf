"""What the releases of a bundle consist of: manifests, approvals, model files, and wrapped keys of confidential variants."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from modelfleet.registry.context import Registry
from modelfleet.registry.errors import NotFoundError
from modelfleet.rollout.desired.device_keys import wrapped_key
from modelfleet.rollout.errors import RolloutConflictError
from modelfleet.signer.desired import Release, Slot, takes
from modelfleet.signer.dsse import verify_envelope
from modelfleet.signer.errors import UntrustedError
from modelfleet.signer.manifest import Manifest, parse_manifest
from modelfleet.signer.metadata import Root, Targets, parse_metadata
from modelfleet.signer.names import sha256_of
from modelfleet.signer.offline import blob_name, wrapped_key_name
from modelfleet.signer.parse import parse_struct
from modelfleet.signer.statements import APPROVAL_PAYLOAD_TYPE, Approval, TrustPolicy

METADATA = "metadata/"
ONLINE_ROLES = ("timestamp", "snapshot")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What belongs to the releases.

    Attributes:
        small: name -> bytes of manifests and wrapped keys.
        blobs: digest -> length of blobs of the store: approvals and model files.
        approvals: what the releases' approvals say, those by approvers whom the policy names.
    """

    releases: Sequence[Release]
    small: Mapping[str, bytes]
    blobs: Mapping[str, int]
    approvals: Sequence[Approval]


def releases_for(slots: Mapping[str, Slot], device: str) -> tuple[Release, ...]:
    """Return what the device may be asked to run: stable releases, and candidates that it takes."""
    found: list[Release] = []
    for slot in slots.values():
        found += [slot.stable] if slot.stable is not None else []
        found += [candidate.release for candidate in slot.candidates if takes(candidate, device)]
    return tuple(found)


def contents_of(
    registry: Registry, wanted: Mapping[str, tuple[Release, ...]], *, actor: str, now: datetime
) -> Contents:
    """Return what devices need: `wanted` is device -> releases.

    Raises:
        RolloutConflictError: a part is not in the store, or is not what was signed.
        RegistryError: a device may not have the key of a confidential variant, or it cannot be opened now.
    """
    releases = {release.sha256: release for each in wanted.values() for release in each}
    manifests = {sha256: _manifest(registry, release) for sha256, release in releases.items()}
    parsed = {sha256: parse_manifest(data) for sha256, data in manifests.items()}
    small = {blob_name(sha256): data for sha256, data in manifests.items()}
    for device, each in wanted.items():
        for sha256 in {release.sha256 for release in each if parsed[release.sha256].confidential}:
            small[wrapped_key_name(device, sha256)] = wrapped_key(registry, device, sha256, actor=actor, now=now)
    return Contents(
        releases=tuple(releases.values()),
        small=small,
        blobs={**_model_files(registry, parsed.values()), **_approval_lengths(registry, releases.values())},
        approvals=_approvals(registry, releases.values()),
    )


def ends_before(expires: datetime, small: Mapping[str, bytes], approvals: Iterable[Approval]) -> tuple[str, ...]:
    """Return a line for people about each signature that ends before the bundle does."""
    ends: dict[str, datetime] = {}
    for name in sorted(small):
        role = name.removeprefix(METADATA).removesuffix(".json").rpartition(".")[2]
        if name.startswith(METADATA) and role not in ONLINE_ROLES:
            ends[role] = _expiry(role, small[name])  # of roots, the newest comes last
    for approval in approvals:
        ends[f"approval of {approval.model} {approval.version}"] = approval.not_after
    return tuple(
        f"{what} ends {when:%F %T} UTC, before the bundle does" for what, when in ends.items() if when < expires
    )


def _expiry(role: str, data: bytes) -> datetime:
    signed = parse_metadata(data, Root).signed if role == Root.type else parse_metadata(data, Targets).signed
    return signed.expires


def _manifest(registry: Registry, release: Release) -> bytes:
    folder, _, name = release.path.rpartition("/")
    path = registry.trust_dir / "targets" / folder / f"{release.sha256}.{name}"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RolloutConflictError(
            f"{release.path}: expected its manifest among the targets, it is not there"
        ) from error
    if sha256_of(data) != release.sha256:
        raise RolloutConflictError(f"{release.path}: expected manifest {release.sha256[:12]}, the file was changed")
    return data


def _model_files(registry: Registry, manifests: Iterable[Manifest]) -> dict[str, int]:
    found: dict[str, int] = {}
    for manifest in manifests:
        for file in manifest.files:
            found[file.sha256] = _length(registry, file.sha256, f"{manifest.path}: {file.name}")
            if found[file.sha256] != file.length:
                raise RolloutConflictError(f"{manifest.path}: {file.name} in the store is not what was signed")
    return found


def _approval_lengths(registry: Registry, releases: Iterable[Release]) -> dict[str, int]:
    named = {sha256: release for release in releases for sha256 in release.approvals}
    return {sha256: _length(registry, sha256, f"{release.path}: an approval") for sha256, release in named.items()}


def _length(registry: Registry, sha256: str, what: str) -> int:
    try:
        return registry.store.size(sha256)
    except NotFoundError as error:
        raise RolloutConflictError(f"{what}: expected blob {sha256[:12]} in the store, it is not there") from error


def _approvals(registry: Registry, releases: Iterable[Release]) -> list[Approval]:
    policy = registry.repository.policy()
    digests = {sha256 for release in releases for sha256 in release.approvals}
    found = [_approval(registry, policy, sha256) for sha256 in sorted(digests)]
    return [approval for approval in found if approval is not None]


def _approval(registry: Registry, policy: TrustPolicy, sha256: str) -> Approval | None:
    keys = {keyid: approver.key for keyid, approver in policy.approvers.items()}
    with registry.store.open(sha256) as file:
        envelope = file.read()
    try:
        payload, _ = verify_envelope(envelope, APPROVAL_PAYLOAD_TYPE, keys)
        return parse_struct(payload, Approval)
    except UntrustedError:  # by somebody who may approve no more: devices that have the release keep it
        return None
