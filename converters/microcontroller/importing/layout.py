"""Where the program's tensors come from: each ONNX tensor, stored once or more, in some order of its elements, int8 for uint8.

An order says for each stored element which one of ONNX's it is (None: the same). Transpose and Reshape of ONNX give another
tensor the same bytes under another order, for nothing; a quantized operator asks for its input in NHWC, and only where no
stored form has that order is a Transpose made, on int8, from the form at hand.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from modelfleet.converters.microcontroller.importing.graph import Graph, Type
from modelfleet.converters.microcontroller.importing.scales import Scale
from modelfleet.converters.microcontroller.ir import Array, FlipSign, Onnx, Operator, Program, Tensor, View

Order = Array | None


@dataclass(frozen=True, kw_only=True)
class Form:
    """How an ONNX tensor is stored: the program's tensor, and its order."""

    name: str
    dtype: str
    order: Order


class Stores:
    """The program being made: tensors, operators, and the forms of every ONNX tensor."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.tensors: dict[str, Tensor] = {}
        self.operators: list[Operator] = []
        self.forms: dict[str, list[Form]] = {}
        self.scales: dict[str, Scale] = {}
        for name in graph.inputs:
            kind = graph.types[name]
            self._store(name, kind)
            self.forms[name] = [Form(name=name, dtype=kind.dtype, order=None)]

    def need(self, tensor: str, *, dtype: str, shape: Sequence[int] | None = None, order: Order = None) -> str:
        """Return the program's tensor that holds an ONNX tensor in this order, type and shape; operators are added for it.

        Args:
            tensor: ONNX's name.
            dtype: its own, or int8 for uint8 and back.
            shape: of as many elements; ONNX's own where none is given.
            order: as `Form` has it.
        """
        wanted = tuple(shape if shape is not None else self.graph.shape(tensor))
        order = simplest(order)
        if tensor not in self.forms:
            self._constant(tensor)
        form = self._form(tensor, dtype, order, wanted)
        return form.name if self.tensors[form.name].shape == wanted else self.view(form.name, wanted)

    def produce(
        self,
        tensor: str,
        *,
        dtype: str,
        shape: Sequence[int] | None = None,
        order: Order = None,
        scale: Scale | None = None,
    ) -> str:
        """Return the name of a new program's tensor that holds an ONNX tensor in this form; the caller adds its operator."""
        order = simplest(order)
        own = self.graph.shape(tensor)
        stored = Type(dtype=dtype, shape=tuple(shape if shape is not None else own))
        plain = order is None and stored.shape == own and dtype == self.graph.dtype(tensor)
        final = tensor in self.graph.outputs
        name = tensor if tensor not in self.tensors and (plain or not final) else self.graph.fresh(f"{tensor}~{dtype}")
        if scale is not None:
            self.scales[tensor] = scale
        self._store(name, stored, self.scales.get(tensor))
        self.forms.setdefault(tensor, []).append(Form(name=name, dtype=dtype, order=order))
        return name

    def alias(self, tensor: str, source: str, places: Order) -> None:
        """Have `tensor` be `source` under another order. places: for each element of source, where tensor has it."""
        if source not in self.forms:
            self._constant(source)
        self.forms[tensor] = [
            replace(form, order=simplest(_through(places, form.order))) for form in self.forms[source]
        ]
        if source in self.scales:
            self.scales[tensor] = self.scales[source]

    def forward(self, tensor: str, source: str, scale: Scale) -> None:
        """Have `tensor` be the very bytes of `source` (as int8), under a scale of its own."""
        self.alias(tensor, source, None)
        self.scales[tensor] = scale

    def shape_of(self, tensor: str, order: Order) -> tuple[int, ...]:
        """Return the shape under which an order of an ONNX tensor is stored, ONNX's own where it is not yet."""
        for form in self.forms.get(tensor, []):
            if same_order(form.order, order):
                return self.tensors[form.name].shape
        return self.graph.shape(tensor)

    def common_order(self, *tensors: str) -> Order:
        """Return the order in which most of the tensors are stored already, ONNX's own where none is."""
        found = [order for tensor in tensors for order in self.orders(tensor)]

        def stored(order: Order) -> int:
            return sum(any(same_order(order, other) for other in self.orders(tensor)) for tensor in tensors)

        return max(found, key=stored, default=None)

    def orders(self, tensor: str) -> list[Order]:
        """Return the orders in which an ONNX tensor is stored already."""
        return [form.order for form in self.forms.get(tensor, [])]

    def add(self, operator: Operator) -> None:
        """Add an operator behind all others."""
        self.operators.append(operator)

    def finish(self, name: str) -> Program:
        """Return the program; every output of the graph is there under its own name, in ONNX's form."""
        for output in self.graph.outputs:
            self._output(output)
        return Program(
            name=name,
            inputs=self.graph.inputs,
            outputs=self.graph.outputs,
            tensors=self.tensors,
            operators=tuple(self.operators),
        )

    def _output(self, tensor: str) -> None:
        kind = Type(dtype=self.graph.dtype(tensor), shape=self.graph.shape(tensor))
        if tensor in self.tensors:
            return
        stored = self.need(tensor, dtype=kind.dtype)
        if stored == tensor:  # a constant
            return
        self._store(tensor, kind, self.scales.get(tensor))
        last = self.operators[-1] if self.operators else None
        fresh = isinstance(last, FlipSign | View) or (isinstance(last, Onnx) and last.op_type == "Transpose")
        if last is not None and fresh and last.outputs == (stored,) and stored not in self.graph.outputs:
            self.operators[-1] = replace(last, outputs=(tensor,))
            del self.tensors[stored]
            for name, forms in self.forms.items():
                self.forms[name] = [replace(form, name=tensor) if form.name == stored else form for form in forms]
        else:
            self.add(View(name=tensor, inputs=(stored,), outputs=(tensor,)))

    def _form(self, tensor: str, dtype: str, order: Order, shape: tuple[int, ...]) -> Form:
        forms = self.forms[tensor]
        same = [form for form in forms if same_order(form.order, order)]
        for form in same:
            if form.dtype == dtype:
                return form
        if same:
            return self._flipped(tensor, same[0], dtype)
        typed = [form for form in forms if form.dtype == dtype]
        source = typed[0] if typed else self._flipped(tensor, forms[0], dtype)
        return self._moved(tensor, source, order, shape)

    def _flipped(self, tensor: str, form: Form, dtype: str) -> Form:
        name = self.graph.fresh(f"{tensor}~{dtype}")
        source = self.tensors[form.name]
        data = None if source.data is None else (source.data ^ np.array(128, np.uint8).view(source.dtype)).view(dtype)
        self._store(name, Type(dtype=dtype, shape=source.shape), self.scales.get(tensor), data)
        if data is None:
            self.add(FlipSign(name=f"{tensor}~sign", inputs=(form.name,), outputs=(name,)))
        self.forms[tensor].append(made := replace(form, name=name, dtype=dtype))
        return made

    def _moved(self, tensor: str, form: Form, order: Order, shape: tuple[int, ...]) -> Form:
        constant = self.tensors[form.name].data
        if constant is not None:
            name = self._add_constant(f"{tensor}~moved", constant.reshape(-1)[order], self.scales.get(tensor))
            self.forms[tensor].append(made := replace(form, name=name, order=order))
            return made
        elements = math.prod(self.graph.shape(tensor))
        stored = np.arange(elements) if form.order is None else form.order
        places = np.empty(elements, np.int64)
        places[stored] = np.arange(elements)
        taken = places if order is None else places[order]
        sizes, strides = split(*digits(taken), shape)
        axes = sorted(range(len(sizes)), key=lambda axis: -strides[axis])
        source = self.view(form.name, tuple(sizes[axis] for axis in axes))
        name = self.graph.fresh(f"{tensor}~moved")
        self._store(name, Type(dtype=form.dtype, shape=sizes), self.scales.get(tensor))
        perm = [axes.index(axis) for axis in range(len(sizes))]
        self.add(_onnx("Transpose", f"{tensor}~transpose", (source,), name, perm=perm))
        self.forms[tensor].append(made := replace(form, name=name, order=order))
        return made

    def intermediate(self, wish: str, like: str, shape: tuple[int, ...]) -> str:
        """Return the name of a new tensor of the program that no tensor of ONNX is, of the type and scale of another."""
        name = self.graph.fresh(wish)
        self.tensors[name] = replace(self.tensors[like], name=name, shape=shape, data=None)
        return name

    def view(self, name: str, shape: tuple[int, ...]) -> str:
        """Return a tensor of the program under another shape."""
        source = self.tensors[name]
        if source.shape == shape:
            return name
        if source.data is not None:
            return self._add_constant(name, source.data.reshape(shape), self.scales.get(name))
        for operator in self.operators:
            same = isinstance(operator, View) and operator.inputs == (name,)
            if same and self.tensors[operator.outputs[0]].shape == shape:
                return operator.outputs[0]
        made = self.graph.fresh(f"{name}~view")
        self.tensors[made] = replace(source, name=made, shape=shape)
        self.add(View(name=made, inputs=(name,), outputs=(made,)))
        return made

    def _constant(self, tensor: str) -> None:
        name = self._add_constant(tensor, self.graph.constants[tensor], None)
        self.forms[tensor] = [Form(name=name, dtype=str(self.graph.constants[tensor].dtype), order=None)]

    def _add_constant(self, wish: str, value: Array, scale: Scale | None) -> str:
        name = wish if wish not in self.tensors else self.graph.fresh(wish)
        self._store(name, Type(dtype=str(value.dtype), shape=value.shape), scale, value)
        return name

    def _store(self, name: str, kind: Type, scale: Scale | None = None, data: Array | None = None) -> None:
        self.tensors[name] = Tensor(
            name=name,
            dtype=kind.dtype,
            shape=kind.shape,
            data=None
            if data is None
            else np.array(data, order="C"),  # of an array without dimensions numpy makes numbers
            scale=float(scale.scale) if scale is not None else None,
            zero_point=scale.zero_point if scale is not None else 0,
        )


def channels_last(shape: Sequence[int]) -> Order:
    """Return the order NHWC (NWC, NDHWC) of an ONNX tensor of `shape` (N, C, ...)."""
    axes = [0, *range(2, len(shape)), 1]
    return simplest(np.arange(math.prod(shape)).reshape(shape).transpose(axes).reshape(-1))


def transposed(shape: Sequence[int], perm: Sequence[int]) -> Order:
    """Return, for each element of a tensor of `shape`, where Transpose by `perm` puts it."""
    taken = np.arange(math.prod(shape)).reshape(shape).transpose(perm).reshape(-1)
    places = np.empty_like(taken)
    places[taken] = np.arange(taken.size)
    return simplest(places)


def simplest(order: Order) -> Order:
    """Return None for the order that changes nothing."""
    return None if order is None or np.array_equal(order, np.arange(order.size)) else order


def digits(taken: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return sizes and strides of the axes that make `taken`: its element i is the sum of digit times stride over i's digits.

    Args:
        taken: a permutation that some Transpose of some Reshape makes.
    """
    sizes: list[int] = []
    strides: list[int] = []
    rest = taken
    while rest.size > 1:
        step = int(rest[1] - rest[0])
        wrong = np.nonzero(rest != rest[0] + step * np.arange(rest.size))[0]
        run = int(wrong[0]) if wrong.size else rest.size
        while rest.size % run:
            run -= 1
        sizes.append(run)
        strides.append(step)
        rest = rest[::run]
    return tuple(sizes[::-1]), tuple(strides[::-1])


def split(
    sizes: tuple[int, ...], strides: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the axes of `digits` split into those of `shape`, where each of these lies within one; themselves otherwise."""
    found: list[tuple[int, int]] = []
    axis, left, stride = len(sizes) - 1, sizes[-1], strides[-1]
    for size in reversed(shape):
        if size == 1:
            found.append((1, 1 << 62))
            continue
        if left == 1:
            axis -= 1
            left, stride = sizes[axis], strides[axis]
        if left % size:
            return sizes, strides
        found.append((size, stride))
        left, stride = left // size, stride * size
    found.reverse()
    return tuple(size for size, _ in found), tuple(stride for _, stride in found)


def _through(places: Order, order: Order) -> Order:
    if places is None:
        return order
    return places if order is None else places[order]


def same_order(first: Order, second: Order) -> bool:
    """Return whether two orders are equal."""
    if first is None or second is None:
        return first is second
    return np.array_equal(first, second)


def _onnx(op_type: str, name: str, inputs: tuple[str, ...], output: str, **attributes: object) -> Onnx:
    return Onnx(name=name, op_type=op_type, inputs=inputs, outputs=(output,), attributes=attributes)
