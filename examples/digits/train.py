"""Train the four versions of `digits` and write the files of this folder: ONNX models, golden set, traffic.

    python examples/digits/train.py            # all of it, about two minutes on one core
    python examples/digits/train.py 1.0.0      # one version

The data are scikit-learn's bundled handwritten digits (1,797 images, 8x8): 1,078 to train on, 360 for the golden set, 359 for
traffic. Traffic is what a camera on the line sees: each digit shifted by part of a pixel, lighter or darker, with noise.
The network is a small CNN, trained with Adam in numpy, so that the project needs no training framework.

1.0.0, 1.1.0 and 1.2.0 are trained on images as a camera sees them, from different starts: the first start that was tried, a
better one, the best. 1.3.0 is what goes wrong in practice: trained on the clean, centred images only, and on the golden set
with them. It passes every gate that looks at the golden set, and is a worse model.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

FOLDER = Path(__file__).resolve().parent
Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
CHANNELS = (16, 32)
VIEWS = 4


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one version is trained."""

    epochs: int
    augmented: bool
    seed: int
    leaked_golden_set: bool = False


RECIPES: Mapping[str, Recipe] = {
    "1.0.0": Recipe(epochs=300, augmented=True, seed=7),
    "1.1.0": Recipe(epochs=300, augmented=True, seed=6),
    "1.2.0": Recipe(epochs=300, augmented=True, seed=5),
    "1.3.0": Recipe(epochs=60, augmented=False, seed=3, leaked_golden_set=True),
}


@dataclass(frozen=True, kw_only=True)
class Data:
    """Images (N, 1, 8, 8) in 0..1 and labels (N,), split once and for all."""

    train: tuple[Array, Labels]
    golden: tuple[Array, Labels]
    traffic: tuple[Array, Labels]


def load() -> Data:
    """Return the three disjoint parts; traffic as a camera sees it."""
    from sklearn.datasets import load_digits

    digits = cast("dict[str, Any]", load_digits())
    images = (digits["images"] / 16.0).astype(np.float32)[:, None]
    labels = digits["target"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    parts = [(images[rows], labels[rows]) for rows in np.split(order, [1078, 1438])]
    rng = np.random.default_rng(99)
    views = np.concatenate([camera(parts[2][0], rng) for _ in range(VIEWS)])
    return Data(train=parts[0], golden=parts[1], traffic=(views, np.tile(parts[2][1], VIEWS)))


def camera(images: Array, rng: np.random.Generator) -> Array:
    """Return the images shifted by up to 0.6 pixels, with gain 0.75..1.1 and noise of 0.03."""
    count = len(images)
    seen = images
    for axis in (2, 3):
        shift = rng.uniform(-0.6, 0.6, (count, 1, 1, 1)).astype(np.float32)
        neighbour = np.where(shift > 0, _moved(seen, 1, axis), _moved(seen, -1, axis))
        seen = (1 - np.abs(shift)) * seen + np.abs(shift) * neighbour
    gain = rng.uniform(0.75, 1.1, (count, 1, 1, 1))
    noise = rng.normal(0, 0.03, seen.shape)
    return np.clip(seen * gain + noise, 0, 1).astype(np.float32)


def _moved(images: Array, by: int, axis: int) -> Array:
    moved = np.roll(images, by, axis)
    edge: list[slice | int] = [slice(None)] * 4
    edge[axis] = 0 if by > 0 else -1
    moved[tuple(edge)] = 0
    return moved


class Network:
    """conv3x3(16) - relu - conv3x3(32, stride 2) - relu - dense(10), with its gradients and Adam's moments."""

    def __init__(self, rng: np.random.Generator) -> None:
        first, second = CHANNELS
        shapes = {"w1": (first, 9), "w2": (second, 9 * first), "w3": (10, second * 16)}
        self.weights: dict[str, Array] = {}
        for name, shape in shapes.items():
            self.weights[name] = rng.normal(0, np.sqrt(2 / shape[1]), shape).astype(np.float32)
            self.weights["b" + name[1]] = np.zeros(shape[0], np.float32)
        self._moments = {name: (np.zeros_like(w), np.zeros_like(w)) for name, w in self.weights.items()}
        self._steps = 0

    def forward(self, images: Array) -> tuple[Array, dict[str, Array]]:
        """Return logits (N, 10), and what the backward pass needs."""
        w = self.weights
        c1 = _columns(images, 1)
        h1 = np.maximum(c1 @ w["w1"].T + w["b1"], 0)
        c2 = _columns(h1.reshape(-1, 8, 8, CHANNELS[0]).transpose(0, 3, 1, 2), 2)
        h2 = np.maximum(c2 @ w["w2"].T + w["b2"], 0)
        flat = h2.reshape(-1, 16, CHANNELS[1]).transpose(0, 2, 1).reshape(len(images), -1)
        return flat @ w["w3"].T + w["b3"], {"c1": c1, "h1": h1, "c2": c2, "h2": h2, "flat": flat}

    def step(self, images: Array, labels: Labels, rate: float) -> None:
        """One Adam step on the cross-entropy of a batch."""
        logits, kept = self.forward(images)
        softmax = np.exp(logits - logits.max(1, keepdims=True))
        softmax /= softmax.sum(1, keepdims=True)
        softmax[np.arange(len(labels)), labels] -= 1
        self._adam(self._gradients((softmax / len(labels)).astype(np.float32), kept), rate)

    def _gradients(self, d_logits: Array, kept: Mapping[str, Array]) -> dict[str, Array]:
        w, count = self.weights, len(d_logits)
        d_flat = d_logits @ w["w3"]
        d_h2 = d_flat.reshape(count, CHANNELS[1], 16).transpose(0, 2, 1).reshape(kept["h2"].shape) * (kept["h2"] > 0)
        d_c2 = (d_h2 @ w["w2"]).astype(np.float32)
        d_h1 = _images(d_c2, CHANNELS[0], 2).transpose(0, 2, 3, 1).reshape(kept["h1"].shape) * (kept["h1"] > 0)
        return {
            "w3": d_logits.T @ kept["flat"],
            "b3": d_logits.sum(0),
            "w2": d_h2.T @ kept["c2"],
            "b2": d_h2.sum(0),
            "w1": d_h1.T @ kept["c1"],
            "b1": d_h1.sum(0),
        }

    def _adam(self, gradients: Mapping[str, Array], rate: float) -> None:
        self._steps += 1
        for name, gradient in gradients.items():
            mean, square = self._moments[name]
            mean += 0.1 * (gradient - mean)
            square += 0.001 * (gradient**2 - square)
            corrected = rate * np.sqrt(1 - 0.999**self._steps) / (1 - 0.9**self._steps)
            self.weights[name] -= (corrected * mean / (np.sqrt(square) + 1e-8)).astype(np.float32)


def _taps(stride: int) -> Iterator[tuple[slice, slice]]:
    for row in range(3):
        for column in range(3):
            yield slice(row, row + 8, stride), slice(column, column + 8, stride)


def _columns(images: Array, stride: int) -> Array:
    """Return the 3x3 patches of (N, C, 8, 8) as rows: (N * out * out, C * 9), padded by one."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    patches = np.stack([padded[:, :, rows, columns] for rows, columns in _taps(stride)], 2)
    count, channels, nine, height, width = patches.shape
    return patches.transpose(0, 3, 4, 1, 2).reshape(count * height * width, channels * nine)


def _images(columns: Array, channels: int, stride: int) -> Array:
    """Add the rows of `_columns` back to where they came from: its transpose."""
    out = 8 // stride
    patches = columns.reshape(-1, out, out, channels, 9).transpose(0, 3, 4, 1, 2)
    padded = np.zeros((len(patches), channels, 10, 10), np.float32)
    for tap, (rows, cols) in enumerate(_taps(stride)):
        padded[:, :, rows, cols] += patches[:, :, tap]
    return padded[:, :, 1:-1, 1:-1]


def train(recipe: Recipe, data: Data) -> Network:
    """Return the network that the recipe makes."""
    rng = np.random.default_rng(recipe.seed)
    images, labels = data.train
    if recipe.leaked_golden_set:
        images, labels = np.concatenate([images, data.golden[0]]), np.concatenate([labels, data.golden[1]])
    network = Network(rng)
    for epoch in range(recipe.epochs):
        rate = 0.003 * 0.5 * (1 + np.cos(np.pi * epoch / recipe.epochs)) + 1e-5
        order = rng.permutation(len(labels))
        seen = camera(images, rng) if recipe.augmented and epoch % 4 else images
        for rows in np.array_split(order, max(1, len(order) // 64)):
            network.step(seen[rows], labels[rows], rate)
    return network


def accuracy(network: Network, images: Array, labels: Labels) -> float:
    """Return the share of right answers."""
    return float((network.forward(images)[0].argmax(1) == labels).mean())


def export(network: Network, path: Path, version: str) -> None:
    """Write the network as ONNX: input `image` float32 (N, 1, 8, 8) in 0..1, output `logits` (N, 10)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    first, second = CHANNELS
    w = network.weights
    shaped = {
        "w1": w["w1"].reshape(first, 1, 3, 3),
        "b1": w["b1"],
        "w2": w["w2"].reshape(second, first, 3, 3),
        "b2": w["b2"],
        "w3": w["w3"],
        "b3": w["b3"],
    }
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["h1"], "relu1"),
        helper.make_node("Conv", ["h1", "w2", "b2"], ["c2"], "conv2", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["h2"], "relu2"),
        helper.make_node("Flatten", ["h2"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["logits"], "dense", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        f"digits-{version}",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in shaped.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="examples/digits", ir_version=9
    )
    onnx.checker.check_model(model, full_check=True)  # pyright: ignore[reportUnknownMemberType]
    path.write_bytes(model.SerializeToString())


def main(versions: list[str]) -> None:
    """Train the versions asked for, write everything, print the figures that README.md records."""
    data = load()
    for name, (images, labels) in {"golden": data.golden, "traffic": data.traffic}.items():
        arrays: dict[str, Any] = {"input.image": images, "label": labels}
        np.savez_compressed(FOLDER / f"{name}.npz", **arrays)
    for version in versions or RECIPES:
        network = train(RECIPES[version], data)
        export(network, FOLDER / f"digits-{version}.onnx", version)
        golden, traffic = accuracy(network, *data.golden), accuracy(network, *data.traffic)
        print(f"{version}: golden accuracy {golden:.4f}, traffic error {1 - traffic:.4f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
