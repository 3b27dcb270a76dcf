"""Whether an exported audit log is what was signed: offline, from the file, the audit key and an older checkpoint.

Every record's bytes must have the leaf hash beside it, every record stands in its place, and the tree over those hashes must
have the root of each signed checkpoint. Whoever holds an older checkpoint sees besides whether the log was rolled back or
rewritten since. One pass, O(log n) memory; needs neither database nor server.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import msgspec

from modelfleet.signer.checkpoint import Checkpoint, origin_of, verify_checkpoint
from modelfleet.signer.errors import AuditTamperedError, FormatError, UnknownKeyError
from modelfleet.signer.keys import Key
from modelfleet.signer.merkle import HASH_BYTES, Frontier, leaf_hash

MAX_LINE_BYTES: Final = 16 * 1024 * 1024
MAX_FAULTS: Final = 20
MAX_ALTERED: Final = 1000

KindT = TypeVar("KindT", bound=msgspec.Struct)


class Header(msgspec.Struct, frozen=True, kw_only=True, rename={"start": "from", "end": "to"}):
    """The file's first line; `frontier` are the hashes of the complete subtrees before record `start`."""

    format: str
    tenant: str
    origin: str
    start: int
    end: int
    frontier: tuple[str, ...] = ()


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    index: int | None = None
    leaf_sha256: str = ""
    entry: msgspec.Raw = msgspec.Raw(b"")
    checkpoint: str | None = None


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What holds: these records of this log, and the newest checkpoint over them."""

    origin: str
    start: int
    checkpoint: Checkpoint
    note: str
    checkpoints: int
    since: int | None


@dataclass
class _Reading:
    """Where the verification stands, and what is wrong so far."""

    frontier: Frontier
    expected: int
    faults: list[str] = field(default_factory=list[str])
    whole: bool = True
    """Whether every hash up to here is known: only then do the roots say anything."""
    signed: int = 0
    """Up to where a checkpoint has confirmed the records."""
    checkpoints: int = 0
    note: str = ""
    newest: Checkpoint | None = None
    unknown: UnknownKeyError | None = None
    found: dict[bytes, int] = field(default_factory=dict[bytes, int])
    wanted: dict[bytes, int] = field(default_factory=dict[bytes, int])

    def fault(self, text: str) -> None:
        if len(self.faults) <= MAX_FAULTS:
            self.faults.append(text)


def verify_export(lines: Iterable[bytes], key: Key, *, since: Checkpoint | None = None) -> Verified:
    """Return what the file proves.

    Args:
        lines: of the file.
        key: the audit key; it comes from the operator, never from the server that the file came from.
        since: a checkpoint, verified already, that this log must go on from.

    Raises:
        AuditTamperedError: records were altered, removed, inserted or re-ordered, or the log was cut off, rolled back or forked;
            says which. FormatError: not such a file. SignatureError: the last checkpoint was not signed by the audit key.
    """
    reader = iter(lines)
    header = _header(next(reader, b""))
    reading = _begin(header, since)
    for line in reader:
        found = _parse(line, _Line)
        if found.checkpoint is not None:
            _read_checkpoint(reading, found.checkpoint, key, header.origin)
        else:
            _take_record(reading, found)
            _compare(reading, since)
    _require_end(reading, header, since)
    _require_faultless(reading)
    assert reading.newest is not None
    return Verified(
        origin=header.origin,
        start=header.start,
        checkpoint=reading.newest,
        note=reading.note,
        checkpoints=reading.checkpoints,
        since=None if since is None else since.size,
    )


def compare_checkpoints(newer: Checkpoint, older: Checkpoint) -> None:
    """Refuse two checkpoints that cannot be of one log; where the sizes differ, only a proof can say that they are.

    Raises:
        AuditTamperedError: another log, a fork, or `newer` is the smaller one.
    """
    if newer.origin != older.origin:
        raise AuditTamperedError(f"the checkpoints are of two logs: {newer.origin} and {older.origin}")
    if newer.size < older.size:
        raise AuditTamperedError(_rolled_back(older.size, newer.size))
    if newer.size == older.size and newer.root != older.root:
        raise AuditTamperedError(_forked(older.size))


def _header(line: bytes) -> Header:
    header = _parse(line, Header)
    if header.format.split(".")[0] != "1":
        raise FormatError(f"expected an audit export of format 1.x, got {header.format[:20]!r}: upgrade this program")
    if header.origin != origin_of(header.tenant) or not 0 <= header.start <= header.end:
        raise FormatError("the first line is not that of an audit export")
    return header


def _begin(header: Header, since: Checkpoint | None) -> _Reading:
    if since is not None and since.origin != header.origin:
        raise AuditTamperedError(f"expected the log {since.origin} of the older checkpoint, got {header.origin}")
    if since is not None and since.size < header.start:
        raise FormatError(
            f"the older checkpoint covers {since.size} records: export from there, not from {header.start}"
        )
    try:
        hashes = [bytes.fromhex(each) for each in header.frontier]
    except ValueError as error:
        raise FormatError(f"expected hexadecimal hashes in the first line: {error}") from error
    reading = _Reading(frontier=Frontier(header.start, hashes), expected=header.start, signed=header.start)
    _compare(reading, since)
    return reading


def _take_record(reading: _Reading, line: _Line) -> None:
    if line.index is None:
        raise FormatError(f"expected a record or a checkpoint after record {reading.expected - 1}")
    if line.index != reading.expected:
        _misplaced(reading, line.index)
        return
    stated, own = _leaf(line), leaf_hash(bytes(line.entry))
    if stated != own and len(reading.found) < MAX_ALTERED:
        reading.found[own], reading.wanted[stated] = line.index, line.index
    reading.frontier.append(stated)
    reading.expected += 1


def _leaf(line: _Line) -> bytes:
    try:
        leaf = bytes.fromhex(line.leaf_sha256)
    except ValueError:
        leaf = b""
    return leaf if len(leaf) == HASH_BYTES else b"\x00" * HASH_BYTES


def _misplaced(reading: _Reading, index: int) -> None:
    if index > reading.expected:
        last = index - 1
        which = f"record {last} is" if last == reading.expected else f"records {reading.expected} to {last} are"
        reading.fault(f"{which} missing")
        reading.expected = index + 1
    else:
        reading.fault(f"record {index} stands after record {reading.expected - 1}: inserted, repeated or moved")
    reading.whole = False


def _read_checkpoint(reading: _Reading, note: str, key: Key, origin: str) -> None:
    """Take a checkpoint; one by another key, such as a former audit key, proves nothing: a later one has to."""
    try:
        _take_checkpoint(reading, verify_checkpoint(note, key, origin=origin), note)
    except UnknownKeyError as error:
        reading.newest, reading.unknown = None, error


def _take_checkpoint(reading: _Reading, checkpoint: Checkpoint, note: str) -> None:
    reading.checkpoints += 1
    reading.newest, reading.note = checkpoint, note
    if checkpoint.size != reading.expected:
        reading.fault(f"a checkpoint of {checkpoint.size} records stands after {reading.expected}")
    elif reading.whole and reading.frontier.root() != checkpoint.root:
        last = checkpoint.size - 1
        reading.fault(
            f"the records {reading.signed} to {last} are not those that were signed: one or more were altered, removed,"
            " inserted or re-ordered, with their hashes"
        )
        reading.whole = False
    elif reading.whole:
        reading.signed = checkpoint.size


def _compare(reading: _Reading, since: Checkpoint | None) -> None:
    """Compare with the older checkpoint where the log has its size."""
    same_size = since is not None and reading.expected == since.size
    if since is not None and same_size and reading.whole and reading.frontier.root() != since.root:
        reading.fault(_forked(since.size))


def _require_end(reading: _Reading, header: Header, since: Checkpoint | None) -> None:
    if reading.newest is None and reading.unknown is not None:
        raise reading.unknown
    if reading.newest is None or reading.newest.size != reading.expected:
        reading.fault(f"the file is cut off: no checkpoint stands after record {reading.expected - 1}")
    elif reading.expected != header.end:
        reading.fault(f"the file is cut off: expected {header.end} records, got {reading.expected}")
    if since is not None and since.size > reading.expected:
        reading.fault(_rolled_back(since.size, reading.expected))


def _require_faultless(reading: _Reading) -> None:
    faults = [*_altered(reading), *reading.faults]
    if faults:
        shown = faults[:MAX_FAULTS]
        more = ["and more"] if len(faults) > MAX_FAULTS else []
        raise AuditTamperedError("the audit log is not what was signed: " + "; ".join([*shown, *more]))


def _altered(reading: _Reading) -> Sequence[str]:
    """Return a fault for each record whose bytes are not those of its hash; one that was moved says from where."""
    return [
        f"record {index} was moved: it is what was logged as record {reading.wanted[own]}"
        if own in reading.wanted
        else f"record {index} was altered"
        for own, index in reading.found.items()
    ]


def _forked(size: int) -> str:
    return f"the log was forked: its first {size} records are not those of the other checkpoint of {size}"


def _rolled_back(expected: int, found: int) -> str:
    return f"the log was rolled back or cut off: expected {expected} records at least, got {found}"


def _parse(line: bytes, kind: type[KindT]) -> KindT:
    if len(line) > MAX_LINE_BYTES:
        raise FormatError(f"expected lines of at most {MAX_LINE_BYTES} bytes, got {len(line)}")
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"not a line of an audit export: {error}") from error
