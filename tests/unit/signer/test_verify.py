"""The device's checks: for each, the document or release that passes, and the one change that is refused."""

from datetime import timedelta

import msgspec
import pytest

from modelfleet.signer.desired import GROUP_PAYLOAD_TYPE, Assignment, GroupDocument, Release, device_scope, group_scope
from modelfleet.signer.dsse import sign_envelope
from modelfleet.signer.errors import (
    ApprovalError,
    DigestError,
    EpochError,
    ExpiredError,
    FormatError,
    MustUnderstandError,
    ReplayError,
    RevokedError,
    ScopeError,
    SignatureError,
    UnknownKeyError,
    UntrustedError,
)
from modelfleet.signer.keys import Signer
from modelfleet.signer.manifest import Manifest, encode_manifest
from modelfleet.signer.names import sha256_of
from modelfleet.signer.sign import encode_payload, sign_assignment, sign_group
from modelfleet.signer.statements import TrustPolicy
from modelfleet.signer.verify import Floor, Floors, accept_document, require_startable, verify_release
from tests.unit.signer.samples import (
    DAY,
    DEVICE,
    GROUP,
    NOW,
    PROFILE,
    TENANT,
    Keys,
    approved,
    approved_by,
    assignment,
    group,
    manifest,
    release,
)

SCOPE = group_scope(GROUP, PROFILE)


def accept(
    keys: Keys,
    document: GroupDocument | None = None,
    *,
    signer: Signer | None = None,
    policy: TrustPolicy | None = None,
    floors: Floors | None = None,
    scope: str = SCOPE,
) -> Floors:
    envelope = sign_group(document or group(release()), signer or keys.director)
    accepted = accept_document(
        envelope,
        GroupDocument,
        tenant=TENANT,
        scope=scope,
        policy=policy or keys.policy(),
        floors=floors or Floors(),
    )
    assert accepted.document == (document or group(release()))
    return accepted.floors


def floor_of(document: GroupDocument) -> Floors:
    digest = sha256_of(encode_payload(document))
    return Floors(scopes={SCOPE: Floor(epoch=document.epoch, seq=document.seq, sha256=digest)})


def test_accepts_a_directors_document_and_raises_its_floor(keys: Keys) -> None:
    floors = accept(keys, group(release(), seq=11))
    assert floors.scopes[SCOPE].seq == 11
    assert floors.latest_signed == NOW


def test_accepts_a_directors_assignment(keys: Keys) -> None:
    accepted = accept_document(
        sign_assignment(assignment(), keys.director),
        Assignment,
        tenant=TENANT,
        scope=device_scope(DEVICE),
        policy=keys.policy(),
        floors=Floors(),
    )
    assert accepted.document == assignment()


def test_floors_are_kept_per_scope(keys: Keys) -> None:
    other = Floors(scopes={"d/other": Floor(epoch=1, seq=999, sha256="0" * 64)})
    assert accept(keys, floors=other).scopes["d/other"].seq == 999


def test_refuses_a_document_by_someone_who_is_no_director(keys: Keys) -> None:
    for someone in (keys.stranger, keys.anna, keys.gate, keys.publisher):
        with pytest.raises(UnknownKeyError):
            accept(keys, signer=someone)


def test_refuses_a_document_whose_bytes_were_changed(keys: Keys) -> None:
    good, other = (sign_group(group(release(), seq=seq), keys.director) for seq in (10, 11))
    forged = msgspec.json.decode(good) | {"payload": msgspec.json.decode(other)["payload"]}
    with pytest.raises(SignatureError):
        accept_document(
            msgspec.json.encode(forged),
            GroupDocument,
            tenant=TENANT,
            scope=SCOPE,
            policy=keys.policy(),
            floors=Floors(),
        )


def test_refuses_a_document_beyond_the_size_that_was_asked_for(keys: Keys) -> None:
    envelope = sign_group(group(release()), keys.director)
    limits = {"tenant": TENANT, "scope": SCOPE, "policy": keys.policy(), "floors": Floors()}
    accept_document(envelope, GroupDocument, **limits, max_bytes=len(envelope))
    with pytest.raises(FormatError, match="at most"):
        accept_document(envelope, GroupDocument, **limits, max_bytes=len(envelope) - 1)


def test_refuses_an_assignment_passed_off_as_a_group_document(keys: Keys) -> None:
    with pytest.raises(FormatError, match="payloadType"):
        accept_document(
            sign_assignment(assignment(), keys.director),
            GroupDocument,
            tenant=TENANT,
            scope=SCOPE,
            policy=keys.policy(),
            floors=Floors(),
        )


def test_refuses_a_signed_payload_that_is_not_strict(keys: Keys) -> None:
    payload = encode_payload(group(release())).replace(b'"seq":10', b'"seq":10,"seq":10')
    envelope = sign_envelope(payload, GROUP_PAYLOAD_TYPE, keys.director)
    with pytest.raises(FormatError, match="duplicate"):
        accept_document(envelope, GroupDocument, tenant=TENANT, scope=SCOPE, policy=keys.policy(), floors=Floors())


def test_refuses_a_document_of_another_tenant(keys: Keys) -> None:
    with pytest.raises(ScopeError):
        accept(keys, group(release(), tenant="umbrella"))


def test_refuses_a_document_of_another_group_or_profile(keys: Keys) -> None:
    for scope in (group_scope("depots", PROFILE), group_scope(GROUP, "linux-cpu-int8"), device_scope(DEVICE)):
        with pytest.raises(ScopeError):
            accept(keys, group(release(), scope=scope))


def test_refuses_a_document_that_needs_a_feature_it_does_not_have(keys: Keys) -> None:
    with pytest.raises(MustUnderstandError, match="deltas"):
        accept(keys, group(release(), must_understand=("deltas",)))


def test_refuses_a_document_of_a_past_epoch(keys: Keys) -> None:
    accept(keys, group(release(), epoch=2), policy=keys.policy(epoch=2))
    with pytest.raises(ReplayError, match="epoch"):
        accept(keys, group(release(), epoch=1), policy=keys.policy(epoch=2))


def test_a_document_of_a_coming_epoch_asks_for_a_refresh_like_an_unknown_key(keys: Keys) -> None:
    with pytest.raises(EpochError) as caught:
        accept(keys, group(release(), epoch=2))
    assert isinstance(caught.value, UnknownKeyError)


def test_refuses_a_document_older_than_the_accepted_one(keys: Keys) -> None:
    floors = floor_of(group(release(), seq=10))
    accept(keys, group(release(), seq=11), floors=floors)
    with pytest.raises(ReplayError, match=r"expected \(epoch, seq\) >= \(1, 10\), got \(1, 9\)"):
        accept(keys, group(release(), seq=9), floors=floors)


def test_accepts_the_same_document_again(keys: Keys) -> None:
    floors = floor_of(group(release()))
    assert accept(keys, group(release()), floors=floors).scopes == floors.scopes


def test_refuses_other_bytes_under_an_accepted_seq(keys: Keys) -> None:
    with pytest.raises(ReplayError, match="same seq"):
        accept(keys, group(), floors=floor_of(group(release())))


def test_a_new_epoch_starts_below_the_seq_of_the_former(keys: Keys) -> None:
    floors = floor_of(group(release(), seq=1000))
    accept(keys, group(release(), epoch=2, seq=1), policy=keys.policy(epoch=2), floors=floors)


def test_an_expired_document_is_accepted_but_starts_no_update(keys: Keys) -> None:
    expired = group(release(), expires=NOW)
    accept(keys, expired)
    with pytest.raises(ExpiredError):
        require_startable(expired, NOW)
    require_startable(group(release(), expires=NOW + timedelta(seconds=1)), NOW)


def test_a_clock_that_was_set_back_does_not_revive_what_expired() -> None:
    floors = Floors(latest_signed=NOW)
    assert floors.clock(NOW - 30 * DAY) == NOW
    assert floors.clock(NOW + DAY) == NOW + DAY
    assert floors.raised("d/x", Floor(epoch=1, seq=1, sha256=""), NOW - DAY).latest_signed == NOW


def check(
    keys: Keys,
    *,
    of: Manifest | None = None,
    wanted: Release | None = None,
    data: bytes | None = None,
    approvals: tuple[bytes, ...] | None = None,
    policy: TrustPolicy | None = None,
    target: tuple[str, int] | None = None,
    group: str = GROUP,
    profile: str = PROFILE,
    already_accepted: bool = False,
) -> Manifest:
    """Verify the valid release, with whatever is given in place of what would fit."""
    described = of or manifest()
    base = wanted or release(described)
    if approvals is None:
        approvals = (approved_by(keys.anna, base),)
    base = base if wanted is not None and wanted.approvals else approved(base, *approvals)
    return verify_release(
        base,
        encode_manifest(described) if data is None else data,
        approvals,
        tenant=TENANT,
        group=group,
        profile=profile,
        policy=policy or keys.policy(),
        target=target or (base.sha256, base.length),
        now=NOW,
        already_accepted=already_accepted,
    )


def test_accepts_a_release_on_which_state_metadata_and_approval_agree(keys: Keys) -> None:
    assert check(keys) == manifest()


def test_refuses_when_the_metadata_names_another_digest_or_length(keys: Keys) -> None:
    good = release()
    for target in (("0" * 64, good.length), (good.sha256, good.length + 1)):
        with pytest.raises(DigestError, match="TUF metadata"):
            check(keys, target=target)


def test_refuses_manifest_bytes_of_another_digest(keys: Keys) -> None:
    with pytest.raises(DigestError):
        check(keys, data=encode_manifest(manifest()) + b" ")


def test_refuses_a_file_that_is_signed_but_no_manifest(keys: Keys) -> None:
    data = b'{"tenant":"acme"}'
    wanted = release(sha256=sha256_of(data), length=len(data))
    with pytest.raises(FormatError):
        check(keys, wanted=wanted, data=data)


DISAGREEMENTS = {
    "model": {"model": "faces"},
    "version": {"version": "1.0.1"},
    "counter": {"counter": 2},
    "path": {"path": "models/digits/1.0.0/linux-cpu-int8/manifest.json"},
}


@pytest.mark.parametrize("field", DISAGREEMENTS)
def test_refuses_a_release_that_names_another(field: str, keys: Keys) -> None:
    with pytest.raises(ScopeError):
        check(keys, wanted=release(**DISAGREEMENTS[field]))


def test_refuses_a_manifest_of_another_tenant(keys: Keys) -> None:
    with pytest.raises(ScopeError):
        check(keys, of=manifest(tenant="umbrella"))


def test_refuses_a_manifest_of_another_profile(keys: Keys) -> None:
    other = manifest(profile="linux-cpu-int8")
    envelope = approved_by(keys.anna, release(other), releases={PROFILE: release(other).sha256})
    with pytest.raises(ScopeError):
        check(keys, of=other, approvals=(envelope,))


def test_refuses_a_counter_below_the_policys_minimum(keys: Keys) -> None:
    check(keys, policy=keys.policy(minimum_counter={"digits": 1, "faces": 9}))
    with pytest.raises(RevokedError, match="counter >= 2, got 1"):
        check(keys, policy=keys.policy(minimum_counter={"digits": 2}))


def test_refuses_a_revoked_digest(keys: Keys) -> None:
    check(keys, policy=keys.policy(revoked=("0" * 64,)))
    with pytest.raises(RevokedError, match="revokes"):
        check(keys, policy=keys.policy(revoked=(release().sha256,)))


def test_refuses_a_release_without_approvals(keys: Keys) -> None:
    with pytest.raises(ApprovalError, match="by 1 persons, got 0"):
        check(keys, approvals=())


def test_refuses_approvals_that_the_release_does_not_name(keys: Keys) -> None:
    named, other = (approved_by(keys.anna, author=author) for author in ("carol", "dora"))
    with pytest.raises(DigestError, match="approvals by digest"):
        check(keys, wanted=approved(release(), named), approvals=(other,))


def test_k_approvals_are_by_k_different_persons(keys: Keys) -> None:
    two = keys.policy(approvals_required=2)
    by_anna, again, by_ben = (approved_by(key) for key in (keys.anna, keys.anna, keys.ben))
    check(keys, approvals=(by_anna, by_ben), policy=two)
    with pytest.raises(ApprovalError, match="by 2 persons, got 1"):
        check(keys, approvals=(by_anna, again), policy=two)


def test_two_keys_of_one_person_are_one_approval(keys: Keys) -> None:
    policy = keys.policy(approvals_required=2)
    same = {keyid: msgspec.structs.replace(approver, person="anna") for keyid, approver in policy.approvers.items()}
    with pytest.raises(ApprovalError, match="got 1"):
        check(
            keys,
            approvals=(approved_by(keys.anna), approved_by(keys.ben)),
            policy=msgspec.structs.replace(policy, approvers=same),
        )


BAD_APPROVALS = {
    "the author's own": ({"author": "anna"}, "author"),
    "another tenant's": ({"tenant": "umbrella"}, "ScopeError"),
    "of another model": ({"model": "faces"}, "ScopeError"),
    "of another version": ({"version": "2.0.0"}, "ScopeError"),
    "of another manifest": ({"releases": {PROFILE: "0" * 64}}, "ScopeError"),
    "of another profile": ({"releases": {"linux-cpu-int8": release().sha256}}, "ScopeError"),
    "for other groups": ({"groups": ("depots",)}, "ScopeError"),
    "expired": ({"not_after": NOW}, "ExpiredError"),
}


@pytest.mark.parametrize("name", BAD_APPROVALS)
def test_does_not_count_an_approval_that_is(name: str, keys: Keys) -> None:
    changes, reason = BAD_APPROVALS[name]
    with pytest.raises(ApprovalError, match=reason):
        check(keys, approvals=(approved_by(keys.anna, **changes),))


def test_does_not_count_an_approval_by_someone_who_may_not_approve(keys: Keys) -> None:
    for someone in (keys.stranger, keys.director, keys.publisher):
        with pytest.raises(ApprovalError, match="UnknownKeyError"):
            check(keys, approvals=(approved_by(someone),))


def test_an_invalid_approval_beside_enough_valid_ones_spoils_nothing(keys: Keys) -> None:
    check(keys, approvals=(approved_by(keys.stranger), approved_by(keys.ben)))


def test_an_approval_may_name_more_groups_and_profiles(keys: Keys) -> None:
    check(
        keys,
        approvals=(
            approved_by(keys.anna, groups=("depots", GROUP), releases={PROFILE: release().sha256, "other": "0" * 64}),
        ),
    )


def test_a_release_accepted_before_outlives_its_approval_and_nothing_else(keys: Keys) -> None:
    expired = approved_by(keys.anna, not_after=NOW)
    check(keys, approvals=(expired,), already_accepted=True)
    with pytest.raises(ApprovalError):
        check(keys, approvals=(), already_accepted=True)
    with pytest.raises(ApprovalError):
        check(keys, approvals=(approved_by(keys.anna, not_after=NOW, author="anna"),), already_accepted=True)
    with pytest.raises(RevokedError):
        check(keys, approvals=(expired,), already_accepted=True, policy=keys.policy(revoked=(release().sha256,)))


def test_an_emergency_needs_two_persons_whatever_the_policy_asks_for(keys: Keys) -> None:
    policy = keys.policy(approvals_required=1)
    anna = approved_by(keys.anna, emergency="recall")
    with pytest.raises(ApprovalError, match="by 2 persons, got 1"):
        check(keys, approvals=(anna,), policy=policy)
    with pytest.raises(ApprovalError, match="by 2 persons, got 1"):
        check(keys, approvals=(anna, approved_by(keys.ben, emergency="recall", author="ben")), policy=policy)
    check(keys, approvals=(anna, approved_by(keys.ben, emergency="recall")), policy=policy)
    with pytest.raises(ApprovalError, match="by 3 persons"):
        both = (anna, approved_by(keys.ben, emergency="recall"))
        check(keys, approvals=both, policy=keys.policy(approvals_required=3))


def test_every_refusal_is_untrusted() -> None:
    for kind in (DigestError, ScopeError, RevokedError, ApprovalError, ReplayError, EpochError, MustUnderstandError):
        assert issubclass(kind, UntrustedError)
