"""Operations that choose by value and answer in a number of rows nobody knows before: the host computes them, with numpy."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import numpy as np

from modelfleet.benchmarks.runtimes.mlx.values import Value, device, host, number


def non_max_suppression(
    boxes: Value,
    scores: Value,
    most: Value | None = None,
    overlap: Value | None = None,
    least: Value | None = None,
    /,
    *,
    center: bool = False,
) -> Value:
    """The boxes kept: (batch, class, box) each, int64. Boxes are corners, or centre and size."""
    corners, points = host(boxes).astype(np.float32), host(scores)
    limit = 0 if most is None else int(number(most))
    highest = 0.0 if overlap is None else number(overlap)
    rows = list[tuple[int, int, int]]()
    for batch, classes in enumerate(points):
        edges = _edges(corners[batch], center)
        for name, row in enumerate(classes):
            kept = _kept(edges, row, limit, highest, None if least is None else number(least))
            rows.extend((batch, name, box) for box in kept)
    return np.array(rows, np.int64).reshape(-1, 3)


def _edges(boxes: Any, center: bool) -> Any:
    if center:
        x, y, width, height = boxes.T
        return np.stack([y - height / 2, x - width / 2, y + height / 2, x + width / 2])
    y1, x1, y2, x2 = boxes.T
    return np.stack([np.minimum(y1, y2), np.minimum(x1, x2), np.maximum(y1, y2), np.maximum(x1, x2)])


def _kept(edges: Any, scores: Any, limit: int, highest: float, least: float | None) -> list[int]:
    order: Any = np.argsort(-scores, kind="stable")
    if least is not None:
        order = order[scores[order] > least]
    areas = (edges[2] - edges[0]) * (edges[3] - edges[1])
    kept = list[int]()
    while len(order) and len(kept) < limit:
        best, order = int(order[0]), order[1:]
        kept.append(best)
        tall = np.minimum(edges[2, order], edges[2, best]) - np.maximum(edges[0, order], edges[0, best])
        wide = np.minimum(edges[3, order], edges[3, best]) - np.maximum(edges[1, order], edges[1, best])
        shared = np.maximum(tall, 0) * np.maximum(wide, 0)
        union = areas[order] + areas[best] - shared
        order = order[~((union > 0) & (shared > highest * union))]
    return kept


def tf_idf(
    x: Value,
    pool: Value,
    starts: Value,
    places: Value,
    weights: Value | None = None,
    /,
    *,
    shortest: int,
    longest: int,
    skips: int,
    mode: Literal["TF", "IDF", "TFIDF"],
) -> Value:
    """How often each n-gram of the pool is in each row, its weight, or both (ONNX TfIdfVectorizer, whole numbers)."""
    rows, words = host(x), host(pool).tolist()
    begins, columns = [*host(starts).tolist(), len(words)], host(places).tolist()
    grams = dict[tuple[int, ...], int]()
    for length in range(1, len(begins)):
        for place in range(begins[length - 1], begins[length], length):
            grams[tuple(words[place : place + length])] = len(grams)
    width = max(columns) + 1
    matrix = rows.reshape(1, -1) if rows.ndim < 2 else rows
    found: Any = np.zeros((len(matrix), width), np.float32)
    factors = [1.0] * len(grams) if weights is None else host(weights).tolist()
    for row, tokens in zip(found, matrix.tolist(), strict=True):
        counts = _counts(tokens, grams, shortest, longest, skips)
        for gram, count in counts.items():
            row[columns[gram]] = {"TF": count, "IDF": factors[gram], "TFIDF": count * factors[gram]}[mode]
    return device(found[0] if rows.ndim < 2 else found)


def _counts(
    tokens: list[int], grams: Mapping[tuple[int, ...], int], shortest: int, longest: int, skips: int
) -> dict[int, int]:
    counts = dict[int, int]()
    for length in range(shortest, longest + 1):
        for step in range(1, (skips if length > 1 else 0) + 2):
            for start in range(len(tokens) - (length - 1) * step):
                gram = grams.get(tuple(tokens[start + place * step] for place in range(length)))
                if gram is not None:
                    counts[gram] = counts.get(gram, 0) + 1
    return counts


SELECTION: Final[Mapping[str, Callable[..., Any]]] = {
    "non_max_suppression": non_max_suppression,
    "tf_idf": tf_idf,
}
