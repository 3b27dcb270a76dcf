"""root -> targets -> policy: each link, and what breaks it."""

from datetime import datetime, timedelta

import msgspec
import pytest

from modelfleet.signer.ceremony import CeremonyResult, encode_policy
from modelfleet.signer.errors import DigestError, ExpiredError, FormatError, ReplayError, ScopeError
from modelfleet.signer.metadata import Root, Targets, parse_metadata
from modelfleet.signer.trust import PolicyChain, TrustedPolicy, bin_of, parse_policy, trusted_policy, trusted_root
from tests.unit.signer.samples import DAY, TENANT, Keys


def trust(fleet: CeremonyResult, now: datetime, **changes: object) -> TrustedPolicy:
    chain = changes.pop("chain", fleet.repository().policy_chain())
    assert isinstance(chain, PolicyChain)
    return trusted_policy(
        trusted_root(fleet.root_json.read_bytes()), chain, **({"tenant": TENANT, "now": now} | changes)
    )


def test_believes_the_chain_from_its_root(fleet: CeremonyResult, now: datetime) -> None:
    assert trust(fleet, now).policy == fleet.repository().policy()


def test_refuses_a_policy_with_one_byte_changed(fleet: CeremonyResult, now: datetime) -> None:
    chain = fleet.repository().policy_chain()
    forged = PolicyChain(targets=chain.targets, policy=chain.policy.replace(b'"epoch":1', b'"epoch":2'))
    with pytest.raises(DigestError):
        trust(fleet, now, chain=forged)


def test_refuses_metadata_past_its_expiry(fleet: CeremonyResult, now: datetime) -> None:
    trust(fleet, now + 179 * DAY)
    with pytest.raises(ExpiredError, match="targets"):
        trust(fleet, now + 181 * DAY)
    with pytest.raises(ExpiredError, match="root"):
        trust(fleet, now + 366 * DAY)


def test_refuses_targets_older_than_seen(fleet: CeremonyResult, now: datetime) -> None:
    trust(fleet, now, minimum_version=1)
    with pytest.raises(ReplayError, match="version >= 2, got 1"):
        trust(fleet, now, minimum_version=2)


def test_refuses_another_tenants_policy(fleet: CeremonyResult, now: datetime) -> None:
    with pytest.raises(ScopeError):
        trust(fleet, now, tenant="umbrella")


def test_refuses_a_policy_in_which_a_key_bears_anothers_id(keys: Keys) -> None:
    policy = keys.policy()
    assert parse_policy(encode_policy(policy), tenant=TENANT) == policy
    (own_id,) = policy.directors
    (other,) = policy.gates.values()
    for role in ("directors", "publishers", "gates"):
        with pytest.raises(FormatError, match="with the id"):
            parse_policy(encode_policy(msgspec.structs.replace(policy, **{role: {own_id: other}})))
    approvers = dict(zip(policy.approvers, reversed(policy.approvers.values()), strict=True))
    with pytest.raises(FormatError, match="with the id"):
        parse_policy(encode_policy(msgspec.structs.replace(policy, approvers=approvers)))


def test_refuses_metadata_of_another_role(fleet: CeremonyResult) -> None:
    with pytest.raises(FormatError, match="expected TUF metadata of Targets, got root"):
        parse_metadata(fleet.root_json.read_bytes(), Targets)
    for data in (b"{}", b"[]", b'{"signed": {}, "signatures": []}', b"not json"):
        with pytest.raises(FormatError):
            parse_metadata(data, Root)


def test_every_path_has_one_bin(fleet: CeremonyResult, now: datetime) -> None:
    targets = trust(fleet, now).targets
    found = {bin_of(targets, f"models/digits/1.0.{n}/p/manifest.json") for n in range(60)}
    assert found == {f"releases-{n}" for n in range(4)}
    assert timedelta(0) < targets.expires - now
