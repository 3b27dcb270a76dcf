"""`modelfleet-tuf-client` against a real server: what the public conformance suite asks of a client, and what we add.

Each refusal has its control beside it: the same repository without the fault is followed.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile

from modelfleet.agent_client import tuf_cli
from modelfleet.agent_client.errors import TransferError
from modelfleet.signer.errors import DigestError, ExpiredError, ReplayError, SignatureError, UntrustedError
from modelfleet.signer.metadata import etag_of
from tests.unit.agent_client.tuf_repository import TOP, Client, Repository, soon

FIRST = {"root": 1, "snapshot": 1, "targets": 1, "timestamp": 1}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    """A client that trusts the first root, and has asked nothing yet."""
    made = Client(Repository(), tmp_path)
    assert made.init() == 0
    yield made
    made.stop()


@pytest.fixture
def repository(client: Client) -> Repository:
    return client.repository


# The command line


def test_init_asks_nothing_and_trusts_the_root(client: Client, repository: Repository) -> None:
    assert repository.requests == []
    assert client.trusted() == {"root": 1}


def test_refresh_asks_in_order_and_keeps_the_bytes_as_served(client: Client, repository: Repository) -> None:
    repository.replace("timestamp", repository.newest("timestamp") + b" ")
    assert client.refresh() == 0
    assert repository.requests == ["2.root", "timestamp", "1.snapshot", "1.targets"]
    assert client.trusted() == FIRST
    for role in FIRST:
        assert (client.metadata / f"{role}.json").read_bytes() == repository.newest(role)


def test_the_executable_is_this_client(client: Client, repository: Repository) -> None:
    repository.add("a/file.txt", b"content")
    repository.publish(*TOP)
    command = [sys.executable, "-m", "modelfleet.agent_client.tuf_cli"]
    assert subprocess.run([*command, *client.arguments("refresh")], check=False).returncode == 0
    download = client.arguments("download", names=["a/file.txt"])
    assert subprocess.run([*command, *download], check=False).returncode == 0
    assert client.downloaded() == [b"content"]
    repository.artifacts["a/file.txt"] = b"altered"
    shutil.rmtree(client.files)
    assert subprocess.run([*command, *download], check=False, capture_output=True).returncode == 1


@pytest.mark.parametrize("broken", [b"", b"{}", b"[" * 4000, b'{"signed": {"_type": "root"}}'])
def test_a_first_root_that_is_none_is_refused_and_nothing_is_asked(broken: bytes, tmp_path: Path) -> None:
    made = Client(Repository(), tmp_path)
    (tmp_path / "root.json").write_bytes(broken)
    assert made.init() == 1
    assert made.refresh() == 1
    assert made.repository.requests == []
    made.stop()


def test_a_first_root_that_does_not_sign_itself_is_refused(tmp_path: Path) -> None:
    made = Client(Repository(), tmp_path)
    root = json.loads((tmp_path / "root.json").read_bytes())
    root["signatures"][0]["sig"] = "30" * 70
    (tmp_path / "root.json").write_text(json.dumps(root))
    assert made.init() == 1
    assert (made.refresh(), made.repository.requests) == (1, [])
    made.stop()


def test_plain_http_to_another_machine_is_refused(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--metadata-dir", str(client.metadata), "--metadata-url", "http://192.0.2.1:9/metadata", "refresh"]
    assert tuf_cli.run(arguments) == 1
    assert client.refresh() == 0  # loopback


def test_commands_say_what_they_lack(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert tuf_cli.run(["--metadata-dir", str(client.metadata), "refresh"]) == 2
    assert "--metadata-url" in capsys.readouterr().err
    assert client.download() == 2
    assert "--target-name" in capsys.readouterr().err
    other = ["--metadata-dir", str(client.folder / "none"), "--metadata-url", client.url, "refresh"]
    assert tuf_cli.run(other) == 1
    assert "init" in capsys.readouterr().err


# Targets


def test_downloads_every_name_given_and_none_twice(client: Client, repository: Repository) -> None:
    repository.add("one.txt", b"1")
    repository.add("path/to/two.txt", b"2")
    repository.publish(*TOP)
    assert client.download("one.txt", "path/to/two.txt") == 0
    assert client.downloaded() == [b"1", b"2"]
    repository.requests.clear()
    assert client.download("one.txt", "path/to/two.txt") == 0
    assert repository.requests == ["2.root", "timestamp"]


def test_a_changed_target_replaces_the_old_one(client: Client, repository: Repository) -> None:
    for content in (b"old", b"new"):
        repository.add("file", content)
        repository.publish(*TOP)
        assert client.download("file") == 0
        assert client.downloaded() == [content]


def test_refuses_a_target_of_other_bytes_and_keeps_nothing(client: Client, repository: Repository) -> None:
    repository.add("file", b"signed bytes")
    repository.publish(*TOP)
    for other in (b"forged bytes", b"shorter", b"longer than what was signed"):
        repository.artifacts["file"] = other
        assert client.download("file") == 1
        assert list(client.files.iterdir()) == []
    repository.artifacts["file"] = b"signed bytes"
    assert client.download("file") == 0


def test_a_name_that_nobody_signed_fails_after_the_metadata_came(client: Client, repository: Repository) -> None:
    assert client.download("nonexistent artifact") == 1
    assert repository.requests == ["2.root", "timestamp", "1.snapshot", "1.targets"]
    assert client.trusted() == FIRST


@pytest.mark.parametrize("hashes", [["sha256"], ["sha512"], ["sha256", "sha512"]])
def test_verifies_by_the_digests_that_are_there(hashes: list[str], client: Client, repository: Repository) -> None:
    repository.add("file", b"content", hashes=hashes)
    repository.publish(*TOP)
    assert client.download("file") == 0
    repository.artifacts["file"] = b"forgery"
    shutil.rmtree(client.files)
    assert client.download("file") == 1


def test_refuses_a_target_whose_digest_it_cannot_compute(client: Client, repository: Repository) -> None:
    repository.add("file", b"content", hashes=["sha512"])
    hashes = repository.targets.targets["file"].hashes
    hashes["unknown-hash"] = hashes.pop("sha512")
    repository.publish(*TOP)
    assert client.download("file") == 1
    assert list(client.files.iterdir()) == []


@pytest.mark.parametrize("name", ["../../outside", "/absolute", "..", "a\\b", "näme", "with space", "x" * 300])
def test_no_name_of_a_target_leaves_the_folder(name: str, client: Client, repository: Repository) -> None:
    repository.add(name, b"content")
    repository.publish(*TOP)
    client.download(name)
    found = [path for path in client.folder.rglob("*") if path.is_file() and path.read_bytes() == b"content"]
    assert [path.parent for path in found] == [client.files][: len(found)]
    assert not (client.folder.parent / "outside").exists()


# Without consistent snapshots


def test_follows_a_repository_without_consistent_snapshots(tmp_path: Path) -> None:
    repository = Repository()
    repository.root.consistent_snapshot = False
    repository.published.clear()
    repository.delegate("targets", "..", ["*"])
    repository.add("file", b"content", role="..")
    repository.publish("root", "..", *TOP)
    made = Client(repository, tmp_path)
    assert made.init() == 0
    assert made.download("file") == 0
    assert repository.requests == ["2.root", "timestamp", "snapshot", "targets", "..", "file"]
    repository.publish("..", *TOP)
    assert made.download("file") == 0
    assert made.trusted()["snapshot"] == 2
    made.stop()


# Keys


@pytest.mark.parametrize(
    "signer",
    [
        pytest.param(CryptoSigner.generate_ed25519, id="ed25519"),
        pytest.param(CryptoSigner.generate_ecdsa, id="ecdsa"),
        pytest.param(lambda: CryptoSigner.generate_rsa(scheme="rsassa-pss-sha256"), id="rsassa-pss"),
        pytest.param(lambda: CryptoSigner.generate_rsa(scheme="rsa-pkcs1v15-sha256"), id="rsa-pkcs1v15"),
    ],
)
def test_every_key_type_of_the_specification_counts(signer, client: Client, repository: Repository) -> None:  # type: ignore[no-untyped-def]
    made = repository.add_key("root", signer())
    repository.root.roles["root"].threshold = 2
    repository.publish("root")
    assert client.refresh() == 0
    repository.publish("root")
    root = json.loads(repository.newest("root"))
    for signature in root["signatures"]:
        if signature["keyid"] == made.public_key.keyid:
            signature["sig"] = signature["sig"][:-2] + ("00" if signature["sig"][-2:] != "00" else "01")
    repository.replace("root", json.dumps(root).encode())
    assert client.refresh() == 1
    assert client.trusted()["root"] == 2


def test_a_key_of_an_unknown_kind_is_kept_and_never_counts(client: Client, repository: Repository) -> None:
    strange = CryptoSigner.generate_ecdsa()
    strange.public_key.keytype, strange.public_key.scheme = "from-the-future", "lattice"
    repository.add_key("timestamp", strange)
    repository.publish("root", "timestamp")
    assert client.refresh() == 0
    repository.root.roles["timestamp"].threshold = 2
    repository.publish("root", "timestamp")
    assert client.refresh() == 1
    assert client.trusted()["root"] == 3


def test_a_key_id_is_any_name(client: Client, repository: Repository) -> None:
    signer = CryptoSigner.generate_ecdsa()
    signer.public_key.keyid = "the third key, ä"
    repository.rotate("snapshot")
    repository.add_key("snapshot", signer)
    repository.root.roles["snapshot"].threshold = 2
    repository.publish("root", *TOP)
    assert client.refresh() == 0


def test_one_key_under_two_ids_is_one_key(client: Client, repository: Repository) -> None:
    signer = repository.signers["snapshot"][0]
    twin = CryptoSigner(signer._private_key, type(signer.public_key).from_dict("twin", signer.public_key.to_dict()))
    repository.add_key("snapshot", twin)
    repository.publish("root", *TOP)
    assert client.refresh() == 0
    repository.root.roles["snapshot"].threshold = 2
    repository.publish("root", *TOP)
    assert client.refresh() == 1
    repository.add_key("snapshot")
    repository.publish("root", *TOP)
    assert client.refresh() == 0


def test_one_signature_twice_is_refused(client: Client, repository: Repository) -> None:
    snapshot = json.loads(repository.newest("snapshot"))
    honest = repository.newest("snapshot")
    snapshot["signatures"] *= 2
    repository.replace("snapshot", json.dumps(snapshot).encode())
    assert client.refresh() == 1
    assert "snapshot" not in client.trusted()
    repository.replace("snapshot", honest)
    assert client.refresh() == 0


def test_too_few_signatures_are_refused_up_to_that_role(client: Client, repository: Repository) -> None:
    repository.add_key("snapshot")
    repository.root.roles["snapshot"].threshold = 3
    repository.publish("root", *TOP)
    assert client.refresh() == 1
    assert client.trusted() == {"root": 2, "timestamp": 2}
    repository.add_key("snapshot")
    repository.publish("root", *TOP)
    assert client.refresh() == 0


@pytest.mark.parametrize("signature", ["", "30" * 70, "no hexadecimal"])
def test_a_bad_signature_beside_a_good_one_does_no_harm(signature: str, client: Client, repository: Repository) -> None:
    bad = repository.signers["timestamp"][0].public_key.keyid
    repository.add_key("timestamp")
    repository.publish("root", "timestamp")
    metadata = Metadata.from_bytes(repository.newest("timestamp"))
    metadata.signatures[bad].signature = signature
    repository.replace("timestamp", metadata.to_bytes())
    assert client.refresh() == 0
    assert client.trusted()["timestamp"] == 2


@pytest.mark.parametrize(
    ("role", "kept"),
    [
        ("root", {"root": 1}),
        ("timestamp", {"root": 2}),
        ("snapshot", {"root": 2, "timestamp": 2}),
        ("targets", {"root": 2, "snapshot": 2, "timestamp": 2}),
    ],
)
def test_an_unsigned_role_stops_the_update_there(
    role: str, kept: dict[str, int], client: Client, repository: Repository
) -> None:
    signers = repository.signers[role]
    repository.signers[role] = []
    repository.publish("root", *TOP)
    assert client.refresh() == 1
    assert client.trusted() == kept
    repository.signers[role] = signers
    repository.publish("root") if role != "root" else repository.published["root"].pop()
    if role == "root":
        repository.root.version -= 1
        repository.publish("root")
    repository.publish(*TOP)
    assert client.refresh() == 0


def test_unknown_fields_are_part_of_what_is_signed(client: Client, repository: Repository) -> None:
    repository.root.unrecognized_fields["custom-field"] = "value"
    signer = CryptoSigner.generate_ecdsa()
    signer.public_key.unrecognized_fields["keyid_hash_algorithms"] = ["md5"]
    repository.add_key("snapshot", signer)
    repository.root.roles["root"].unrecognized_fields["another-field"] = {"a": 1}
    repository.targets.unrecognized_fields["more"] = [1, 2]
    repository.publish("root", *TOP)
    assert client.refresh() == 0
    assert client.trusted()["root"] == 2
    repository.publish("targets", "snapshot", "timestamp")
    repository.replace("targets", repository.newest("targets").replace(b'"more"', b'"less"'))
    assert client.refresh() == 1


# Roots


def test_follows_many_roots_one_after_the_other(client: Client, repository: Repository) -> None:
    for _ in range(9):
        old = repository.signers["root"]
        repository.rotate("root")
        repository.signers["root"] = [*old[-1:], *repository.signers["root"]]
        repository.publish("root")
    assert client.refresh() == 0
    assert client.trusted()["root"] == 10
    repository.requests.clear()
    assert client.refresh() == 0
    assert repository.requests == ["11.root", "timestamp"]


@pytest.mark.parametrize("signed_by", ["old", "new"])
def test_a_root_needs_the_signatures_of_both_sides(signed_by: str, client: Client, repository: Repository) -> None:
    old = repository.signers["root"]
    repository.rotate("root")
    new = repository.signers["root"]
    repository.signers["root"] = old if signed_by == "old" else new
    repository.publish("root")
    assert client.refresh() == 1
    assert client.trusted()["root"] == 1
    repository.published["root"].pop()
    repository.signers["root"] = old + new
    repository.sign("root")
    assert client.refresh() == 0
    assert client.trusted()["root"] == 2


def test_a_root_of_another_version_than_its_name_is_refused(client: Client, repository: Repository) -> None:
    repository.publish("root")
    repository.publish("root")
    repository.answers["/metadata/2.root.json"] = whole(repository.newest("root"))
    assert client.refresh() == 1
    assert client.trusted() == {"root": 1}
    repository.answers.clear()
    assert client.refresh() == 0


def test_an_expired_root_is_kept_and_ends_the_update(client: Client, repository: Repository) -> None:
    repository.root.expires = soon(-1)
    repository.publish("root")
    assert client.refresh() == 1
    assert client.trusted() == {"root": 2}
    repository.root.expires = soon()
    repository.publish("root")
    assert client.refresh() == 0


def test_a_damaged_root_history_is_fetched_again(client: Client, repository: Repository) -> None:
    repository.publish("root")
    repository.publish("root")
    assert client.refresh() == 0
    (client.metadata / "root_history" / "2.root.json").write_bytes(b"\0" * 40)
    assert client.refresh() == 0
    assert client.trusted()["root"] == 3


# Expiry


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_expired_metadata_is_not_kept(role: str, client: Client, repository: Repository) -> None:
    repository.metadata[role].signed.expires = soon(-1)
    repository.publish(*TOP)
    assert client.refresh() == 1
    assert role not in client.trusted()
    repository.metadata[role].signed.expires = soon()
    repository.publish(*TOP)
    assert client.refresh() == 0


def test_expired_local_metadata_still_leads_to_newer(client: Client, repository: Repository) -> None:
    repository.timestamp.expires = soon(7)
    repository.publish("timestamp")
    assert client.refresh() == 0
    with pytest.raises(ExpiredError, match="timestamp"):
        client.library(days=18).refresh()
    repository.timestamp.expires = soon(21)
    repository.publish(*TOP)
    client.library(days=18).refresh()
    assert client.trusted() == {"root": 1, "snapshot": 2, "targets": 2, "timestamp": 3}


def test_an_expired_delegated_role_is_not_used(client: Client, repository: Repository) -> None:
    repository.delegate("targets", "role", ["*"], expires=soon(7))
    repository.add("file", b"content", role="role")
    repository.publish("role", *TOP)
    assert client.download("file") == 0
    late = client.library(days=18)
    late.refresh()
    with pytest.raises(ExpiredError, match="role"):
        late.target("file")
    repository.metadata["role"].signed.expires = soon(21)
    repository.publish("role", "snapshot", "timestamp")
    later = client.library(days=18)
    later.refresh()
    assert later.target("file") is not None


# Rollback, fast-forward, mix-and-match


def test_a_rolled_back_timestamp_is_refused(client: Client, repository: Repository) -> None:
    repository.publish("timestamp")
    assert client.refresh() == 0
    repository.timestamp.version = 1
    repository.sign("timestamp")
    assert client.refresh() == 1
    assert client.trusted()["timestamp"] == 2


def test_a_timestamp_that_changes_under_its_version_is_not_taken(client: Client, repository: Repository) -> None:
    assert client.refresh() == 0
    repository.timestamp.snapshot_meta = MetaFile(100)
    repository.sign("timestamp")
    assert client.refresh() == 0
    assert repository.requests[-1] == "timestamp"
    assert Metadata.from_file(str(client.metadata / "timestamp.json")).signed.snapshot_meta.version == 1


@pytest.mark.parametrize("hashes", [False, True])
def test_a_rolled_back_snapshot_is_refused(hashes: bool, client: Client, repository: Repository) -> None:
    repository.hashes = hashes
    repository.publish("snapshot", "timestamp")
    assert client.refresh() == 0
    repository.snapshot.version = 0
    repository.publish("snapshot", "timestamp")
    assert client.refresh() == 1
    assert client.trusted() == {"root": 1, "snapshot": 2, "targets": 1, "timestamp": 2}


@pytest.mark.parametrize("hashes", [False, True])
def test_rolled_back_targets_are_refused(hashes: bool, client: Client, repository: Repository) -> None:
    repository.hashes = hashes
    repository.publish(*TOP)
    assert client.refresh() == 0
    repository.targets.version = 0
    repository.publish(*TOP)
    assert client.refresh() == 1
    assert (client.trusted()["snapshot"], client.trusted()["targets"]) == (2, 2)


@pytest.mark.parametrize("role", TOP)
def test_every_role_keeps_its_floor_when_the_cache_is_lost(role: str, client: Client, repository: Repository) -> None:
    repository.publish(*TOP)
    assert client.refresh() == 0
    for path in client.metadata.glob("*.json"):
        path.unlink()
    repository.metadata[role].signed.version = 0
    repository.timestamp.version += role != "timestamp"
    for each in TOP:
        repository.metadata[each].signed.version += each != "timestamp" or role == "timestamp"
        repository.sign(each)
    assert client.refresh() == 1
    repository.metadata[role].signed.version = 8
    repository.publish(*TOP)
    assert client.refresh() == 0


def test_a_snapshot_that_drops_a_role_is_refused(client: Client, repository: Repository) -> None:
    repository.delegate("targets", "role", ["*"])
    repository.publish("role", *TOP)
    assert client.refresh() == 0
    dropped = repository.snapshot.meta.pop("role.json")
    repository.publish("snapshot", "timestamp")
    assert client.refresh() == 1
    repository.snapshot.meta["role.json"] = dropped
    repository.publish("snapshot", "timestamp")
    assert client.refresh() == 0


@pytest.mark.parametrize("role", TOP)
def test_rotated_keys_recover_from_a_fast_forward(role: str, client: Client, repository: Repository) -> None:
    repository.metadata[role].signed.version = 2**40
    repository.publish(*TOP)
    assert client.refresh() == 0
    repository.metadata[role].signed.version = 0
    repository.publish(*TOP)
    assert client.refresh() == 1
    # 5.3.11: the word of a version is timestamp's for itself, snapshot's for all below it
    for rotated in ("timestamp",) if role == "timestamp" else ("timestamp", "snapshot"):
        repository.rotate(rotated)
    repository.publish("root", *TOP)
    assert client.refresh() == 0
    assert client.trusted()[role] < 10


def test_new_snapshot_keys_alone_recover_targets(client: Client, repository: Repository) -> None:
    repository.targets.version = 99
    repository.publish(*TOP)
    assert client.refresh() == 0
    repository.rotate("snapshot")
    repository.targets.version = 1
    repository.publish("root", *TOP)
    assert client.refresh() == 0
    assert client.trusted()["targets"] == 2


@pytest.mark.parametrize(
    ("role", "kept"), [("snapshot", ["root", "timestamp"]), ("targets", ["root", "snapshot", "timestamp"])]
)
def test_another_version_than_the_one_named_is_refused(
    role: str, kept: list[str], client: Client, repository: Repository
) -> None:
    repository.publish(*TOP)
    wrong = repository.newest(role)
    repository.publish(*TOP)
    repository.answers[f"/metadata/3.{role}.json"] = whole(wrong)
    assert client.refresh() == 1
    assert list(client.trusted()) == kept
    repository.answers.clear()
    assert client.refresh() == 0


def test_digests_in_snapshot_and_timestamp_are_checked(client: Client, repository: Repository) -> None:
    repository.hashes = True
    repository.publish(*TOP)
    assert client.refresh() == 0
    repository.publish("targets")
    repository.snapshot.meta["targets.json"].hashes = {"sha256": "0" * 64}
    repository.publish("snapshot", "timestamp")
    assert client.refresh() == 1
    assert (client.trusted()["snapshot"], client.trusted()["targets"]) == (3, 2)


@pytest.mark.parametrize("role", TOP)
def test_a_missing_file_fails_the_update_and_keeps_what_came(role: str, client: Client, repository: Repository) -> None:
    assert client.refresh() == 0
    repository.publish(*TOP)
    lost = repository.published[role]
    repository.published[role] = lost[:-1] if role != "timestamp" else []
    assert client.refresh() == 1
    assert client.trusted()[role] == 1
    repository.published[role] = lost
    assert client.refresh() == 0


def test_metadata_of_another_type_is_refused(client: Client, repository: Repository) -> None:
    repository.add_key("snapshot", repository.signers["timestamp"][0])
    repository.snapshot.meta = {"snapshot.json": MetaFile(1)}
    repository.publish("root", "snapshot")
    repository.published["timestamp"].append(repository.published["snapshot"].pop())
    assert client.refresh() == 1
    assert client.trusted() == {"root": 2}


# Delegations

GRAPHS = {
    "one": ([("targets", "A", ["*"], False)], ["A"]),
    "two": ([("targets", "A", ["*"], False), ("targets", "B", ["*"], False)], ["A", "B"]),
    "depth first": (
        [
            ("targets", "A", ["*"], False),
            ("targets", "B", ["*"], False),
            ("A", "C", ["*"], False),
            ("A", "D", ["*"], False),
        ],
        ["A", "C", "D", "B"],
    ),
    "terminating": (
        [
            ("targets", "A", ["*"], False),
            ("targets", "B", ["*"], False),
            ("A", "C", ["*"], True),
            ("A", "D", ["*"], False),
            ("C", "E", ["*"], False),
        ],
        ["A", "C", "E"],
    ),
    "not for this path": (
        [("targets", "A", ["*.py"], False), ("targets", "B", ["*"], False), ("A", "C", ["*"], False)],
        ["B"],
    ),
    "a star is no folder": ([("targets", "A", ["*"], False), ("targets", "B", ["dir/*"], False)], ["A"]),
    "cycle": (
        [
            ("targets", "A", ["*"], False),
            ("targets", "B", ["*"], False),
            ("B", "C", ["*"], False),
            ("C", "D", ["*"], False),
            ("D", "B", ["*"], False),
        ],
        ["A", "B", "C", "D"],
    ),
}


@pytest.mark.parametrize("graph", GRAPHS)
def test_delegations_are_asked_in_the_order_of_trust(graph: str, client: Client, repository: Repository) -> None:
    delegations, order = GRAPHS[graph]
    for delegator, role, paths, ends in delegations:
        repository.delegate(delegator, role, paths, ends=ends)
    roles = sorted({role for _, role, _, _ in delegations})
    repository.publish(*roles, *TOP)
    assert client.download("missingpath") == 1
    assert repository.requests[4:] == [f"1.{role}" for role in order]


@pytest.mark.parametrize("role", ["?", "#", "/role", "../role", ".", "..", "a b", "ä", "r" * 150])
def test_names_of_roles_are_quoted_in_requests_and_files(role: str, client: Client, repository: Repository) -> None:
    repository.delegate("targets", role, ["*"])
    repository.add("file", b"content", role=role)
    repository.publish(role, *TOP)
    assert client.download("file") == 0
    assert f"1.{tuf_cli.quote(role, safe='')}" in repository.requests
    assert len(client.trusted()) == 5


def test_finds_targets_in_hash_bins(client: Client, repository: Repository) -> None:
    repository.delegate_bins(4, "bin")
    bins = repository.targets.delegations.succinct_roles  # type: ignore[union-attr]
    names = [f"models/{number}/manifest.json" for number in range(8)]
    for name in names:
        repository.add(name, name.encode(), role=bins.get_role_for_target(name))  # type: ignore[union-attr]
    repository.publish(*bins.get_roles(), *TOP)  # type: ignore[union-attr]
    assert client.download(*names) == 0
    assert client.downloaded() == sorted(name.encode() for name in names)
    assert client.download("models/9/manifest.json") == 1


def test_a_role_of_two_delegators_is_verified_for_each(client: Client, repository: Repository) -> None:
    for delegator, paths in (("A", ["a*", "x*"]), ("B", ["b*", "x*"])):
        repository.delegate("targets", delegator, paths)
        repository.delegate(delegator, "C", paths)
    repository.add("a.txt", b"a", role="C")
    repository.add("b.txt", b"b", role="C")
    both = repository.signers["C"]
    repository.publish("C", "A", "B", *TOP)
    assert client.download("a.txt", "b.txt") == 0
    shutil.rmtree(client.files)
    repository.signers["C"] = both[:1]  # A's word alone
    repository.publish("C", "snapshot", "timestamp")
    assert client.download("a.txt") == 0
    assert client.download("a.txt", "b.txt") == 1
    assert client.downloaded() == [b"a"]


def test_the_walk_of_delegations_ends(client: Client, repository: Repository) -> None:
    roles = ["targets", *(f"role{number}" for number in range(40))]
    for parent, child in pairwise(roles):
        repository.delegate(parent, child, ["*"])
    repository.add("deep", b"", role="role39")
    repository.add("shallow", b"content", role="role3")
    repository.publish(*roles[1:], *TOP)
    assert client.download("deep") == 1
    assert len(repository.requests) < 40
    assert client.download("shallow") == 0


def test_a_role_that_the_snapshot_does_not_name_is_refused(client: Client, repository: Repository) -> None:
    repository.delegate("targets", "role", ["*"])
    repository.add("file", b"content", role="role")
    repository.publish("targets")
    repository.publish("snapshot", "timestamp")
    assert client.refresh() == 0
    assert client.download("file") == 1
    repository.publish("role", "snapshot", "timestamp")
    assert client.download("file") == 0


# The wire


def test_an_unchanged_timestamp_is_not_sent_again(client: Client, repository: Repository) -> None:
    assert client.refresh() == 0
    asked: list[str] = []
    tag = etag_of(repository.newest("timestamp"))
    real = repository.find

    def find(path: str) -> bytes | None:
        asked.append(path)
        return real(path)

    repository.find = find  # type: ignore[method-assign]
    repository.answers["/metadata/timestamp.json"] = (304, {"ETag": tag}, b"")
    assert client.refresh() == 0
    assert asked[-1] == "/metadata/timestamp.json"
    with pytest.raises(ExpiredError):  # 304 for ever is a freeze, and ends with the timestamp
        client.library(days=40).refresh()


def test_a_304_that_was_not_asked_for_is_refused(client: Client, repository: Repository) -> None:
    repository.answers["/metadata/timestamp.json"] = (304, {}, b"")
    with pytest.raises(TransferError, match="304"):
        client.library().refresh()
    repository.answers.clear()
    client.library().refresh()
    repository.publish(*TOP)
    repository.answers["/metadata/2.snapshot.json"] = (304, {}, b"")
    with pytest.raises(TransferError, match="304"):
        client.library().refresh()


def whole(body: bytes) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Length": str(len(body))}, body


def packed(body: bytes) -> tuple[int, dict[str, str], bytes]:
    data = gzip.compress(body)
    return 200, {"Content-Encoding": "gzip", "Content-Length": str(len(data))}, data


def test_takes_packed_metadata(client: Client, repository: Repository) -> None:
    for name, role in (("timestamp", "timestamp"), ("1.snapshot", "snapshot"), ("1.targets", "targets")):
        repository.answers[f"/metadata/{name}.json"] = packed(repository.newest(role))
    assert client.refresh() == 0
    assert client.trusted() == FIRST


def test_a_decompression_bomb_is_refused_before_it_unfolds(client: Client, repository: Repository) -> None:
    bomb = packed(repository.newest("timestamp") + b" " * 10_000_000)
    repository.answers["/metadata/timestamp.json"] = bomb
    assert len(bomb[2]) < 16 * 1024
    tracemalloc.start()
    with pytest.raises(DigestError, match="when unpacked"):
        client.library().refresh()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
    repository.answers["/metadata/timestamp.json"] = packed(repository.newest("timestamp") + b" " * 1000)
    client.library().refresh()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda data: (200, {"Content-Encoding": "gzip"}, data), id="not packed"),
        pytest.param(lambda data: (200, {"Content-Encoding": "br"}, data), id="another coding"),
        pytest.param(lambda data: (*packed(data)[:2], packed(data)[2][:-6] + b"\0" * 6), id="damaged"),
        pytest.param(
            lambda data: (
                200,
                {"Content-Encoding": "gzip", "Content-Length": str(len(packed(data)[2]) + 4)},
                packed(data)[2] + b"more",
            ),
            id="something after it",
        ),
    ],
)
def test_bad_packing_is_a_transfer_error(answer, client: Client, repository: Repository) -> None:  # type: ignore[no-untyped-def]
    repository.answers["/metadata/timestamp.json"] = answer(repository.newest("timestamp"))
    with pytest.raises(TransferError):
        client.library().refresh()
    repository.answers.clear()
    client.library().refresh()


@pytest.mark.parametrize(
    ("name", "limit"), [("timestamp", 16), ("2.root", 512), ("1.snapshot", 4096), ("1.targets", 4096)]
)
def test_every_file_is_capped_in_length(name: str, limit: int, client: Client, repository: Repository) -> None:
    role = name.split(".")[-1]
    if role == "root":
        repository.publish("root")
    padded = repository.newest(role) + b" " * (limit * 1024 - len(repository.newest(role)) + 1)
    repository.answers[f"/metadata/{name}.json"] = whole(padded)
    with pytest.raises(UntrustedError):
        client.library().refresh()
    repository.answers[f"/metadata/{name}.json"] = whole(padded[:-1])
    client.library().refresh()


@pytest.mark.parametrize("bad", [b"[" * 9000, b'{"signed":' * 9000, b'{"a":1,"a":2}', b'{"signed":NaN}', b"\xff\xfe"])
def test_hostile_bytes_are_refused_as_such(bad: bytes, client: Client, repository: Repository) -> None:
    repository.answers["/metadata/timestamp.json"] = whole(bad)
    with pytest.raises(UntrustedError):
        client.library().refresh()


def test_no_request_of_an_update_starts_after_its_deadline(client: Client) -> None:
    with pytest.raises(TransferError):
        client.library().refresh(seconds=0.0)
    client.library().refresh(seconds=10.0)


# Floors


def test_the_floors_survive_the_loss_of_either_copy(client: Client, repository: Repository) -> None:
    old = list(repository.published["timestamp"])
    repository.publish(*TOP)
    assert client.refresh() == 0
    repository.published["timestamp"] = old
    for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes().replace(b"2", b"1"))):
        for name in ("floors.json", "floors.copy.json"):
            for path in client.metadata.glob("*.json"):
                path.unlink()
            damage(client.metadata / "floors" / name)
            with pytest.raises(ReplayError, match="timestamp"):
                client.library().refresh()


def test_a_clock_before_all_that_was_signed_is_not_believed(client: Client, tmp_path: Path) -> None:
    floors = client.metadata / "floors" / "floors.json"
    assert client.refresh() == 0
    record = json.loads(floors.read_bytes())
    del record["checksum"]
    record["latest_signed"] = soon(40).isoformat()
    record["writes"] += 1
    floors.write_text(json.dumps(record))
    assert client.refresh() == 1
    assert tuf_cli.run(["--no-clock-floor", *client.arguments("refresh")]) == 0
    os.environ["MODELFLEET_TUF_NO_CLOCK_FLOOR"] = "1"
    try:
        assert client.refresh() == 0
    finally:
        del os.environ["MODELFLEET_TUF_NO_CLOCK_FLOOR"]


def test_another_repositorys_metadata_is_refused(client: Client, repository: Repository) -> None:
    honest = repository.published
    repository.published = {"root": honest["root"], **{role: Repository().published[role] for role in TOP}}
    with pytest.raises(SignatureError):
        client.library().refresh()
    repository.published = honest
    client.library().refresh()


@pytest.mark.parametrize("command", ["init", "refresh", "download"])
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tuf_cli.run([command, "--help"]) == 0
    assert "Example:" in capsys.readouterr().out
