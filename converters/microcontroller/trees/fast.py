"""A forest as code: nested branches with thresholds as literals, the least time.

A question is a load, a comparison of whole numbers (`asking`) with a literal, and a branch, on any core, with an FPU or without.
Trees stand one after another in functions of bounded length, few sums in registers. Such trees are code: a new forest is a new
firmware, the data image cannot bring it.
"""

from collections import Counter
from typing import Final

from modelfleet.converters.microcontroller.trees.asking import Asking, asking
from modelfleet.converters.microcontroller.trees.code import Code, Numbers
from modelfleet.converters.microcontroller.trees.forest import Forest, Tree

MAX_DEPTH: Final = 60
"""Of nested blocks; C promises 127, of which each level takes one or two."""
MAX_NODES: Final = 50_000
"""Of questions: more code than that takes compilers minutes, and megabytes."""
NODES_OF_FUNCTION: Final = 400
SUMS_IN_REGISTERS: Final = 3
TREES_TOGETHER: Final = 5
"""Trees that compilers may weave into each other (what one tree learned of a feature, the next need not ask): the more, the
faster and the larger. Measured with gcc for 100 trees of depth 6: 2,301 instructions and 32 KB of code one by one, 2,071 and
39 KB by fives, 54 KB without end."""


def is_code(forest: Forest) -> bool:
    """Return whether the forest can be code."""
    return forest.depth <= MAX_DEPTH and forest.nodes <= MAX_NODES


def code(forest: Forest, numbers: Numbers, name: str, *, targets: int, counted: bool) -> Code:
    """Return the forest as functions, with the literals of its training in them (parameters as `small.tables`)."""
    way = asking(forest, numbers)
    flags = ", uint8_t *has" if counted else ""
    registers = not counted and targets <= SUMS_IN_REGISTERS
    functions: list[str] = []
    for index, trees in enumerate(_groups(forest)):
        body = [
            _tree(tree, way, numbers, targets=targets, counted=counted, registers=registers)
            + ("\n    MODEL_STEP();" if number % TREES_TOGETHER == 0 else "")
            for number, tree in enumerate(trees, 1)
        ]
        held = range(targets) if registers else range(0)
        body = [f"    {numbers.sum} s{each} = s[{each}];" for each in held] + body
        body += [f"    s[{each}] = s{each};" for each in held]
        body = ["    uint32_t at;", *body] if any("    s[at] +=" in each for each in body) else body
        text = "\n".join(body)
        functions.append(
            f"static void {name}_{index}(const {way.kind} *k, {numbers.sum} *s{flags})\n{{\n{text}\n"
            + ("" if "k[" in text else "    (void)k;\n")
            + "}\n"
        )
    calls = "\n".join(f"    {name}_{index}(k, s{', has' if counted else ''});" for index in range(len(functions)))
    entry = (
        f"static void {name}(const {numbers.input} *x, void *w, {numbers.sum} *s{flags})\n"
        f"{{\n{way.prepare()}\n{calls}\n}}\n"
    )
    return Code(
        definitions="\n".join([*functions, entry]),
        call=f"{name}(@x@, @scratch@, sums{', has' if counted else ''});",
        tables=None,
        scratch_bytes=way.scratch_bytes,
        fragments=(way.fragment,),
        stack_bytes=128,
    )


def _groups(forest: Forest) -> list[list[Tree]]:
    """Return the trees in order, as many together as make a function."""
    groups: list[list[Tree]] = []
    room = 0
    for tree in forest.trees:
        if len(tree.questions) > room or not groups:
            groups.append([])
            room = NODES_OF_FUNCTION
        groups[-1].append(tree)
        room -= len(tree.questions)
    return groups


def _tree(tree: Tree, way: Asking, numbers: Numbers, *, targets: int, counted: bool, registers: bool) -> str:
    """Return a tree's branches. Where most leaves have one vote of the same weight, they only say for whom: it is added once."""
    usual = None if registers or counted else _usual_vote(tree)
    lines = [] if usual is None else [f"    at = {targets};"]  # a sum that nothing reads
    leaves = iter(tree.leaves)

    def write(node: int, count: int, indent: str) -> None:
        if count == 0:
            votes = [vote for vote in next(leaves) if counted or vote[1] != 0]
            if len(votes) == 1 and votes[0][1] == usual:
                lines.append(f"{indent}at = {votes[0][0]};")
                return
            for target, weight in votes:
                value = _literal(weight, numbers)
                if registers:
                    lines.append(f"{indent}s{target} += {value};")
                else:
                    added = numbers.combine("s", str(target), value, counted=counted)
                    lines.append(f"{indent}{{\n{added}\n{indent}}}" if counted else f"{indent}{added.strip()}")
            return
        left = tree.sizes[node]
        asked = " ^ ".join(way.compare(each) for each in tree.questions[node])
        lines.append(f"{indent}if ({asked}) {{")
        write(node + 1, left, indent + " ")
        lines.append(f"{indent}}} else {{")
        write(node + 1 + left, count - 1 - left, indent + " ")
        lines.append(f"{indent}}}")

    write(0, len(tree.questions), "    ")
    if usual is not None:
        lines.append(f"    s[at] += {_literal(usual, numbers)};")
    return "\n".join(lines)


def _usual_vote(tree: Tree) -> float | None:
    """Return the weight that most leaves have as their only vote, None where there is none."""
    votes = [[weight for _, weight in leaf if weight != 0] for leaf in tree.leaves]
    weights = [found[0] for found in votes if len(found) == 1]
    usual, count = max(Counter(weights).items(), key=lambda item: item[1], default=(0.0, 0))
    return usual if count * 2 > len(tree.leaves) else None


def _literal(weight: float, numbers: Numbers) -> str:
    """Return the number exactly: C99's hexadecimal floats."""
    return float(weight).hex() + ("" if numbers.doubles else "f")
