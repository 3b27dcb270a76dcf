"""RFC 6962's tree, with the vectors of the Certificate Transparency reference implementation."""

import pytest

from modelfleet.signer.errors import DigestError, FormatError
from modelfleet.signer.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_proof,
    frontier_hashes,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)

# github.com/google/certificate-transparency, merkletree_test.cc: leaves, roots of the trees of 1 to 8 leaves, paths, proofs.
ENTRIES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
PATHS = {
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
}
PROOFS = {
    (1, 1): [],
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}


def subtree_of(leaves: list[bytes]):
    def subtree(level: int, index: int) -> bytes:
        if level == 0:
            return leaves[index]
        return node_hash(subtree(level - 1, 2 * index), subtree(level - 1, 2 * index + 1))

    return subtree


LEAVES = [leaf_hash(entry) for entry in ENTRIES]
SUBTREE = subtree_of(LEAVES)
MANY = [leaf_hash(bytes([number])) for number in range(70)]


def hexes(hashes: list[bytes]) -> list[str]:
    return [each.hex() for each in hashes]


def test_an_empty_log_has_the_hash_of_nothing() -> None:
    assert root_of(0, SUBTREE) == EMPTY_ROOT == Frontier().root()
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("size", range(1, 9))
def test_roots_are_the_reference_implementations(size: int) -> None:
    frontier = Frontier()
    for leaf in LEAVES[:size]:
        frontier.append(leaf)
    assert frontier.root().hex() == root_of(size, SUBTREE).hex() == ROOTS[size - 1]


@pytest.mark.parametrize(("index", "size"), PATHS)
def test_inclusion_proofs_are_the_reference_implementations(index: int, size: int) -> None:
    assert hexes(inclusion_proof(index, size, SUBTREE)) == PATHS[index, size]


@pytest.mark.parametrize(("old", "new"), PROOFS)
def test_consistency_proofs_are_the_reference_implementations(old: int, new: int) -> None:
    assert hexes(consistency_proof(old, new, SUBTREE)) == PROOFS[old, new]


def test_every_entry_of_every_tree_is_proved_and_no_other_is() -> None:
    subtree = subtree_of(MANY)
    for size in range(1, len(MANY) + 1):
        root = root_of(size, subtree)
        for index in range(size):
            proof = inclusion_proof(index, size, subtree)
            verify_inclusion(MANY[index], index, size, proof, root)
            with pytest.raises(DigestError):
                verify_inclusion(leaf_hash(b"other"), index, size, proof, root)


def test_every_older_tree_is_proved_to_begin_every_newer_one_and_no_other_is() -> None:
    subtree = subtree_of(MANY)
    forked = subtree_of([leaf_hash(b"other"), *MANY[1:]])
    for new in range(len(MANY) + 1):
        root = root_of(new, subtree)
        for old in range(new + 1):
            proof = consistency_proof(old, new, subtree)
            verify_consistency(old, new, root_of(old, subtree), root, proof)
            if old:
                with pytest.raises(DigestError):
                    verify_consistency(old, new, root_of(old, forked), root, proof)


def test_a_frontier_goes_on_where_the_tree_ended() -> None:
    subtree = subtree_of(MANY)
    for size in (0, 1, 7, 8, 37):
        frontier = Frontier(size, frontier_hashes(size, subtree))
        for leaf in MANY[size:]:
            frontier.append(leaf)
        assert frontier.root() == root_of(len(MANY), subtree)


def test_a_frontier_of_too_few_hashes_is_none() -> None:
    with pytest.raises(FormatError, match="expected 3 hashes for 7 leaves, got 1"):
        Frontier(7, [EMPTY_ROOT])


@pytest.mark.parametrize("change", [lambda proof: proof[:-1], lambda proof: [*proof, EMPTY_ROOT]])
def test_a_proof_of_another_length_is_refused(change) -> None:
    with pytest.raises((FormatError, DigestError)):
        verify_inclusion(LEAVES[5], 5, 8, change(inclusion_proof(5, 8, SUBTREE)), root_of(8, SUBTREE))
    with pytest.raises((FormatError, DigestError)):
        proof = change(consistency_proof(6, 8, SUBTREE))
        verify_consistency(6, 8, root_of(6, SUBTREE), root_of(8, SUBTREE), proof)


def test_what_is_outside_the_tree_has_no_proof() -> None:
    for index, size in ((8, 8), (-1, 8), (0, 0)):
        with pytest.raises(FormatError):
            inclusion_proof(index, size, SUBTREE)
        with pytest.raises(FormatError):
            verify_inclusion(LEAVES[0], index, size, [], EMPTY_ROOT)
    with pytest.raises(FormatError):
        consistency_proof(9, 8, SUBTREE)
    with pytest.raises(FormatError):
        verify_consistency(9, 8, EMPTY_ROOT, EMPTY_ROOT, [])
    with pytest.raises(FormatError, match="expected at most 64 hashes"):
        verify_inclusion(LEAVES[0], 0, 8, [EMPTY_ROOT] * 65, EMPTY_ROOT)
