"""Lists of tensors, which loops write to."""

from collections.abc import Mapping

import numpy as np

from modelfleet.converters.mil_evaluator.call import Call, Evaluate
from modelfleet.converters.mil_evaluator.ir import Array, Tensors
from modelfleet.converters.mil_evaluator.shapes import require_size


def _make_list(call: Call) -> Tensors:
    length, dtype = call.integer("init_length", 1), call.text("dtype", "fp32")
    call.flag("dynamic_length", True)
    call.values("elem_shape")  # the elements show it themselves
    call.dtype_named("dtype", dtype)
    require_size(call, [length])
    return Tensors((None,) * length, dtype)


def _read(call: Call, items: tuple[Array | None, ...], index: int) -> Array:
    call.require(0 <= index < len(items), f"index: expected one below {len(items)}, got {index}")
    item = items[index]
    return call.refuse(f"index: expected an element that was written, got {index}") if item is None else item


def _written(call: Call, items: Tensors, pairs: list[tuple[int, Array]]) -> Tensors:
    result = list(items.items)
    for index, value in pairs:
        call.require(0 <= index < 1 << 20, f"index: expected one from 0, got {index}")
        result += [None] * (index + 1 - len(result))
        result[index] = value
    return Tensors(tuple(result), items.dtype)


def _list_scatter(call: Call) -> Tensors:
    items, indices, value = call.list_of("ls"), call.integers("indices"), call.tensor("value")
    call.require(len(indices) == len(value), f"value: expected {len(indices)} elements, got {len(value)}")
    return _written(call, items, list(zip(indices, value, strict=True)))


def _list_gather(call: Call) -> Array:
    items, indices = call.list_of("ls"), call.integers("indices")
    call.require(len(indices) > 0, "indices: expected at least one")
    return np.stack([_read(call, items.items, index) for index in indices])


LISTS: Mapping[str, Evaluate] = {
    "list_gather": _list_gather,
    "list_length": lambda call: np.array(len(call.list_of("ls").items), np.int32),
    "list_read": lambda call: _read(call, call.list_of("ls").items, call.integer("index")),
    "list_scatter": _list_scatter,
    "list_write": lambda call: _written(call, call.list_of("ls"), [(call.integer("index"), call.tensor("value"))]),
    "make_list": _make_list,
}
