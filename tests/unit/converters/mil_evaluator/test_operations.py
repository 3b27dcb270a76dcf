"""Operations of which coremltools infers no values: as onnxruntime has them, or as coremltools' tests expect of a Mac."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnxruntime
import pytest

from tests.unit.converters.mil_evaluator.packages import Case, evaluate

RNG = np.random.default_rng(7)
SERIES = RNG.normal(size=(2, 4, 11)).astype(np.float32)
IMAGE = RNG.normal(size=(2, 4, 9, 8)).astype(np.float32)
VOLUME = RNG.normal(size=(1, 4, 5, 6, 4)).astype(np.float32)
SQUARE = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)


def random(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values: Any) -> np.ndarray:
    return np.array(values, np.int32)


@dataclass(frozen=True)
class Peer:
    """A case, and the ONNX operator that does the same. inputs: arrays, None for one left out."""

    case: Case
    op: str
    inputs: Sequence[np.ndarray | None]
    attributes: Mapping[str, Any]

    def __str__(self) -> str:
        return str(self.case)


@dataclass(frozen=True)
class Known:
    """A case whose answers are known."""

    case: Case
    expected: Sequence[Any]

    def __str__(self) -> str:
        return str(self.case)


def conv(label: str, x: np.ndarray, weight: np.ndarray, bias: bool = True, **attributes: Any) -> Peer:
    """MIL's and ONNX's attributes of one convolution; `pads` as ONNX has them: all before, then all after."""
    spatial = x.ndim - 2
    pads = attributes.get("pads", [0] * (2 * spatial))
    fixed = {
        "weight": weight,
        "strides": attributes.get("strides", [1] * spatial),
        "dilations": attributes.get("dilations", [1] * spatial),
        "groups": attributes.get("group", 1),
        "pad_type": {"SAME_UPPER": "same", "SAME_LOWER": "same_lower"}.get(attributes.get("auto_pad", ""), "custom"),
        "pad": [pads[side * spatial + i] for i in range(spatial) for side in (0, 1)],
    }
    vector = random(weight.shape[0]) if bias else None
    if vector is not None:
        fixed["bias"] = vector
    if "auto_pad" in attributes:
        attributes.pop("pads", None)
    return Peer(
        Case("conv", {"x": x}, fixed, label=label, rtol=1e-4, atol=1e-5), "Conv", [x, weight, vector], attributes
    )


def transposed(label: str, x: np.ndarray, weight: np.ndarray, **attributes: Any) -> Peer:
    spatial, groups = x.ndim - 2, attributes.get("group", 1)
    pads, bias = attributes.get("pads", [0] * (2 * spatial)), random(weight.shape[1] * groups)
    fixed = {
        "weight": weight,
        "bias": bias,
        "strides": attributes.get("strides", [1] * spatial),
        "dilations": attributes.get("dilations", [1] * spatial),
        "groups": groups,
        "pad_type": "custom" if any(pads) else "valid",
        "pad": [pads[side * spatial + i] for i in range(spatial) for side in (0, 1)],
    }
    case = Case("conv_transpose", {"x": x}, fixed, label=label, rtol=1e-4, atol=1e-5)
    return Peer(case, "ConvTranspose", [x, weight, bias], attributes)


def pool(op: str, label: str, x: np.ndarray, kernel: Sequence[int], **attributes: Any) -> Peer:
    spatial = x.ndim - 2
    pads = attributes.get("pads", [0] * (2 * spatial))
    fixed: dict[str, Any] = {
        "kernel_sizes": kernel,
        "strides": attributes.get("strides", [1] * spatial),
        "pad_type": {"SAME_UPPER": "same", "SAME_LOWER": "same_lower"}.get(attributes.get("auto_pad", ""), "custom"),
        "pad": [pads[side * spatial + i] for i in range(spatial) for side in (0, 1)],
        "ceil_mode": bool(attributes.get("ceil_mode", 0)),
    }
    if op == "avg_pool":
        fixed["exclude_padding_from_average"] = not attributes.get("count_include_pad", 0)
    attributes["kernel_shape"] = kernel
    onnx_op = {"avg_pool": "AveragePool", "max_pool": "MaxPool", "l2_pool": "LpPool"}[op]
    return Peer(Case(op, {"x": x}, fixed, label=label, atol=1e-5), onnx_op, [x], attributes)


def resized(label: str, x: np.ndarray, sizes: Sequence[int], mode: str, sampling: str, transformation: str) -> Peer:
    fixed = {
        "shape": sizes,
        "resized_dims": np.uint32(2),
        "interpolation_mode": mode,
        "sampling_mode": sampling,
    }
    attributes = {
        "mode": "linear" if mode == "LINEAR" else "nearest",
        "coordinate_transformation_mode": transformation,
        "nearest_mode": "floor",
    }
    inputs = [x, None, None, np.array([*x.shape[:2], *sizes], np.int64)]
    return Peer(Case("resize", {"x": x}, fixed, label=label, rtol=1e-4, atol=1e-5), "Resize", inputs, attributes)


def _gates(weight: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """ONNX's gates in MIL's order."""
    return np.concatenate([np.split(weight, len(order))[i] for i in order])


def lstm(direction: str) -> tuple[Case, list[np.ndarray | None], dict[str, Any]]:
    """ONNX has the gates i o f c, MIL i f o z; MIL has one bias where ONNX has two."""
    ways = 2 if direction == "bidirectional" else 1
    x, w, r = random(5, 2, 3), random(ways, 16, 3), random(ways, 16, 4)
    b, p, h, c = random(ways, 32), random(ways, 12), random(ways, 2, 4), random(ways, 2, 4)
    order, fixed = (0, 2, 1, 3), {"direction": direction, "output_sequence": True}
    for i, suffix in zip(range(ways), ("", "_back"), strict=False):
        fixed |= {
            f"weight_ih{suffix}": _gates(w[i], order),
            f"weight_hh{suffix}": _gates(r[i], order),
            f"bias{suffix}": _gates(b[i][:16] + b[i][16:], order),
            f"peephole{suffix}": _gates(p[i], (0, 2, 1)),
        }
    given = {"x": x, "initial_h": np.concatenate([*h], 1), "initial_c": np.concatenate([*c], 1)}
    return (
        Case("lstm", given, fixed, label=direction, rtol=1e-4, atol=1e-5),
        [x, w, r, b, None, h, c, p],
        {"hidden_size": 4, "direction": direction},
    )


def recurrent(op: str, order: Sequence[int], batch: int) -> tuple[Case, list[np.ndarray | None], dict[str, Any]]:
    gates = len(order)
    x, w, r = random(5, batch, 3), random(1, 4 * gates, 3), random(1, 4 * gates, 4)
    b, h = random(1, 8 * gates), random(1, batch, 4)
    fixed = {
        "weight_ih": _gates(w[0], order),
        "weight_hh": _gates(r[0], order),
        "bias": _gates(b[0][: 4 * gates] + b[0][4 * gates :], order),
        "output_sequence": True,
    }
    case = Case(op, {"x": x, "initial_h": h[0]}, fixed, rtol=1e-4, atol=1e-5)
    return case, [x, w, r, b, None, h], {"hidden_size": 4}


def normalized() -> list[Peer]:
    scale, shift, mean, variance = random(4), random(4), random(4), np.abs(random(4))
    affine = {"gamma": scale, "beta": shift, "epsilon": np.float32(0.01)}
    return [
        Peer(
            Case("batch_norm", {"x": IMAGE}, {"mean": mean, "variance": variance, **affine}, rtol=1e-4, atol=1e-5),
            "BatchNormalization",
            [IMAGE, scale, shift, mean, variance],
            {"epsilon": 0.01},
        ),
        Peer(
            Case("instance_norm", {"x": IMAGE}, affine, rtol=1e-4, atol=1e-5),
            "InstanceNormalization",
            [IMAGE, scale, shift],
            {"epsilon": 0.01},
        ),
        Peer(
            Case("local_response_norm", {"x": IMAGE}, {"size": 3, "alpha": 0.1, "beta": 0.6, "k": 2.0}),
            "LRN",
            [IMAGE],
            {"size": 3, "alpha": 0.1, "beta": 0.6, "bias": 2.0},
        ),
    ]


def sampling(mode: str, padding: str, aligned: bool) -> dict[str, Any]:
    return {
        "sampling_mode": mode,
        "padding_mode": padding,
        "padding_value": 0.0,
        "coordinates_mode": "normalized_minus_one_to_one",
        "align_corners": aligned,
    }


DATA, UPDATES = random(4, 5, 3), random(3, 3)
PLACES = ints([0, 1], [3, 4], [2, 2])
ROWS = ints([[1], [0]], [[3], [3]])
COLUMNS = ints([[0, 1, 2], [3, 1, 4]]).repeat(4, 0)
PADDINGS = {
    ("constant", True): "zeros",
    ("constant", False): "zeros",
    ("border", True): "border",
    ("border", False): "border",
    ("reflection", True): "reflection",
    ("symmetric", False): "reflection",
}
GRID = RNG.uniform(-1.3, 1.3, (2, 3, 5, 2)).astype(np.float32)

PEERS: list[Peer] = [
    conv("1d", SERIES, random(6, 4, 3), strides=[2], pads=[1, 2]),
    conv("2d", IMAGE, random(6, 4, 3, 2), strides=[2, 1], pads=[1, 0, 2, 1], dilations=[2, 1]),
    conv("3d", VOLUME, random(2, 4, 2, 3, 2), pads=[1, 0, 1, 0, 1, 1], bias=False),
    conv("groups", IMAGE, random(6, 2, 3, 3), group=2),
    conv("depthwise", IMAGE, random(8, 1, 3, 3), group=4, strides=[2, 2], pads=[1, 1, 1, 1], dilations=[1, 2]),
    conv("same", IMAGE, random(6, 4, 3, 4), auto_pad="SAME_UPPER", strides=[2, 3]),
    conv("same-lower", IMAGE, random(6, 4, 2, 4), auto_pad="SAME_LOWER", strides=[2, 1]),
    transposed("1d", SERIES, random(4, 3, 3), strides=[2]),
    transposed("2d", IMAGE, random(4, 3, 3, 2), strides=[2, 3], pads=[1, 0, 0, 1], dilations=[1, 2]),
    transposed("3d", VOLUME, random(4, 2, 2, 3, 2), strides=[1, 2, 2], pads=[0, 1, 0, 0, 1, 1]),
    transposed("groups", IMAGE, random(4, 3, 3, 3), strides=[2, 2], group=2),
    pool("max_pool", "2d", IMAGE, [3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
    pool("max_pool", "1d", SERIES, [4], strides=[3]),
    pool("max_pool", "3d", VOLUME, [2, 3, 2], strides=[1, 2, 2]),
    pool("max_pool", "ceil", IMAGE, [3, 3], strides=[2, 2], ceil_mode=1),
    pool("max_pool", "ceil-pad", IMAGE, [2, 2], strides=[3, 3], pads=[1, 1, 1, 1], ceil_mode=1),
    pool("max_pool", "same", IMAGE, [3, 2], strides=[2, 2], auto_pad="SAME_UPPER"),
    pool("max_pool", "same-lower", IMAGE, [3, 2], strides=[2, 2], auto_pad="SAME_LOWER"),
    pool("avg_pool", "2d", IMAGE, [3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
    pool("avg_pool", "included", IMAGE, [3, 2], strides=[2, 2], pads=[1, 0, 1, 1], count_include_pad=1),
    pool("avg_pool", "ceil", IMAGE, [3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1),
    pool("l2_pool", "2d", IMAGE, [3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
    *normalized(),
    resized("default", IMAGE, [5, 13], "LINEAR", "DEFAULT", "asymmetric"),
    resized("aligned", IMAGE, [5, 13], "LINEAR", "STRICT_ALIGN_CORNERS", "align_corners"),
    resized("half-pixel", IMAGE, [5, 13], "LINEAR", "UNALIGN_CORNERS", "half_pixel"),
    resized("nearest", IMAGE, [4, 13], "NEAREST_NEIGHBOR", "DEFAULT", "asymmetric"),
    *(Peer(case, "LSTM", inputs, attributes) for case, inputs, attributes in map(lstm, ("forward", "bidirectional"))),
    *(Peer(case, "RNN", inputs, attributes) for case, inputs, attributes in [recurrent("rnn", (0,), 2)]),
    *(Peer(case, "GRU", inputs, attributes) for case, inputs, attributes in [recurrent("gru", (1, 2, 0), 1)]),
    Peer(Case("depth_to_space", {"x": IMAGE}, {"block_size": 2}), "DepthToSpace", [IMAGE], {"blocksize": 2}),
    Peer(
        Case("pixel_shuffle", {"x": IMAGE}, {"upscale_factor": 2}),
        "DepthToSpace",
        [IMAGE],
        {"blocksize": 2, "mode": "CRD"},
    ),
    Peer(Case("space_to_depth", {"x": SQUARE}, {"block_size": 2}), "SpaceToDepth", [SQUARE], {"blocksize": 2}),
    Peer(Case("gather_nd", {"x": DATA, "indices": PLACES}), "GatherND", [DATA, PLACES.astype(np.int64)], {}),
    Peer(
        Case("gather_nd", {"x": DATA[:2], "indices": ROWS}, {"batch_dims": 1}, label="batch"),
        "GatherND",
        [DATA[:2], ROWS.astype(np.int64)],
        {"batch_dims": 1},
    ),
    *(
        Peer(
            Case("scatter_nd", {"data": DATA, "indices": PLACES, "updates": UPDATES}, {"mode": mode}, label=mode),
            "ScatterND",
            [DATA, PLACES.astype(np.int64), UPDATES],
            {"reduction": {"update": "none"}.get(mode, mode)},
        )
        for mode in ("update", "add", "mul", "max", "min")
    ),
    *(
        Peer(
            Case(
                "scatter_along_axis",
                {"data": DATA, "indices": COLUMNS, "updates": DATA[:, :2]},
                {"mode": mode, "axis": 1},
                label=mode,
            ),
            "ScatterElements",
            [DATA, COLUMNS.astype(np.int64), DATA[:, :2]],
            {"axis": 1, "reduction": mode},
        )
        for mode in ("add", "mul", "max", "min")
    ),
    *(
        Peer(
            Case(
                "resample",
                {"x": IMAGE, "coordinates": GRID},
                sampling(mode, padding, aligned),
                label=f"{mode}-{padding}-{aligned}",
                rtol=1e-4,
                atol=1e-5,
            ),
            "GridSample",
            [IMAGE, GRID],
            {
                "mode": {"bilinear": "linear"}.get(mode, mode),
                "padding_mode": PADDINGS[padding, aligned],
                "align_corners": int(aligned),
            },
        )
        for mode in ("bilinear", "nearest")
        for padding, aligned in PADDINGS
    ),
    Peer(Case("silu", {"x": SERIES}), "Swish", [SERIES], {}),
    Peer(
        Case(
            "one_hot",
            {"indices": ints([0, 2], [1, 1])},
            {"one_hot_vector_size": 3, "axis": 1, "on_value": 5.0, "off_value": -1.0},
        ),
        "OneHot",
        [np.array([[0, 2], [1, 1]]), np.array(3), np.array([-1, 5], np.float32)],
        {"axis": 1},
    ),
    Peer(
        Case("reverse_sequence", {"x": DATA, "lengths": ints(2, 3, 0, 4, 1)}, {"seq_axis": 0, "batch_axis": 1}),
        "ReverseSequence",
        [DATA, np.array([2, 3, 0, 4, 1], np.int64)],
        {"time_axis": 0, "batch_axis": 1},
    ),
    *(
        Peer(
            Case(
                "cumsum",
                {"x": DATA},
                {"axis": 1, "exclusive": True, "reverse": reverse},
                label=f"exclusive-{reverse}",
                atol=1e-5,
            ),
            "CumSum",
            [DATA, np.array(1)],
            {"exclusive": 1, "reverse": int(reverse)},
        )
        for reverse in (False, True)
    ),
]


def known(
    op: str, expected: Any, given: Mapping[str, np.ndarray], label: str = "", opset: int = 7, **fixed: Any
) -> Known:
    answers = expected if isinstance(expected, tuple) else (expected,)
    return Known(Case(op, given, fixed, opset, label, rtol=1e-4, atol=1e-4), answers)


PAIR = np.array([0, 1], np.float32).reshape(1, 1, 2)
CORNERS = np.array([11, 22, 33, 44], np.float32).reshape(1, 1, 2, 2)
MATRIX = np.array([[-1.0, -2.0, -3.7, -1.0, 3.5, 1.2]], np.float32)
POINTS = np.array([-1.0, -2.0, -3.7, -1.0, 0.0, 0.0, 3.5, 1.2], np.float32).reshape(1, 2, 2, 2)
AFFINE = {
    "sampling_mode": "bilinear",
    "padding_mode": "constant",
    "padding_value": 0.0,
    "coordinates_mode": "normalized_minus_one_to_one",
    "align_corners": True,
}
BOXES = np.array([[i] * 4 for i in range(4)], np.float32)[None]
SCORES = np.array([[[-3.5], [9.4], [2.3], [0.7]]], np.float32)
NEAR = np.array([[[2, 2, 2, 2], [2.1, 2, 2, 2], [8, 8, 1, 1], [2, 2.1, 2, 2]]], np.float32)
CLASSES = np.array([[[0.9, 0.1], [0.2, 0.8], [0.1, 0.3], [0.7, 0.6]]], np.float32)
BATCH = np.arange(16, dtype=np.float32).reshape(4, 1, 2, 2)

KNOWN: list[Known] = [
    *(
        known(
            "resize_bilinear", answer, {"x": PAIR}, mode, target_size_height=1, target_size_width=5, sampling_mode=mode
        )
        for mode, answer in {
            "STRICT_ALIGN_CORNERS": [0, 0.25, 0.5, 0.75, 1],
            "ALIGN_CORNERS": [0, 0.25, 0.5, 0.75, 1],
            "DEFAULT": [0, 0.4, 0.8, 1, 1],
            "OFFSET_CORNERS": [0.1, 0.3, 0.5, 0.7, 0.9],
            "UNALIGN_CORNERS": [0, 0.1, 0.5, 0.9, 1],
        }.items()
    ),
    known(
        "resize_bilinear",
        [0.5],
        {"x": PAIR},
        "one",
        target_size_height=1,
        target_size_width=1,
        sampling_mode="ALIGN_CORNERS",
    ),
    known("upsample_bilinear", [0, 0.2, 0.4, 0.6, 0.8, 1], {"x": PAIR}, scale_factor_width=3, align_corners=True),
    known("upsample_bilinear", [0, 0.1, 0.5, 0.9, 1], {"x": PAIR}, "half", scale_factor_width=2.6, align_corners=False),
    known(
        "upsample_nearest_neighbor",
        [1.5, 1.5, -2.5, -2.5],
        {"x": np.array([[[1.5, -2.5]]], np.float32)},
        scale_factor_width=2,
    ),
    known(
        "upsample_nearest_neighbor",
        [1.5, -2.5] * 3,
        {"x": np.array([[[1.5, -2.5, 3.5]]], np.float32)},
        "fraction",
        scale_factor_height=3.17,
        scale_factor_width=0.67,
    ),
    known(
        "resize_nearest_neighbor",
        [0, 0, 0, 1, 1, 1],
        {"x": PAIR.reshape(1, 1, 2, 1)},
        target_size_height=2,
        target_size_width=3,
    ),
    known("resize", [0, 0.4, 0.8, 1, 1], {"x": PAIR}, "documented", shape=[1, 1, 5], resized_dims=np.uint32(2)),
    known("resize", [0, 1], {"x": PAIR}, "inherited", shape=[0, 0], resized_dims=np.uint32(2)),
    known("crop", [2, 3, 6, 7, 10, 11], {"x": SQUARE}, crop_height=[0, 1], crop_width=[1, 1]),
    known(
        "affine",
        [10.752501, 2.5025, 0.0, 1.9799997, 0.0, 0.0, 0.0, 0.0, 0.0],
        {"x": CORNERS, "transform_matrix": MATRIX},
        output_height=3,
        output_width=3,
        **AFFINE,
    ),
    known(
        "affine",
        [10.752501, 5.94, 2.5025, 0.44000006, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        {"x": CORNERS, "transform_matrix": MATRIX},
        "wide",
        output_height=2,
        output_width=5,
        **AFFINE,
    ),
    *(
        known("resample", answer, {"x": CORNERS, "coordinates": POINTS}, padding, **fixed)
        for padding, answer, fixed in (
            ("constant", [8.585, 6.17, 27.5, 6.17], sampling("bilinear", "constant", True) | {"padding_value": 6.17}),
            ("border", [11, 11, 11, 44], sampling("nearest", "border", False) | {"coordinates_mode": "unnormalized"}),
            (
                "reflection",
                [22, 36.3, 11, 34.1],
                sampling("bilinear", "reflection", True) | {"coordinates_mode": "normalized_zero_to_one"},
            ),
        )
    ),
    *(
        known(
            "crop_resize",
            answer,
            {"x": SQUARE},
            label,
            opset,
            target_height=side,
            target_width=side,
            sampling_mode="ALIGN_CORNERS",
            **fixed,
        )
        for label, opset, side, answer, fixed in (
            ("whole", 7, 2, [6, 7, 10, 11], {"boxes": np.float32([[1, 1, 2, 2]]), "box_indices": [0]}),
            ("middle", 7, 1, [8.5], {"boxes": np.float32([[1, 1, 2, 2]]), "box_indices": [0]}),
            ("inverted", 6, 2, [11, 10, 7, 6], {"roi": np.float32([2, 2, 1, 1]).reshape(1, 1, 4, 1, 1)}),
            (
                "normalized",
                5,
                2,
                [1, 2, 5, 6],
                {"roi": np.float32([0, 0, 0, 1 / 3, 1 / 3]).reshape(1, 1, 5, 1, 1), "normalized_coordinates": True},
            ),
            (
                "beyond",
                6,
                2,
                [3.1, 5.2, 10, 10, 10, 7.9, 10, 13.9, 2.2, 3.1, 9.4, 10.3],
                {
                    "roi": np.float32([[0, 0.1, 0.3, 1.3, 1], [0, 0.5, 1.8, 1, 0.3], [0, 0, 0.4, 0.6, 0.7]]).reshape(
                        3, 1, 5, 1, 1
                    ),
                    "normalized_coordinates": True,
                    "pad_value": 10.0,
                },
            ),
        )
    ),
    known(
        "non_maximum_suppression",
        ([1, 1, 1, 1, 2, 2, 2, 2], [9.4, 2.3], [1, 2], [2]),
        {"boxes": BOXES, "scores": SCORES},
        opset=6,
        iou_threshold=0.2,
        score_threshold=0.4,
        max_boxes=2,
        per_class_suppression=True,
    ),
    known(
        "non_maximum_suppression",
        (NEAR[:, [0, 2]].swapaxes(1, 2), CLASSES[:, [0, 2]].swapaxes(1, 2), [0, 2]),
        {"boxes": NEAR.swapaxes(1, 2), "scores": CLASSES.swapaxes(1, 2)},
        iou_threshold=0.5,
        max_boxes=2,
    ),
    known(
        "non_maximum_suppression",
        (
            np.pad(NEAR[:, [0, 1, 2]], [(0, 0), (0, 1), (0, 0)]).swapaxes(1, 2),
            np.pad(CLASSES[:, [0, 1, 2]], [(0, 0), (0, 1), (0, 0)]).swapaxes(1, 2),
            [0, 1, 2, -1],
        ),
        {"boxes": NEAR.swapaxes(1, 2), "scores": CLASSES.swapaxes(1, 2)},
        "classes",
        iou_threshold=0.5,
        max_boxes=4,
        per_class_suppression=True,
    ),
    known(
        "pixel_unshuffle",
        SQUARE.reshape(2, 2, 2, 2).transpose(1, 3, 0, 2),
        {"x": SQUARE},
        downscale_factor=np.uint32(2),
    ),
    known(
        "space_to_batch",
        SQUARE.reshape(2, 2, 2, 2).transpose(1, 3, 0, 2),
        {"x": SQUARE},
        block_shape=[2, 2],
        paddings=[[0, 0], [0, 0]],
    ),
    known(
        "batch_to_space",
        BATCH.reshape(2, 2, 2, 2).transpose(2, 0, 3, 1).reshape(4, 4)[1:, :3],
        {"x": BATCH},
        block_shape=[2, 2],
        crops=[[1, 0], [0, 1]],
    ),
    known(
        "reshape_like",
        SQUARE,
        {"x": SQUARE, "ref_tensors": [np.zeros((8, 3), np.float32), np.zeros((5, 2), np.float32)]},
        begins=(0, 1),
        ends=(1, 0),
        end_masks=(False, True),
    ),
    known(
        "sliding_windows",
        [[0, 1, 2], [2, 3, 4], [4, 5, 6]],
        {"x": np.arange(8, dtype=np.float32)},
        axis=0,
        size=3,
        stride=2,
    ),
    *(
        known(
            "scatter",
            answer,
            {
                "data": np.float32([[1, 2, 3], [4, 5, 6]]),
                "indices": ints(1, 0),
                "updates": np.float32([[5, 6, 7], [8, 9, 10]]),
            },
            mode,
            mode=mode,
        )
        for mode, answer in {
            "add": [[9, 11, 13], [9, 11, 13]],
            "sub": [[-7, -7, -7], [-1, -1, -1]],
            "update": [[8, 9, 10], [5, 6, 7]],
            "div": [[1 / 8, 2 / 9, 0.3], [0.8, 5 / 6, 6 / 7]],
        }.items()
    ),
    known(
        "scatter",
        [[1, 7, 3], [4, 17, 6]],
        {"data": np.float32([[1, 2, 3], [4, 5, 6]]), "indices": ints(1, 1), "updates": np.float32([[2, 3], [5, 7]])},
        "axis",
        axis=1,
    ),
    known(
        "dequantize",
        [[-2, 0], [3, 6]],
        {"input": np.array([[1, 3], [4, 5]], np.int8)},
        scale=np.float32([1, 3]),
        zero_point=np.int8([3, 3]),
        axis=0,
    ),
]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[np.ndarray]]:
    cases = [one.case for one in (*PEERS, *KNOWN)]
    return dict(zip(map(id, cases), evaluate(cases, tmp_path_factory.mktemp("packages")), strict=True))


@pytest.mark.parametrize("peer", PEERS, ids=str)
def test_as_onnxruntime_answers(evaluated: dict[int, list[np.ndarray]], peer: Peer) -> None:
    expected = run_onnx(peer)
    found = evaluated[id(peer.case)]
    for ours, wanted in zip(found, expected, strict=False):
        if (
            peer.op in ("LSTM", "RNN", "GRU") and wanted.ndim == 4
        ):  # (S, directions, N, H) here, both side by side there
            wanted = wanted.transpose(0, 2, 1, 3).reshape(*wanted.shape[:1], wanted.shape[2], -1)
        elif peer.op in ("LSTM", "RNN", "GRU"):
            wanted = wanted.transpose(1, 0, 2).reshape(wanted.shape[1], -1)
        assert ours.shape == wanted.shape
        np.testing.assert_allclose(ours, wanted, peer.case.rtol, peer.case.atol)


@pytest.mark.parametrize("one", KNOWN, ids=str)
def test_as_is_known(evaluated: dict[int, list[np.ndarray]], one: Known) -> None:
    found = evaluated[id(one.case)]
    assert len(found) == len(one.expected)
    for ours, wanted in zip(found, one.expected, strict=True):
        np.testing.assert_allclose(ours.ravel(), np.ravel(wanted), one.case.rtol, one.case.atol)


def run_onnx(peer: Peer) -> list[np.ndarray]:
    names = [f"i{i}" if value is not None else "" for i, value in enumerate(peer.inputs)]
    outputs = {"LSTM": 3, "RNN": 2, "GRU": 2}.get(peer.op, 1)
    node = oh.make_node(peer.op, names, [f"o{i}" for i in range(outputs)], **peer.attributes)
    nodes = [node]
    if peer.op == "Swish":
        nodes = [oh.make_node("Sigmoid", ["i0"], ["s"]), oh.make_node("Mul", ["i0", "s"], ["o0"])]
    graph = oh.make_graph(
        nodes,
        "one",
        [
            oh.make_tensor_value_info(name, oh.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in zip(names, peer.inputs, strict=True)
            if value is not None
        ],
        [oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for node in nodes[-1:] for name in node.output],
    )
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(
        session.run(None, {name: value for name, value in zip(names, peer.inputs, strict=True) if value is not None})
    )
