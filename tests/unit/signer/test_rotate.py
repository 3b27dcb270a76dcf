"""Keys rotated, revoked and renewed: what the repository says afterwards, and what is refused before anything changes."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from modelfleet.signer.ceremony import CeremonyPlan, OfflineKeys, create_repository, hold_ceremony
from modelfleet.signer.change import Change, encode_change, lacking, merge_signatures, parse_change, sign_change
from modelfleet.signer.client import renew_bins
from modelfleet.signer.errors import (
    DigestError,
    FormatError,
    KeyUriError,
    PlanError,
    ReplayError,
    SignatureError,
    SignerUnavailableError,
)
from modelfleet.signer.files import folder_lock, write_durably
from modelfleet.signer.key_book import CeremonyResult, locate
from modelfleet.signer.keys import generate_key, key_id, load_signer, public_key
from modelfleet.signer.metadata import Metadata, Root, TargetFile, Targets, parse_metadata, sign_metadata
from modelfleet.signer.passphrase import Secrets
from modelfleet.signer.rekey import rekey_there, remove_targets
from modelfleet.signer.rotate import Revocation, Rotation, renewal, revocation, rotation
from modelfleet.signer.stage import discard_staged, keep_staged, publish, sign_here, staged
from modelfleet.signer.summary import describe_change
from modelfleet.signer.trust import trusted_policy, trusted_root
from tests.unit.signer.samples import TENANT, manifest
from tests.unit.signer.test_serve import running_signer, updater


def rotate(fleet: CeremonyResult, now: datetime, *roles: str, **options: object) -> CeremonyResult:
    """Rotate with the offline keys that lie in the folder; return where the keys are now."""
    paths = locate(fleet.data_dir, TENANT)
    wanted = Rotation(roles=roles, **options)
    change, _ = sign_here(paths, rotation(paths, paths.repository().policy_chain(), wanted, now))
    publish(paths, change, now)
    return locate(fleet.data_dir, TENANT)


def published_root(fleet: CeremonyResult) -> Root:
    return trusted_root(fleet.repository().policy_chain().roots[-1])


def keyids(uris: Iterable[str]) -> set[str]:
    return {key_id(public_key(uri)) for uri in uris}


@pytest.mark.parametrize(
    "role", ["root", "targets", "snapshot", "timestamp", "releases", "director", "gate", "publisher"]
)
def test_after_a_rotation_an_old_client_follows_to_the_new_key_alone(
    fleet: CeremonyResult, now: datetime, tmp_path: Path, role: str
) -> None:
    updater(fleet, tmp_path / "client").refresh()
    after = rotate(fleet, now, role)
    client = updater(fleet, tmp_path / "client")  # bootstraps from the root of its enrolment
    client.refresh()
    policy = client.get_targetinfo("trust/policy.json")
    assert policy is not None
    trusted = trusted_policy(published_root(after), after.repository().policy_chain(), tenant=TENANT, now=now)
    field = f"{role}_keys" if role in ("root", "targets") else f"{role}_key"
    old, new = getattr(fleet, field), getattr(after, field)
    assert set(old).isdisjoint(new) if role in ("root", "targets") else old != new
    named = {
        **{name: set(found.keyids) for name, found in published_root(after).roles.items()},
        "releases": set(trusted.targets.delegations.succinct_roles.keyids),  # type: ignore[union-attr]
        "director": set(trusted.policy.directors),
        "gate": set(trusted.policy.gates),
        "publisher": set(trusted.policy.publishers),
    }
    assert named[role] == keyids(new if isinstance(new, tuple) else [new])


def test_a_new_root_is_signed_by_the_old_keys_and_the_new_ones(fleet: CeremonyResult, now: datetime) -> None:
    after = rotate(fleet, now, "root")
    root = parse_metadata(after.repository().policy_chain().roots[-1], Root)
    assert root.signed.version == 2
    signed_by = set(root.signatures)
    assert len(signed_by & keyids(fleet.root_keys)) == 2
    assert len(signed_by & keyids(after.root_keys)) == 2
    assert after.root_json.read_bytes() == (after.metadata_dir / "2.root.json").read_bytes()


def test_one_root_key_of_three_is_replaced(fleet: CeremonyResult, now: datetime) -> None:
    lost = key_id(public_key(fleet.root_keys[1]))
    after = rotate(fleet, now, "root", old=lost)
    assert keyids(after.root_keys) - keyids(fleet.root_keys) != set()
    assert set(published_root(after).roles["root"].keyids) == keyids(after.root_keys)
    assert lost not in published_root(after).keys
    assert len(after.root_keys) == 3


def test_the_threshold_and_number_of_offline_keys_can_change(
    fleet: CeremonyResult, now: datetime, tmp_path: Path
) -> None:
    new = tuple(generate_key(tmp_path / f"{n}.pem") for n in range(5))
    after = rotate(fleet, now, "targets", new_keys=new, threshold=3)
    role = published_root(after).roles["targets"]
    assert (role.threshold, len(role.keyids)) == (3, 5)
    with pytest.raises(PlanError, match="threshold of 1 to 5"):
        rotate(after, now, "targets", threshold=6)


def test_several_roles_are_rotated_in_one_publication(fleet: CeremonyResult, now: datetime, tmp_path: Path) -> None:
    roles = ("root", "targets", "releases", "snapshot", "timestamp", "director")
    after = rotate(fleet, now, *roles)
    assert published_root(after).version == 2
    assert after.repository().policy().epoch == 2
    updater(after, tmp_path / "client").refresh()


def test_rotating_releases_signs_every_bin_anew_and_the_signer_goes_on(fleet: CeremonyResult, now: datetime) -> None:
    with running_signer(fleet) as running:
        signed = running.release()
        fleet.repository().publish(signed.bins, {}, now)
        with pytest.raises(SignerUnavailableError, match="stop `modelfleet serve`"):
            rotate(fleet, now, "releases")
    discard_staged(fleet.data_dir)
    after = rotate(fleet, now, "releases")
    ours = key_id(public_key(after.releases_key))
    for role, version in after.repository().versions().items():
        if role.startswith("releases-"):
            metadata = parse_metadata((after.metadata_dir / f"{version}.{role}.json").read_bytes(), Targets)
            assert list(metadata.signatures) == [ours]
            assert (after.signer_state / f"{role}.json").read_bytes() == metadata.to_bytes()
    with running_signer(after) as running:
        again = running.release()
        (data,) = again.bins.values()
        assert list(parse_metadata(data, Targets).signed.targets) == [manifest().path]


def test_a_signer_started_again_with_the_new_key_signs_the_bins_itself(fleet: CeremonyResult, now: datetime) -> None:
    paths = locate(fleet.data_dir, TENANT)
    with running_signer(fleet) as running:
        fleet.repository().publish(running.release().bins, {}, now)
    wanted = Rotation(roles=("releases",))
    change, _ = sign_here(paths, rotation(paths, paths.repository().policy_chain(), wanted, now))
    assert change.book is not None
    new = f"file:{paths.data_dir / change.book.releases.removeprefix('file:')}"
    with running_signer(CeremonyResult(**{**vars(fleet), "releases_key": new})) as running:
        publish(paths, change, now, rekey=rekey_there(running.client))
        assert renew_bins(running.client, locate(fleet.data_dir, TENANT).repository(), now) == 0
        assert running.client.status()["keyid"] == key_id(public_key(new))


def test_a_target_that_a_thief_signed_is_removed_with_the_key(fleet: CeremonyResult, now: datetime) -> None:
    path = manifest(version="9.9.9").path
    state = fleet.signer_state
    for file in state.glob("releases-*.json"):  # the thief had the signer itself sign it, in the bin it belongs to
        metadata = parse_metadata(file.read_bytes(), Targets)
        metadata.signed.targets[path] = TargetFile.from_data(path, b"bad", ["sha256"])
        write_durably(file, sign_metadata(metadata, [load_signer(fleet.releases_key)]))
    after = rotate(fleet, now, "releases", remove=(path,))
    versions = after.repository().versions()
    bins = [role for role in versions if role.startswith("releases-")]
    for role in bins:
        metadata = parse_metadata((after.metadata_dir / f"{versions[role]}.{role}.json").read_bytes(), Targets)
        assert path not in metadata.signed.targets
    assert len(bins) == 4
    with pytest.raises(PlanError, match="expected paths"):
        remove_targets(state, [path])
    with folder_lock(state), pytest.raises(SignerUnavailableError):
        remove_targets(state, [path])


def test_revoking_changes_the_policy_and_nothing_else(fleet: CeremonyResult, now: datetime) -> None:
    paths = locate(fleet.data_dir, TENANT)
    anna = key_id(public_key(fleet.approver_keys["anna"]))
    wanted = Revocation(keys=(anna[:12],), manifests=("a" * 64,), minimum={"digits": 7}, epoch=True)
    change, _ = sign_here(paths, revocation(paths, paths.repository().policy_chain(), wanted, now))
    publish(paths, change, now)
    policy = paths.repository().policy()
    assert [approver.person for approver in policy.approvers.values()] == ["ben"]
    assert (policy.revoked, policy.minimum_counter, policy.epoch) == (("a" * 64,), {"digits": 7}, 2)
    assert published_root(paths).version == 1


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (Revocation(), "nothing to revoke"),
        (Revocation(keys=("0" * 64,)), "names 0"),
        (Revocation(keys=("",)), "8 or more digits"),
        (Revocation(manifests=("no digest",)), "expected a SHA-256"),
        (Revocation(minimum={"digits": 0}), "expected a minimum counter > 0"),
    ],
)
def test_a_revocation_that_means_nothing_is_refused(
    fleet: CeremonyResult, now: datetime, wanted: Revocation, says: str
) -> None:
    with pytest.raises(PlanError, match=says):
        revocation(fleet, fleet.repository().policy_chain(), wanted, now)


def test_nobody_is_locked_out_by_a_revocation(fleet: CeremonyResult, now: datetime) -> None:
    chain = fleet.repository().policy_chain()
    with pytest.raises(PlanError, match="no director: rotate"):
        revocation(fleet, chain, Revocation(keys=(key_id(public_key(fleet.director_key)),)), now)
    people = tuple(key_id(public_key(uri)) for uri in fleet.approver_keys.values())
    with pytest.raises(PlanError, match="0 approvers: rotate"):
        revocation(fleet, chain, Revocation(keys=people), now)


def test_an_overlapping_rotation_keeps_the_old_key_until_it_is_revoked(fleet: CeremonyResult, now: datetime) -> None:
    after = rotate(fleet, now, "approver:anna", overlap=True)
    policy = after.repository().policy()
    both = {keyid for keyid, approver in policy.approvers.items() if approver.person == "anna"}
    assert both == keyids([fleet.approver_keys["anna"], after.approver_keys["anna"]])
    assert rotate(after, now, "director", overlap=True).repository().policy().epoch == 1
    assert rotate(after, now, "director").repository().policy().epoch == 2
    assert "carol" in rotate(after, now, "approver:carol").approver_keys


def test_renewal_changes_version_and_expiry_alone(fleet: CeremonyResult, now: datetime) -> None:
    later = now + timedelta(days=150)
    change, _ = sign_here(fleet, renewal(fleet, fleet.repository().policy_chain(), ["root", "targets"], later))
    publish(fleet, change, now)
    root, targets = published_root(fleet), fleet.repository().policy_chain().targets
    assert (root.version, root.expires) == (2, (later + timedelta(days=365)).replace(microsecond=0))
    assert parse_metadata(targets, Targets).signed.expires == (later + timedelta(days=180)).replace(microsecond=0)
    assert describe_change(change) == [
        "tenant acme",
        f"root: version 1 -> 2, expires {root.expires:%F}",
        f"targets: version 1 -> 2, expires {later + timedelta(days=180):%F}",
    ]
    with pytest.raises(PlanError, match="renews the others by itself"):
        renewal(fleet, fleet.repository().policy_chain(), ["snapshot"], now)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (Rotation(roles=("admin",)), "expected a role of"),
        (Rotation(roles=("approver:",)), "expected a role of"),
        (Rotation(roles=("root", "targets"), new_keys=("file:/a.pem",)), "one role at a time"),
        (Rotation(roles=("snapshot",), threshold=2), "only root and targets"),
        (Rotation(roles=("snapshot",), remove=("a/b",)), "rotate releases"),
        (Rotation(roles=("root",), old="ffffffff"), "which names 0"),
    ],
)
def test_a_rotation_that_means_nothing_is_refused(
    fleet: CeremonyResult, now: datetime, wanted: Rotation, says: str
) -> None:
    before = set(fleet.data_dir.rglob("*.pem"))
    with pytest.raises(PlanError, match=says):
        rotation(fleet, fleet.repository().policy_chain(), wanted, now)
    assert set(fleet.data_dir.rglob("*.pem")) == before


# The air gap: the change travels, the keys do not.


@pytest.fixture
def gap(tmp_path: Path, now: datetime) -> tuple[CeremonyResult, Change, list[str]]:
    """A fleet whose offline keys are elsewhere, a change of its policy, and where the targets keys went."""
    fleet = create_repository(tmp_path / "data", TENANT, bits=1, approvers=["anna", "ben"], now=now)
    away = tmp_path / "away"
    (fleet.data_dir / "offline").rename(away)
    change = revocation(fleet, fleet.repository().policy_chain(), Revocation(epoch=True), now)
    return fleet, change, [f"file:{away}/targets-{n}.pem" for n in (1, 2, 3)]


def test_a_change_is_published_with_the_last_signature_that_it_needs(
    gap: tuple[CeremonyResult, Change, list[str]], now: datetime
) -> None:
    fleet, change, keys = gap
    signed, reasons = sign_here(fleet, change)
    assert signed == change
    assert len(reasons) == 3
    keep_staged(fleet.data_dir, signed)
    for count, uri in ((1, keys[0]), (0, keys[2])):
        waiting = staged(fleet.data_dir)
        assert waiting is not None
        with pytest.raises(SignatureError, match="targets needs"):
            publish(fleet, waiting, now)
        elsewhere = sign_change(parse_change(encode_change(waiting)), load_signer(uri))
        keep_staged(fleet.data_dir, merge_signatures(waiting, elsewhere))
        merged = staged(fleet.data_dir)
        assert merged is not None
        assert sum(lack.count for lack in lacking(merged)) == count
    publish(fleet, merged, now)
    assert fleet.repository().policy().epoch == 2
    assert staged(fleet.data_dir) is None


def test_two_people_who_sign_copies_are_merged(gap: tuple[CeremonyResult, Change, list[str]]) -> None:
    _, change, keys = gap
    copies = [sign_change(change, load_signer(uri)) for uri in keys[:2]]
    assert lacking(merge_signatures(merge_signatures(change, copies[0]), copies[1])) == []


def test_a_signature_on_another_change_is_not_taken_over(
    gap: tuple[CeremonyResult, Change, list[str]], now: datetime
) -> None:
    fleet, change, keys = gap
    other = revocation(fleet, fleet.repository().policy_chain(), Revocation(manifests=("a" * 64,)), now)
    with pytest.raises(DigestError, match="another change"):
        merge_signatures(change, sign_change(other, load_signer(keys[0])))


def test_a_forged_or_foreign_signature_does_not_count(
    gap: tuple[CeremonyResult, Change, list[str]], tmp_path: Path
) -> None:
    _, change, keys = gap
    stranger = load_signer(generate_key(tmp_path / "stranger.pem"))
    with pytest.raises(KeyUriError, match="nothing to sign"):
        sign_change(change, stranger)
    targets = parse_metadata(change.targets, Targets)
    targets.sign(stranger, append=True)
    forged = targets.signatures[stranger.public_key.keyid]
    targets.signatures[key_id(public_key(keys[0]))] = type(forged)(key_id(public_key(keys[0])), forged.signature)
    merged = merge_signatures(change, _with_targets(change, targets))
    assert [lack.count for lack in lacking(merged)] == [2]


def test_the_same_key_does_not_count_twice(gap: tuple[CeremonyResult, Change, list[str]]) -> None:
    _, change, keys = gap
    once = sign_change(change, load_signer(keys[0]))
    with pytest.raises(KeyUriError, match="nothing to sign"):
        sign_change(once, load_signer(keys[0]))


def test_who_signs_sees_what_changes_and_believes_their_own_root(
    gap: tuple[CeremonyResult, Change, list[str]], tmp_path: Path, now: datetime
) -> None:
    fleet, change, _ = gap
    own = fleet.root_json.read_bytes()
    assert "policy: epoch 1 -> 2" in describe_change(change, trusted=own)
    other = create_repository(tmp_path / "other", TENANT, bits=1, approvers=["eve"], now=now)
    with pytest.raises(SignatureError, match="another root"):
        describe_change(change, trusted=other.root_json.read_bytes())


def test_a_change_of_what_is_no_longer_published_is_not_published(
    gap: tuple[CeremonyResult, Change, list[str]], now: datetime
) -> None:
    fleet, change, keys = gap
    for uri in keys[:2]:
        change = sign_change(change, load_signer(uri))
    publish(fleet, change, now)
    publish(fleet, change, now)  # again, as after a crash: nothing is wrong with that
    newer = revocation(fleet, fleet.repository().policy_chain(), Revocation(epoch=True), now)
    for uri in keys[:2]:
        newer = sign_change(newer, load_signer(uri))
    publish(fleet, newer, now)
    with pytest.raises(ReplayError, match="something else was published"):
        publish(fleet, change, now)


def test_a_publication_that_was_cut_off_is_finished_by_the_next(
    fleet: CeremonyResult, now: datetime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before each of its writes in turn, it leaves a repository that an old client refreshes from, or the rest
    of it is made good by publishing again."""
    import modelfleet.signer.repository as repository_module

    paths = locate(fleet.data_dir, TENANT)
    change, _ = sign_here(
        paths, rotation(paths, paths.repository().policy_chain(), Rotation(roles=("timestamp", "snapshot")), now)
    )
    keep_staged(paths.data_dir, change)
    original, writes = repository_module.write_durably, {"left": 0}

    def dying(path: Path, data: bytes, **options: int) -> None:
        if writes["left"] == 0:
            raise OSError("the power failed")
        writes["left"] -= 1
        original(path, data, **options)

    stops = 0
    for stop in range(20):
        writes["left"] = stop
        with monkeypatch.context() as patch:
            patch.setattr(repository_module, "write_durably", dying)
            try:
                waiting = staged(paths.data_dir)
                assert waiting is not None
                publish(locate(fleet.data_dir, TENANT), waiting, now)
                break
            except OSError:
                stops += 1
    assert stops >= 3
    assert staged(paths.data_dir) is None
    updater(fleet, tmp_path / "client").refresh()


# Ceremonies that differ from a try-out.


def passphrases(uri: str) -> str:
    return f"secret of {uri.rpartition('/')[2]}"


def test_a_ceremony_with_passphrases_leaves_no_offline_key_in_the_clear(tmp_path: Path, now: datetime) -> None:
    plan = CeremonyPlan(
        tenant=TENANT,
        bits=1,
        root=OfflineKeys(count=5, threshold=3),
        targets=OfflineKeys(count=2, threshold=1),
        approvers={"anna": ""},
    )
    secrets: Secrets = passphrases
    fleet = hold_ceremony(tmp_path / "data", plan, now, secrets=secrets, new_passphrase=secrets)
    for path in (fleet.data_dir / "offline").iterdir():
        assert b"ENCRYPTED" in path.read_bytes()
        with pytest.raises(KeyUriError):
            load_signer(f"file:{path}", lambda _: "guess")
    root = published_root(fleet)
    assert (root.roles["root"].threshold, len(root.roles["root"].keyids)) == (3, 5)
    assert (root.roles["targets"].threshold, len(root.roles["targets"].keyids)) == (1, 2)
    change, _ = sign_here(fleet, renewal(fleet, fleet.repository().policy_chain(), ["root"], now), secrets)
    publish(fleet, change, now)
    assert published_root(fleet).version == 2


def test_a_ceremony_takes_keys_that_are_there_and_makes_only_the_others(tmp_path: Path, now: datetime) -> None:
    given = {name: generate_key(tmp_path / f"{name}.pem") for name in ("anna", "releases", "root-1", "root-2")}
    public = tmp_path / "anna.pub.pem"
    public.write_text(public_key(given["anna"]).keyval["public"])
    plan = CeremonyPlan(
        tenant=TENANT,
        bits=1,
        root=OfflineKeys(uris=(given["root-1"], given["root-2"])),
        online={"releases": given["releases"]},
        approvers={"anna": f"file:{public}", "ben": ""},
    )
    fleet = hold_ceremony(tmp_path / "data", plan, now)
    assert fleet.releases_key == given["releases"]
    assert not (fleet.data_dir / "signer" / "releases.pem").exists()
    assert not (fleet.data_dir / "people" / "approver-anna.pem").exists()
    people = {approver.person: keyid for keyid, approver in fleet.repository().policy().approvers.items()}
    assert people["anna"] == key_id(public_key(given["anna"]))
    assert locate(fleet.data_dir, TENANT) == fleet


@pytest.mark.parametrize(
    "wrong",
    [
        {"root": OfflineKeys(count=1, threshold=2)},
        {"targets": OfflineKeys(count=3, threshold=0)},
        {"root": OfflineKeys(count=17, threshold=2)},
        {"online": {"admin": "file:/a.pem"}},
    ],
)
def test_a_ceremony_that_cannot_be_makes_nothing(tmp_path: Path, now: datetime, wrong: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        hold_ceremony(tmp_path / "data", CeremonyPlan(tenant=TENANT, approvers={"anna": ""}, **wrong), now)
    assert not (tmp_path / "data").exists()


def test_a_ceremony_with_a_missing_or_repeated_key_says_so(tmp_path: Path, now: datetime) -> None:
    one = generate_key(tmp_path / "one.pem")
    missing = CeremonyPlan(tenant=TENANT, approvers={"anna": ""}, online={"releases": f"file:{tmp_path}/none.pem"})
    with pytest.raises(KeyUriError, match=r"none\.pem"):
        hold_ceremony(tmp_path / "data", missing, now)
    assert not (tmp_path / "data").exists()
    twice = CeremonyPlan(tenant=TENANT, bits=1, approvers={"anna": ""}, root=OfflineKeys(uris=(one, one)))
    with pytest.raises(KeyUriError, match="one twice"):
        hold_ceremony(tmp_path / "data", twice, now)


def _with_targets(change: Change, targets: Metadata[Targets]) -> Change:
    from msgspec.structs import replace

    return replace(change, targets=targets.to_bytes())
