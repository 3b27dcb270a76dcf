"""Another tenant's metadata, policy, manifest and people are nobody here."""

import shutil
from pathlib import Path

import msgspec
import pytest

from modelfleet.signer.ceremony import create_repository, encode_policy
from modelfleet.signer.errors import (
    ReplayError,
    ScopeError,
    SignatureError,
    UntrustedError,
)
from modelfleet.signer.metadata import TargetFile
from modelfleet.signer.statements import POLICY_PATH
from tests.attacks.forge import Forger
from tests.attacks.machine import Machine
from tests.unit.agent_client.fleet import TENANT, Fleet, now


def test_another_tenants_repository(machine: Machine, fleet: Fleet, tmp_path: Path) -> None:
    machine.trust.refresh()
    other = create_repository(tmp_path / "umbrella", "umbrella", bits=2, approvers=["eve"], now=now())
    fleet.server.metadata_dir, fleet.server.targets_dir = other.metadata_dir, other.targets_dir
    with pytest.raises((SignatureError, ReplayError)):
        machine.trust.refresh()
    with pytest.raises(SignatureError):
        fresh(machine)


def fresh(machine: Machine) -> None:
    shutil.rmtree(machine.root / "trust")
    machine.restart()
    machine.trust.refresh()


def test_another_tenants_policy_under_the_same_offline_keys(machine: Machine, fleet: Fleet, forger: Forger) -> None:
    """One operator may hold the targets keys of two tenants: a policy is only its own tenant's."""
    machine.trust.refresh()
    policy = fleet.keys.repository().policy()
    serve_policy(fleet, forger, encode_policy(msgspec.structs.replace(policy, epoch=2)))
    machine.trust.refresh()
    serve_policy(fleet, forger, encode_policy(msgspec.structs.replace(policy, epoch=3, tenant="umbrella")))
    with pytest.raises(ScopeError):
        machine.trust.refresh()
    assert machine.trust.policy().epoch == 2


def serve_policy(fleet: Fleet, forger: Forger, data: bytes) -> None:
    target = TargetFile.from_data(POLICY_PATH, data, ["sha256"])
    (fleet.keys.targets_dir / target.get_prefixed_paths()[0]).write_bytes(data)
    forger.renew("targets", lambda signed: signed.targets.update({POLICY_PATH: target}))


def test_another_tenants_manifest(machine: Machine, fleet: Fleet) -> None:
    """Signed by this tenant's releases key and approved by this tenant's people, yet another tenant's by its own words."""
    assert machine.verify(fleet.release("1.0.0")).tenant == TENANT
    with pytest.raises(ScopeError, match="umbrella"):
        machine.verify(fleet.release("1.1.0", tenant="umbrella"))


def test_another_tenants_approver(machine: Machine, fleet: Fleet, tmp_path: Path) -> None:
    other = create_repository(tmp_path / "umbrella", "umbrella", bits=1, approvers=["anna"], now=now())
    assert machine.verify(fleet.release("1.0.0")).tenant == TENANT
    fleet.keys.approver_keys["anna"] = other.approver_keys["anna"]
    with pytest.raises(UntrustedError, match="UnknownKeyError"):
        machine.verify(fleet.release("1.1.0", seed=2))
