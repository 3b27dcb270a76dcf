"""The audit log's tree as it is stored: tiles of 256 hashes, in the layout of C2SP tlog-tiles.

Appending touches one tile per level, a proof reads two or three: neither depends on how long the log is. Works inside the
caller's transaction; who appends holds the tenant's head.
"""

from collections.abc import Sequence
from typing import Final

from sqlalchemy.orm import Session

from modelfleet.registry.errors import AuditError
from modelfleet.registry.tables import AuditTile
from modelfleet.signer.merkle import HASH_BYTES, node_hash

TILE_LEVELS: Final = 8
TILE_HASHES: Final = 1 << TILE_LEVELS
_TILE_BYTES: Final = TILE_HASHES * HASH_BYTES


class Tree:
    """One tenant's tree, read and appended to within one session."""

    def __init__(self, session: Session, tenant: str) -> None:
        self._session, self._tenant = session, tenant
        self._tiles: dict[tuple[int, int], bytearray] = {}

    def subtree(self, level: int, index: int) -> bytes:
        """Return the hash of a complete subtree: `signer.merkle.Subtree` (AuditError: a tile of it is missing)."""
        tile_level, height = divmod(level, TILE_LEVELS)
        start = index << height
        tile, offset = divmod(start, TILE_HASHES)
        hashes = self._tile(tile_level, tile)
        found = [hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES)]
        wanted = found[offset : offset + (1 << height)]
        if len(wanted) != 1 << height:
            raise AuditError(
                f"the audit log's tree is damaged: tile {tile_level}/{tile} of {self._tenant} is too short"
            )
        return _root([bytes(each) for each in wanted])

    def leaves(self, start: int, end: int) -> list[bytes]:
        """Return the leaf hashes from `start` to `end`, without `end`; fewer where the tree lacks some."""
        found: list[bytes] = []
        for number in range(start // TILE_HASHES, -(-end // TILE_HASHES)):
            hashes = bytes(self._tile(0, number))
            first, last = max(start - number * TILE_HASHES, 0), min(end - number * TILE_HASHES, TILE_HASHES)
            found += [hashes[at * HASH_BYTES : (at + 1) * HASH_BYTES] for at in range(first, last)]
        self._tiles.clear()  # whoever reads leaves reads on, and does not come back
        return [each for each in found if each]

    def append(self, size: int, leaves: Sequence[bytes]) -> None:
        """Append leaf hashes to a tree of `size` leaves (AuditError: the tree is not of that size)."""
        for number, leaf in enumerate(leaves, size):
            self._append(0, number, leaf)

    def store(self) -> None:
        """Write every tile that was read or appended to."""
        for (level, number), hashes in self._tiles.items():
            self._session.merge(AuditTile(tenant=self._tenant, level=level, number=number, hashes=bytes(hashes)))
        self._session.flush()
        self._session.expunge_all()

    def _append(self, level: int, position: int, node: bytes) -> None:
        number, offset = divmod(position, TILE_HASHES)
        tile = self._tile(level, number)
        if len(tile) != offset * HASH_BYTES:
            raise AuditError(
                f"the audit log's tree is damaged: expected {offset} hashes in tile {level}/{number} of {self._tenant},"
                f" got {len(tile) // HASH_BYTES}"
            )
        tile += node
        if len(tile) == _TILE_BYTES:
            whole = bytes(tile)
            root = _root([whole[at : at + HASH_BYTES] for at in range(0, _TILE_BYTES, HASH_BYTES)])
            self._append(level + 1, number, root)

    def _tile(self, level: int, number: int) -> bytearray:
        known = self._tiles.get((level, number))
        if known is None:
            row = self._session.get(AuditTile, (self._tenant, level, number))
            known = self._tiles[level, number] = bytearray(b"" if row is None else row.hashes)
        return known


def _root(hashes: Sequence[bytes]) -> bytes:
    """Return the root over a power of two of hashes."""
    while len(hashes) > 1:
        hashes = [node_hash(hashes[at], hashes[at + 1]) for at in range(0, len(hashes), 2)]
    return hashes[0]
