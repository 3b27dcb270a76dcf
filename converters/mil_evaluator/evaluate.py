"""Walks a program's operations. Every output is checked against the type that the program declares for it.

Constants and constexpr operations are evaluated once, when the program is opened. A value is let go after its last use.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from modelfleet.converters.mil_evaluator.call import Call, Result
from modelfleet.converters.mil_evaluator.errors import MilError
from modelfleet.converters.mil_evaluator.ir import (
    MAX_RANK,
    STORED,
    Argument,
    Array,
    Block,
    ListType,
    Named,
    Operation,
    Program,
    Tensors,
    TensorType,
    Value,
)
from modelfleet.converters.mil_evaluator.table import OPERATIONS

_MAX_ITERATIONS = 1_000_000
_FOREIGN = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError)
"""What numpy raises where an operation's inputs do not go together."""


class Evaluator:
    """Evaluates a program as often as asked (MilError at opening: it names unknown operations or values)."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._constants: dict[str, Value] = {}
        self._last_use: dict[int, tuple[tuple[str, ...], ...]] = {}
        _require_known(program.block)
        self._prepare(program.block, {feature.name for feature in program.inputs})

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the value of each output, by name."""
        with np.errstate(all="ignore"):
            results = self._block(self._program.block, dict(inputs))
        named = dict(zip(self._program.block.outputs, results, strict=True))
        return {feature.name: cast(Array, named[feature.name]) for feature in self._program.outputs}

    def _prepare(self, block: Block, known: set[str]) -> None:
        """Evaluate the constants of a block, see that every name is made before it is used, and when it is last used."""
        known = known | {named.name for named in block.inputs}
        uses: dict[str, int] = {}
        for index, operation in enumerate(block.operations):
            names = {argument.name for arguments in operation.inputs.values() for argument in arguments} - {""}
            for inner in operation.blocks:
                self._prepare(inner, known)
                names |= _names_within(inner)
            for argument in (a for arguments in operation.inputs.values() for a in arguments if a.name):
                if argument.name not in known:
                    raise _wrong(operation, f"expected a value made before, got {argument.name!r}")
            uses.update(dict.fromkeys(names, index))
            made = [named.name for named in operation.outputs]
            if known & set(made) or len(set(made)) != len(made):
                raise _wrong(operation, f"expected names of its own, got {made}")
            if operation.type == "const" or operation.type.startswith("constexpr_"):
                if set(made) & set(self._constants):
                    raise _wrong(operation, f"expected names of its own, got {made}")
                with np.errstate(all="ignore"):
                    self._store(operation, self._constants, self._constants)
            known.update(made)
        missing = set(block.outputs) - known
        if missing:
            raise MilError(f"expected outputs that the block makes, got {sorted(missing)}")
        self._last_use[id(block)] = _dying(block, uses)

    def _block(self, block: Block, values: dict[str, Value]) -> list[Value]:
        for operation, dying in zip(block.operations, self._last_use[id(block)], strict=True):
            if operation.type != "const" and not operation.type.startswith("constexpr_"):
                self._store(operation, values, values)
                for name in dying:
                    values.pop(name, None)
        return [self._look_up(values, name) for name in block.outputs]

    def _look_up(self, values: Mapping[str, Value], name: str) -> Value:
        found = values.get(name, self._constants.get(name))
        if found is None:
            raise MilError(f"expected a value named {name!r} to be known here")
        return found

    def _store(self, operation: Operation, values: Mapping[str, Value], into: dict[str, Value]) -> None:
        results = self._operation(operation, values)
        if len(results) != len(operation.outputs):
            raise _wrong(operation, f"expected {len(results)} outputs in the program, got {len(operation.outputs)}")
        for named, result in zip(operation.outputs, results, strict=True):
            into[named.name] = _conform(operation, named, result)

    def _operation(self, operation: Operation, values: Mapping[str, Value]) -> Sequence[Value]:
        def value(argument: Argument) -> Value:
            if not argument.name:
                return cast(Value, argument.value)
            return self._look_up(values, argument.name)

        if operation.type == "const":
            return [operation.attributes["val"]] if "val" in operation.attributes else []
        inputs = {name: tuple(map(value, arguments)) for name, arguments in operation.inputs.items()}
        if operation.type.startswith("constexpr_"):
            inputs |= {name: (attribute,) for name, attribute in operation.attributes.items()}
        call = Call(operation, inputs, self._program.opset)
        if operation.type == "cond":
            return self._cond(call, values)
        if operation.type == "while_loop":
            return self._while_loop(call, values)
        return _evaluate(call)

    def _cond(self, call: Call, values: Mapping[str, Value]) -> Sequence[Value]:
        taken = call.operation.blocks[0 if call.flag("pred") else 1]
        call.require_all_read()
        return self._block(taken, dict(values))

    def _while_loop(self, call: Call, values: Mapping[str, Value]) -> Sequence[Value]:
        condition, body = call.operation.blocks
        state: Sequence[Value] = call.values("loop_vars")
        call.require_all_read()
        for _ in range(_MAX_ITERATIONS):
            (go_on,) = self._block(condition, dict(values) | _bind(call, condition, state))
            if not isinstance(go_on, np.ndarray) or go_on.dtype != np.bool_ or go_on.size != 1:
                call.refuse("expected a bool from the loop's condition")
            if not bool(go_on.reshape(())):
                return state
            state = self._block(body, dict(values) | _bind(call, body, state))
        return call.refuse(f"expected at most {_MAX_ITERATIONS} iterations")


def _bind(call: Call, block: Block, state: Sequence[Value]) -> dict[str, Value]:
    call.require(len(block.inputs) == len(state), f"expected {len(block.inputs)} loop variables, got {len(state)}")
    return {
        named.name: _conform(call.operation, named, value) for named, value in zip(block.inputs, state, strict=True)
    }


def _evaluate(call: Call) -> Sequence[Value]:
    try:
        result: Result = OPERATIONS[call.operation.type](call)
    except _FOREIGN as error:
        call.refuse(f"expected inputs that go together, got {type(error).__name__}: {error}")
    call.require_all_read()
    return list(result) if isinstance(result, (list, tuple)) else [cast(Value, result)]


def _conform(operation: Operation, named: Named, value: Value) -> Value:
    """Return the value in the dtype declared for it; refuse another kind, another shape, or a rank that CoreML lacks."""
    declared = named.type
    if isinstance(declared, ListType):
        if isinstance(value, Tensors) or (isinstance(value, tuple) and operation.type == "const"):
            return value
        raise _wrong(operation, "expected a list")
    if declared.dtype == "string" and operation.type == "const" and isinstance(value, (str, tuple)):
        return value
    if declared.dtype == "string" or isinstance(value, (str, tuple, Tensors)):
        raise _wrong(operation, f"{named.name}: expected {declared.dtype}, got {type(value).__name__}")
    array = np.asarray(value)
    fixed = operation.type == "const" or operation.type.startswith("constexpr_")
    if array.ndim > MAX_RANK and not fixed:
        raise _wrong(operation, f"expected a rank of at most {MAX_RANK}, got shape {array.shape}")
    _require_shape(operation, named.name, array.shape, declared)
    return _in_dtype(operation, array, STORED[declared.dtype])


def _require_shape(operation: Operation, name: str, shape: tuple[int, ...], declared: TensorType) -> None:
    if declared.shape is None:
        return
    if len(shape) != len(declared.shape) or any(
        want is not None and want != got for want, got in zip(declared.shape, shape, strict=True)
    ):
        raise _wrong(operation, f"{name}: the program declares shape {declared.shape}, got {shape}")


def _in_dtype(operation: Operation, array: Array, dtype: np.dtype[np.generic]) -> Array:
    if array.dtype == dtype:
        return array
    kinds = "iu" if dtype.kind in "iu" else dtype.kind
    if array.dtype.kind not in kinds:
        raise _wrong(operation, f"the program declares {dtype}, got {array.dtype}")
    cast_array = array.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(cast_array, array):
        raise _wrong(operation, f"expected integers in the range of {dtype}, got one beyond")
    return cast_array


def _require_known(block: Block) -> None:
    """Every operation is one of the table's, and has the blocks that its kind has."""
    wanted = {"cond": 2, "while_loop": 2}
    for operation in block.operations:
        if operation.type not in OPERATIONS and operation.type not in ("const", *wanted):
            raise _wrong(operation, "unknown operation")
        if len(operation.blocks) != wanted.get(operation.type, 0):
            raise _wrong(operation, f"expected {wanted.get(operation.type, 0)} blocks, got {len(operation.blocks)}")
        for inner in operation.blocks:
            _require_known(inner)


def _names_within(block: Block) -> set[str]:
    names = set(block.outputs)
    for operation in block.operations:
        names |= {argument.name for arguments in operation.inputs.values() for argument in arguments}
        for inner in operation.blocks:
            names |= _names_within(inner)
    return names


def _dying(block: Block, uses: Mapping[str, int]) -> tuple[tuple[str, ...], ...]:
    """For each operation, the names made in this block that nothing needs after it."""
    dying: list[list[str]] = [[] for _ in block.operations]
    for index, operation in enumerate(block.operations):
        for named in operation.outputs:
            if named.name not in block.outputs:
                dying[uses.get(named.name, index)].append(named.name)
    return tuple(map(tuple, dying))


def _wrong(operation: Operation, reason: str) -> MilError:
    return MilError(reason, op_type=operation.type, output=operation.label)
