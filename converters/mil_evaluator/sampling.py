"""Sampling of images x (B, C, H, W) at points: affine, resample, crop_resize."""

from collections.abc import Mapping

import numpy as np

from modelfleet.converters.mil_evaluator.call import Call, Evaluate
from modelfleet.converters.mil_evaluator.ir import Array
from modelfleet.converters.mil_evaluator.shapes import require_size

_COORDINATES = ("unnormalized", "normalized_minus_one_to_one", "normalized_zero_to_one")


def _pixels(at: Array, size: int, mode: str, aligned: bool) -> Array:
    """Return coordinates in pixels, from 0 to size - 1 within the image."""
    if mode == "unnormalized":
        return at
    share = (at + 1) / 2 if mode == "normalized_minus_one_to_one" else at
    return share * (size - 1) if aligned else share * size - 0.5


def _reflect(at: Array, low: float, high: float) -> Array:
    """Return coordinates mirrored at the two ends until they lie between them."""
    span = high - low
    if span <= 0:
        return np.zeros_like(at)
    away = np.abs(at - low) % (2 * span)
    return np.where(away > span, 2 * span - away, away) + low


def _within(at: Array, size: int, padding: str) -> Array:
    if padding == "reflection":
        at = _reflect(at, 0, size - 1)
    elif padding == "symmetric":
        at = _reflect(at, -0.5, size - 0.5)
    return at if padding == "constant" else np.clip(at, 0, size - 1)


def _pick(image: Array, rows: Array, columns: Array, value: float) -> Array:
    """Return the pixels (C, *points) at whole coordinates; `value` outside the image."""
    height, width = image.shape[1:]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    at_rows, at_columns = (np.where(inside, at, 0).astype(np.intp) for at in (rows, columns))
    return np.where(inside, image[:, at_rows, at_columns], np.float32(value))


def _interpolate(image: Array, rows: Array, columns: Array, value: float) -> Array:
    """Return the pixels (C, *points) by the four around each point."""
    top, left = np.floor(rows), np.floor(columns)
    result = np.zeros((image.shape[0], *rows.shape), np.float32)
    for down in (0, 1):
        for right in (0, 1):
            weight = (1 - np.abs(rows - top - down)) * (1 - np.abs(columns - left - right))
            result += _pick(image, top + down, left + right, value) * weight.astype(np.float32)
    return result


def _resample(call: Call) -> Array:
    x, coordinates = call.real("x"), call.tensor("coordinates").astype(np.float64)
    nearest = call.choice("sampling_mode", ("bilinear", "nearest")) == "nearest"
    padding = call.choice("padding_mode", ("constant", "border", "reflection", "symmetric"))
    value, mode, aligned = (
        call.number("padding_value"),
        call.choice("coordinates_mode", _COORDINATES),
        call.flag("align_corners"),
    )
    fits = x.ndim == coordinates.ndim == 4 and coordinates.shape[0] == x.shape[0] and coordinates.shape[3] == 2
    call.require(fits, f"coordinates: expected pairs for {x.shape}, got {coordinates.shape}")
    call.require(bool(np.isfinite(coordinates).all()), "coordinates: expected finite numbers")
    columns = _within(_pixels(coordinates[..., 0], x.shape[3], mode, aligned), x.shape[3], padding)
    rows = _within(_pixels(coordinates[..., 1], x.shape[2], mode, aligned), x.shape[2], padding)
    if not nearest:
        return np.stack([_interpolate(*one, value) for one in zip(x, rows, columns, strict=True)])
    for at in (rows, columns):
        halves = np.abs(at - np.floor(at) - 0.5) < 1e-6
        call.require(not bool(halves.any()), "expected points with one nearest pixel, got one between two")
    return np.stack([_pick(*one, value) for one in zip(x, np.rint(rows), np.rint(columns), strict=True)])


def _affine(call: Call) -> Array:
    x, matrix = call.real("x"), call.real("transform_matrix").astype(np.float64)
    height, width = call.integer("output_height"), call.integer("output_width")
    call.require(call.text("sampling_mode").lower() == "bilinear", "sampling_mode: expected bilinear")
    call.require(call.text("padding_mode").lower() == "constant", "padding_mode: expected constant")
    mode = call.text("coordinates_mode").lower()
    call.require(mode == "normalized_minus_one_to_one", f"coordinates_mode: expected -1 to 1, got {mode}")
    known = call.number("padding_value") == 0 and call.flag("align_corners")
    call.require(known, "expected a padding_value of 0 and align_corners")
    fits = x.ndim == 4 and matrix.ndim == 2 and matrix.shape[1] == 6 and matrix.shape[0] in (1, x.shape[0])
    call.require(fits, f"transform_matrix: expected 6 numbers for each of {x.shape}, got {matrix.shape}")
    require_size(call, [*x.shape[:2], height, width])
    call.require(min(height, width) >= 2, f"expected an output of at least 2, got {(height, width)}")
    across, down = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    images: list[Array] = []
    for image, (a0, a1, a2, b0, b1, b2) in zip(x, np.broadcast_to(matrix, (x.shape[0], 6)), strict=True):
        columns = _pixels(a0 * across + a1 * down + a2, x.shape[3], mode, True)
        rows = _pixels(b0 * across + b1 * down + b2, x.shape[2], mode, True)
        images.append(_interpolate(image, rows, columns, 0))
    return np.stack(images)


def _corners(call: Call, boxes: Array, x: Array) -> Array:
    """Return boxes (N, 4) as rows of top, left, bottom, right in pixels."""
    normalized, scale = call.flag("normalized_coordinates", False), call.number("spatial_scale", 1.0)
    orders = tuple(f"{kind}_{axis}_FIRST" for kind in ("CORNERS", "CENTER_SIZE") for axis in ("HEIGHT", "WIDTH"))
    order = call.choice("box_coordinate_mode", orders, orders[0])
    boxes = boxes[:, [1, 0, 3, 2]] if "WIDTH" in order else boxes
    if "CENTER" in order:
        boxes = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    if normalized:
        boxes = boxes * np.array([x.shape[2] - 1, x.shape[3] - 1] * 2)
    return boxes * scale


def _line(start: float, end: float, count: int, mode: str) -> Array:
    if count == 1:
        return np.array([(start + end) / 2 if mode == "ALIGN_CORNERS" else start])
    return start + np.arange(count) * (end - start) / (count - 1)


def _crop_resize(call: Call) -> Array:
    x = call.real("x")
    old = call.has("roi")  # until iOS 16 (N, 1, 4 or 5, 1, 1); the fifth, at the front, is the image's index
    boxes = call.tensor("roi" if old else "boxes").astype(np.float64)
    call.require(x.ndim == 4 and boxes.ndim == (5 if old else 2), f"expected boxes for {x.shape}, got {boxes.shape}")
    boxes = boxes.reshape(boxes.shape[0], -1)
    indexed = old and boxes.shape[1] == 5
    given = boxes[:, 0] if indexed else None if old else call.optional("box_indices")
    boxes = _corners(call, boxes[:, 1:] if indexed else boxes, x)
    call.require(boxes.shape[1] == 4, "expected four numbers a box")
    height, width = call.integer("target_height", 1), call.integer("target_width", 1)
    mode = call.choice("sampling_mode", ("ALIGN_CORNERS", "STRICT_ALIGN_CORNERS"), "DEFAULT")
    value = call.number("pad_value", 0.0)
    every = old and not indexed
    require_size(call, [len(boxes), x.shape[0] if every else 1, x.shape[1], height, width])
    indices = np.arange(len(boxes)) if given is None else given.astype(np.int64)
    within = every or bool(((indices >= 0) & (indices < x.shape[0])).all())
    call.require(within, f"expected indices of {x.shape[0]} images, got {indices}")

    def crop(image: Array, box: Array) -> Array:
        rows, columns = _line(box[0], box[2], height, mode), _line(box[1], box[3], width, mode)
        outside = ((rows < 0) | (rows > x.shape[2] - 1))[:, None] | (columns < 0) | (columns > x.shape[3] - 1)
        grid = np.meshgrid(rows, columns, indexing="ij")
        return np.where(outside, np.float32(value), _interpolate(image, grid[0], grid[1], 0))

    if every:
        return np.stack([np.stack([crop(image, box) for image in x]) for box in boxes])
    crops = np.stack([crop(x[index], box) for index, box in zip(indices, boxes, strict=True)])
    return crops[:, None] if old else crops


SAMPLING: Mapping[str, Evaluate] = {"affine": _affine, "crop_resize": _crop_resize, "resample": _resample}
