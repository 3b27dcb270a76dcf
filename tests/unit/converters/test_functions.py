"""Bodies of operators that ONNX defines by others."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TypeProto, helper, inliner
from onnx.reference import ReferenceEvaluator

from modelfleet.converters.functions import FUNCTION_DOMAIN, call_function, function_of

OPSET = 21
X = np.linspace(-3, 3, 12, dtype=np.float32).reshape(2, 6)


def model_of(node: NodeProto) -> ModelProto:
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", 1, [2, 6])], [helper.make_tensor_value_info("y", 1, [2, 6])]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def answer(model: ModelProto) -> NDArray[np.float32]:
    evaluator: Any = ReferenceEvaluator(model)  # untyped
    return evaluator.run(None, {"x": X})[0]


def written_out(model: ModelProto) -> ModelProto:
    node = model.graph.node[0]
    function = function_of(node, [helper.make_tensor_type_proto(1, [2, 6])], OPSET)
    assert function is not None
    call_function(node, function, "Body", OPSET)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid(FUNCTION_DOMAIN, 1))
    return inliner.inline_local_functions(model)


@pytest.mark.parametrize("operator", ["Elu", "Selu", "ThresholdedRelu", "HardSigmoid", "LeakyRelu"])
def test_attributes_left_out_reach_the_body_at_their_defaults(operator: str) -> None:
    node = helper.make_node(operator, ["x"], ["y"], name="n")
    expected = answer(model_of(node))
    model = written_out(model_of(node))
    assert operator not in {each.op_type for each in model.graph.node}
    np.testing.assert_allclose(answer(model), expected, rtol=1e-5, atol=1e-6)


def test_attributes_given_stay_as_they_are() -> None:
    node = helper.make_node("Elu", ["x"], ["y"], name="n", alpha=0.25)
    expected = answer(model_of(node))
    np.testing.assert_allclose(answer(written_out(model_of(node))), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("operator", ["Add", "NoSuchOperator"])
def test_an_operator_that_is_no_function_has_no_body(operator: str) -> None:
    assert function_of(helper.make_node(operator, ["x", "x"], ["y"]), [TypeProto(), TypeProto()], OPSET) is None


def test_an_opset_without_a_body_of_the_operator_is_no_error() -> None:
    node = helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=2)
    types = [helper.make_tensor_type_proto(1, [1, 4, 3]), *[helper.make_tensor_type_proto(1, [4])] * 2]
    assert function_of(node, types, 24) is None
    assert function_of(node, types, 21) is not None
