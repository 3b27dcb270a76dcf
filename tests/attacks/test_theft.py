"""Who steals the whole server, database, files and all its keys, makes no approval and no root of trust."""

import base64
import json
import shutil
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from modelfleet.agent_client.errors import MetadataRefusedError
from modelfleet.signer.ceremony import encode_policy
from modelfleet.signer.desired import Release
from modelfleet.signer.errors import (
    ApprovalError,
    DigestError,
    SignatureError,
)
from modelfleet.signer.keys import CryptoSigner, Signer, from_sslib
from modelfleet.signer.metadata import TargetFile
from modelfleet.signer.sign import sign_approval
from modelfleet.signer.statements import POLICY_PATH, Approver, TrustPolicy
from tests.attacks.forge import nothing, take_over
from tests.attacks.machine import Machine
from tests.attacks.thief import Thief, offline, steal
from tests.unit.agent_client.fleet import PROFILE, make_device, now
from tests.waiting import until


def test_the_thief_holds_every_key_of_the_server_and_none_of_the_people(thief: Thief) -> None:
    online = {f"service/{name}.pem" for name in ("director", "snapshot", "timestamp", "audit")}
    assert online | {"signer/releases.pem", "worker/gate.pem", "ca/key.pem"} <= set(thief.keys)
    policy = thief.fleet.keys.repository().policy()
    assert not {key.public_key.keyid for key in thief.keys.values()} & set(policy.approvers)


Forge = Callable[[Thief, Release], Sequence[bytes]]


def relabelled(thief: Thief, release: Release) -> Sequence[bytes]:
    """The director's signature under the approver's key id."""
    envelope = json.loads(sign_approval(thief.approval(release), thief.keys["service/director.pem"]))
    envelope["signatures"][0]["keyid"] = thief.person("anna").public_key.keyid
    return [json.dumps(envelope).encode()]


def moved(thief: Thief, release: Release, **changes: Any) -> Sequence[bytes]:
    """Anna's signature, with another payload put under it."""
    known = thief.approval(release, **changes)
    envelope = json.loads(sign_approval(known, thief.person("anna")))
    envelope["payload"] = base64.b64encode(msgspec.json.encode(thief.approval(release), order="deterministic")).decode()
    return [json.dumps(envelope).encode()]


def given(**changes: Any) -> Forge:
    """What Anna did sign, and the thief copies."""
    return lambda thief, release: [sign_approval(thief.approval(release, **changes), thief.person("anna"))]


FORGERIES: dict[str, Forge] = {
    "by every key of the server": lambda thief, release: [
        sign_approval(thief.approval(release), key) for key in thief.keys.values()
    ],
    "under the approver's key id": relabelled,
    "of another version": given(version="1.0.0"),
    "of another build of the version": given(releases={PROFILE: "a" * 64}),
    "for another group": given(groups=("shops",)),
    "for another profile": lambda thief, release: given(releases={"raspberry-pi-5": release.sha256})(thief, release),
    "of another tenant": given(tenant="umbrella"),
    "expired": given(not_after=now() - timedelta(days=1)),
    "re-dated": lambda thief, release: moved(thief, release, not_after=now() - timedelta(days=1)),
    "with the digest replaced": lambda thief, release: moved(thief, release, releases={PROFILE: "a" * 64}),
    "with the author replaced": lambda thief, release: moved(thief, release, author="anna"),
    "by its own author": given(author="anna"),
    "unsigned": lambda thief, release: [
        msgspec.json.encode(json.loads(given()(thief, release)[0]) | {"signatures": []})
    ],
    "none at all": lambda _thief, _release: [],
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES.keys())
def test_the_whole_server_cannot_make_an_approval(forge: Forge, thief: Thief, victim: Machine) -> None:
    """Database, files and all keys of the server: the device still asks for a person."""
    release = thief.unapproved()
    with pytest.raises(ApprovalError):
        victim.verify(thief.approved_by(release, *forge(thief, release)))
    real = sign_approval(thief.approval(release), thief.person("anna"))
    assert victim.verify(thief.approved_by(release, real)).version == "6.6.6"


def test_the_whole_server_against_a_running_agent(thief: Thief, tmp_path: Path) -> None:
    """Every forgery in turn, as the director's candidate: rejected, reported, and nothing ever ran."""
    device = make_device(thief.fleet, tmp_path / "device")
    device.start()
    fleet, release = thief.fleet, thief.unapproved()
    for count, forge in enumerate(FORGERIES.values(), start=1):
        forged = thief.approved_by(release, *forge(thief, release))
        fleet.candidates = (fleet.candidate(forged, rollout=f"r{count}"),)
        device.told()
        device.waits_for("REJECTED")
        until(lambda count=count: len(refusals(device)) >= count)
    assert set(refusals(device)) == {"ApprovalError"}
    assert device.slot["version"] is None
    real = sign_approval(thief.approval(release), thief.person("anna"))
    fleet.candidates = (fleet.candidate(thief.approved_by(release, real), rollout="real"),)
    device.told()
    device.waits_for("COMMITTED", "6.6.6")
    device.stop()


def refusals(device: Any) -> list[str]:
    return [refusal["kind"] for refusal in device.agent.status()["refusals"]]


def two(policy: TrustPolicy) -> TrustPolicy:
    return msgspec.structs.replace(policy, approvals_required=2)


def test_the_whole_server_with_one_of_two_approvers(data_folder: Path, tmp_path: Path) -> None:
    """k = 2: what one person signed counts once, however often it is there."""
    thief = steal(data_folder, tmp_path, change=two)
    victim = Machine(thief.fleet, tmp_path / "victim")
    victim.is_assigned()
    release = thief.unapproved()
    first = sign_approval(thief.approval(release), thief.person("anna"))
    again = sign_approval(thief.approval(release, plan_sha256="1" * 64), thief.person("anna"))
    assert first != again
    for envelopes in ([first], [first, again], [first, first]):
        with pytest.raises(ApprovalError, match="by 2 persons, got 1"):
            victim.verify(thief.approved_by(release, *envelopes))
    second = sign_approval(thief.approval(release), thief.person("ben"))
    assert victim.verify(thief.approved_by(release, first, second)).version == "6.6.6"
    victim.close()
    thief.fleet.server.stop()


def test_the_whole_server_with_two_keys_of_one_approver(data_folder: Path, tmp_path: Path) -> None:
    """A person with two tokens is one person."""
    spare = CryptoSigner.generate_ecdsa()
    approver = Approver(person="anna", key=from_sslib(spare.public_key))

    def both(policy: TrustPolicy) -> TrustPolicy:
        return msgspec.structs.replace(two(policy), approvers=policy.approvers | {spare.public_key.keyid: approver})

    thief = steal(data_folder, tmp_path, change=both)
    victim = Machine(thief.fleet, tmp_path / "victim")
    victim.is_assigned()
    release = thief.unapproved()
    first, again = (sign_approval(thief.approval(release), key) for key in (thief.person("anna"), spare))
    with pytest.raises(ApprovalError, match="by 2 persons, got 1"):
        victim.verify(thief.approved_by(release, first, again))
    second = sign_approval(thief.approval(release), thief.person("ben"))
    assert victim.verify(thief.approved_by(release, again, second)).version == "6.6.6"
    victim.close()
    thief.fleet.server.stop()


def with_mallory(thief: Thief) -> tuple[Signer, bytes]:
    """A policy in which the thief's key stands for Ben's; it is as long as the honest one."""
    mallory = CryptoSigner.generate_ecdsa()
    policy = thief.fleet.keys.repository().policy()
    approvers = {keyid: approver for keyid, approver in policy.approvers.items() if approver.person != "ben"}
    approvers[mallory.public_key.keyid] = Approver(person="ben", key=from_sslib(mallory.public_key))
    return mallory, encode_policy(msgspec.structs.replace(policy, approvers=approvers))


def serve_policy(thief: Thief, data: bytes, signers: Sequence[Signer]) -> None:
    target = TargetFile.from_data(POLICY_PATH, data, ["sha256"])
    (thief.fleet.keys.targets_dir / target.get_prefixed_paths()[0]).write_bytes(data)
    thief.forger.renew("targets", lambda signed: signed.targets.update({POLICY_PATH: target}), signers=signers)


def test_the_whole_server_cannot_name_an_approver(thief: Thief, victim: Machine) -> None:
    """A policy with the thief among the approvers, signed by every online key, is nobody's policy."""
    mallory, policy = with_mallory(thief)
    release = thief.unapproved()
    named = thief.approved_by(release, sign_approval(thief.approval(release), mallory))
    serve_policy(thief, policy, list(thief.keys.values()))
    with pytest.raises(MetadataRefusedError):
        victim.verify(named)
    assert mallory.public_key.keyid not in victim.trust.policy().approvers
    serve_policy(thief, policy, offline(thief, "targets"))
    assert victim.verify(named).version == "6.6.6"


def test_the_whole_server_cannot_swap_the_policys_bytes(thief: Thief, victim: Machine) -> None:
    """Under the name of the policy that the targets keys did sign."""
    mallory, policy = with_mallory(thief)
    release = thief.unapproved()
    named = thief.approved_by(release, sign_approval(thief.approval(release), mallory))
    known = thief.forger.load("targets").signed.targets[POLICY_PATH]
    place = thief.fleet.keys.targets_dir / known.get_prefixed_paths()[0]
    honest = place.read_bytes()
    shutil.rmtree(victim.root / "trust")
    victim.restart()
    place.write_bytes(policy)
    with pytest.raises((DigestError, MetadataRefusedError)):
        victim.verify(named)
    place.write_bytes(honest)
    real = sign_approval(thief.approval(release), thief.person("anna"))
    assert victim.verify(thief.approved_by(release, real)).version == "6.6.6"


def test_the_whole_server_cannot_put_a_policy_into_a_bin(thief: Thief, victim: Machine) -> None:
    """The releases key signs manifests: a target called trust/policy.json in a bin is none."""
    mallory, policy = with_mallory(thief)
    release = thief.unapproved()
    thief.fleet.sign_target(POLICY_PATH, policy)
    shutil.rmtree(victim.root / "trust")
    victim.restart()
    with pytest.raises(ApprovalError, match="UnknownKeyError"):
        victim.verify(thief.approved_by(release, sign_approval(thief.approval(release), mallory)))
    real = sign_approval(thief.approval(release), thief.person("anna"))
    assert victim.verify(thief.approved_by(release, real)).version == "6.6.6"


def test_the_whole_server_cannot_make_a_root(thief: Thief, victim: Machine) -> None:
    """A next root that names the thief's key for the targets role, signed by every online key."""
    mallory, policy = with_mallory(thief)
    release = thief.unapproved()
    named = thief.approved_by(release, sign_approval(thief.approval(release), mallory))
    before = thief.forger.saved(thief.home / "before")
    thief.forger.renew("root", lambda root: take_over(root, mallory), signers=[mallory, *thief.keys.values()])
    serve_policy(thief, policy, [mallory])
    with pytest.raises(MetadataRefusedError):
        victim.verify(named)
    thief.forger.restore(before)
    thief.forger.renew("root", lambda root: take_over(root, mallory), signers=[mallory, *offline(thief, "root")])
    serve_policy(thief, policy, [mallory])
    assert victim.verify(named).version == "6.6.6", "two of the three root keys are everything"


@pytest.mark.parametrize("role", ["root", "targets"])
def test_one_of_three_offline_keys(role: str, thief: Thief, victim: Machine) -> None:
    """With the whole server, one root key or one targets key is as good as none."""
    victim.trust.refresh()
    before = thief.forger.saved(thief.home / "before")
    (one,) = offline(thief, role, 1)
    change = (lambda root: take_over(root, one)) if role == "root" else nothing
    for signers in ([one], [one, *thief.keys.values()]):
        thief.forger.renew(role, change, signers=signers)
        with pytest.raises(SignatureError):
            victim.trust.refresh()
        thief.forger.restore(before)
    thief.forger.renew(role, signers=offline(thief, role, 2))
    victim.trust.refresh()
