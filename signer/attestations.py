"""Whether to believe a statement under a key of its own: source, gate, approval, report.

Each function takes an envelope and whoever may sign it, and returns the statement or raises the class that says what is
wrong with it. Approvals are counted on the device, by persons and never by the author.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from msgspec import UNSET

from modelfleet.signer.desired import Release
from modelfleet.signer.dsse import verify_envelope
from modelfleet.signer.errors import ApprovalError, DigestError, ExpiredError, FormatError, ScopeError, UntrustedError
from modelfleet.signer.keys import key_id
from modelfleet.signer.names import sha256_of
from modelfleet.signer.parse import parse_struct
from modelfleet.signer.statements import (
    APPROVAL_PAYLOAD_TYPE,
    GATE_PREDICATE_TYPE,
    IN_TOTO_PAYLOAD_TYPE,
    IN_TOTO_STATEMENT_TYPE,
    REPORT_PAYLOAD_TYPE,
    SOURCE_PAYLOAD_TYPE,
    Approval,
    GateStatement,
    PublicKey,
    Source,
    TrustPolicy,
    persons_required,
)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What an approval must speak of: this release, on this profile, for this group of this tenant."""

    tenant: str
    group: str
    profile: str
    release: Release


def verify_source(envelope: bytes, policy: TrustPolicy) -> Source:
    """Return the statement that a publisher of `policy` signed.

    Raises:
        FormatError, SignatureError (UnknownKeyError): not by a publisher. ScopeError: another tenant's.
    """
    payload, _ = verify_envelope(envelope, SOURCE_PAYLOAD_TYPE, policy.publishers)
    source = parse_struct(payload, Source)
    _require_tenant(source.tenant, policy.tenant)
    return source


def verify_gate(envelope: bytes, policy: TrustPolicy) -> GateStatement:
    """Return the attestation that a gate key of `policy` signed; whether it *passed* is the caller's question.

    Raises:
        FormatError, SignatureError (UnknownKeyError): not by a gate key, or another kind of in-toto statement.
        ScopeError: another tenant's.
    """
    payload, _ = verify_envelope(envelope, IN_TOTO_PAYLOAD_TYPE, policy.gates)
    statement = parse_struct(payload, GateStatement)
    kinds = (statement.type, statement.predicate_type)
    if kinds != (IN_TOTO_STATEMENT_TYPE, GATE_PREDICATE_TYPE):
        raise FormatError(f"expected an in-toto v1 statement of {GATE_PREDICATE_TYPE}, got {kinds}")
    _require_tenant(statement.predicate.tenant, policy.tenant)
    return statement


def verify_approval(
    envelope: bytes, wish: Wish, policy: TrustPolicy, now: datetime, *, already_accepted: bool = False
) -> frozenset[str]:
    """Return the persons who by this envelope approve of `wish`.

    Args:
        already_accepted: this device has accepted the release before, so that only the expiry is waived.

    Raises:
        UntrustedError: not by an approver, expired, by the author, or of something else.
    """
    return _verified(envelope, wish, policy, now, already_accepted)[1]


def count_approvals(
    approvals: Sequence[bytes], wish: Wish, policy: TrustPolicy, now: datetime, *, already_accepted: bool = False
) -> frozenset[str]:
    """Return the persons who approve of `wish`, as many as the policy requires or more.

    An approval that does not hold is left out and named in the error, so that one revoked approver spoils nothing where
    enough others stand. Where one of them is of an emergency, two persons are needed at least.

    Raises:
        DigestError: bytes that the release does not name by digest.
        ApprovalError: fewer different persons than `policy.approvals_required`, or than an emergency needs.
    """
    for envelope in approvals:
        if sha256_of(envelope) not in wish.release.approvals:
            raise DigestError(f"expected one of {len(wish.release.approvals)} approvals by digest, got other bytes")
    persons: frozenset[str] = frozenset()
    refusals: list[str] = []
    emergency = False
    for envelope in approvals:
        try:
            approval, approving = _verified(envelope, wish, policy, now, already_accepted)
        except UntrustedError as error:
            refusals.append(f"{type(error).__name__}: {error}")
            continue
        persons |= approving
        emergency |= approval.emergency is not UNSET
    required = persons_required(policy.approvals_required, emergency=emergency)
    if len(persons) < required:
        reasons = f" ({'; '.join(refusals)})" if refusals else ""
        raise ApprovalError(f"expected approvals by {required} persons, got {len(persons)}{reasons}")
    return persons


def _verified(
    envelope: bytes, wish: Wish, policy: TrustPolicy, now: datetime, already_accepted: bool
) -> tuple[Approval, frozenset[str]]:
    """Return the approval of `wish` in `envelope`, and whose it is (errors as `verify_approval`)."""
    keys = {keyid: approver.key for keyid, approver in policy.approvers.items()}
    payload, signed_by = verify_envelope(envelope, APPROVAL_PAYLOAD_TYPE, keys)
    approval = parse_struct(payload, Approval)
    _require_same_wish(approval, wish)
    if approval.not_after <= now and not already_accepted:
        raise ExpiredError(f"approval: expected not_after > {now.isoformat()}, got {approval.not_after.isoformat()}")
    persons = frozenset(policy.approvers[keyid].person for keyid in signed_by)
    if approval.author in persons:
        raise ApprovalError(f"approval: expected a person other than the author {approval.author!r}")
    return approval, persons


def verify_report(envelope: bytes, device_key: PublicKey) -> bytes:
    """Return the report's bytes that the device with `device_key` signed.

    Raises:
        FormatError, SignatureError (UnknownKeyError): not by that device.
    """
    payload, _ = verify_envelope(envelope, REPORT_PAYLOAD_TYPE, {key_id(device_key): device_key})
    return payload


def _require_tenant(found: str, expected: str) -> None:
    if found != expected:
        raise ScopeError(f"expected tenant {expected}, got {found}")


def _require_same_wish(approval: Approval, wish: Wish) -> None:
    release = wish.release
    _require_tenant(approval.tenant, wish.tenant)
    if (approval.model, approval.version) != (release.model, release.version):
        raise ScopeError(
            f"approval: expected {release.model} {release.version}, got {approval.model} {approval.version}"
        )
    if approval.releases.get(wish.profile) != release.sha256:
        raise ScopeError(f"approval: expected the manifest {release.sha256[:12]} on {wish.profile}, it names another")
    if wish.group not in approval.groups:
        raise ScopeError(f"approval: expected group {wish.group}, got {', '.join(approval.groups)}")
