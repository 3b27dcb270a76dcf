"""Operator -> the rule that rewrites it before onnx2tf sees it."""

from collections.abc import Mapping, Sequence
from typing import Final

from onnx import NodeProto

from modelfleet.converters.tflite import arithmetic, declared, exact, quantized, recurrent
from modelfleet.converters.tflite.rewrite import Builder, Rule


def either(*rules: Rule) -> Rule:
    """Return a rule that is the first of `rules` that applies."""

    def first(node: NodeProto, build: Builder) -> Sequence[str] | None:
        for rule in rules:
            found = rule(node, build)
            if found is not None:
                return found
        return None

    return first


EARLY: Final[Mapping[str, Rule]] = {
    "AffineGrid": declared.affine_grid,
    "CenterCropPad": declared.center_crop_pad,
    "Shape": declared.shape_of,
    "Size": declared.shape_of,
}
"""Before operators are written out."""
RULES: Final[Mapping[str, Rule]] = {
    "ArgMax": arithmetic.arg_last,
    "ArgMin": arithmetic.arg_last,
    "BitwiseAnd": arithmetic.bitwise,
    "BitwiseOr": arithmetic.bitwise,
    "BitwiseNot": arithmetic.bitwise_not,
    "BitwiseXor": arithmetic.bitwise_xor,
    "ConstantOfShape": declared.constant_of_shape,
    "ConvInteger": quantized.conv_integer,
    "CumProd": arithmetic.cumulative_product,
    "DequantizeLinear": quantized.dequantize,
    "Elu": arithmetic.elu,
    "Expand": declared.expand,
    "GRU": recurrent.recurrent,
    "GatherElements": arithmetic.wrapped_indices,
    "Gelu": arithmetic.gelu,
    "Hardmax": arithmetic.hardmax,
    "InstanceNormalization": arithmetic.instance_norm,
    "LogSoftmax": arithmetic.log_softmax,
    "LpNormalization": arithmetic.norm,
    "LSTM": recurrent.recurrent,
    "MatMulInteger": quantized.matmul_integer,
    "Max": arithmetic.single,
    "MaxPool": arithmetic.max_pool,
    "Mean": arithmetic.single,
    "Min": arithmetic.single,
    "Mish": arithmetic.mish,
    "OneHot": exact.one_hot,
    "Pad": declared.pad,
    "Pow": arithmetic.power,
    "PRelu": arithmetic.p_relu,
    "QLinearConv": quantized.qlinear_conv,
    "QLinearMatMul": quantized.qlinear_matmul,
    "QuantizeLinear": quantized.quantize,
    "RNN": recurrent.recurrent,
    "ReduceL1": either(declared.reduce, arithmetic.reduce_l1),
    "ReduceL2": either(declared.reduce, arithmetic.reduce_l2),
    "ReduceLogSum": declared.reduce,
    "ReduceLogSumExp": either(declared.reduce, exact.reduce_log_sum_exp),
    "ReduceMax": either(declared.reduce, arithmetic.reduce_bool),
    "ReduceMean": declared.reduce,
    "ReduceMin": either(declared.reduce, arithmetic.reduce_bool),
    "ReduceProd": declared.reduce,
    "ReduceSum": declared.reduce,
    "ReduceSumSquare": either(declared.reduce, arithmetic.reduce_sum_square),
    "Reshape": declared.reshape,
    "Resize": declared.resize,
    "Shape": declared.shape_of,
    "Size": declared.shape_of,
    "Slice": declared.slice_,
    "Softplus": arithmetic.softplus,
    "Split": declared.split,
    "Squeeze": declared.squeeze,
    "Sum": arithmetic.single,
    "Tile": declared.tile,
    "TopK": declared.top_k,
    "Unsqueeze": declared.squeeze,
}
