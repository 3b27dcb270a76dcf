"""What may harm whoever opens it is refused before it is stored, and the node is named."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from modelfleet.converters.child import ChildLimits
from modelfleet.converters.errors import ScanError
from modelfleet.converters.scan import scan_model
from modelfleet.converters.walk import walk

DIGITS = Path(__file__).parents[3] / "examples" / "digits"
MODEL = (DIGITS / "digits-1.0.0.onnx").read_bytes()


def constant(name: str, values: list[int]) -> object:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(values, np.int64)))


def refused(model: ModelProto) -> ScanError:
    with pytest.raises(ScanError) as error:
        walk(model.SerializeToString())
    return error.value


def test_an_honest_model_passes_and_is_described():
    report = scan_model(DIGITS / "digits-1.0.0.onnx")
    assert (report.opset, report.nodes, report.parameters) == (17, 6, 9930)
    assert report.operators == {"Conv": 2, "Flatten": 1, "Gemm": 1, "Relu": 2}


@pytest.mark.parametrize(
    "content",
    [
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"PK\x03\x04" + bytes(100),
        b"just text, no model\n",
        b"\x80\x04\x95cos\nsystem\n",
        b"\x08\x08",
        bytes(64),
    ],
)
def test_refuses_what_is_not_onnx(tmp_path: Path, content: bytes):
    (tmp_path / "upload").write_bytes(content)
    with pytest.raises(ScanError, match="expected an ONNX model"):
        walk(content)


def test_refuses_an_upload_that_is_not_onnx_in_its_child_process(tmp_path: Path):
    (tmp_path / "upload").write_bytes(b"just text, no model\n")
    with pytest.raises(ScanError, match="expected an ONNX model"):
        scan_model(tmp_path / "upload")


def test_refuses_empty_and_oversized_uploads_unread(tmp_path: Path):
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ScanError, match="got 0"):
        scan_model(tmp_path / "empty")
    with pytest.raises(ScanError, match="1 to 1000 bytes, got 4"):
        scan_model(DIGITS / "digits-1.0.0.onnx", max_bytes=1000)
    with pytest.raises(ScanError, match="cannot read"):
        scan_model(tmp_path / "absent")


@pytest.mark.parametrize("kept", [0.01, 0.1, 0.5, 0.9, 0.99, 0.999])
def test_refuses_a_truncated_model(kept: float):
    with pytest.raises(ScanError):
        walk(MODEL[: int(len(MODEL) * kept)])


def test_a_scan_that_passes_its_limits_is_a_refusal(tmp_path: Path):
    with pytest.raises(ScanError, match="within the limits"):
        scan_model(DIGITS / "digits-1.0.0.onnx", limits=ChildLimits(timeout_seconds=0.05, memory_bytes=4 * 1024**3))


def test_refuses_a_custom_operator_by_name(models):
    model = models.model([helper.make_node("Harm", ["x"], ["y"], name="evil", domain="com.evil")], domains=["com.evil"])
    error = refused(model)
    assert error.node == "evil"
    assert "com.evil::Harm" in str(error)


def test_takes_models_that_onnxruntime_quantized_to_operators_of_its_own():
    for name in ("kws", "ic", "ad"):
        walk((DIGITS.parent / "mlperf_tiny" / f"{name}_qop.onnx").read_bytes())


def test_refuses_any_other_operator_of_onnxruntime(models):
    node = helper.make_node("Tokenizer", ["x"], ["y"], name="other", domain="com.microsoft")
    assert "com.microsoft::Tokenizer" in str(refused(models.model([node], domains=["com.microsoft"])))


def test_refuses_a_custom_operator_inside_a_loop(models):
    body = [helper.make_node("Harm", ["acc"], ["next"], name="evil", domain="com.evil")]
    model = models.model([constant("trips", [3]), models.loop("trips", body)], domains=["com.evil"])
    assert refused(model).node == "evil"


def test_refuses_a_custom_operator_inside_a_function(models):
    inner = helper.make_node("Harm", ["a"], ["b"], name="evil", domain="com.evil")
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.evil", 1)]
    function = helper.make_function("local", "F", ["a"], ["b"], [inner], imports)
    call = helper.make_node("F", ["x"], ["y"], name="call", domain="local")
    model = models.model([call], functions=[function], domains=["local", "com.evil"])
    assert refused(model).node == "evil"


def test_a_local_function_of_standard_operators_passes(models):
    function = helper.make_function(
        "local", "F", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    call = helper.make_node("F", ["x"], ["y"], name="call", domain="local")
    assert walk(models.model([call], functions=[function], domains=["local"]).SerializeToString()).nodes == 2


def test_refuses_functions_that_expand_without_end(models):
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    call = helper.make_node("F", ["a"], ["b"], name="again", domain="local")
    function = helper.make_function("local", "F", ["a"], ["b"], [call], imports)
    model = models.model([helper.make_node("F", ["x"], ["y"], domain="local")], functions=[function], domains=["local"])
    assert "cycle through F" in str(refused(model))


def test_refuses_functions_that_expand_to_billions(models):
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    functions = []
    for level in range(8):
        inner = f"F{level + 1}" if level < 7 else "Relu"
        domain = "local" if level < 7 else ""
        names = ["a", *(f"t{i}" for i in range(31)), "b"]
        nodes = [helper.make_node(inner, [names[i]], [names[i + 1]], domain=domain) for i in range(32)]
        functions.append(helper.make_function("local", f"F{level}", ["a"], ["b"], nodes, imports))
    call = helper.make_node("F0", ["x"], ["y"], domain="local")
    model = models.model([call], functions=functions, domains=["local"])
    assert len(model.SerializeToString()) < 20_000
    assert "at most 100000 nodes" in str(refused(model))


def test_refuses_external_data(models):
    model = models.classifier()
    weight = model.graph.initializer[0]
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
    error = refused(model)
    assert "got external data" in str(error)
    assert "'w1'" in str(error)
    assert error.node == "first"


def test_refuses_external_data_in_a_constant(models):
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[8], data_location=TensorProto.EXTERNAL)
    nodes = [
        helper.make_node("Constant", [], ["c"], name="far", value=tensor),
        helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    assert refused(models.model(nodes)).node == "far"


@pytest.mark.parametrize(
    ("dims", "complaint"),
    [
        ([2**40], "elements by its shape"),
        ([8, -4], "dimensions >= 0"),
        ([9], "expected 9 elements by its shape, got data for 8"),
    ],
)
def test_refuses_a_tensor_whose_shape_is_not_its_data(models, dims: list[int], complaint: str):
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    model = models.model(nodes, weights={"w": np.zeros(8, np.float32)})
    model.graph.initializer[0].dims[:] = dims
    assert complaint in str(refused(model))


def test_refuses_a_tensor_of_unknown_type(models):
    model = models.model([helper.make_node("Add", ["x", "w"], ["y"])], weights={"w": np.zeros(8, np.float32)})
    model.graph.initializer[0].data_type = 99
    assert "known type" in str(refused(model))


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("grow", [constant("s", [2**20, 2**20]), helper.make_node("ConstantOfShape", ["s"], ["y"], name="grow")]),
        ("grow", [constant("s", [2**34, 8]), helper.make_node("Expand", ["x", "s"], ["y"], name="grow")]),
        ("grow", [constant("s", [2**34, 1]), helper.make_node("Tile", ["x", "s"], ["y"], name="grow")]),
        ("grow", [helper.make_node("RandomNormal", [], ["y"], name="grow", shape=[2**20, 2**20])]),
    ],
)
def test_refuses_a_size_bomb(models, name: str, nodes: list):
    error = refused(models.model(nodes))
    assert error.node == name
    assert "at most 1073741824 bytes" in str(error)


def test_refuses_a_size_bomb_that_grows_step_by_step(models):
    nodes = [constant("s", [1024, 1])]
    for step in range(4):
        source = "x0" if step == 0 else f"t{step - 1}"
        nodes.append(helper.make_node("Tile", [source, "s"], [f"t{step}" if step < 3 else "y"], name=f"tile{step}"))
    model = models.model(nodes, weights={"x0": np.zeros((8, 8), np.float32)})
    assert refused(model).node in ("tile2", "tile3")


def test_refuses_a_loop_without_a_trip_count(models):
    error = refused(models.model([models.loop("")]))
    assert error.node == "spin"
    assert "one without" in str(error)


def test_refuses_a_loop_of_a_huge_trip_count(models):
    assert "got 9223372036854775807" in str(refused(models.model([constant("t", [2**63 - 1]), models.loop("t")])))
    model = models.model([models.loop("t")], weights={"t": np.array(2**40, np.int64)})
    assert refused(model).node == "spin"


def test_a_short_loop_passes(models):
    walk(models.model([constant("t", [3]), models.loop("t")]).SerializeToString())


def test_refuses_deep_nesting(models):
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"])],
        "leaf",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    for level in range(10):
        choice = helper.make_node("If", ["c"], [f"z{level}"], name=f"if{level}", then_branch=graph, else_branch=graph)
        output = [helper.make_tensor_value_info(f"z{level}", TensorProto.FLOAT, None)]
        graph = helper.make_graph([choice], f"level{level}", [], output)
    nodes = [helper.make_node("If", ["c"], ["y"], name="top", then_branch=graph, else_branch=graph)]
    assert "nested at most 8" in str(refused(models.model(nodes, weights={"c": np.array(True)})))


def test_refuses_a_cyclic_graph(models):
    nodes = [helper.make_node("Add", ["x", "b"], ["a"], name="one"), helper.make_node("Relu", ["a"], ["b"], name="two")]
    nodes.append(helper.make_node("Relu", ["b"], ["y"]))
    error = refused(models.model(nodes))
    assert "got a cycle through 'b'" in str(error)
    assert error.node == "one"


def test_refuses_nodes_that_stand_before_what_they_read(models):
    nodes = [helper.make_node("Relu", ["a"], ["y"], name="early"), helper.make_node("Neg", ["x"], ["a"], name="late")]
    error = refused(models.model(nodes))
    assert "got the order of 'early' before 'late' through 'a'" in str(error)
    assert error.node == "early"


def test_refuses_an_input_that_nothing_computes(models):
    assert "valid ONNX model" in str(refused(models.model([helper.make_node("Relu", ["nowhere"], ["y"])])))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_change_of_bytes_raises_anything_but_a_scan_error(data: st.DataObject):
    content = bytearray(MODEL[:300] + MODEL[-300:]) if data.draw(st.booleans()) else bytearray(MODEL)
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ScanError):
        walk(bytes(content))
