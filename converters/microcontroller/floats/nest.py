"""Loops over tensors: one C function for each computation and depth, shared by all nodes that differ in sizes and steps alone.

A nest walks `outer` counts, and for each place of these makes passes over `inner` counts. Every operand has a step for each
count (0 where it is broadcast), so that broadcasting, transposing, slicing, reducing and products are all the same loops. Counts
and steps are a table of constants; neighbouring loops that are one loop in every operand are joined first.

The computation is C text in which `$x` is the value of operand x at the place, `$x := expression;` stores one, `x` is its
pointer and `^x` its index. In `begin` and `end` of a nest, indices are those of the outer place.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from modelfleet.converters.microcontroller.floats.kinds import Kind
from modelfleet.converters.microcontroller.floats.node import Node, UnsupportedError, table


@dataclass(frozen=True, kw_only=True)
class Operand:
    """name: one letter; pointer: C expression; steps: in elements, one for each count, outer ones first; offset: of the first."""

    name: str
    kind: Kind
    pointer: str
    steps: tuple[int, ...]
    offset: int = 0
    written: bool = False


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A walk over the inner counts: text before it and for each place."""

    before: str = ""
    each: str = ""


@dataclass(frozen=True, kw_only=True)
class Nest:
    """See the module. numbers: whole numbers that the text reads as `#0`, `#1`, ...; label: a word for the function's name."""

    label: str
    operands: tuple[Operand, ...]
    outer: tuple[int, ...]
    inner: tuple[int, ...] = ()
    begin: str = ""
    passes: tuple[Pass, ...] = ()
    end: str = ""
    numbers: tuple[int, ...] = ()


def emit(node: Node, nest: Nest) -> None:
    """Append the nest's call to the node, its function to the fragments."""
    if "#" not in _all_text(nest):
        nest = replace(nest, numbers=())
    depth = len(nest.outer)
    walking, inside = _stepped(nest)
    outer, outer_steps = _joined(nest.outer, [each.steps[:depth] for each in walking])
    inner, inner_steps = _joined(nest.inner, [each.steps[depth:] for each in inside])
    values = list(nest.numbers)
    for counts, steps in ((outer, outer_steps), (inner, inner_steps)):
        for level, count in enumerate(counts):
            values += [count, *(each[level] for each in steps)]
    name, text = _function(nest, len(outer), len(inner))
    node.include(text)
    pointers = [f"{each.pointer} + {each.offset}" if each.offset else each.pointer for each in nest.operands]
    if values:
        pointers.append("t")
    call = f"{name}({', '.join(pointers)});"
    node.emit(f"{{ static const int32_t t[] = {table(values)}; {call} }}" if values else call)
    node.stack_bytes = max(node.stack_bytes, 64 + 4 * (len(outer) + len(inner)) * (len(nest.operands) + 1))


def _stepped(nest: Nest) -> tuple[list[Operand], list[Operand]]:
    """Return the operands whose index any text reads, and those whose index a pass reads."""
    return _read(nest, _all_text(nest)), _read(nest, " ".join(each.each for each in nest.passes))


def _all_text(nest: Nest) -> str:
    return " ".join((nest.begin, nest.end, *(f"{each.before} {each.each}" for each in nest.passes)))


def _read(nest: Nest, text: str) -> list[Operand]:
    names = set(re.findall(r"[$^](\w)\b", text))
    return [each for each in nest.operands if each.name in names]


def _joined(counts: Sequence[int], steps: list[tuple[int, ...]]) -> tuple[list[int], list[list[int]]]:
    """Join loops that are one in every operand, and drop those that turn once."""
    kept: list[int] = []
    found: list[list[int]] = [[] for _ in steps]
    for level in reversed(range(len(counts))):
        if counts[level] == 1:
            continue
        if kept and all(each[level] == own[0] * kept[0] for each, own in zip(steps, found, strict=True)):
            kept[0] *= counts[level]
            continue
        kept.insert(0, counts[level])
        for each, own in zip(steps, found, strict=True):
            own.insert(0, each[level])
    return kept, found


def _function(nest: Nest, outer: int, inner: int) -> tuple[str, str]:
    """Return the function's name and text."""
    walking, inside = _stepped(nest)
    first = len(nest.numbers)
    zero = {each.name: "0" for each in nest.operands}
    at = {**zero, **({each.name: f"{each.name}o{outer - 1}" for each in walking} if outer else {})}
    body = [_text(nest, nest.begin, at)]
    for one in nest.passes:
        used = _read(nest, one.each)
        names = {**at, **({each.name: f"{each.name}i{inner - 1}" for each in used} if inner else {})}
        text = _text(nest, one.each, names)
        begin = first + outer * (len(walking) + 1)
        body += [_text(nest, one.before, at), "{", *_loops(inner, begin, "i", inside, used, [text], at), "}"]
    body.append(_text(nest, nest.end, at))
    lines = _loops(outer, first, "o", walking, walking, body, zero)
    parameters = [f"{'' if each.written else 'const '}{each.kind.ctype} *{each.name}" for each in nest.operands]
    if nest.numbers or outer or inner:
        parameters.append("const int32_t *t")
    content = "\n".join(_indented(lines))
    digest = hashlib.sha256("\n".join((*parameters, content)).encode()).hexdigest()[:8]
    name = f"mf_{nest.label}_{digest}"
    return name, f"static void {name}({', '.join(parameters)})\n{{\n{content}\n}}\n"


def _loops(
    depth: int,
    first: int,
    letter: str,
    stepped: Sequence[Operand],
    used: Sequence[Operand],
    body: Sequence[str],
    base: Mapping[str, str],
) -> list[str]:
    """Return loops around a body. first: of the table's numbers; stepped: who has steps there; used: who is read within."""
    before, after = list[str](), list[str]()
    current, names = base, {each.name for each in used}
    for level in range(depth):
        at = first + level * (len(stepped) + 1)
        own = {each.name: f"{each.name}{letter}{level}" for each in used}
        if own:
            before.append("int32_t " + ", ".join(f"{own[name]} = {current[name]}" for name in own) + ";")
        before.append(f"for (int32_t {letter}c{level} = t[{at}]; {letter}c{level} > 0; --{letter}c{level}) {{")
        steps = [f"{own[each.name]} += t[{at + 1 + k}];" for k, each in enumerate(stepped) if each.name in names]
        after = [*steps, "}", *after]
        current = own
    return [*before, *body, *after]


def _text(nest: Nest, text: str, names: Mapping[str, str]) -> str:
    by_name = {each.name: each for each in nest.operands}

    def place(name: str) -> str:
        return f"{name}[{names[name]}]"

    def stored(match: re.Match[str]) -> str:
        return by_name[match[1]].kind.store(place(match[1]), match[2])

    text = re.sub(r"\^(\w)\b", lambda match: names[match[1]], text)
    text = re.sub(r"#(\d+)", lambda match: f"t[{match[1]}]", text)
    text = re.sub(r"\$(\w) := (.*?);", stored, text, flags=re.DOTALL)
    return re.sub(r"\$(\w)\b", lambda match: by_name[match[1]].kind.load(place(match[1])), text)


def _indented(lines: Sequence[str]) -> list[str]:
    depth, found = 1, list[str]()
    for line in (part.strip() for text in lines for part in text.splitlines()):
        depth -= line.startswith("}")
        found.append("    " * depth + line)
        depth += line.count("{") - line.count("}") + line.startswith("}")
    return found


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the steps of a tensor that lies in memory as ONNX has it."""
    steps, step = list[int](), 1
    for size in reversed(shape):
        steps.insert(0, step)
        step *= size
    return tuple(steps)


def broadcast(shape: Sequence[int], to: Sequence[int]) -> tuple[int, ...]:
    """Return the steps of a tensor that is broadcast to a shape.

    Raises:
        UnsupportedError: it does not broadcast.
    """
    if len(shape) > len(to):
        raise UnsupportedError(f"expected a shape that broadcasts to {[*to]}, got {[*shape]}")
    padded = (1,) * (len(to) - len(shape)) + tuple(shape)
    for size, wanted in zip(padded, to, strict=True):
        if size not in (1, wanted):
            raise UnsupportedError(f"expected a shape that broadcasts to {[*to]}, got {[*shape]}")
    return tuple(0 if size == 1 else step for size, step in zip(padded, contiguous(padded), strict=True))
