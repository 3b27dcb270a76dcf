"""Whether people approved a rollout: pure rules, checked by the server before it starts and by every device again.

An approval names exactly what it covers: the releases by digest, the groups, the plan by digest. Anything that
changes voids it. The author never counts; k approvals are k different persons, whatever number of keys they hold. An emergency
needs two persons at least (`signer.statements.persons_required`), whatever k is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from modelfleet.policies.errors import ApprovalRefusedError, AuthorApprovedError, NotEnoughApprovalsError
from modelfleet.signer.statements import Approval

APPROVAL_LIFE = timedelta(days=180)
"""How long an approval may hold; its giver may say a shorter time."""


@dataclass(frozen=True, kw_only=True)
class SignedApproval:
    """An approval whose signature has been verified, and the person whose key it is (from the trust policy)."""

    approval: Approval
    person: str
    keyid: str


def require_covers(given: SignedApproval, expected: Approval, now: datetime) -> None:
    """Refuse an approval that is not of this rollout, not by another person than its author, or not valid now.

    Args:
        given: the approval, and whose signature it bears.
        expected: what the server would have approved; its `issued` and `not_after` are not compared.
        now: aware.

    Raises:
        AuthorApprovedError: the signer is the rollout's author.
        ApprovalRefusedError: it covers something else, or its time is over; says expected and got.
    """
    if given.person == expected.author:
        raise AuthorApprovedError(
            f"expected an approval by another person than the author, got one by {given.person!r}"
        )
    for name in ("tenant", "model", "version", "releases", "groups", "plan_sha256", "author", "emergency"):
        wanted, got = getattr(expected, name), getattr(given.approval, name)
        if wanted != got:
            raise ApprovalRefusedError(f"the approval is of another rollout: expected {name} {wanted!r}, got {got!r}")
    if not given.approval.issued < given.approval.not_after:
        raise ApprovalRefusedError("expected not_after later than issued, got an approval that was never valid")
    if given.approval.not_after > now + APPROVAL_LIFE:
        raise ApprovalRefusedError(
            f"expected an approval that ends within {APPROVAL_LIFE.days} days, got one until"
            f" {given.approval.not_after.isoformat()}: sign one for a shorter time"
        )
    if now >= given.approval.not_after:
        raise ApprovalRefusedError(
            f"expected an approval valid at {now.isoformat()}, got one until {given.approval.not_after.isoformat()}"
        )


def approving_persons(approvals: Sequence[SignedApproval], author: str, now: datetime) -> frozenset[str]:
    """Return the different persons, the author left out, whose approval is still valid."""
    return frozenset(each.person for each in approvals if each.person != author and now < each.approval.not_after)


def require_approved(approvals: Sequence[SignedApproval], author: str, required: int, now: datetime) -> frozenset[str]:
    """Return who approved, when these are enough.

    Raises:
        NotEnoughApprovalsError: fewer than `required` different persons.
    """
    persons = approving_persons(approvals, author, now)
    if len(persons) < required:
        names = ", ".join(sorted(persons)) or "nobody"
        raise NotEnoughApprovalsError(
            f"expected approvals by {required} persons other than {author}, got {len(persons)}: {names}"
        )
    return persons
