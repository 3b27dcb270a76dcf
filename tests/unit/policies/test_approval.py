from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from modelfleet.policies.approval import SignedApproval, require_approved, require_covers
from modelfleet.policies.errors import ApprovalRefusedError, AuthorApprovedError, NotEnoughApprovalsError
from modelfleet.signer.statements import Approval

NOW = datetime(2026, 1, 2, tzinfo=UTC)
EXPECTED = Approval(
    tenant="acme",
    model="digits",
    version="1.0.0",
    releases={"linux": "a" * 64},
    groups=("lab", "shop"),
    plan_sha256="b" * 64,
    author="ada",
    issued=NOW,
    not_after=NOW + timedelta(days=1),
)


def signed(person: str = "bob", keyid: str = "1" * 64, **changes: object) -> SignedApproval:
    return SignedApproval(approval=msgspec.structs.replace(EXPECTED, **changes), person=person, keyid=keyid)


def test_accepts_an_approval_of_exactly_this_rollout():
    require_covers(signed(), EXPECTED, NOW)


def test_refuses_the_authors_own_approval():
    with pytest.raises(AuthorApprovedError, match="ada"):
        require_covers(signed(person="ada"), EXPECTED, NOW)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tenant", "other"),
        ("model", "letters"),
        ("version", "1.0.1"),
        ("releases", {"linux": "c" * 64}),
        ("releases", {"linux": "a" * 64, "mac": "a" * 64}),
        ("groups", ("lab",)),
        ("plan_sha256", "c" * 64),
        ("author", "eve"),
        ("emergency", "recall"),
    ],
)
def test_refuses_an_approval_of_something_else_and_says_what(field, value):
    with pytest.raises(ApprovalRefusedError, match=f"expected {field} .* got"):
        require_covers(signed(**{field: value}), EXPECTED, NOW)


def test_refuses_an_expired_approval():
    with pytest.raises(ApprovalRefusedError, match="valid"):
        require_covers(signed(), EXPECTED, NOW + timedelta(days=1))


def test_refuses_an_approval_for_longer_than_half_a_year():
    require_covers(signed(not_after=NOW + timedelta(days=180)), EXPECTED, NOW)
    with pytest.raises(ApprovalRefusedError, match="within 180 days"):
        require_covers(signed(not_after=NOW + timedelta(days=180, seconds=1)), EXPECTED, NOW)


def test_refuses_an_approval_that_was_never_valid():
    with pytest.raises(ApprovalRefusedError, match="never valid"):
        require_covers(signed(not_after=NOW - timedelta(days=1)), EXPECTED, NOW - timedelta(days=2))


def test_one_person_with_two_keys_is_one_approval():
    with pytest.raises(NotEnoughApprovalsError, match=r"by 2 persons .* got 1: bob"):
        require_approved([signed(), signed(keyid="2" * 64)], "ada", 2, NOW)


def test_two_persons_are_two_approvals_and_the_author_is_none():
    given = [signed(), signed(person="eve"), signed(person="ada")]
    assert require_approved(given, "ada", 2, NOW) == {"bob", "eve"}
    with pytest.raises(NotEnoughApprovalsError):
        require_approved(given, "ada", 3, NOW)


def test_an_expired_approval_no_longer_counts():
    with pytest.raises(NotEnoughApprovalsError):
        require_approved([signed()], "ada", 1, NOW + timedelta(days=2))
