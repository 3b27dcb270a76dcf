"""A forest as tables: the least flash. All of it is one constant, whose head says how long each table is and where it lies.

Every distinct comparison has a number and becomes one bit, computed once for a sample. A node is the number of its bit and the
size of its left subtree; the child for yes is next, and where a child is a leaf follows from the counts. Widths are the least
that fit: both numbers in one half-word where they can be, else each in an array of its own. Leaves with equal votes are stored
once. The C depends on the widths and the number of bits alone, so that a forest trained anew mostly takes the same code.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from modelfleet.converters.microcontroller.ir import Array
from modelfleet.converters.microcontroller.lowering import FOLDER
from modelfleet.converters.microcontroller.trees.code import Code, Numbers
from modelfleet.converters.microcontroller.trees.forest import Comparison, Forest, Tree, Vote

HEAD_WORDS: Final = 14
LEAST_ROOM: Final = 4
"""Bits for the leaves of a left subtree; with fewer, too many nodes would need more."""
USUAL_ROOM: Final = 6
CAPACITY_STEP: Final = 256
"""Bits are reserved in multiples of it, so that a forest trained anew fits."""
BITS_OF_HALF_WORD: Final = 16


def tables(forest: Forest, numbers: Numbers, name: str, *, targets: int, counted: bool, spare: bool = False) -> Code:
    """Return the forest as tables and the function that walks them.

    Args:
        forest: the trees.
        numbers: the types of inputs and sums.
        name: of the C function.
        targets: how many sums there are.
        counted: whether it matters that nothing voted for a target, or how votes are combined: votes of 0 are kept.
        spare: leave room at the end, so that a forest trained anew takes as much.
    """
    writer = _Writer()
    pieces = {"NAME": name, "X": numbers.input, "S": numbers.sum, "KEY": numbers.key}
    bits = _comparisons(forest, numbers, writer, pieces)
    lengths = _nodes(forest, bits, writer, pieces)
    single = not counted and all(_target(tree.leaves) is not None for tree in forest.trees)
    (_single if single else _lists)(forest, numbers, writer, pieces, lengths, targets=targets, counted=counted)
    text = (FOLDER / "trees" / "small.c").read_text(encoding="utf-8")
    for mark, piece in pieces.items():
        text = text.replace(f"@{mark}@", piece)
    capacity = -(-writer.head[2] * 32 // CAPACITY_STEP) * CAPACITY_STEP
    flags = ", has" if counted else ""
    return Code(
        definitions="\n".join(line for line in text.split("\n") if line.strip()) + "\n",
        call=f"{name}(@tables@, @x@, (uint32_t *)(void *)@scratch@, sums{flags}); /* {capacity} bits */",
        tables=_with_room(writer.words()) if spare else writer.words(),
        scratch_bytes=capacity // 8,
        fragments=(numbers.key_fragment,),
        stack_bytes=96,
    )


@dataclass
class _Writer:
    """Tables one after another, each at a word; head: what the C reads of them."""

    head: list[int] = field(default_factory=lambda: [0] * HEAD_WORDS)
    body: bytearray = field(default_factory=bytearray)

    def put(self, place: int, array: Array, alignment: int = 4) -> None:
        """Append a table and write into the head where it is."""
        begin = HEAD_WORDS * 4 + len(self.body)
        self.body.extend(bytes(-begin % alignment))
        self.head[place] = HEAD_WORDS + len(self.body) // 4
        self.body.extend(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())
        self.body.extend(bytes(-len(self.body) % 4))

    def words(self) -> Array:
        """Return all of it, uint32."""
        return np.concatenate([np.array(self.head, np.uint32), np.frombuffer(bytes(self.body), "<u4")]).astype(
            np.uint32
        )


def _with_room(words: Array) -> Array:
    """Return the words with zeros behind them: a tenth more, in steps of an eighth to a sixteenth of the whole."""
    wanted = len(words) * 11 // 10
    step = max(1 << max(wanted.bit_length() - 4, 0), 1)
    return np.pad(words, (0, -(-wanted // step) * step - len(words)))


def _width(greatest: int) -> "np.dtype[np.unsignedinteger]":
    """Return the narrowest type that holds it."""
    return np.min_scalar_type(max(greatest, 0))


def _c_type(kind: "np.dtype[np.unsignedinteger]") -> str:
    return f"uint{kind.itemsize * 8}_t"


def _comparisons(
    forest: Forest, numbers: Numbers, writer: _Writer, pieces: dict[str, str]
) -> dict[tuple[Comparison, ...], int]:
    """Write the keys; return the number of every question."""
    found: dict[tuple[Comparison, ...], int] = {}
    keys: list[int] = []
    forms: list[int] = []
    thresholds = forest.thresholds()
    for form, ascending in thresholds.items():
        forms += [form.feature * 2 + form.nan_is_true, len(ascending)]
        for key in ascending:
            found[((form, key),)] = len(keys)
            keys.append(key)
    width = _width(max([*forms, 256]))
    some_nan = any(form.nan_is_true for form in thresholds)
    composed = _composed(forest, found)
    writer.head[0] = len(thresholds)
    writer.put(3, np.array(forms, width))
    writer.put(4, np.array(keys, numbers.key_kind), 8 if numbers.key_kind == np.int64 else 4)
    writer.head[2] = -(-len(found) // 32)
    pieces["FORM"] = _c_type(width)
    pieces["KEY_OF"] = numbers.key_of("x[form[0] >> 1]")
    swapped = f"            sought = {numbers.least_key};"
    asks_nan = f"        if ((form[0] & 1u) != 0 && sought > {numbers.key_of_infinity}) {{\n{swapped}\n        }}"
    pieces["NAN"] = asks_nan if some_nan else ""
    pieces["COMPOSED"] = ""
    if composed:
        writer.put(13, np.array([len(composed), *(item for row in composed for item in (len(row), *row))], np.uint32))
        pieces["COMPOSED"] = _COMPOSED
    return found


_COMPOSED: Final = """    {
        const uint32_t *row = t + t[13];
        for (uint32_t rows = *row++; rows != 0; rows--, bit++) {
            uint32_t odd = 0;
            for (uint32_t n = *row++; n != 0; n--, row++) {
                odd ^= bits[*row >> 5] << (*row & 31u);
            }
            bits[bit >> 5] |= (odd & 0x80000000u) >> (bit & 31u);
        }
    }"""


def _composed(forest: Forest, found: dict[tuple[Comparison, ...], int]) -> list[list[int]]:
    """Number the questions of several comparisons after all single ones; return the numbers that make up each."""
    rows: list[list[int]] = []
    for tree in forest.trees:
        for question in tree.questions:
            if question not in found:
                rows.append([found[(comparison,)] for comparison in question])
                found[question] = len(found)
    return rows


def _nodes(
    forest: Forest, bits: dict[tuple[Comparison, ...], int], writer: _Writer, pieces: dict[str, str]
) -> list[int]:
    """Write the nodes; return how many half-words each tree takes where that is not its number of nodes, else nothing."""
    questions = [[bits[each] for each in tree.questions] for tree in forest.trees]
    room = BITS_OF_HALF_WORD - max(len(bits) - 1, 31).bit_length()
    largest = max((size for tree in forest.trees for size in tree.sizes), default=0)
    wide = [largest + 1 >= 1 << room] if room >= LEAST_ROOM else []
    if not wide or 3 * largest > np.iinfo(np.uint16).max:
        _apart(forest, questions, largest, writer, pieces)
        return []
    # The fields are the same for as many forests as possible: what is not needed for sizes belongs to the bit's number.
    room = room if wide[0] else min(room, max((largest + 1).bit_length(), USUAL_ROOM))
    pieces |= {"QUESTION": "uint16_t", "SIZES": "", "START": "", "LEFT": "", "RIGHT": "", "NEXT": "", "WORDS": "0"}
    pieces |= {"WORD": f"n >> {5 + room}", "BIT": "n & 31u", "ESCAPED": ""}
    pieces["NODE"] = f"            const uint32_t n = *node, leaves_left = (n >> 5) & {(1 << room) - 1}u;"
    if wide[0]:
        pieces |= {"ESCAPED": _ESCAPED, "WORDS": "1"}
    rows = [_packed(tree, asked, room) for tree, asked in zip(forest.trees, questions, strict=True)]
    writer.put(6, np.array([word for row in rows for word in row], np.uint16))
    return [len(row) for row in rows] if wide[0] else []


_ESCAPED: Final = """            if (leaves_left == 0) {
                if (yes) {
                    count = node[1] - 1u;
                    node += 3;
                } else {
                    leaf += node[1];
                    count -= node[1];
                    node += node[2];
                }
                continue;
            }"""


def _packed(tree: Tree, asked: Sequence[int], room: int) -> list[int]:
    """Return a tree's half-words: `number / 32 << 5 + room | leaves on the left << 5 | number % 32`.

    Where the leaves do not fit they are 0, and two half-words follow: how many there are, and how far it is to the right child.
    """
    words: list[int] = []
    waiting: dict[int, list[int]] = {}  # what comes after a left subtree -> whose it is
    for place, (number, size) in enumerate(zip(asked, tree.sizes, strict=True)):
        for begin in waiting.pop(place, []):
            words[begin + 2] = len(words) - begin
        leaves = size + 1
        begin = len(words)
        words.append(number >> 5 << 5 + room | number & 31)
        if leaves < 1 << room:
            words[begin] |= leaves << 5
        else:
            words += [leaves, 0]
            waiting.setdefault(place + 1 + size, []).append(begin)
    return words


def _apart(
    forest: Forest, questions: Sequence[Sequence[int]], largest: int, writer: _Writer, pieces: dict[str, str]
) -> None:
    """Write numbers of bits and leaves on the left each in an array of its own."""
    flat = [number for asked in questions for number in asked]
    question_kind, size_kind = _width(max(flat, default=0)), _width(largest + 1)
    writer.put(6, np.array(flat, question_kind))
    writer.put(7, np.array([size + 1 for tree in forest.trees for size in tree.sizes], size_kind))
    size = _c_type(size_kind)
    pieces |= {
        "QUESTION": _c_type(question_kind),
        "SIZES": f"    const {size} *size = (const {size} *)(const void *)(t + t[7]);",
        "START": f"        const {size} *below = size;",
        "NODE": "            const uint32_t q = *node, leaves_left = *below;",
        "WORD": "q >> 5",
        "BIT": "q & 31u",
        "LEFT": "                below++;",
        "ESCAPED": "",
        "RIGHT": "                below += leaves_left;",
        "NEXT": "        size += tree[0];",
        "WORDS": "0",
    }


def _target(leaves: Sequence[Sequence[Vote]]) -> int | None:
    """Return the target that every leaf of a tree has its one vote for, None where there is none."""
    found = {leaf[0][0] if len(leaf) == 1 else -1 for leaf in leaves}
    return found.pop() if len(found) == 1 and -1 not in found else None


def _single(
    forest: Forest,
    numbers: Numbers,
    writer: _Writer,
    pieces: dict[str, str],
    lengths: Sequence[int],
    *,
    targets: int,
    counted: bool,
) -> None:
    """Write one vote for each leaf; its target is the tree's."""
    del counted
    votes = np.array([leaf[0][1] for tree in forest.trees for leaf in tree.leaves], forest.kind)
    target = "0"
    if targets > 1:
        target = f"tree[{2 if lengths else 1}]"
        _trees(forest, writer, pieces, lengths, [_target(tree.leaves) or 0 for tree in forest.trees])
    else:
        _trees(forest, writer, pieces, lengths, [])
    distinct, index = np.unique(votes.view(f"u{votes.itemsize}"), return_inverse=True)  # bits: -0.0 is not 0.0
    width = _width(len(distinct) - 1)
    if len(distinct) * votes.itemsize + len(votes) * width.itemsize < len(votes) * votes.itemsize:
        writer.put(8, index.reshape(-1).astype(width))
        writer.put(10, distinct.view(votes.dtype), votes.itemsize)
        kind, vote = _c_type(width), "values[*leaf]"
        pieces["LEAVES"] = f"    const {kind} *leaves = (const {kind} *)(const void *)(t + t[8]), *leaf;\n"
        pieces["LEAVES"] += f"    const {numbers.sum} *values = (const {numbers.sum} *)(const void *)(t + t[10]);"
    else:
        writer.put(10, votes, votes.itemsize)
        pieces["LEAVES"] = f"    const {numbers.sum} *leaves = (const {numbers.sum} *)(const void *)(t + t[10]), *leaf;"
        vote = "*leaf"
    pieces["HAS_PARAMETER"] = ""
    pieces["VOTE"] = f"        s[{target}] += {vote};"


def _trees(
    forest: Forest, writer: _Writer, pieces: dict[str, str], lengths: Sequence[int], targets: Sequence[int]
) -> None:
    """Write a row for each tree: its questions, and where they are told its half-words and its target."""
    columns = [[len(tree.questions) for tree in forest.trees], *filter(None, (lengths, targets))]
    width = _width(max(max(column) for column in columns))
    writer.head[1] = len(forest.trees)
    writer.put(5, np.array(columns, width).T)
    pieces |= {"TREE": _c_type(width), "TREE_STEP": str(len(columns))}


def _lists(
    forest: Forest,
    numbers: Numbers,
    writer: _Writer,
    pieces: dict[str, str],
    lengths: Sequence[int],
    *,
    targets: int,
    counted: bool,
) -> None:
    """Write for each leaf where its list of votes begins: `value << 1 + target's bits | target << 1 | last`."""
    _trees(forest, writer, pieces, lengths, [])
    nobody = [(targets, 0.0)]  # a sum that nothing reads
    lists = [
        tuple(vote for vote in leaf if counted or vote[1] != 0) or tuple(nobody)
        for tree in forest.trees
        for leaf in tree.leaves
    ]
    distinct = dict.fromkeys(lists)
    values = np.array([weight for each in distinct for _, weight in each], forest.kind)
    known, index = np.unique(values.view(f"u{values.itemsize}"), return_inverse=True)
    bits_of_target = targets.bit_length()
    width = _width((len(known) - 1) << bits_of_target + 1 | (1 << bits_of_target + 1) - 1)
    entries: list[int] = []
    starts: dict[tuple[Vote, ...], int] = {}
    value_of = iter(index.reshape(-1).tolist())
    for each in distinct:
        starts[each] = len(entries)
        entries += [next(value_of) << bits_of_target + 1 | target << 1 for target, _ in each]
        entries[-1] |= 1
    leaf_width = _width(max(starts.values()))
    writer.put(8, np.array([starts[each] for each in lists], leaf_width))
    writer.put(9, np.array(entries, width))
    writer.put(10, known.view(values.dtype), values.itemsize)
    leaf, entry, number = _c_type(leaf_width), _c_type(width), numbers.sum
    pieces["LEAVES"] = (
        f"    const {leaf} *leaves = (const {leaf} *)(const void *)(t + t[8]), *leaf;\n"
        f"    const {entry} *votes = (const {entry} *)(const void *)(t + t[9]);\n"
        f"    const {number} *values = (const {number} *)(const void *)(t + t[10]);"
    )
    pieces["HAS_PARAMETER"] = ", uint8_t *has" if counted else ""
    add = numbers.combine("s", "target", f"values[e >> {bits_of_target + 1}]", counted=counted)
    pieces["VOTE"] = (
        f"        for (const {entry} *vote = votes + *leaf;; vote++) {{\n"
        f"            const uint32_t e = *vote, target = (e >> 1) & {(1 << bits_of_target) - 1}u;\n"
        f"{add}\n"
        "            if ((e & 1u) != 0) {\n                break;\n            }\n        }"
    )
