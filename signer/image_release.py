"""What the signer checks before it signs a data image, beside all that it checked of the release itself.

It makes the header by itself, from a manifest that it has signed before: nobody tells it a digest, a length, a counter or a
name. What is asked for is only which release, for which group, and whether it may replace a newer one. Pure: the state comes
in as `marks`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from modelfleet.signer.attestations import Wish, count_approvals
from modelfleet.signer.desired import Release
from modelfleet.signer.errors import DigestError, PlanError, ReplayError, ScopeError
from modelfleet.signer.image import CODE_FILE, WEIGHTS_FILE, ImageHeader
from modelfleet.signer.manifest import Manifest, ManifestFile
from modelfleet.signer.metadata import TargetFile
from modelfleet.signer.names import sha256_of
from modelfleet.signer.state import GroupMark, ImageMarks
from modelfleet.signer.statements import TrustPolicy

RUNTIME = "c99"


@dataclass(frozen=True, kw_only=True)
class ImageWish:
    """What is asked for: an image of this release for this group; downgrade: over a higher release counter too."""

    manifest: bytes
    group: str
    downgrade: bool
    approvals: Sequence[bytes]


def require_signed_before(manifest: Manifest, data: bytes, known: TargetFile | None) -> None:
    """Refuse a manifest that does not stand in the signer's own copy of its bin.

    Raises:
        ScopeError: the signer has signed no such release. DigestError: it has, with another manifest.
    """
    if known is None:
        raise ScopeError(
            f"expected a release that this signer has signed, got {manifest.path}: build the variant first"
        )
    if known.hashes.get("sha256") != sha256_of(data):
        raise DigestError(f"{manifest.path}: expected the manifest that was signed, got {sha256_of(data)[:12]}")


def check_image(
    wish: ImageWish, manifest: Manifest, policy: TrustPolicy, marks: ImageMarks, newest_counter: int, now: datetime
) -> ImageHeader:
    """Return the header that may be signed; asked for again, the newest image of a group keeps its serial.

    Args:
        manifest: parsed from `wish.manifest`, checked as every release is, and signed before.
        marks: what was signed for this model and profile.
        newest_counter: the highest release counter of the model; a downgrade goes back from there, and no further up.

    Raises:
        PlanError: not sources for a microcontroller, or confidential.
        ApprovalError: fewer than k persons approved of this manifest for this group.
        ReplayError: a lower release counter than the group's highest, and no downgrade is asked for.
    """
    weights, code = _plain_file(manifest, WEIGHTS_FILE), _plain_file(manifest, CODE_FILE)
    sha256 = sha256_of(wish.manifest)
    _require_approved(wish, manifest, sha256, policy, now)
    mark = marks.groups.get(wish.group)
    _require_counter(wish, manifest, mark)
    replaces = newest_counter if wish.downgrade else 0
    same = GroupMark(
        serial=marks.serial, counter=mark.counter if mark else 0, manifest_sha256=sha256, replaces=replaces
    )
    return ImageHeader(
        tenant=manifest.tenant,
        group=wish.group,
        profile=manifest.profile,
        model=manifest.model,
        version=manifest.version,
        serial=marks.serial if mark == same else marks.serial + 1,
        counter=manifest.counter,
        replaces=replaces,
        payload_bytes=weights.length,
        payload_sha256=weights.sha256,
        shapes_sha256=code.sha256,
        manifest_sha256=sha256,
    )


def marked(marks: ImageMarks, header: ImageHeader) -> ImageMarks:
    """Return what to remember before the image leaves: a group's highest counter never falls, by a downgrade neither."""
    former = marks.groups.get(header.group)
    highest = header.counter if former is None else max(former.counter, header.counter)
    mark = GroupMark(
        serial=header.serial, counter=highest, manifest_sha256=header.manifest_sha256, replaces=header.replaces
    )
    return ImageMarks(serial=header.serial, groups={**marks.groups, header.group: mark})


def _plain_file(manifest: Manifest, name: str) -> ManifestFile:
    if manifest.runtime != RUNTIME:
        raise PlanError(
            f"expected a variant of runtime {RUNTIME}, got {manifest.runtime}: {manifest.profile} takes no image"
        )
    if manifest.confidential:
        raise PlanError(
            f"{manifest.model}@{manifest.version} is confidential: an image would hold its weights in plain"
        )
    try:
        return manifest.file(name)
    except KeyError as error:
        raise PlanError(f"{manifest.path}: expected a file {name}, it names none") from error


def _require_approved(wish: ImageWish, manifest: Manifest, sha256: str, policy: TrustPolicy, now: datetime) -> None:
    release = Release(
        model=manifest.model,
        version=manifest.version,
        counter=manifest.counter,
        path=manifest.path,
        sha256=sha256,
        length=len(wish.manifest),
        approvals=tuple(sha256_of(each) for each in wish.approvals),
    )
    wanted = Wish(tenant=manifest.tenant, group=wish.group, profile=manifest.profile, release=release)
    count_approvals(wish.approvals, wanted, policy, now)


def _require_counter(wish: ImageWish, manifest: Manifest, mark: GroupMark | None) -> None:
    if mark is not None and manifest.counter < mark.counter and not wish.downgrade:
        raise ReplayError(
            f"{manifest.model} for {wish.group}: expected a release counter >= {mark.counter}, got {manifest.counter};"
            " going back takes an image that says so: --downgrade"
        )
