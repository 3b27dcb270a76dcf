"""A change of trust that somebody bent before it reached an offline key: whoever signs sees all that it does, or cannot sign it.

The exported file passes through the server and a stick; its words are nobody's. What `describe_change` shows is all that the
owner of an offline key goes by.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from modelfleet.signer.change import Change, check_change, parse_change
from modelfleet.signer.change import encode_change as encode
from modelfleet.signer.errors import DigestError, FormatError, SignatureError
from modelfleet.signer.keys import CryptoSigner, Signature, Signer, SSlibKey, load_signer
from modelfleet.signer.metadata import Metadata, Root, TargetFile, Targets, parse_metadata, require_signed
from modelfleet.signer.rotate import Revocation, renewal, revocation
from modelfleet.signer.statements import POLICY_PATH
from modelfleet.signer.summary import describe_change
from modelfleet.signer.trust import trusted_root
from tests.unit.agent_client.fleet import Fleet, now


def renewed(fleet: Fleet, role: str) -> Change:
    return renewal(fleet.keys, fleet.keys.repository().policy_chain(), [role], now())


def bent(change: Change, kind: Any, bend: Callable[[Any], object]) -> Change:
    """Return the change after the attacker has bent the root or targets to sign."""
    metadata = parse_metadata(getattr(change, kind.type), kind)
    bend(metadata.signed)
    return msgspec.structs.replace(change, **{kind.type: metadata.to_bytes()})


def shown(fleet: Fleet, change: Change) -> list[str]:
    """What the owner of a key is shown, who has kept root.json."""
    return describe_change(parse_change(encode(change)), trusted=fleet.keys.root_json.read_bytes())


def thiefs_key() -> str:
    return str(CryptoSigner.generate_ecdsa().public_key.keyval["public"])


def test_a_thiefs_key_stands_in_the_next_root_under_an_owners_id(fleet: Fleet) -> None:
    """Ids are all that is shown: a mere renewal would hand him the targets role."""
    change = renewed(fleet, "root")
    assert len(shown(fleet, change)) == 2

    def swap(root: Root) -> None:
        for keyid in root.roles["targets"].keyids:
            root.keys[keyid].keyval["public"] = thiefs_key()

    with pytest.raises(FormatError, match="expected the key with the id"):
        shown(fleet, bent(change, Root, swap))


def test_a_thiefs_key_stands_in_the_next_targets_under_the_signers_id(fleet: Fleet) -> None:
    change = renewed(fleet, "targets")
    assert len(shown(fleet, change)) == 2

    def swap(targets: Targets) -> None:
        assert targets.delegations is not None
        for key in targets.delegations.keys.values():
            key.keyval["public"] = thiefs_key()

    with pytest.raises(FormatError, match="expected the key with the id"):
        shown(fleet, bent(change, Targets, swap))


@pytest.mark.parametrize("name", ["\x1b[9A\x1b[J", "a\rtenant acme: nothing changes", "\u202eemca", "m\u043edels/a"])
def test_a_name_in_a_change_hides_the_lines_above_it(name: str, fleet: Fleet) -> None:
    """A terminal obeys control characters, and an eye takes one letter for another."""
    change = revocation(fleet.keys, fleet.keys.repository().policy_chain(), Revocation(epoch=True), now())
    assert "policy: epoch 1 -> 2" in shown(fleet, change)
    target = TargetFile.from_data(name, b"", ["sha256"])
    for altered in (
        msgspec.structs.replace(change, remove=(name,)),
        bent(change, Targets, lambda targets: targets.targets.update({name: target})),
    ):
        lines = shown(fleet, altered)
        assert all(line.isascii() and line.isprintable() for line in lines)
        assert len(lines) == len(shown(fleet, change)) + 1


def test_a_field_deep_in_a_change_is_not_shown(fleet: Fleet) -> None:
    """A field that means nothing today may mean something to a newer verifier."""
    hidden: list[tuple[Any, Callable[[Any], object]]] = [
        (Root, lambda root: root.roles["root"].unrecognized_fields.update(least=1)),
        (Root, lambda root: next(iter(root.keys.values())).unrecognized_fields.update(a=1)),
        (Targets, lambda top: top.targets[POLICY_PATH].unrecognized_fields.update(custom={})),
        (Targets, lambda top: top.delegations.succinct_roles.unrecognized_fields.update(a=1)),
        (Targets, lambda top: next(iter(top.delegations.keys.values())).unrecognized_fields.update(a=1)),
    ]
    for kind, bend in hidden:
        change = renewed(fleet, kind.type)
        assert len(shown(fleet, change)) == 2
        assert any("not shown here differ" in line for line in shown(fleet, bent(change, kind, bend)))


def test_the_policy_is_named_by_a_digest_that_two_files_can_have(fleet: Fleet) -> None:
    """The owner would see the one file, devices would be served the other."""
    change = renewed(fleet, "targets")
    check_change(change)

    def weaken(targets: Targets) -> None:
        targets.targets[POLICY_PATH] = TargetFile.from_data(POLICY_PATH, change.policy, ["md5"])

    with pytest.raises(DigestError, match="sha256"):
        check_change(bent(change, Targets, weaken))


def test_one_key_signs_twice_in_another_spelling(fleet: Fleet) -> None:
    """PEM may be written in many ways, and TUF does not say how an id is made: one key is one key."""
    root = trusted_root(fleet.keys.root_json.read_bytes())
    one, two = (load_signer(uri) for uri in fleet.keys.root_keys[:2])

    def signed(second: Signer, spelled: str) -> Metadata[Root]:
        key = second.public_key
        root.keys["f" * 64] = SSlibKey("f" * 64, key.keytype, key.scheme, {"public": spelled})
        root.roles["root"].keyids = [one.public_key.keyid, "f" * 64]
        metadata = Metadata(root)
        metadata.sign(one)
        signature = second.sign(metadata.signed_bytes).signature
        metadata.signatures["f" * 64] = Signature("f" * 64, signature)
        return metadata

    for end in ("\n", "\r\n"):
        require_signed(root, "root", signed(two, str(two.public_key.keyval["public"]).replace("\n", end)))
        with pytest.raises(SignatureError, match="expected signatures of 2 keys, got 1"):
            require_signed(root, "root", signed(one, str(one.public_key.keyval["public"]).replace("\n", end)))
