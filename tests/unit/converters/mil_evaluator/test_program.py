"""Packages as a whole: what they declare, which inputs they take, blocks within blocks, fp16, weight files, refusals."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelfleet.converters.mil_evaluator.errors import MilError
from modelfleet.converters.mil_evaluator.program import MilProgram
from tests.unit.converters.mil_evaluator.packages import Case, ct, evaluate_one, hushed, mb, save

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def flexible(*bounds: tuple[int, int] | int, dtype: Any = np.float32) -> tuple[Any, Any, Any]:
    """A placeholder with flexible dimensions, as `save` takes it."""
    from coremltools.converters.mil.mil import get_new_symbol

    shape = tuple(size if isinstance(size, int) else get_new_symbol() for size in bounds)
    return shape, dtype, tuple(size if isinstance(size, int) else ct.RangeDim(*size) for size in bounds)


@pytest.fixture(scope="module")
def stretchy(tmp_path_factory: pytest.TempPathFactory) -> MilProgram:
    """(2..5, 3) -> (its rows doubled, 3)."""
    package = save(
        lambda x: mb.concat(values=[x, x], axis=0, name="twice"),
        {"x": flexible((2, 5), 3)},
        tmp_path_factory.mktemp("p"),
    )
    return MilProgram(package)


def test_flexible_dimensions_are_none_and_answered_in_any_allowed_size(stretchy: MilProgram) -> None:
    assert [feature.shape for feature in stretchy.inputs] == [(None, 3)]
    assert [feature.shape for feature in stretchy.outputs] == [(None, 3)]
    for rows in (2, 5):
        x = np.ones((rows, 3), np.float32)
        assert stretchy.run({"x": x})["twice"].shape == (2 * rows, 3)


@pytest.mark.parametrize(
    "x",
    [
        np.ones((1, 3), np.float32),
        np.ones((6, 3), np.float32),
        np.ones((2, 4), np.float32),
        np.ones((2, 3), np.float64),
        np.ones(3, np.float32),
    ],
    ids=lambda x: f"{x.dtype}{x.shape}",
)
def test_an_input_of_another_dtype_or_shape_is_refused(stretchy: MilProgram, x: np.ndarray) -> None:
    with pytest.raises(MilError, match="input 'x': expected"):
        stretchy.run({"x": x})


def test_missing_and_superfluous_inputs_are_refused(stretchy: MilProgram) -> None:
    x = np.ones((2, 3), np.float32)
    for inputs in ({}, {"x": x, "y": x}):
        with pytest.raises(MilError, match="expected the inputs"):
            stretchy.run(inputs)


def test_listed_shapes_are_the_only_ones(tmp_path: Path) -> None:
    with hushed():
        shapes = ct.EnumeratedShapes([(1, 3), (4, 3)])
    symbolic = flexible((1, 4), 3)
    program = MilProgram(save(lambda x: mb.relu(x=x), {"x": (symbolic[0], np.float32, shapes)}, tmp_path))
    assert program.run({"x": np.ones((4, 3), np.float32)})
    with pytest.raises(MilError, match="within"):
        program.run({"x": np.ones((2, 3), np.float32)})


def test_both_branches_of_a_condition_are_evaluated(tmp_path: Path) -> None:
    def program(x: Any, flag: Any) -> Any:
        chosen = mb.greater(x=mb.squeeze(x=flag), y=0)
        return mb.cond(pred=chosen, _true_fn=lambda: mb.mul(x=x, y=2.0), _false_fn=lambda: mb.sub(x=x, y=1.0))

    opened = MilProgram(save(program, {"x": X, "flag": np.zeros(1, np.int32)}, tmp_path))
    for flag, expected in ((1, 2 * X), (0, X - 1)):
        (answer,) = opened.run({"x": X, "flag": np.array([flag], np.int32)}).values()
        np.testing.assert_array_equal(answer, expected)


def test_a_loop_runs_until_its_condition_fails(tmp_path: Path) -> None:
    def program(x: Any, n: Any) -> Any:
        def body(i: Any, total: Any) -> Any:
            return mb.add(x=i, y=1), mb.add(x=mb.mul(x=total, y=2.0), y=x)

        limit = mb.squeeze(x=n)
        return mb.while_loop(
            _cond=lambda i, total: mb.less(x=i, y=limit), _body=body, loop_vars=(0, mb.mul(x=x, y=0.0))
        )[1]

    opened = MilProgram(save(program, {"x": X, "n": np.zeros(1, np.int32)}, tmp_path))
    for count in (0, 1, 4):
        (answer,) = opened.run({"x": X, "n": np.array([count], np.int32)}).values()
        np.testing.assert_array_equal(answer, X * (2**count - 1))


def test_lists_carry_tensors_out_of_a_loop(tmp_path: Path) -> None:
    def program(x: Any) -> Any:
        steps = mb.make_list(init_length=1, dynamic_length=True, elem_shape=(3,), dtype="fp32")
        rows = mb.list_scatter(ls=steps, indices=[0, 1], value=x)
        longer = mb.list_write(ls=rows, index=2, value=mb.list_read(ls=rows, index=0))
        count = mb.cast(x=mb.list_length(ls=longer), dtype="fp32")
        return mb.mul(x=mb.list_gather(ls=longer, indices=[2, 1]), y=count)

    (answer,) = MilProgram(save(program, {"x": X}, tmp_path)).run({"x": X}).values()
    np.testing.assert_array_equal(answer, 3 * X)


def test_fp16_is_rounded_once_an_operation(tmp_path: Path) -> None:
    """2^-13 squared is nothing in fp16, and a quarter added to 2,048 is lost: not so before an operation's end."""
    x = np.full((1, 4096), 0.25, np.float16)
    x[0, 0] = 2048
    small = np.full((1, 4096), 2**-13, np.float16)

    def program(x: Any, small: Any) -> Any:
        squares = mb.reduce_sum_square(x=small, axes=[1])
        return mb.reduce_sum(x=x, axes=[1]), mb.add(x=x, y=np.float16(0.25)), squares

    package = save(program, {"x": x, "small": small}, tmp_path, precision=ct.precision.FLOAT16)
    total, sums, squares = MilProgram(package).run({"x": x, "small": small}).values()
    assert (total.dtype, float(total[0])) == (np.float16, 3072.0)
    assert (float(sums[0, 0]), float(sums[0, 1])) == (2048.0, 0.5)
    assert float(squares[0]) == 2**-14


DTYPES = ("float16", "float32", "int8", "uint8", "int16", "uint16", "int32")


@pytest.mark.parametrize("count", [3, 40], ids=["in-the-program", "in-the-weight-file"])
def test_constants_of_every_dtype_are_read(count: int, tmp_path: Path) -> None:
    values = [np.linspace(0 if name.startswith("u") else -100, 100, count).astype(name) for name in DTYPES]

    def program(x: Any) -> Any:
        return tuple(mb.add(x=mb.cast(x=mb.const(val=one), dtype="fp32"), y=x, name=f"y_{one.dtype}") for one in values)

    answers = MilProgram(save(program, {"x": X[:1, :1]}, tmp_path, 8)).run({"x": X[:1, :1]})
    for one in values:
        np.testing.assert_array_equal(answers[f"y_{one.dtype}"].ravel(), one.astype(np.float32))


REFUSED = [
    Case("gather", {"x": X, "indices": np.array([3], np.int32)}, {"axis": 1}, label="beyond"),
    Case("gather", {"x": X, "indices": np.array([-1], np.int32)}, {"axis": 1}, label="negative"),
    Case("gather_along_axis", {"x": X, "indices": np.array([[0, 0, 2]], np.int32)}, {"axis": 0}),
    Case("gather_nd", {"x": X, "indices": np.array([[0, 3]], np.int32)}),
    Case("scatter_nd", {"data": X, "indices": np.array([[2, 0]], np.int32), "updates": X[0, :1]}),
    Case("scatter", {"data": X, "indices": np.array([-1], np.int32), "updates": X[:1]}, {"axis": 0}),
    Case("one_hot", {"indices": np.array([3], np.int32)}, {"one_hot_vector_size": 3}),
    Case("floor_div", {"x": np.array([3], np.int32), "y": np.array([0], np.int32)}),
    Case("mod", {"x": np.array([3], np.int32), "y": np.array([0], np.int32)}),
    Case("real_div", {"x": np.array([3], np.int32), "y": np.array([2], np.int32)}),
    Case("cast", {"x": np.array([3e9], np.float32)}, {"dtype": "int32"}),
    Case("reduce_mean", {"x": np.array([[3, 4]], np.int32)}, {"axes": [1]}),
    Case("reshape", {"x": X, "shape": np.array([4, 2], np.int32)}),
    Case("slice_by_size", {"x": X, "begin": np.array([0, 2], np.int32), "size": np.array([1, 2], np.int32)}),
    Case("tile", {"x": X, "reps": np.array([1 << 20, 1 << 20], np.int32)}),
    Case("fill", {"shape": np.array([1 << 20, 1 << 20], np.int32)}, {"value": 1.0}),
    Case("local_response_norm", {"x": np.ones((1, 4, 2), np.float32)}, {"size": 2}),
    Case(
        "gru",
        {"x": np.ones((1, 2, 1), np.float32), "initial_h": np.ones((2, 1), np.float32)},
        {"weight_ih": np.ones((3, 1), np.float32), "weight_hh": np.ones((3, 1), np.float32)},
    ),
    Case(
        "resize",
        {"x": X[None]},
        {
            "shape": [3, 5],
            "resized_dims": np.uint32(2),
            "interpolation_mode": "NEAREST_NEIGHBOR",
            "sampling_mode": "UNALIGN_CORNERS",
        },
    ),
    Case("random_uniform", {"shape": np.array([2], np.int32)}, {"low": 0.0, "high": 1.0, "seed": 1}),
]
"""What the runtime leaves undefined, or does wrong."""


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_what_the_runtime_does_not_define_is_refused_by_name(case: Case, tmp_path: Path) -> None:
    with pytest.raises(MilError) as caught:
        evaluate_one(case, tmp_path)
    assert (caught.value.op_type, bool(caught.value.output)) == (case.op, True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    return save(lambda x: mb.linear(x=x, weight=weight), {"x": X}, tmp_path_factory.mktemp("p"))


def _edit_model(edit: Callable[[Any], None]) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        from coremltools.proto import Model_pb2

        path = package / "Data/com.apple.CoreML/model.mlmodel"
        model: Any = Model_pb2.Model()
        model.ParseFromString(path.read_bytes())
        edit(model)
        path.write_bytes(model.SerializeToString())

    return change


def _operations(model: Any) -> Any:
    (block,) = model.mlProgram.functions["main"].block_specializations.values()
    return block.operations


def _linear(model: Any) -> Any:
    return next(operation for operation in _operations(model) if operation.type == "linear")


def _weight(model: Any) -> Any:
    return next(
        o.attributes["val"] for o in _operations(model) if o.attributes["val"].WhichOneof("value") == "blobFileValue"
    )


def _set(target: Callable[[Any], Any], name: str, value: Any) -> Callable[[Any], None]:
    return lambda model: setattr(target(model), name, value)


def _extra(model: Any) -> None:
    _linear(model).inputs["surprise"].CopyFrom(_linear(model).inputs["x"])


def _rank6(model: Any) -> None:
    array = model.description.input[0].type.multiArrayType
    array.shape[:] = [1] * 6


def _scalar(model: Any) -> None:
    del model.description.input[0].type.multiArrayType.shape[:]


def _sentinel(package: Path) -> None:
    path = package / "Data/com.apple.CoreML/weights/weight.bin"
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 0xDEADBEEF), b"\0\0\0\0"))


def _truncate(name: str, keep: int) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        path = package / name
        path.write_bytes(path.read_bytes()[:keep])

    return change


def _manifest(edit: Callable[[Any], None]) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        path = package / "Manifest.json"
        document = json.loads(path.read_text())
        edit(document)
        path.write_text(json.dumps(document))

    return change


def _leave(document: Any) -> None:
    document["itemInfoEntries"][document["rootModelIdentifier"]]["path"] = "../../elsewhere"


DAMAGE: dict[str, Callable[[Path], None]] = {
    "unknown operation": _edit_model(_set(_linear, "type", "linearise")),
    "unknown parameter": _edit_model(_extra),
    "unknown dtype": _edit_model(_set(lambda m: _linear(m).outputs[0].type.tensorType, "dataType", 24)),
    "another shape declared": _edit_model(
        _set(lambda m: _linear(m).outputs[0].type.tensorType.dimensions[1].constant, "size", 5)
    ),
    "another name": _edit_model(_set(lambda m: _linear(m).inputs["x"].arguments[0], "name", "nobody")),
    "name made twice": _edit_model(_set(lambda m: _linear(m).outputs[0], "name", "x")),
    "rank 6 input": _edit_model(_rank6),
    "rank 0 input": _edit_model(_scalar),
    "weights elsewhere": _edit_model(
        _set(lambda m: _weight(m).blobFileValue, "fileName", "@model_path/weights/../model.mlmodel")
    ),
    "weights of an absolute path": _edit_model(_set(lambda m: _weight(m).blobFileValue, "fileName", "/etc/hostname")),
    "weights beyond the file": _edit_model(_set(lambda m: _weight(m).blobFileValue, "offset", 1 << 40)),
    "weights between blobs": _edit_model(_set(lambda m: _weight(m).blobFileValue, "offset", 65)),
    "weights of another dtype": _edit_model(_set(lambda m: _weight(m).type.tensorType, "dataType", 10)),
    "weights of another size": _edit_model(
        _set(lambda m: _weight(m).type.tensorType.dimensions[0].constant, "size", 3)
    ),
    "weights of a huge size": _edit_model(
        _set(lambda m: _weight(m).type.tensorType.dimensions[0].constant, "size", 1 << 62)
    ),
    "no program": _edit_model(lambda m: m.ClearField("mlProgram")),
    "no blob where one is told": _sentinel,
    "half a weight file": _truncate("Data/com.apple.CoreML/weights/weight.bin", 140),
    "an empty weight file": _truncate("Data/com.apple.CoreML/weights/weight.bin", 0),
    "half a model": _truncate("Data/com.apple.CoreML/model.mlmodel", 300),
    "half a manifest": _truncate("Manifest.json", 40),
    "a manifest that leads outside": _manifest(_leave),
    "a manifest without a root": _manifest(lambda document: document.pop("rootModelIdentifier")),
    "no weight file": lambda package: (package / "Data/com.apple.CoreML/weights/weight.bin").unlink(),
    "no manifest": lambda package: (package / "Manifest.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_package_is_refused(damage: str, saved: Path, tmp_path: Path) -> None:
    package = tmp_path / "damaged.mlpackage"
    shutil.copytree(saved, package)
    DAMAGE[damage](package)
    with pytest.raises(MilError):
        MilProgram(package).run({"x": X})


def test_a_value_of_another_shape_than_declared_is_named(saved: Path, tmp_path: Path) -> None:
    package = tmp_path / "damaged.mlpackage"
    shutil.copytree(saved, package)

    def constant(model: Any) -> Any:
        return next(o for o in _operations(model) if o.attributes["val"].WhichOneof("value") == "blobFileValue")

    _edit_model(_set(lambda m: constant(m).outputs[0].type.tensorType.dimensions[0].constant, "size", 5))(package)
    with pytest.raises(MilError, match="the program declares shape"):
        MilProgram(package).run({"x": X})


def test_the_package_is_right_without_damage(saved: Path) -> None:
    (answer,) = MilProgram(saved).run({"x": X}).values()
    np.testing.assert_array_equal(answer, X @ np.arange(12, dtype=np.float32).reshape(4, 3).T)


def test_a_parameter_that_the_operation_does_not_know_is_named(saved: Path, tmp_path: Path) -> None:
    package = tmp_path / "damaged.mlpackage"
    shutil.copytree(saved, package)
    DAMAGE["unknown parameter"](package)
    with pytest.raises(MilError, match=r"unknown parameters \['surprise'\]") as caught:
        MilProgram(package).run({"x": X})
    assert caught.value.op_type == "linear"


def test_types_of_the_format_that_the_runtime_lacks_are_unknown() -> None:
    from modelfleet.converters.mil_evaluator.values import read_type
    from tests.unit.converters.mil_evaluator.packages import MIL

    for number in (12, 13, 24, 34, 40):
        declared = MIL.ValueType()
        declared.tensorType.dataType = number
        with pytest.raises(MilError, match="unknown dtype"):
            read_type(declared)
