"""Each single key in a thief's hands: what it gives him on a device, what it does not, and how rotation takes it back.

The thief serves what he likes: he is the mirror, or sits before it. The device is the agent's own code; recovery is what
`modelfleet keys rotate` and `keys revoke` do.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from modelfleet.signer.ceremony import CeremonyResult, create_repository
from modelfleet.signer.change import lacking, merge_signatures, sign_change
from modelfleet.signer.desired import Release
from modelfleet.signer.draft import encode_policy
from modelfleet.signer.errors import (
    ApprovalError,
    KeyUriError,
    ReplayError,
    RevokedError,
    ScopeError,
    SignatureError,
    UnknownKeyError,
    UntrustedError,
)
from modelfleet.signer.key_book import locate
from modelfleet.signer.keys import CryptoSigner, Signer, from_sslib, key_id, load_signer, public_key
from modelfleet.signer.manifest import encode_manifest
from modelfleet.signer.metadata import Root, TargetFile, Targets, parse_metadata, sign_metadata
from modelfleet.signer.names import sha256_of
from modelfleet.signer.releases import ReleaseSigner
from modelfleet.signer.rotate import Revocation, Rotation, renewal, revocation, rotation
from modelfleet.signer.sign import sign_approval, sign_gate, sign_group, sign_source
from modelfleet.signer.stage import publish, sign_here
from modelfleet.signer.state import SignerState
from modelfleet.signer.statements import POLICY_PATH, Approval
from modelfleet.signer.trust import follow_roots, trusted_root
from modelfleet.signer.wire import ReleaseRequest
from tests.attacks.forge import Forger
from tests.attacks.machine import Machine
from tests.unit.agent_client.fleet import GROUP, PROFILE, SLOT, TENANT, Device, Fleet, now
from tests.unit.signer import samples

FAR = 2**40


def rotate(fleet: Fleet, *roles: str, **options: object) -> CeremonyResult:
    """The owners rotate keys; returns what was in force before, which is what the thief has."""
    stolen = fleet.keys
    paths = locate(stolen.data_dir, TENANT)
    change, _ = sign_here(
        paths, rotation(paths, paths.repository().policy_chain(), Rotation(roles=roles, **options), now())
    )
    publish(paths, change, now())
    fleet.keys = locate(stolen.data_dir, TENANT)
    return stolen


def signer_has_what_is_published(fleet: Fleet) -> None:
    """Give the signer's own copy of the bins what this harness published past its process."""
    for role, version in fleet.keys.repository().versions().items():
        if role.startswith("releases-"):
            published = fleet.keys.metadata_dir / f"{version}.{role}.json"
            shutil.copy(published, fleet.keys.signer_state / f"{role}.json")


def revoke(fleet: Fleet, wanted: Revocation) -> None:
    paths = fleet.keys
    change, _ = sign_here(paths, revocation(paths, paths.repository().policy_chain(), wanted, now()))
    publish(paths, change, now())


def stranger() -> Signer:
    return CryptoSigner.generate_ecdsa()


def signers(*uris: str) -> list[Signer]:
    return [load_signer(uri) for uri in uris]


def to_thief(thief: Signer, role: str) -> Callable[[Root], None]:
    """The next root names the thief's key for a role, alone."""

    def change(root: Root) -> None:
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        root.add_key(thief.public_key, role)
        root.roles[role].threshold = 1

    return change


def policy_of_thief(fleet: Fleet, thief: Signer) -> Callable[[Targets], None]:
    """A targets.json whose policy names the thief director and approver."""
    key = from_sslib(thief.public_key)
    policy = fleet.keys.repository().policy()
    forged = msgspec.structs.replace(policy, directors={key_id(key): key}, epoch=policy.epoch + 1)
    data = encode_policy(forged)
    target = TargetFile.from_data(POLICY_PATH, data, ["sha256"])

    def change(targets: Targets) -> None:
        path = fleet.keys.targets_dir / target.get_prefixed_paths()[0]
        path.write_bytes(data)
        targets.targets[POLICY_PATH] = target

    return change


# Root


def test_one_root_key_makes_no_root(machine: Machine, fleet: Fleet, forger: Forger, tmp_path: Path) -> None:
    """One of three root keys cannot name a thief's key; two could, which is why they are kept apart."""
    machine.trust.refresh()
    honest = forger.saved(tmp_path / "honest")
    thief = stranger()

    def change(root: Root) -> None:
        for role in ("root", "timestamp"):
            to_thief(thief, role)(root)

    forger.renew("root", change, signers=[*signers(fleet.keys.root_keys[0]), thief])
    with pytest.raises(SignatureError, match="root"):
        machine.trust.refresh()
    forger.restore(honest)
    forger.renew("root", change, signers=[*signers(*fleet.keys.root_keys[:2]), thief])
    with pytest.raises(
        SignatureError, match="timestamp"
    ):  # the root is believed: only the thief may sign timestamps now
        machine.trust.refresh()
    assert machine.floors.record.roles["root"].version == 1


def test_a_replaced_root_key_is_worth_nothing_with_another(machine: Machine, fleet: Fleet, forger: Forger) -> None:
    """Recovery: after the stolen key was replaced, the thief needs two others, not one."""
    lost = fleet.keys.root_keys[0]
    stolen = rotate(fleet, "root", old=key_id(public_key(lost)))
    machine.trust.refresh()
    assert machine.floors.record.roles["root"].version == 2
    still_valid = next(uri for uri in stolen.root_keys if uri in fleet.keys.root_keys)
    forger.renew("root", to_thief(stranger(), "timestamp"), signers=signers(lost, still_valid))
    with pytest.raises(SignatureError, match="root"):
        machine.trust.refresh()
    forger.file("root").unlink()
    rotate(fleet, "root")  # a device that was away for two rotations follows both
    machine.restart()
    machine.trust.refresh()
    assert machine.floors.record.roles["root"].version == 3


def test_the_signer_process_follows_no_root_that_its_own_has_not_signed(fleet: Fleet) -> None:
    first = fleet.keys.root_json.read_bytes()
    stolen = rotate(fleet, "root")
    chain = fleet.keys.repository().policy_chain().roots
    followed, newest = follow_roots(trusted_root(first), chain)
    assert (followed.version, newest) == (2, chain[-1])
    forged = parse_metadata(chain[-1], Root)
    data = sign_metadata(forged, signers(*fleet.keys.root_keys[:2]))  # signed by itself, not by its predecessor
    with pytest.raises(SignatureError):
        follow_roots(trusted_root(first), [first, data])
    to_thief(stranger(), "root")(forged.signed)  # signed by its predecessor, but not by whom it names
    data = sign_metadata(forged, signers(*stolen.root_keys[:2]))
    with pytest.raises(SignatureError):
        follow_roots(trusted_root(first), [first, data])
    rotate(fleet, "root")
    with pytest.raises(ReplayError, match="version 2 next, got 3"):
        follow_roots(trusted_root(first), fleet.keys.repository().policy_chain().roots[2:])


# Targets


def test_one_targets_key_makes_no_policy(machine: Machine, fleet: Fleet, forger: Forger, tmp_path: Path) -> None:
    """One of three targets keys, with the service's own keys besides, names no director; two do."""
    machine.trust.refresh()
    honest = forger.saved(tmp_path / "honest")
    change = policy_of_thief(fleet, stranger())
    forger.renew("targets", change, signers=signers(fleet.keys.targets_keys[0]))
    with pytest.raises(SignatureError, match="targets"):
        machine.trust.refresh()
    assert machine.trust.policy().epoch == 1
    forger.restore(honest)
    forger.renew("targets", change, signers=signers(*fleet.keys.targets_keys[:2]))
    machine.trust.refresh()
    assert machine.trust.policy().epoch == 2


def test_targets_keys_that_were_rotated_make_no_policy(machine: Machine, fleet: Fleet, forger: Forger) -> None:
    """Recovery from two stolen targets keys: the root names others, and what the thief published is replaced."""
    machine.trust.refresh()
    thief = stranger()
    forger.renew("targets", policy_of_thief(fleet, thief))
    machine.trust.refresh()
    assert key_id(from_sslib(thief.public_key)) in machine.trust.policy().directors
    stolen = fleet.keys
    paths = locate(stolen.data_dir, TENANT)
    rotate(fleet, "targets")
    change, _ = sign_here(
        fleet.keys, rotation(fleet.keys, paths.repository().policy_chain(), Rotation(roles=("director",)), now())
    )
    publish(fleet.keys, change, now())
    fleet.keys = locate(stolen.data_dir, TENANT)
    machine.trust.refresh()
    assert list(machine.trust.policy().directors) == [key_id(public_key(fleet.keys.director_key))]
    forger.keys |= {"targets": signers(*stolen.targets_keys[:2])}
    forger.renew("targets", policy_of_thief(fleet, thief))
    with pytest.raises(SignatureError, match="targets"):
        machine.trust.refresh()


# Snapshot, timestamp


@pytest.mark.parametrize(("role", "also"), [("timestamp", ()), ("snapshot", ("timestamp",))])
def test_a_stolen_online_key_stops_updates_until_it_is_rotated(
    role: str, also: tuple[str, ...], machine: Machine, fleet: Fleet, forger: Forger, tmp_path: Path
) -> None:
    """Fast-forward is all that it gives: no manifest that was not signed, and one command ends it."""
    release = fleet.release("1.0.0")
    machine.trust.refresh()
    honest = forger.saved(tmp_path / "honest")
    forger.renew(role, version=FAR)
    assert machine.verify(release).version == "1.0.0"
    with pytest.raises(SignatureError):
        machine.verify(msgspec.structs.replace(release, path=release.path.replace("1.0.0", "6.6.6")))
    forger.restore(honest)
    with pytest.raises(ReplayError):
        machine.trust.refresh()
    rotate(fleet, role, *also)
    machine.restart()
    machine.trust.refresh()
    assert machine.floors.record.roles[role].version < FAR
    forger.renew(role, version=FAR)  # the thief's key once more
    with pytest.raises(SignatureError):
        machine.trust.refresh()


def test_a_fast_forwarded_repository_is_served_again_from_the_start(
    machine: Machine, fleet: Fleet, forger: Forger
) -> None:
    """The thief was in the service itself: its own files are far ahead, and still the next version is one."""
    for role in ("snapshot", "timestamp"):
        forger.renew(role, version=FAR)
    machine.trust.refresh()
    rotate(fleet, "snapshot", "timestamp")
    machine.trust.refresh()
    assert fleet.keys.repository().versions()["snapshot"] == 1
    assert machine.floors.record.roles["timestamp"].version == 1
    fleet.keys.repository().refresh(now())
    machine.trust.refresh()


# Releases


def release_of_thief(fleet: Fleet, version: str = "6.6.6") -> Release:
    """A manifest that is in the bins, because the releases key is the thief's, and that nobody approved."""
    return fleet.release(version, approved=False, seed=6)


def test_the_releases_key_alone_installs_nothing(machine: Machine, fleet: Fleet) -> None:
    machine.is_assigned()
    bad = release_of_thief(fleet)
    with pytest.raises(ApprovalError):
        machine.verify(bad)
    assert machine.verify(fleet.release("1.0.0", seed=2)).version == "1.0.0"


def test_a_bin_that_a_thief_signed_is_replaced_with_the_key(machine: Machine, fleet: Fleet, forger: Forger) -> None:
    """Recovery: the bins are signed anew from the signer's own, without what the thief added; his key is worth nothing."""
    machine.is_assigned()
    good = fleet.release("1.0.0")
    signer_has_what_is_published(fleet)
    bad = release_of_thief(fleet)
    machine.trust.refresh()
    assert machine.trust.manifest(bad.path)
    stolen = rotate(fleet, "releases")
    machine.restart()
    machine.trust.refresh()
    with pytest.raises(SignatureError, match="got none"):
        machine.trust.manifest(bad.path)
    assert machine.verify(good).version == "1.0.0"
    forger.keys["releases"] = signers(stolen.releases_key)
    forger.renew(forger.bin_of(bad.path), lambda signed: signed.targets.update({bad.path: _target(bad)}))
    machine.restart()
    with pytest.raises(SignatureError):
        machine.verify(bad)


def _target(release: Release) -> TargetFile:
    return TargetFile(release.length, {"sha256": release.sha256}, release.path)


# Gate and publisher: the signer process asks for both, the device for neither


@pytest.fixture
def signing(tmp_path: Path) -> tuple[CeremonyResult, ReleaseSigner]:
    keys = create_repository(tmp_path / "signing", samples.TENANT, bits=1, approvers=["anna"], now=now())
    root = trusted_root(keys.root_json.read_bytes())
    state = SignerState(keys.signer_state)
    return keys, ReleaseSigner(tenant=samples.TENANT, root=root, releases=load_signer(keys.releases_key), state=state)


def request(keys: CeremonyResult, *, publisher: str, gate: str) -> ReleaseRequest:
    manifest = samples.manifest()
    chain = keys.repository().policy_chain()
    return ReleaseRequest(
        manifest=encode_manifest(manifest),
        source=sign_source(samples.source(), load_signer(publisher)),
        gates=(sign_gate(samples.gate(manifest), load_signer(gate)),),
        targets=chain.targets,
        policy=chain.policy,
        roots=chain.roots,
    )


@pytest.mark.parametrize("role", ["gate", "publisher"])
def test_a_stolen_key_of_one_of_two_vouches_for_nothing_and_ends_with_its_rotation(
    role: str, signing: tuple[CeremonyResult, ReleaseSigner]
) -> None:
    """The signer wants publisher and gate: one thief is not both; and after rotation he is neither."""
    keys, signer = signing
    own = {"publisher": keys.publisher_key, "gate": keys.gate_key}
    with pytest.raises(UnknownKeyError):  # the one key in both places
        signer.release(request(keys, publisher=own[role], gate=own[role]))
    paths = locate(keys.data_dir, samples.TENANT)
    change, _ = sign_here(paths, rotation(paths, paths.repository().policy_chain(), Rotation(roles=(role,)), now()))
    publish(paths, change, now())
    after = locate(keys.data_dir, samples.TENANT)
    with pytest.raises(UnknownKeyError):
        signer.release(request(after, publisher=own["publisher"], gate=own["gate"]))
    assert signer.release(request(after, publisher=after.publisher_key, gate=after.gate_key)).bins


# Director


def test_the_director_s_key_names_only_what_was_approved(machine: Machine, fleet: Fleet) -> None:
    """He may send the whole group to any approved release at once; an unapproved one stays out."""
    machine.is_assigned()
    old, bad = fleet.release("1.0.0"), release_of_thief(fleet)
    fleet.stable = old
    assert machine.hears(fleet.group_document()).slots[SLOT].stable == old
    assert machine.verify(old).version == "1.0.0"
    fleet.stable = bad
    assert machine.hears(fleet.group_document()).slots[SLOT].stable == bad
    with pytest.raises(ApprovalError):
        machine.verify(bad)


def test_a_rotated_director_s_documents_are_void_however_high_their_seq(machine: Machine, fleet: Fleet) -> None:
    """Recovery: a new key and a new epoch; the thief's last seq stands in nobody's way."""
    machine.is_assigned()
    highest = 2**53 - 1
    machine.hears(fleet.group_document(seq=highest))
    with pytest.raises(ReplayError):
        machine.hears(fleet.group_document())
    stolen = rotate(fleet, "director")
    thief = sign_group(fleet.group_document(seq=highest), load_signer(stolen.director_key))
    machine.is_assigned()
    assert machine.hears(fleet.group_document()).epoch == 2
    with pytest.raises(UnknownKeyError):
        machine.documents.accept_group(thief)


def test_a_revoked_release_is_refused_though_director_and_approver_name_it(machine: Machine, fleet: Fleet) -> None:
    machine.is_assigned()
    release = fleet.release("1.0.0")
    assert machine.verify(release)
    revoke(fleet, Revocation(manifests=(release.sha256,)))
    machine.trust.refresh()
    with pytest.raises(RevokedError, match="revokes"):
        machine.verify(release)
    newer = fleet.release("1.1.0")
    assert machine.verify(newer)
    revoke(fleet, Revocation(minimum={"digits": newer.counter + 1}))
    machine.trust.refresh()
    with pytest.raises(RevokedError, match="counter"):
        machine.verify(newer)


# Approver


def approved_by(fleet: Fleet, release: Release, *uris: str) -> Release:
    envelopes = [
        sign_approval(
            Approval(
                tenant=TENANT,
                model="digits",
                version=release.version,
                releases={PROFILE: release.sha256},
                groups=(GROUP,),
                plan_sha256="0" * 64,
                author="ci",
                issued=now(),
                not_after=now() + samples.DAY,
            ),
            load_signer(uri),
        )
        for uri in uris
    ]
    fleet.server.blobs |= {sha256_of(envelope): envelope for envelope in envelopes}
    return msgspec.structs.replace(release, approvals=tuple(map(sha256_of, envelopes)))


def test_one_approver_of_two_approves_nothing_alone(machine: Machine, fleet: Fleet) -> None:
    paths = fleet.keys
    from modelfleet.signer.ceremony import update_policy

    update_policy(paths.data_dir, TENANT, lambda policy: msgspec.structs.replace(policy, approvals_required=2), now())
    machine.is_assigned()
    bad, anna, ben = release_of_thief(fleet), paths.approver_keys["anna"], paths.approver_keys["ben"]
    with pytest.raises(ApprovalError):
        machine.verify(approved_by(fleet, bad, anna))
    assert machine.verify(approved_by(fleet, bad, anna, ben))


@pytest.mark.parametrize("how", ["rotated", "revoked"])
def test_an_approver_s_key_that_is_gone_approves_nothing(how: str, machine: Machine, fleet: Fleet) -> None:
    machine.is_assigned()
    stolen = fleet.keys.approver_keys["anna"]
    bad = approved_by(fleet, release_of_thief(fleet), stolen)
    assert machine.verify(bad)  # with k = 1, the thief of director, releases and one approver's key has all he needs
    if how == "rotated":
        rotate(fleet, "approver:anna")
        remaining = fleet.keys.approver_keys["anna"]
    else:
        revoke(fleet, Revocation(keys=(key_id(public_key(stolen)),)))
        remaining = fleet.keys.approver_keys["ben"]
    machine.trust.refresh()
    with pytest.raises(ApprovalError):
        machine.verify(bad)
    assert machine.verify(approved_by(fleet, bad, remaining))


# Another tenant


def test_another_tenant_s_keys_say_nothing_here(machine: Machine, fleet: Fleet, forger: Forger, tmp_path: Path) -> None:
    """Every key of another tenant, all of them together, on this tenant's device."""
    machine.is_assigned()
    release = fleet.release("1.0.0")
    machine.trust.refresh()
    other = create_repository(tmp_path / "other", "umbrella", bits=2, approvers=["anna", "ben"], now=now())
    with pytest.raises(UnknownKeyError):
        machine.documents.accept_group(sign_group(fleet.group_document(), load_signer(other.director_key)))
    with pytest.raises(ApprovalError):
        machine.verify(approved_by(fleet, release, *other.approver_keys.values()))
    assert machine.verify(approved_by(fleet, release, fleet.keys.approver_keys["ben"]))
    theirs = {"timestamp": (other.timestamp_key,), "snapshot": (other.snapshot_key,), "targets": other.targets_keys[:2]}
    for role, uris in theirs.items():
        forger.renew(role, signers=signers(*uris))
        with pytest.raises(SignatureError, match=role):
            machine.trust.refresh()
        forger.renew(role)
        machine.trust.refresh()
    forger.renew("root", signers=signers(*other.root_keys[:2]))
    with pytest.raises(SignatureError, match="root"):
        machine.trust.refresh()


def test_a_policy_of_another_tenant_under_the_same_offline_keys_is_refused(
    machine: Machine, fleet: Fleet, forger: Forger
) -> None:
    """One administrator, one set of offline keys for two tenants: a policy does not cross over."""
    machine.trust.refresh()

    def policy_of(tenant: str) -> Callable[[Targets], None]:
        data = encode_policy(msgspec.structs.replace(fleet.keys.repository().policy(), tenant=tenant, epoch=9))
        target = TargetFile.from_data(POLICY_PATH, data, ["sha256"])
        (fleet.keys.targets_dir / target.get_prefixed_paths()[0]).write_bytes(data)
        return lambda targets: targets.targets.update({POLICY_PATH: target})

    forger.renew("targets", policy_of("umbrella"))
    with pytest.raises(ScopeError, match="umbrella"):
        machine.trust.refresh()
    forger.renew("targets", policy_of(TENANT))
    machine.trust.refresh()
    assert machine.trust.policy().epoch == 9


# The ceremony itself


def test_a_thief_at_the_air_gap_gets_no_signature_on_what_he_adds(fleet: Fleet) -> None:
    """He alters the exported file: what was signed is not what is staged, and his own signature does not count."""
    paths = fleet.keys
    change = revocation(paths, paths.repository().policy_chain(), Revocation(epoch=True), now())
    targets = parse_metadata(change.targets, Targets)
    targets.signed.expires = targets.signed.expires.replace(year=targets.signed.expires.year + 50)
    altered = msgspec.structs.replace(change, targets=targets.to_bytes())
    with pytest.raises(UntrustedError, match="another change"):
        merge_signatures(change, sign_change(altered, load_signer(paths.targets_keys[0])))
    thief = stranger()
    with pytest.raises(KeyUriError):
        sign_change(change, thief)
    forged = parse_metadata(change.targets, Targets)
    forged.sign(thief, append=True)
    signature = forged.signatures.pop(thief.public_key.keyid)
    for uri in paths.targets_keys:
        forged.signatures[key_id(public_key(uri))] = type(signature)(key_id(public_key(uri)), signature.signature)
    merged = merge_signatures(change, msgspec.structs.replace(change, targets=forged.to_bytes()))
    assert [lack.count for lack in lacking(merged)] == [2]
    for uri in paths.targets_keys[:2]:
        merged = merge_signatures(merged, sign_change(change, load_signer(uri)))
    publish(paths, merged, now())
    assert paths.repository().policy().epoch == 2


def test_a_change_with_one_signature_too_few_is_not_published(fleet: Fleet) -> None:
    paths = fleet.keys
    change = renewal(paths, paths.repository().policy_chain(), ["root"], now())
    once = sign_change(change, load_signer(paths.root_keys[0]))
    with pytest.raises(SignatureError, match="root needs 1 more signature"):
        publish(paths, once, now())
    with pytest.raises(SignatureError, match="root"):
        paths.repository().publish_change(
            root=once.root, targets=once.targets, policy=once.policy, bins={}, now=now(), keep=lambda: None
        )
    publish(paths, sign_change(once, load_signer(paths.root_keys[2])), now())
    assert trusted_root(paths.root_json.read_bytes()).version == 2


def test_a_running_agent_goes_on_after_every_key_was_rotated(device: Device, fleet: Fleet) -> None:
    """All of it at once: root, targets, bins, snapshot, timestamp, director and approver; the device never notices."""
    fleet.stable = fleet.release("1.0.0")
    device.told()
    device.waits_for("PROBATION", "1.0.0")
    signer_has_what_is_published(fleet)
    old = rotate(fleet, "root", "targets", "releases", "snapshot", "timestamp", "director", "approver:anna")
    assert old.approver_keys["anna"] != fleet.keys.approver_keys["anna"]
    fleet.stable = fleet.release("1.1.0", seed=2)
    device.told()
    device.waits_for("PROBATION", "1.1.0")
    device.hears(sign_group(fleet.group_document(), load_signer(old.director_key)))
    assert device.waits_for_refusal("UnknownKeyError")
