"""Whether to believe a document or a release: the device's decisions, pure, in the order that docs/security.md lists.

Nothing here reads a clock, a file or a socket: the trust policy, the floors and `now` come in, and what was accepted goes
out. Each check raises a class of its own, so that a refusal says which rule it broke.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Generic, Protocol, TypeVar

from modelfleet.signer.attestations import (
    Wish,
    count_approvals,
    verify_approval,
    verify_gate,
    verify_report,
    verify_source,
)
from modelfleet.signer.desired import CONDITIONS, WINDOWS, Assignment, GroupDocument, Release
from modelfleet.signer.dsse import MAX_ENVELOPE_BYTES, verify_envelope
from modelfleet.signer.errors import (
    DigestError,
    EpochError,
    ExpiredError,
    MustUnderstandError,
    ReplayError,
    RevokedError,
    ScopeError,
)
from modelfleet.signer.manifest import Manifest, parse_manifest
from modelfleet.signer.names import sha256_of
from modelfleet.signer.parse import parse_struct
from modelfleet.signer.sign import PAYLOAD_TYPES
from modelfleet.signer.statements import TrustPolicy
from modelfleet.signer.wanted import Reason, Wanted, select, start_at

__all__ = [
    "Accepted",
    "Floor",
    "Floors",
    "Opening",
    "Reason",
    "Wanted",
    "accept_document",
    "count_approvals",
    "open_document",
    "require_startable",
    "select",
    "start_at",
    "verify_approval",
    "verify_gate",
    "verify_release",
    "verify_report",
    "verify_source",
]

UNDERSTOOD: frozenset[str] = frozenset({WINDOWS, CONDITIONS})
"""Names in `must_understand` that this version of the program honours."""

DocumentT = TypeVar("DocumentT", GroupDocument, Assignment)


@dataclass(frozen=True, kw_only=True)
class Floor:
    """The newest document of one scope: its (epoch, seq), and the sha256 of its payload."""

    epoch: int
    seq: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Floors:
    """What this device has accepted, per scope; below it, it refuses. `latest_signed` holds up a clock that lags."""

    scopes: Mapping[str, Floor] = field(default_factory=dict[str, Floor])
    latest_signed: datetime = datetime(1970, 1, 1, tzinfo=UTC)

    def clock(self, now: datetime) -> datetime:
        """Return the time to judge expiry by: never before the latest moment that somebody trusted has signed."""
        return max(now, self.latest_signed)

    def raised(self, scope: str, floor: Floor, issued: datetime) -> "Floors":
        """Return the floors after a document of `scope` was accepted."""
        return replace(self, scopes={**self.scopes, scope: floor}, latest_signed=self.clock(issued))


@dataclass(frozen=True, kw_only=True)
class Accepted(Generic[DocumentT]):
    """A believed document, and the floors to store durably *before* acting on it."""

    document: DocumentT
    floors: Floors


class Opening(Protocol):
    """How a signed document is opened: `open_document`."""

    def __call__(
        self, envelope: bytes, kind: type[DocumentT], policy: TrustPolicy, *, max_bytes: int = MAX_ENVELOPE_BYTES
    ) -> tuple[DocumentT, str]:
        """As `open_document`."""
        ...


class Expiring(Protocol):
    """A document of the desired state, or what `select` made of them."""

    @property
    def expires(self) -> datetime:
        """Until when an update may start."""
        ...


def accept_document(
    envelope: bytes,
    kind: type[DocumentT],
    *,
    tenant: str,
    scope: str,
    policy: TrustPolicy,
    floors: Floors,
    max_bytes: int = MAX_ENVELOPE_BYTES,
    opening: Opening | None = None,
) -> Accepted[DocumentT]:
    """Return the document in `envelope`, believed, and the floors that it raises.

    An expired document is accepted: it may still halt or roll back. What it may not do, `require_startable` refuses.

    Args:
        scope: `group_scope(...)` or `device_scope(...)` of what this device listens to.
        opening: in place of `open_document`, what gives the same answers.

    Raises:
        FormatError: too long, not a strict envelope, or not a strict payload.
        UnknownKeyError: by no director of `policy`; refresh the metadata once, then decide (EpochError likewise).
        SignatureError: the director's signature does not hold.
        ScopeError: for another tenant or scope. MustUnderstandError: it needs more than this program can.
        ReplayError: older than `floors` or than the policy's epoch, or other bytes under the same seq.
    """
    document, sha256 = (opening or open_document)(envelope, kind, policy, max_bytes=max_bytes)
    _require_addressed(document, tenant, scope)
    _require_understood(document)
    _require_epoch(document, policy)
    floor = Floor(epoch=document.epoch, seq=document.seq, sha256=sha256)
    _require_not_older(scope, floor, floors.scopes.get(scope))
    return Accepted(document=document, floors=floors.raised(scope, floor, document.issued))


def open_document(
    envelope: bytes, kind: type[DocumentT], policy: TrustPolicy, *, max_bytes: int = MAX_ENVELOPE_BYTES
) -> tuple[DocumentT, str]:
    """Return the document that a director of the policy has signed, and the digest of its payload.

    It depends on nothing but its arguments (errors: the first three of `accept_document`).
    """
    payload, _ = verify_envelope(envelope, PAYLOAD_TYPES[kind], policy.directors, max_bytes=max_bytes)
    return parse_struct(payload, kind), sha256_of(payload)


def require_startable(document: Expiring, now: datetime) -> None:
    """Refuse to start an update on an expired document (rule 7); running models and rollbacks need no such leave.

    Raises:
        ExpiredError: `expires` has passed.
    """
    if document.expires <= now:
        raise ExpiredError(
            f"expected a desired state that holds at {now.isoformat()}, got one until {document.expires.isoformat()}:"
            " wait for the controller to sign it again"
        )


def verify_release(
    release: Release,
    manifest_bytes: bytes,
    approvals: Sequence[bytes],
    *,
    tenant: str,
    group: str,
    profile: str,
    policy: TrustPolicy,
    target: tuple[str, int],
    now: datetime,
    already_accepted: bool = False,
) -> Manifest:
    """Return the manifest of `release`, which desired state, TUF metadata and k approvals agree on.

    Args:
        approvals: the envelopes fetched by the digests that the release names.
        target: sha256 and length of `release.path` in the tenant's verified TUF metadata.
        already_accepted: this device has accepted this digest before: an approval may have expired since.

    Raises:
        DigestError: the three do not mean the same bytes. FormatError: not a manifest.
        ScopeError: another tenant, model, version, profile, counter or path than the release says.
        RevokedError: revoked, or below the policy's minimum counter. ApprovalError: too few approvals.
    """
    _require_same_target(release, target)
    _require_bytes(release, manifest_bytes)
    manifest = parse_manifest(manifest_bytes)
    _require_agreement(release, manifest, tenant, profile)
    _require_not_revoked(release, policy)
    wish = Wish(tenant=tenant, group=group, profile=profile, release=release)
    count_approvals(approvals, wish, policy, now, already_accepted=already_accepted)
    return manifest


def _require_addressed(document: GroupDocument | Assignment, tenant: str, scope: str) -> None:
    if (document.tenant, document.scope) != (tenant, scope):
        raise ScopeError(f"expected a document for {tenant} {scope}, got one for {document.tenant} {document.scope}")


def _require_understood(document: GroupDocument | Assignment) -> None:
    unknown = sorted(set(document.must_understand) - UNDERSTOOD)
    if unknown:
        raise MustUnderstandError(f"the document needs {', '.join(unknown)}: upgrade the agent")


def _require_epoch(document: GroupDocument | Assignment, policy: TrustPolicy) -> None:
    if document.epoch < policy.epoch:
        raise ReplayError(f"expected epoch {policy.epoch}, got {document.epoch}")
    if document.epoch > policy.epoch:
        raise EpochError(f"expected epoch {policy.epoch}, got {document.epoch}: refresh the trust policy")


def _require_not_older(scope: str, found: Floor, floor: Floor | None) -> None:
    if floor is None:
        return
    if (found.epoch, found.seq) < (floor.epoch, floor.seq):
        raise ReplayError(
            f"{scope}: expected (epoch, seq) >= ({floor.epoch}, {floor.seq}), got ({found.epoch}, {found.seq})"
        )
    if (found.epoch, found.seq) == (floor.epoch, floor.seq) and found.sha256 != floor.sha256:
        raise ReplayError(f"{scope}: expected the document accepted as seq {floor.seq}, got another with the same seq")


def _require_same_target(release: Release, target: tuple[str, int]) -> None:
    if target != (release.sha256, release.length):
        raise DigestError(
            f"{release.path}: desired state names {release.sha256[:12]} of {release.length} bytes,"
            f" TUF metadata {target[0][:12]} of {target[1]}"
        )


def _require_bytes(release: Release, data: bytes) -> None:
    if (sha256_of(data), len(data)) != (release.sha256, release.length):
        raise DigestError(f"{release.path}: expected {release.sha256[:12]}, got {sha256_of(data)[:12]}")


def _require_agreement(release: Release, manifest: Manifest, tenant: str, profile: str) -> None:
    expected = (tenant, release.model, release.version, profile, release.counter, release.path)
    found = (manifest.tenant, manifest.model, manifest.version, manifest.profile, manifest.counter, manifest.path)
    if found != expected:
        raise ScopeError(f"expected a manifest of {expected}, got one of {found}")


def _require_not_revoked(release: Release, policy: TrustPolicy) -> None:
    if release.sha256 in policy.revoked:
        raise RevokedError(f"{release.model} {release.version}: the trust policy revokes {release.sha256[:12]}")
    least = policy.minimum_counter.get(release.model, 0)
    if release.counter < least:
        raise RevokedError(f"{release.model}: expected a release counter >= {least}, got {release.counter}")
