"""What prepares features, as C: the formulas of `converters.trees.prepare`, one pass over the input each."""

from collections.abc import Sequence
from math import prod

import numpy as np

from modelfleet.converters.microcontroller.ir import Array
from modelfleet.converters.microcontroller.lowering import Constant, Lowered, Places, Target
from modelfleet.converters.microcontroller.trees.step import C_TYPES, Step
from modelfleet.converters.trees.prepare import column, default


def scaler(step: Step, target: Target) -> Lowered:
    """Lower Scaler: (x - offset) * scale."""
    del target
    x, offset, scale = step.input(), *(np.array(step.told.get(name, []), np.float32) for name in ("offset", "scale"))
    width = x.shape[-1] if x.shape else 1
    if offset.shape != scale.shape or len(scale) not in (1, width):
        step.refuse(f"expected as many offsets and scales as features, got {len(offset)} and {len(scale)}")
    at = f"i % {width}u" if len(scale) > 1 else "0"
    wide = "(float)" if x.dtype != "float32" else ""
    statement = f"@o0@[i] = ({wide}@i0@[i] - @c0@[{at}]) * @c1@[{at}];"
    return _elementwise(step, statement, [offset, scale])


def imputer(step: Step, target: Target) -> Lowered:
    """Lower Imputer."""
    del target
    x = step.input()
    kind = np.dtype(x.dtype)
    if kind.kind == "i":
        instead, missing = step.told.get("imputed_value_int64s", []), step.told.get("replaced_value_int64", 0)
    else:
        instead, missing = step.told.get("imputed_value_floats", []), step.told.get("replaced_value_float", 0.0)
    width = x.shape[-1] if x.shape else 1
    if not instead or len(instead) not in (1, width):
        step.refuse(f"expected one value to impute, or one for each feature, got {len(instead)}")
    is_nan = kind.kind == "f" and np.isnan(missing)
    absent = "!(@i0@[i] == @i0@[i])" if is_nan else "@i0@[i] == @c1@[0]"
    at = f"i % {width}u" if len(instead) > 1 else "0"
    constants = [np.array(instead, kind)] + ([] if is_nan else [np.array([missing], kind)])
    return _elementwise(step, f"@o0@[i] = {absent} ? @c0@[{at}] : @i0@[i];", constants)


def binarizer(step: Step, target: Target) -> Lowered:
    """Lower Binarizer: 1 where x > threshold, else 0."""
    del target
    if step.input().dtype != "float32":
        step.refuse("expected an input of float32, got another type")
    threshold = np.array([step.told.get("threshold", 0.0)], np.float32)
    return _elementwise(step, "@o0@[i] = @i0@[i] > @c0@[0] ? 1.0f : 0.0f;", [threshold])


def label_encoder(step: Step, target: Target) -> Lowered:
    """Lower LabelEncoder from numbers to numbers."""
    del target
    keys, values = column(step.told, "keys"), column(step.told, "values")
    if keys is None or values is None or keys.dtype.name not in C_TYPES or values.dtype.name not in C_TYPES:
        step.refuse(
            "expected numbers to numbers, got texts: encode them in the application (OrdinalEncoder before export)"
        )
    if len(keys) != len(values) or len(keys) == 0:
        step.refuse(f"expected as many values as keys, got {len(values)} and {len(keys)}")
    if keys.dtype.name != step.input().dtype or values.dtype.name != step.output().dtype:
        step.refuse(f"expected {step.input().dtype} to {step.output().dtype}, got {keys.dtype} to {values.dtype}")
    found = "x == @c0@[k]"
    if keys.dtype.kind == "f" and np.isnan(keys).any():
        found += " || (!(x == x) && !(@c0@[k] == @c0@[k]))"
    table = np.concatenate([values, np.array([default(step.told, values)], values.dtype)])
    statement = (
        f"const {C_TYPES[keys.dtype.name]} x = @i0@[i];\n    uint32_t k = 0;\n"
        f"    while (k < {len(keys)}u && !({found})) {{\n        k++;\n    }}\n    @o0@[i] = @c1@[k];"
    )
    return _elementwise(step, statement, [keys, table])


def normalizer(step: Step, target: Target) -> Lowered:
    """Lower Normalizer; a row whose norm is 0 stays. MAX is the greatest value, not the greatest size, as in onnxruntime."""
    del target
    norm, x = step.told.get("norm", "MAX"), step.input()
    if len(x.shape) not in (1, 2):
        step.refuse(f"expected 1 or 2 dimensions, got {len(x.shape)}")
    width = x.shape[-1]
    value = "x[i]" if x.dtype == "float32" else "(float)x[i]"
    how = {
        "MAX": (f"norm = i == 0 || {value} > norm ? {value} : norm;", f"{value} / norm"),
        "L1": (f"norm += {value} < 0.0f ? -{value} : {value};", f"{value} / norm"),
        # the share is taken before the root, so that a row of tiny values keeps its length
        "L2": (
            f"norm += {value} * {value};",
            f"({value} < 0.0f ? -1.0f : 1.0f) * sqrtf({value} * {value} / norm)",
        ),
    }.get(norm)
    if how is None:
        step.refuse(f"expected MAX, L1 or L2, got {norm}")
    text = f"""for (uint32_t row = 0; row < {x.elements // max(width, 1)}u; row++) {{
    const {C_TYPES[x.dtype]} *const x = @i0@ + row * {width}u;
    float *const y = @o0@ + row * {width}u;
    float norm = 0.0f;
    for (uint32_t i = 0; i < {width}u; i++) {{
        {how[0]}
    }}
    for (uint32_t i = 0; i < {width}u; i++) {{
        y[i] = norm == 0.0f ? {value} : {how[1]};
    }}
}}"""
    return Lowered(call=lambda places: _placed(text, places), overlap={0: 0}, needs_math=norm == "L2")


def feature_vectorizer(step: Step, target: Target) -> Lowered:
    """Lower FeatureVectorizer: the inputs' features beside each other, as float32."""
    del target
    told = list(step.told.get("inputdimensions", []))
    inputs = [step.input(place) for place in range(len(step.operator.inputs))]
    widths = [value.shape[-1] if value.shape else 0 for value in inputs]
    if widths != told or any(len(value.shape) not in (1, 2) for value in inputs):
        step.refuse(f"expected inputs of {told} features in 1 or 2 dimensions, got {[each.shape for each in inputs]}")
    rows, width = step.output().shape
    if any(value.elements != rows * value.shape[-1] for value in inputs):
        step.refuse(f"expected inputs of {rows} rows, got {[each.shape for each in inputs]}")
    lines, begin = list[str](), 0
    for place, value in enumerate(inputs):
        cast = "" if value.dtype == "float32" else "(float)"
        lines.append(f"    for (uint32_t i = 0; i < {widths[place]}u; i++) {{")
        lines.append(
            f"        @o0@[row * {width}u + {begin}u + i] = {cast}@i{place}@[row * {widths[place]}u + i];\n    }}"
        )
        begin += widths[place]
    text = "\n".join([f"for (uint32_t row = 0; row < {rows}u; row++) {{", *lines, "}"])
    return Lowered(call=lambda places: _placed(text, places))


def array_feature_extractor(step: Step, target: Target) -> Lowered:
    """Lower ArrayFeatureExtractor; a place outside the features, which ONNX forbids, becomes the nearest inside."""
    del target
    x, y = step.input(0), step.input(1)
    if not x.elements or not x.shape or y.dtype not in ("int64", "int32"):
        step.refuse(f"expected features and whole numbers for their places, got {list(x.shape)} and {y.dtype}")
    rows, features, count = prod(x.shape[:-1]), x.shape[-1], y.elements
    text = f"""for (uint32_t i = 0; i < {count}u; i++) {{
    const int64_t told = @i1@[i];
    const uint32_t place = told < 0 ? 0u : told >= {features} ? {features - 1}u : (uint32_t)told;
    for (uint32_t row = 0; row < {rows}u; row++) {{
        @o0@[row * {count}u + i] = @i0@[row * {features}u + place];
    }}
}}"""
    return Lowered(call=lambda places: _placed(text, places))


def _elementwise(step: Step, statement: str, constants: Sequence[Array]) -> Lowered:
    """Return the operator that does a statement for every element `i`; it may work in place where that is no wider."""
    text = f"for (uint32_t i = 0; i < {step.input().elements}u; i++) {{\n    {statement}\n}}"
    kept = tuple(
        Constant(ctype=C_TYPES[each.dtype.name], data=each, alignment=max(4, each.itemsize)) for each in constants
    )
    wider = np.dtype(step.output().dtype).itemsize > np.dtype(step.input().dtype).itemsize
    return Lowered(
        call=lambda places: _placed(text, places), constants=kept, overlap={} if wider else {0: 0}, stack_bytes=48
    )


def _placed(text: str, places: Places) -> str:
    for mark, names in (("i", places.inputs), ("o", places.outputs), ("c", places.constants)):
        for index, name in enumerate(names):
            text = text.replace(f"@{mark}{index}@", name)
    return text
