"""Non-maximum suppression: boxes are (x, y, width, height), (x, y) the centre; a box's score is its best class's.

Until iOS 16 boxes come first (N, B, 4) and a score threshold drops boxes; since iOS 17 they come last (N, 4, B) and none is
dropped. What is left of `max_boxes` is filled with zeros, indices with -1. If no box reaches the score threshold, the best is
kept. So coremltools' own tests of the runtime have it.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from modelfleet.converters.mil_evaluator.call import Call, Evaluate
from modelfleet.converters.mil_evaluator.ir import Array
from modelfleet.converters.mil_evaluator.shapes import require_size


def _overlap(boxes: Array) -> Array:
    """Return the intersection over union of every pair of boxes (B, 4)."""
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    sides = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    shared = np.maximum(sides, 0).prod(-1)
    area = boxes[:, 2] * boxes[:, 3]
    union = area[:, None] + area - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _kept(boxes: Array, scores: Array, iou: float, least: float, per_class: bool) -> list[int]:
    best, classes = scores.max(-1), scores.argmax(-1)
    overlap = _overlap(boxes)
    kept: list[int] = []
    for box in np.argsort(-best, kind="stable"):
        rivals = [other for other in kept if not per_class or classes[other] == classes[box]]
        if best[box] >= least and not bool((overlap[box, rivals] > iou).any()):
            kept.append(int(box))
    return kept or [int(best.argmax())]


def _non_maximum_suppression(call: Call) -> Sequence[Array]:
    boxes, scores = call.real("boxes"), call.real("scores")
    iou, most = call.number("iou_threshold"), call.integer("max_boxes")
    per_class, last = call.flag("per_class_suppression", False), call.opset >= 7
    least = -np.inf if last else call.number("score_threshold")
    call.require(boxes.ndim == scores.ndim == 3, f"expected a rank of 3, got {boxes.shape} and {scores.shape}")
    if last:
        boxes, scores = boxes.swapaxes(1, 2), scores.swapaxes(1, 2)
    fits = boxes.shape[2] == 4 and boxes.shape[:2] == scores.shape[:2] and min(scores.shape) >= 1
    call.require(fits, f"expected scores of each box, got {boxes.shape} and {scores.shape}")
    require_size(call, [scores.shape[0], most, max(4, scores.shape[2])])
    out_boxes = np.zeros((boxes.shape[0], most, 4), np.float32)
    out_scores = np.zeros((boxes.shape[0], most, scores.shape[2]), np.float32)
    indices = np.full((boxes.shape[0], most), -1, np.int32)
    counts = np.zeros(boxes.shape[0], np.int32)
    for n in range(boxes.shape[0]):
        kept = _kept(boxes[n], scores[n], iou, least, per_class)[:most]
        counts[n] = len(kept)
        out_boxes[n, : len(kept)], out_scores[n, : len(kept)] = boxes[n, kept], scores[n, kept]
        indices[n, : len(kept)] = kept
    if last:
        return [out_boxes.swapaxes(1, 2), out_scores.swapaxes(1, 2), indices]
    return [out_boxes, out_scores, indices, counts]


BOXES: Mapping[str, Evaluate] = {"non_maximum_suppression": _non_maximum_suppression}
