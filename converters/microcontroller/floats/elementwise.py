"""Operators that compute each element by itself, broadcast or not: arithmetic, comparisons, logic, bits, activations, casts."""

import re
from collections.abc import Callable, Mapping
from typing import Final

from modelfleet.converters.microcontroller.floats.kinds import KINDS, Kind, raw
from modelfleet.converters.microcontroller.floats.nest import Nest, Operand, broadcast, contiguous, emit
from modelfleet.converters.microcontroller.floats.node import Node, UnsupportedError

Rule = Callable[[Node], None]
_LETTERS: Final = "abcdfghijklnopqwxz"


def apply(node: Node, text: str, *, label: str, inputs: int | None = None, moves: bool = False) -> None:
    """Emit `text` for every element of the output `$y` from the inputs `$a`, `$b`, ... at the same place.

    moves: elements are copied and not computed, so that types of equal size share a function.
    """
    output = node.output()
    count = len(node.operator.inputs) if inputs is None else inputs
    if count > len(_LETTERS):
        raise UnsupportedError(f"expected at most {len(_LETTERS)} inputs, got {count}")
    operands: list[Operand] = []
    target = _moved(node.kind(output), moves=moves)
    for index in range(count):
        tensor = node.input(index)
        kind = _moved(node.kind(tensor), moves=moves)
        steps = broadcast(tensor.shape, output.shape)
        operands.append(Operand(name=_LETTERS[index], kind=kind, pointer=node.read(index, kind), steps=steps))
        if tensor.data is None and tensor.shape == output.shape and kind.ctype == target.ctype:
            node.overlap[index] = 0
    pointer = node.write(0, target)
    operands.append(Operand(name="y", kind=target, pointer=pointer, steps=contiguous(output.shape), written=True))
    emit(node, Nest(label=label, operands=tuple(operands), outer=output.shape, begin=text))


def _moved(kind: Kind, *, moves: bool) -> Kind:
    return raw(kind) if moves else kind


def _label(node: Node) -> str:
    kinds = dict.fromkeys(node.kind(node.input(i)).code for i in range(len(node.operator.inputs)) if node.has(i))
    return f"{node.operator.op_type.lower()}_{'_'.join(kinds)}"


def _float(node: Node, index: int = 0) -> Kind:
    kind = node.kind(node.input(index))
    if not kind.is_float:
        raise UnsupportedError(f"expected floats, got {kind.dtype}")
    return kind


def _arithmetic(sign: str) -> Rule:
    def rule(node: Node) -> None:
        kind = node.kind(node.output())
        wrapped = f"({kind.compute})(({kind.unsigned})$a {sign} ({kind.unsigned})$b)"
        apply(node, f"$y := {f'$a {sign} $b' if kind.is_float else wrapped};", label=_label(node))

    return rule


def _divide(node: Node) -> None:
    kind = node.kind(node.output())
    if kind.is_float:
        apply(node, "$y := $a / $b;", label=_label(node))
        return
    # Division by zero, which onnxruntime refuses, gives 0; the least number by -1 wraps around to itself.
    unsigned = f"({kind.compute})(({kind.unsigned})0 - ({kind.unsigned})$a)"
    text = f"$b == -1 ? {unsigned} : ({kind.compute})($a / $b)" if kind.is_signed else f"({kind.compute})($a / $b)"
    apply(node, f"$y := $b == 0 ? ({kind.compute})0 : {text};", label=_label(node))


def _modulo(node: Node) -> None:
    kind = node.kind(node.output())
    if kind.is_float:
        if not node.attribute("fmod", 0):
            raise UnsupportedError("expected fmod=1 for floats, got 0")
        apply(node, f"$y := fmod{kind.suffix}($a, $b);", label=_label(node))
    elif not kind.is_signed:
        apply(node, f"$y := $b == 0 ? ({kind.compute})0 : ({kind.compute})($a % $b);", label=_label(node))
    else:
        zero = "$b == 0 || $b == -1 ? 0 : $a % $b"
        same = "" if node.attribute("fmod", 0) else "if (r != 0 && (r < 0) != ($b < 0)) { r = (C)(r + $b); }"
        text = f"C r = (C)({zero}); {same} $y := r;".replace("C ", f"{kind.compute} ").replace(
            "(C)", f"({kind.compute})"
        )
        apply(node, text, label=f"{_label(node)}_{int(bool(same))}")


def _power(node: Node) -> None:
    base = _any(node, 0)
    if base.is_float:
        apply(node, f"$y := pow{base.suffix}($a, ({base.compute})$b);", label=_label(node))
    else:
        value = cast_text("pow((double)$a, (double)$b)", KINDS["float64"], base)
        apply(node, f"$y := {value};", label=_label(node))


def _any(node: Node, index: int) -> Kind:
    return node.kind(node.input(index))


def cast_text(value: str, source: Kind, target: Kind) -> str:
    """Return the C expression that casts as onnxruntime on x86 does: what does not fit becomes what its processor gives."""
    compute = target.compute
    if target.dtype == "bool":
        return f"(uint8_t)({value} != 0)"
    if target.is_float or not source.is_float:
        return value if compute == source.compute else f"({compute})({value})"
    if target.bits == 64:
        return f"mf_{'int64' if target.is_signed else 'uint64'}({value})"
    if target.dtype == "uint32":
        return f"(uint32_t)mf_int64({value})"
    return f"({compute})mf_int32({value})" if target.dtype != "int32" else f"mf_int32({value})"


def cast(node: Node) -> None:
    """Cast and CastLike: to the type of the output."""
    source, target = _any(node, 0), node.kind(node.output())
    label = f"cast_{source.code}_{target.code}"
    if source == target:
        apply(node, "$y := $a;", label=f"copy_{raw(source).code}", inputs=1, moves=True)
    else:
        apply(node, f"$y := {cast_text('$a', source, target)};", label=label, inputs=1)


def bit_cast(node: Node) -> None:
    """BitCast: the same bits as another type of that size."""
    source, target = raw(_any(node, 0)), raw(node.kind(node.output()))
    if source.bits != target.bits:
        raise UnsupportedError(f"expected types of one size, got {source.dtype} and {target.dtype}")
    text = f"union {{ {source.ctype} given; {target.ctype} wanted; }} u; u.given = $a; $y := u.wanted;"
    apply(node, text, label=f"bits_{source.code}_{target.code}", inputs=1, moves=True)


def identity(node: Node) -> None:
    """Copy: Identity, and all that changes a shape alone."""
    source = node.input(0)
    kind = raw(node.kind(source))
    steps = contiguous(source.shape)
    if source.elements != node.output().elements:
        raise UnsupportedError(f"expected {source.elements} elements, got {node.output().elements}")
    copied = Operand(name="a", kind=kind, pointer=node.read(0, kind), steps=steps)
    written = Operand(name="y", kind=kind, pointer=node.write(0, kind), steps=steps, written=True)
    emit(node, Nest(label=f"copy_{kind.code}", operands=(copied, written), outer=source.shape, begin="$y := $a;"))
    node.overlap[0] = 0


def _compare(sign: str) -> Rule:
    return lambda node: apply(node, f"$y := (uint8_t)($a {sign} $b);", label=_label(node))


def _bits(sign: str) -> Rule:
    def rule(node: Node) -> None:
        kind = _any(node, 0)
        apply(node, f"$y := ({kind.compute})(({kind.unsigned})$a {sign} ({kind.unsigned})$b);", label=_label(node))

    return rule


def _bit_not(node: Node) -> None:
    kind = _any(node, 0)
    apply(node, f"$y := ({kind.compute})~({kind.unsigned})$a;", label=_label(node))


def _bit_shift(node: Node) -> None:
    kind = _any(node, 0)
    sign = "<<" if node.attribute("direction") == "LEFT" else ">>"
    text = f"$y := $b >= {kind.bits} ? ({kind.compute})0 : ({kind.compute})(({kind.unsigned})$a {sign} $b);"
    apply(node, text, label=f"{_label(node)}_{'l' if sign == '<<' else 'r'}")


def _extreme(sign: str) -> Rule:
    def rule(node: Node) -> None:
        kind = node.kind(node.output())
        text = f"{kind.compute} m = $a;"
        for letter in _LETTERS[1 : len(node.operator.inputs)]:
            keeps = f"m {sign} ${letter}" + (" || m != m" if kind.is_float else "")  # a NaN stays
            text += f" if (!({keeps})) {{ m = ${letter}; }}"
        apply(node, f"{text} $y := m;", label=_label(node))

    return rule


def _sum(node: Node) -> None:
    terms = " + ".join(f"${letter}" for letter in _LETTERS[: len(node.operator.inputs)])
    kind = _float(node)
    if node.operator.op_type == "Mean":
        terms = f"({terms}) / {kind.literal(len(node.operator.inputs))}"
    apply(node, f"$y := {terms};", label=_label(node))


def _where(node: Node) -> None:
    apply(node, "$y := $a ? $b : $c;", label=f"where_{raw(_any(node, 1)).code}", moves=True)


def _clip(node: Node) -> None:
    operator = node.operator
    kind = _any(node, 0)
    text, names = f"{kind.compute} v = $a;", ["a"]
    for index, sign in ((1, "<"), (2, ">")):
        name = ("min", "max")[index - 1]
        if node.has(index):
            names.append("bc"[index - 1])
            text += f" if (v {sign} ${names[-1]}) {{ v = ${names[-1]}; }}"
        elif operator.opset < 11 and name in operator.attributes:
            bound = kind.literal(float(node.attribute(name)))
            text += f" if (v {sign} {bound}) {{ v = {bound}; }}"
    operands = [
        Operand(
            name=letter,
            kind=kind,
            pointer=node.read("abc".index(letter)),
            steps=broadcast(node.input("abc".index(letter)).shape, node.output().shape),
        )
        for letter in names
    ]
    written = Operand(name="y", kind=kind, pointer=node.write(), steps=contiguous(node.output().shape), written=True)
    nest = Nest(label=_label(node), operands=(*operands, written), outer=node.output().shape, begin=f"{text} $y := v;")
    emit(node, nest)
    node.overlap[0] = 0


def _unary(text: str) -> Rule:
    """Return the rule of a function of floats; `F(` in the text ends a function's name, `1_` is a number."""

    def rule(node: Node) -> None:
        kind = _float(node)
        apply(node, f"$y := {typed(text, kind)};", label=_label(node), inputs=1)

    return rule


def typed(text: str, kind: Kind, **values: float) -> str:
    """Return C text with its numbers (`1_`, `0.5_`), functions (`expF(`), type (`T`) and named values (`{alpha}`) in the type."""
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", kind.literal(value))
    text = re.sub(r"(?<![\w.])(\d+(?:\.\d+)?)_", lambda match: kind.literal(float(match[1])), text)
    return re.sub(r"\bT\b", kind.compute, text.replace("F(", f"{kind.suffix}("))


def _activation(text: str, **defaults: float) -> Rule:
    def rule(node: Node) -> None:
        kind = _float(node)
        values = {name: float(node.attribute(name, value)) for name, value in defaults.items()}
        apply(node, typed(text, kind, **values), label=_label(node), inputs=1)

    return rule


def _absolute(node: Node) -> None:
    kind = _any(node, 0)
    if kind.is_float:
        apply(node, f"$y := fabs{kind.suffix}($a);", label=_label(node))
    elif kind.is_signed:
        negated = f"({kind.compute})(({kind.unsigned})0 - ({kind.unsigned})$a)"
        apply(node, f"$y := $a < 0 ? {negated} : $a;", label=_label(node))
    else:
        identity(node)


def _negate(node: Node) -> None:
    kind = _any(node, 0)
    wrapped = f"({kind.compute})(({kind.unsigned})0 - ({kind.unsigned})$a)"
    apply(node, f"$y := {'-$a' if kind.is_float else wrapped};", label=_label(node))


def _sign(node: Node) -> None:
    kind = _any(node, 0)
    below = (
        f"($a < 0 ? ({kind.compute})-1 : ({kind.compute})0)"
        if kind.is_float or kind.is_signed
        else f"({kind.compute})0"
    )
    apply(node, f"$y := $a > 0 ? ({kind.compute})1 : {below};", label=_label(node))


def _relu(node: Node) -> None:
    kind = _any(node, 0)
    apply(node, f"$y := $a < 0 ? ({kind.compute})0 : $a;", label=_label(node))


def _leaky(node: Node) -> None:
    kind = _any(node, 0)
    if kind.is_float:
        apply(node, "$y := $a < 0 ? $a * $b : $a;", label=_label(node))
    else:
        product = f"({kind.compute})(({kind.unsigned})$a * ({kind.unsigned})$b)"
        apply(node, f"$y := {f'$a < 0 ? {product} : $a' if kind.is_signed else '$a'};", label=_label(node))


def _gelu(node: Node) -> None:
    if node.attribute("approximate", "none") == "tanh":
        text = "$y := 0.5_ * $a * (1_ + tanhF(0.7978845608028654_ * ($a + 0.044715_ * $a * $a * $a)));"
    else:
        text = "$y := 0.5_ * $a * (1_ + erfF($a * 0.7071067811865476_));"
    apply(node, typed(text, _float(node)), label=f"{_label(node)}_{node.attribute('approximate', 'none') == 'tanh':d}")


def _is_infinite(node: Node) -> None:
    kind = _float(node)
    above = f"$a == {kind.greatest}" if node.attribute("detect_positive", 1) else "0"
    below = f"$a == {kind.least}" if node.attribute("detect_negative", 1) else "0"
    apply(node, f"$y := (uint8_t)({above} || {below});", label=_label(node))


def _round(node: Node) -> None:
    kind = _float(node)
    apply(node, f"$y := rint{kind.suffix}($a);", label=_label(node))


def _shrink(node: Node) -> None:
    kind = _any(node, 0)
    lambd, bias = float(node.attribute("lambd", 0.5)), float(node.attribute("bias", 0.0))
    if not kind.is_float:
        raise UnsupportedError(f"expected floats, got {kind.dtype}")
    text = "$y := $a < {low} ? $a + {bias} : $a > {high} ? $a - {bias} : 0_;"
    apply(node, typed(text, kind, low=-lambd, high=lambd, bias=bias), label=_label(node))


_MATH: Final = "acos acosh asin asinh atan atanh ceil cos cosh erf exp floor log sin sinh sqrt tan tanh"
ELEMENTWISE: Final[Mapping[str, Rule]] = {
    **{name.capitalize(): _unary(f"{name}F($a)") for name in _MATH.split()},
    "Abs": _absolute,
    "Add": _arithmetic("+"),
    "And": _compare("&&"),
    "BitCast": bit_cast,
    "BitShift": _bit_shift,
    "BitwiseAnd": _bits("&"),
    "BitwiseNot": _bit_not,
    "BitwiseOr": _bits("|"),
    "BitwiseXor": _bits("^"),
    "Cast": cast,
    "CastLike": cast,
    "Celu": _activation("$y := $a > 0_ ? $a : {alpha} * expm1F($a / {alpha});", alpha=1.0),
    "Clip": _clip,
    "Div": _divide,
    "Elu": _activation("$y := $a > 0_ ? $a : {alpha} * expm1F($a);", alpha=1.0),
    "Equal": _compare("=="),
    "Gelu": _gelu,
    "Greater": _compare(">"),
    "GreaterOrEqual": _compare(">="),
    "HardSigmoid": _activation(
        "T v = {alpha} * $a + {beta}; $y := v < 0_ ? 0_ : v > 1_ ? 1_ : v;", alpha=0.2, beta=0.5
    ),
    "HardSwish": _activation("T v = $a / 6_ + 0.5_; $y := $a * (v < 0_ ? 0_ : v > 1_ ? 1_ : v);"),
    "Identity": identity,
    "IsInf": _is_infinite,
    "IsNaN": _activation("$y := (uint8_t)($a != $a);"),
    "LeakyRelu": _activation("$y := $a < 0_ ? {alpha} * $a : $a;", alpha=0.01),
    "Less": _compare("<"),
    "LessOrEqual": _compare("<="),
    "Max": _extreme(">="),
    "Mean": _sum,
    "Min": _extreme("<="),
    "Mish": _activation("T v = $a > 0_ ? $a + log1pF(expF(-$a)) : log1pF(expF($a)); $y := $a * tanhF(v);"),
    "Mod": _modulo,
    "Mul": _arithmetic("*"),
    "Neg": _negate,
    "Not": lambda node: apply(node, "$y := (uint8_t)!$a;", label="not"),
    "Or": _compare("||"),
    "PRelu": _leaky,
    "Pow": _power,
    "Reciprocal": _unary("1_ / $a"),
    "Relu": _relu,
    "Round": _round,
    "Selu": _activation(
        "$y := {gamma} * ($a > 0_ ? $a : {alpha} * expm1F($a));", alpha=1.6732632423543772, gamma=1.0507009873554805
    ),
    "Shrink": _shrink,
    "Sigmoid": _unary("1_ / (1_ + expF(-$a))"),
    "Sign": _sign,
    "Softplus": _unary("$a > 0_ ? $a + log1pF(expF(-$a)) : log1pF(expF($a))"),
    "Softsign": _unary("$a / (1_ + fabsF($a))"),
    "Sub": _arithmetic("-"),
    "Sum": _sum,
    "Swish": _activation("$y := $a / (1_ + expF(-{alpha} * $a));", alpha=1.0),
    "ThresholdedRelu": _activation("$y := $a > {alpha} ? $a : 0_;", alpha=1.0),
    "Where": _where,
    "Xor": lambda node: apply(node, "$y := (uint8_t)(!$a != !$b);", label="xor"),
}
