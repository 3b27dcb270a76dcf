"""The Merkle tree of RFC 6962, section 2.1 (RFC 9162 likewise): hashes, roots, inclusion and consistency proofs. Pure.

A tree is given by a function that returns the hash of any *complete* subtree, so that whoever keeps those hashes proves
anything in O(log n) reads; `Frontier` is for whoever only has the leaves, one after another.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Final

from modelfleet.signer.errors import DigestError, FormatError

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
MAX_PROOF_HASHES: Final = 64

Subtree = Callable[[int, int], bytes]
"""(level, index) -> hash of the complete subtree over the leaves from index * 2**level to (index + 1) * 2**level."""


def leaf_hash(entry: bytes) -> bytes:
    """Return the hash of a log entry: SHA-256 of 0x00 and the entry."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node: SHA-256 of 0x01 and both children."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """The hashes of the complete subtrees that a log of `size` leaves ends with: all that is needed to append to it.

    Args:
        size: how many leaves there are already.
        hashes: the subtrees that those leaves divide into, the largest (the leftmost) first.

    Raises:
        FormatError: `hashes` are not as many as `size` has one bits, or one is no hash.
    """

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        if size < 0 or len(hashes) != size.bit_count() or any(len(each) != HASH_BYTES for each in hashes):
            raise FormatError(f"expected {max(size, 0).bit_count()} hashes for {size} leaves, got {len(hashes)}")
        self.size = size
        self._hashes = list(hashes)

    def append(self, leaf: bytes) -> None:
        """Append one leaf hash."""
        node, size = leaf, self.size
        while size & 1:
            node = node_hash(self._hashes.pop(), node)
            size >>= 1
        self._hashes.append(node)
        self.size += 1

    def root(self) -> bytes:
        """Return the root over all leaves so far."""
        return _join(self._hashes)


def frontier_hashes(size: int, subtree: Subtree) -> list[bytes]:
    """Return the complete subtrees that the first `size` leaves divide into, the largest first: `Frontier`'s."""
    return [subtree(level, start >> level) for level, start in _complete(0, size)]


def root_of(size: int, subtree: Subtree) -> bytes:
    """Return the root over the first `size` leaves."""
    return _join(frontier_hashes(size, subtree))


def inclusion_proof(index: int, size: int, subtree: Subtree) -> list[bytes]:
    """Return PATH(index, D[size]): the siblings from the leaf up.

    Raises:
        FormatError: there is no such leaf in a tree of this size.
    """
    if not 0 <= index < size:
        raise FormatError(f"expected an index below the size {size}, got {index}")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        split = start + _left_size(end - start)
        if index < split:
            path.append(_range_hash(split, end, subtree))
            end = split
        else:
            path.append(_range_hash(start, split, subtree))
            start = split
    return path[::-1]


def consistency_proof(old: int, new: int, subtree: Subtree) -> list[bytes]:
    """Return PROOF(old, D[new]): what shows that the first `old` leaves of `new` are the older tree.

    Raises:
        FormatError: not 0 <= old <= new.
    """
    if not 0 <= old <= new:
        raise FormatError(f"expected an older size of at most {new}, got {old}")
    if old in (0, new):
        return []
    proof: list[bytes] = []
    start, end, known = 0, new, True
    while start + (size := old - start) != end:
        split = start + _left_size(end - start)
        if start + size <= split:
            proof.append(_range_hash(split, end, subtree))
            end = split
        else:
            proof.append(_range_hash(start, split, subtree))
            start, known = split, False
    if not known:
        proof.append(_range_hash(start, end, subtree))
    return proof[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Return if `leaf` is at `index` in the tree of `size` leaves with this root (RFC 9162, section 2.1.3.2).

    Raises:
        FormatError: the proof is none for this index and size. DigestError: it leads to another root.
    """
    _require_hashes(proof)
    if not 0 <= index < size:
        raise FormatError(f"expected an index below the size {size}, got {index}")
    node, position, last = leaf, index, size - 1
    for sibling in proof:
        if last == 0:
            raise FormatError("expected a shorter inclusion proof")
        if position & 1 or position == last:
            node = node_hash(sibling, node)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        position, last = position >> 1, last >> 1
    if last != 0:
        raise FormatError("expected a longer inclusion proof")
    if node != root:
        raise DigestError(f"entry {index} is not in the log of {size} entries with the root {root.hex()[:16]}")


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Return if the tree of `new` leaves begins with the tree of `old` leaves (RFC 9162, section 2.1.4.2).

    Raises:
        FormatError: the proof is none for these sizes. DigestError: the log was rewritten or forked.
    """
    _require_hashes(proof)
    if not 0 <= old <= new:
        raise FormatError(f"expected an older size of at most {new}, got {old}")
    if old in (0, new):
        if proof:
            raise FormatError("expected no consistency proof")
        if old_root != (EMPTY_ROOT if old == 0 else new_root):
            raise DigestError(f"two logs of {old} entries: the roots are {old_root.hex()[:16]}, {new_root.hex()[:16]}")
        return
    hashes = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not hashes:
        raise FormatError("expected a longer consistency proof")
    position, last = old - 1, new - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    older = newer = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise FormatError("expected a shorter consistency proof")
        if position & 1 or position == last:
            older, newer = node_hash(sibling, older), node_hash(sibling, newer)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            newer = node_hash(newer, sibling)
        position, last = position >> 1, last >> 1
    if last != 0:
        raise FormatError("expected a longer consistency proof")
    if older != old_root or newer != new_root:
        raise DigestError(f"the log of {new} entries does not begin with the log of {old} entries: it was rewritten")


def _left_size(size: int) -> int:
    """Return the largest power of two below `size` (which is 2 at least)."""
    return 1 << (size - 1).bit_length() - 1


def _complete(start: int, end: int) -> list[tuple[int, int]]:
    """Return (level, start) of the complete subtrees of [start, end), where `start` is aligned as RFC 6962 splits."""
    found: list[tuple[int, int]] = []
    while start < end:
        level = (end - start).bit_length() - 1
        found.append((level, start))
        start += 1 << level
    return found


def _range_hash(start: int, end: int, subtree: Subtree) -> bytes:
    return _join([subtree(level, first >> level) for level, first in _complete(start, end)])


def _join(hashes: Sequence[bytes]) -> bytes:
    if not hashes:
        return EMPTY_ROOT
    node = hashes[-1]
    for left in reversed(hashes[:-1]):
        node = node_hash(left, node)
    return node


def _require_hashes(proof: Sequence[bytes]) -> None:
    if len(proof) > MAX_PROOF_HASHES or any(len(each) != HASH_BYTES for each in proof):
        raise FormatError(f"expected at most {MAX_PROOF_HASHES} hashes of {HASH_BYTES} bytes")
