import time
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from modelfleet.signer.ceremony import CeremonyResult, create_repository, locate, update_policy
from modelfleet.signer.errors import FormatError, KeyUriError, SignatureError
from modelfleet.signer.keys import key_id, load_signer, public_key
from modelfleet.signer.metadata import (
    Metadata,
    Root,
    Snapshot,
    Targets,
    Timestamp,
    parse_metadata,
    require_signed,
    sign_metadata,
)
from modelfleet.signer.trust import PolicyChain, trusted_policy, trusted_root
from tests.unit.signer.samples import TENANT


def root_of(fleet: CeremonyResult) -> Root:
    return trusted_root(fleet.root_json.read_bytes())


def test_makes_a_repository_of_128_bins_in_under_two_seconds(tmp_path: Path, now: datetime) -> None:
    started = time.monotonic()
    fleet = create_repository(tmp_path, TENANT, approvers=["anna"], now=now)
    assert time.monotonic() - started < 2
    assert len(list(fleet.metadata_dir.glob("1.releases-*.json"))) == 128
    assert len(list(fleet.signer_state.glob("releases-*.json"))) == 128


def test_roles_have_the_thresholds_and_lives_of_the_design(fleet: CeremonyResult, now: datetime) -> None:
    root = root_of(fleet)
    assert {name: (role.threshold, len(role.keyids)) for name, role in root.roles.items()} == {
        "root": (2, 3),
        "targets": (2, 3),
        "snapshot": (1, 1),
        "timestamp": (1, 1),
    }
    assert root.consistent_snapshot

    def left(path: str, kind: type) -> timedelta:
        return parse_metadata((fleet.metadata_dir / path).read_bytes(), kind).signed.expires - now.replace(
            microsecond=0
        )

    assert root.expires - now.replace(microsecond=0) == timedelta(days=365)
    assert left("1.targets.json", Targets) == timedelta(days=180)
    assert left("1.releases-0.json", Targets) == timedelta(days=90)
    assert left("1.snapshot.json", Snapshot) == timedelta(days=7)
    assert left("timestamp.json", Timestamp) == timedelta(hours=24)


def test_two_offline_keys_are_needed_for_targets(fleet: CeremonyResult, now: datetime) -> None:
    targets = parse_metadata((fleet.metadata_dir / "1.targets.json").read_bytes(), Targets)
    signers = [load_signer(uri) for uri in fleet.targets_keys]
    root = root_of(fleet)
    sign_metadata(targets, signers[1:])
    require_signed(root, Targets.type, targets)
    sign_metadata(targets, signers[:1])
    with pytest.raises(SignatureError):
        require_signed(root, Targets.type, targets)


def test_the_policy_names_each_key_in_its_role(fleet: CeremonyResult) -> None:
    policy = fleet.repository().policy()
    assert list(policy.directors) == [key_id(public_key(fleet.director_key))]
    assert list(policy.publishers) == [key_id(public_key(fleet.publisher_key))]
    assert list(policy.gates) == [key_id(public_key(fleet.gate_key))]
    assert {approver.person: keyid for keyid, approver in policy.approvers.items()} == {
        person: key_id(public_key(uri)) for person, uri in fleet.approver_keys.items()
    }
    assert (policy.tenant, policy.epoch, policy.approvals_required) == (TENANT, 1, 1)


def test_locate_finds_what_the_ceremony_made(fleet: CeremonyResult) -> None:
    assert locate(fleet.data_dir, TENANT) == fleet


def test_a_second_ceremony_changes_nothing(fleet: CeremonyResult, now: datetime) -> None:
    before = fleet.root_json.read_bytes()
    with pytest.raises(KeyUriError, match="found a fleet"):
        create_repository(fleet.data_dir, TENANT, approvers=["anna"], now=now)
    assert fleet.root_json.read_bytes() == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"tenant": "../acme"},
        {"tenant": "Acme"},
        {"approvers": ["../../etc/passwd"]},
        {"approvers": []},
        {"approvals_required": 0},
        {"approvals_required": 2},
        {"bits": 0},
        {"bits": 17},
    ],
)
def test_refuses_a_fleet_that_cannot_be_and_leaves_nothing(
    tmp_path: Path, now: datetime, wrong: dict[str, object]
) -> None:
    given = {"tenant": TENANT, "approvers": ["anna"], "approvals_required": 1, "bits": 1} | wrong
    tenant = given.pop("tenant")
    with pytest.raises(FormatError):
        create_repository(tmp_path / "data", tenant, now=now, **given)
    assert not (tmp_path / "data").exists()


def test_a_changed_policy_is_signed_offline_and_published(fleet: CeremonyResult, now: datetime) -> None:
    repository = fleet.repository()
    update_policy(fleet.data_dir, TENANT, lambda policy: msgspec.structs.replace(policy, epoch=2), now)
    assert repository.policy().epoch == 2
    chain = repository.policy_chain()
    trusted = trusted_policy(root_of(fleet), chain, tenant=TENANT, now=now)
    assert (trusted.targets.version, trusted.policy.epoch) == (2, 2)
    assert repository.versions()["targets"] == 2


def test_a_policy_cannot_change_without_the_offline_keys(fleet: CeremonyResult, now: datetime) -> None:
    for uri in fleet.targets_keys:
        Path(uri.removeprefix("file:")).unlink()
    with pytest.raises(KeyUriError):
        update_policy(fleet.data_dir, TENANT, lambda policy: msgspec.structs.replace(policy, epoch=2), now)
    assert fleet.repository().policy().epoch == 1


def test_a_policy_that_would_lock_devices_out_is_not_signed(fleet: CeremonyResult, now: datetime) -> None:
    with pytest.raises(FormatError):
        update_policy(
            fleet.data_dir, TENANT, lambda policy: msgspec.structs.replace(policy, approvals_required=17), now
        )
    assert fleet.repository().versions()["targets"] == 1


def test_root_metadata_must_sign_itself(fleet: CeremonyResult) -> None:
    root: Metadata[Root] = parse_metadata(fleet.root_json.read_bytes(), Root)
    data = sign_metadata(root, [load_signer(fleet.root_keys[0])])
    with pytest.raises(SignatureError):
        trusted_root(data)


def test_a_policy_chain_of_another_root_is_refused(fleet: CeremonyResult, tmp_path: Path, now: datetime) -> None:
    other = create_repository(tmp_path / "other", TENANT, bits=1, approvers=["eve"], now=now)
    with pytest.raises(SignatureError):
        trusted_policy(root_of(fleet), other.repository().policy_chain(), tenant=TENANT, now=now)
    own = fleet.repository().policy_chain()
    assert trusted_policy(root_of(fleet), own, tenant=TENANT, now=now).policy.tenant == TENANT
    assert isinstance(own, PolicyChain)
