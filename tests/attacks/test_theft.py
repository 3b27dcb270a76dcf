"""What somebody gets who steals a part of the server, and that all of it together makes no approval.

The thief of the whole server holds every private key file of a data folder that `modelfleet init` made, but for those of
`offline/` and `people/`, which in a real fleet never lay there.
"""

import base64
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from modelfleet.agent_client.errors import MetadataRefusedError
from modelfleet.agent_client.protocol import SIGNED_STATES, DeviceState, encode
from modelfleet.service.cli import main
from modelfleet.signer.ceremony import encode_policy, locate, update_policy
from modelfleet.signer.desired import Release
from modelfleet.signer.errors import (
    ApprovalError,
    DigestError,
    KeyUriError,
    SignatureError,
    UnknownKeyError,
    UntrustedError,
)
from modelfleet.signer.keys import CryptoSigner, Signer, from_sslib, load_signer
from modelfleet.signer.manifest import encode_manifest
from modelfleet.signer.metadata import TargetFile
from modelfleet.signer.names import sha256_of
from modelfleet.signer.release import check_release
from modelfleet.signer.sign import sign_approval, sign_gate, sign_group, sign_report, sign_source
from modelfleet.signer.statements import POLICY_PATH, Approval, Approver, TrustPolicy
from tests.attacks.forge import Forger, manifest_of, nothing, take_over
from tests.attacks.machine import Machine
from tests.attacks.service import Service
from tests.unit.agent_client.fleet import GROUP, PROFILE, TENANT, Fleet, Server, make_device, now
from tests.unit.signer import samples


@dataclass
class Thief:
    """Holds the server: its folder, its keys, what it serves. `anna` and `ben` have their keys at home."""

    fleet: Fleet
    keys: dict[str, Signer]
    forger: Forger
    home: Path

    def person(self, name: str) -> Signer:
        """The key of an approver: nothing that the thief ever has."""
        return load_signer(f"file:{self.home}/people/approver-{name}.pem")

    def unapproved(self, version: str = "6.6.6") -> Release:
        """Publish the thief's own variant: signed into its bin by the releases key, and served."""
        return self.fleet.release(version, seed=666, approved=False)

    def approval(self, release: Release, **changes: Any) -> Approval:
        """What an approver would have to sign."""
        valid = Approval(
            tenant=TENANT,
            model=release.model,
            version=release.version,
            releases={PROFILE: release.sha256},
            groups=(GROUP,),
            plan_sha256="0" * 64,
            author="ci",
            issued=now(),
            not_after=now() + timedelta(days=30),
        )
        return msgspec.structs.replace(valid, **changes)

    def approved_by(self, release: Release, *envelopes: bytes) -> Release:
        """Serve the envelopes, and have the release name them."""
        self.fleet.server.blobs |= {sha256_of(envelope): envelope for envelope in envelopes}
        return msgspec.structs.replace(release, approvals=tuple(sha256_of(envelope) for envelope in envelopes))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder as `modelfleet init` makes it."""
    folder = tmp_path_factory.mktemp("init") / "data"
    people = ("--approver", "anna", "--approver", "ben")
    done = CliRunner().invoke(main, ["init", "--data", str(folder), "--tenant", TENANT, "--bits", "2", *people])
    assert done.exit_code == 0, done.output
    return folder


def steal(data: Path, folder: Path, *, change: Callable[[TrustPolicy], TrustPolicy] | None = None) -> Thief:
    """Copy the data folder; the offline and the people's keys go home, everything else is the thief's."""
    there, home = folder / "data", folder / "home"
    shutil.copytree(data, there)
    if change is not None:
        update_policy(there, TENANT, change, now())
    everything = Forger(locate(there, TENANT))
    home.mkdir()
    for name in ("offline", "people"):
        (there / name).rename(home / name)
    keys = {path.relative_to(there).as_posix(): key for path in sorted(there.rglob("*")) if (key := private_key(path))}
    paths = dataclasses.replace(locate(there, TENANT), approver_keys={"anna": f"file:{home}/people/approver-anna.pem"})
    everything.keys["root"] = everything.keys["targets"] = list(keys.values())[:2]
    server = Server(metadata_dir=paths.metadata_dir, targets_dir=paths.targets_dir)
    server.tokens["claim"] = {}
    server.start()
    return Thief(fleet=Fleet(keys=paths, server=server), keys=keys, forger=everything, home=home)


def private_key(path: Path) -> Signer | None:
    if not path.is_file() or b"PRIVATE KEY" not in path.read_bytes():
        return None
    try:
        return load_signer(f"file:{path}")
    except KeyUriError:
        return None


@pytest.fixture
def thief(data: Path, tmp_path: Path) -> Iterator[Thief]:
    made = steal(data, tmp_path)
    yield made
    made.fleet.server.stop()


@pytest.fixture
def victim(thief: Thief, tmp_path: Path) -> Iterator[Machine]:
    """A device of the fleet, enrolled and in order before the theft."""
    made = Machine(thief.fleet, tmp_path / "victim")
    made.is_assigned()
    yield made
    made.close()


# The whole server


def test_the_thief_holds_every_key_of_the_server_and_none_of_the_people(thief: Thief) -> None:
    online = {"service/director.pem", "service/snapshot.pem", "service/timestamp.pem"}
    assert online | {"signer/releases.pem", "worker/gate.pem"} <= set(thief.keys)
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
        waits_until(lambda count=count: len(refusals(device)) >= count)
    assert set(refusals(device)) == {"ApprovalError"}
    assert device.slot["version"] is None
    real = sign_approval(thief.approval(release), thief.person("anna"))
    fleet.candidates = (fleet.candidate(thief.approved_by(release, real), rollout="real"),)
    device.told()
    device.waits_for("COMMITTED", "6.6.6")
    device.stop()


def refusals(device: Any) -> list[str]:
    return [refusal["kind"] for refusal in device.agent.status()["refusals"]]


def waits_until(true: Callable[[], bool], seconds: float = 15.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def two(policy: TrustPolicy) -> TrustPolicy:
    return msgspec.structs.replace(policy, approvals_required=2)


def test_the_whole_server_with_one_of_two_approvers(data: Path, tmp_path: Path) -> None:
    """k = 2: what one person signed counts once, however often it is there."""
    thief = steal(data, tmp_path, change=two)
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


def test_the_whole_server_with_two_keys_of_one_approver(data: Path, tmp_path: Path) -> None:
    """A person with two tokens is one person."""
    spare = CryptoSigner.generate_ecdsa()
    approver = Approver(person="anna", key=from_sslib(spare.public_key))

    def both(policy: TrustPolicy) -> TrustPolicy:
        return msgspec.structs.replace(two(policy), approvers=policy.approvers | {spare.public_key.keyid: approver})

    thief = steal(data, tmp_path, change=both)
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


def offline(thief: Thief, role: str, count: int = 2) -> list[Signer]:
    """So many of the offline keys: they lie at home."""
    return [load_signer(f"file:{thief.home}/offline/{role}-{number}.pem") for number in range(1, count + 1)]


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


# Parts of the server


def poisoned(thief: Thief, release: Release) -> bytes:
    """Another manifest of the same path."""
    manifest = manifest_of(thief.fleet, release)
    return encode_manifest(msgspec.structs.replace(manifest, parameters={"threshold": "0"}))


def test_registry_alone_names_no_manifest(thief: Thief, victim: Machine) -> None:
    """Snapshot and timestamp keys, store and database: a bin that it signs itself is not the releases key's."""
    release = thief.fleet.release("1.0.0")
    assert victim.verify(release).version == "1.0.0"
    evil = poisoned(thief, release)
    target = TargetFile.from_data(release.path, evil, ["sha256"])
    (thief.fleet.keys.targets_dir / target.get_prefixed_paths()[0]).write_bytes(evil)
    thief.forger.renew(
        thief.forger.bin_of(release.path),
        lambda signed: signed.targets.update({release.path: target}),
        signers=[thief.keys["service/snapshot.pem"], thief.keys["service/timestamp.pem"]],
    )
    with pytest.raises(SignatureError):
        victim.verify(release)


def test_registry_alone_swaps_the_bytes(thief: Thief, victim: Machine, tmp_path: Path) -> None:
    """The store is its own: what it puts under a digest is still not that digest."""
    release = thief.fleet.release("1.0.0")
    manifest = victim.verify(release)
    victim.fetch(manifest, tmp_path / "honest")
    entry = manifest.file("model.onnx")
    thief.fleet.server.blobs[entry.sha256] = b"\x00" * entry.length
    with pytest.raises(DigestError):
        victim.fetch(manifest, tmp_path / "slot")
    thief.fleet.server.blobs[release.approvals[0]] = b"{}"
    with pytest.raises(DigestError):
        victim.verify(release)


@pytest.mark.parametrize(
    "key", ["service/snapshot.pem", "service/timestamp.pem", "signer/releases.pem", "worker/gate.pem"]
)
def test_registry_signer_or_worker_alone_directs_nobody(key: str, thief: Thief, victim: Machine) -> None:
    document = thief.fleet.group_document()
    with pytest.raises(UnknownKeyError):
        victim.documents.accept_group(sign_group(document, thief.keys[key]))
    victim.hears(document)


def test_director_alone_names_what_is_not_signed(thief: Thief, victim: Machine) -> None:
    """A release of its own invention is in no bin; another digest under a path that is, is not what the bin says."""
    honest = thief.fleet.release("1.0.0")
    assert victim.verify(honest).version == "1.0.0"
    with pytest.raises(SignatureError, match="got none"):
        victim.verify(msgspec.structs.replace(honest, path=honest.path.replace("1.0.0", "9.9.9")))
    evil = poisoned(thief, honest)
    with pytest.raises(DigestError):
        victim.verify(msgspec.structs.replace(honest, sha256=sha256_of(evil), length=len(evil)))


def test_director_alone_gets_an_older_approved_release(thief: Thief, victim: Machine) -> None:
    """What it does get, until the policy revokes: any release that people approved for this group, at once."""
    old, _new = thief.fleet.release("1.0.0"), thief.fleet.release("1.1.0", seed=2)
    assert victim.verify(old).version == "1.0.0"
    with pytest.raises(ApprovalError):
        victim.verify(msgspec.structs.replace(old, approvals=()))


def test_registry_and_director_together(thief: Thief, victim: Machine) -> None:
    """Document, snapshot, timestamp, store: the manifest of their own is in no bin that the releases key signed."""
    honest = thief.fleet.release("1.0.0")
    assert victim.verify(honest).version == "1.0.0"
    evil = poisoned(thief, honest)
    target = TargetFile.from_data(honest.path, evil, ["sha256"])
    (thief.fleet.keys.targets_dir / target.get_prefixed_paths()[0]).write_bytes(evil)
    thief.forger.renew(
        thief.forger.bin_of(honest.path),
        lambda signed: signed.targets.update({honest.path: target}),
        signers=[thief.keys[f"service/{name}.pem"] for name in ("director", "snapshot", "timestamp")],
    )
    named = msgspec.structs.replace(honest, sha256=sha256_of(evil), length=len(evil))
    thief.fleet.stable = named
    victim.hears(thief.fleet.group_document())
    with pytest.raises(SignatureError):
        victim.verify(named)


def test_signer_alone_replaces_no_release(thief: Thief, victim: Machine) -> None:
    """The releases key puts another manifest under a path: desired state and approvals still mean the first."""
    release = thief.fleet.release("1.0.0")
    assert victim.verify(release).version == "1.0.0"
    thief.fleet.sign_target(release.path, poisoned(thief, release))
    with pytest.raises(DigestError):
        victim.verify(release)


def test_broker_alone(thief: Thief, victim: Machine) -> None:
    """It can send what it has heard, to whomever, in any order: the device stays at the newest of its own."""
    fleet = thief.fleet
    heard = [sign_group(fleet.group_document(), fleet.director) for _ in range(3)]
    heard += [sign_group(fleet.group_document(scope=f"g/{name}/{PROFILE}"), fleet.director) for name in ("a", "b")]
    newest = fleet.group_document()
    victim.hears(newest)
    for envelope in [*heard, b"", b"{}", heard[0][:-1], heard[0] + b" x", heard[1].replace(b"A", b"B", 1)]:
        with pytest.raises(UntrustedError):
            victim.documents.accept_group(envelope)
        with pytest.raises(UntrustedError):
            victim.documents.accept_assignment(envelope)
    assert victim.documents.group == newest
    later = fleet.group_document()
    assert victim.hears(later) == later


def test_approvers_keys_alone(thief: Thief, victim: Machine) -> None:
    """k approvers without the server: no bin names what they approve, and no document does."""
    honest = thief.fleet.release("1.0.0")
    assert victim.verify(honest).version == "1.0.0"
    evil = poisoned(thief, honest)
    own = msgspec.structs.replace(honest, sha256=sha256_of(evil), length=len(evil))
    with pytest.raises(UnknownKeyError):
        thief.fleet.stable = own
        victim.documents.accept_group(sign_group(thief.fleet.group_document(), thief.person("anna")))
    with pytest.raises(DigestError):
        victim.verify(thief.approved_by(own, sign_approval(thief.approval(own), thief.person("anna"))))


# What the signer checks again, so that publisher and worker need each other


@pytest.fixture(scope="module")
def roles() -> samples.Keys:
    return samples.Keys(**{name: samples.new_key() for name in samples.Keys.__dataclass_fields__})


def test_publisher_alone(roles: samples.Keys) -> None:
    """CI's key vouches for bytes; without a worker that measured them there is no variant."""
    data, source = encode_manifest(samples.manifest()), sign_source(samples.source(), roles.publisher)
    for gates in ([], [sign_gate(samples.gate(), roles.publisher)]):
        with pytest.raises(SignatureError):
            check_release(data, source, gates, roles.policy(), {})
    check_release(data, source, [sign_gate(samples.gate(), roles.gate)], roles.policy(), {})


def test_worker_alone(roles: samples.Keys) -> None:
    """The gate's key vouches for a variant; the source must be the publisher's."""
    data, gate = encode_manifest(samples.manifest()), sign_gate(samples.gate(), roles.gate)
    with pytest.raises(UnknownKeyError):
        check_release(data, sign_source(samples.source(), roles.gate), [gate], roles.policy(), {})
    other = sign_source(samples.source(source_sha256="9" * 64), roles.publisher)
    with pytest.raises(DigestError):
        check_release(data, other, [gate], roles.policy(), {})
    check_release(data, sign_source(samples.source(), roles.publisher), [gate], roles.policy(), {})


# Signed reports


@pytest.mark.parametrize("state", sorted(SIGNED_STATES))
def test_stolen_broker_cannot_fake_a_terminal_report(state: DeviceState, service: Service) -> None:
    """Unsigned, by another device, by a key of the server: on the device's own topic none of it counts."""
    device, other = service.devices
    report = encode(device.report(state))
    director = load_signer(service.registry.paths.director_key)
    for forged in (report, sign_report(report, other.signer), sign_report(report, director)):
        service.broker.publish(device.topic("report"), forged)
    assert service.state_of(device) is None
    service.broker.publish(device.topic("report"), sign_report(report, device.signer))
    assert service.state_of(device) == state


def test_stolen_registry_route_cannot_fake_a_terminal_report(service: Service) -> None:
    """Over HTTP likewise: as another device, and as the device's own session without its key."""
    device, other = service.devices
    report = encode(device.report(DeviceState.COMMITTED))

    def post(by: Any, payload: bytes) -> int:
        body = {"messages": [{"topic": device.topic("report"), "payload": payload.decode()}]}
        answer = service.post("/v1/device/messages", json.dumps(body).encode(), by=by)
        assert answer.status_code == 200
        return answer.json()["accepted"]

    assert post(other, sign_report(report, device.signer)) == 0
    assert post(device, report) == 0
    assert post(device, sign_report(report, other.signer)) == 0
    assert service.state_of(device) is None
    assert post(device, sign_report(report, device.signer)) == 1
    assert service.state_of(device) == "COMMITTED"


def test_stolen_device_speaks_only_for_itself(service: Service) -> None:
    """Its key signs its own reports: about another device, or on another's topic, they are dropped."""
    device, other = service.devices
    about_other = encode(other.report(DeviceState.COMMITTED))
    service.broker.publish(device.topic("report"), sign_report(about_other, device.signer))
    service.broker.publish(other.topic("report"), sign_report(about_other, device.signer))
    assert service.state_of(other) is None
    assert service.state_of(device) is None
    service.broker.publish(
        device.topic("report"), sign_report(encode(device.report(DeviceState.COMMITTED)), device.signer)
    )
    assert service.state_of(device) == "COMMITTED"
