"""Train the network of this folder and write its files: the ONNX model and the golden set.

    python -m venv /tmp/train && /tmp/train/bin/pip install torch scikit-learn onnx numpy
    /tmp/train/bin/python examples/digits_large/train.py

The network is made as people make them: two blocks of two 3x3 convolutions with batch normalisation and pooling, a hidden dense
layer with dropout, trained with Adam on shifted and noisy images. It has far more parameters than the task needs, which
is what pruning and quantization are for. The data are scikit-learn's bundled handwritten digits (1,797 images, 8x8): 1,197 to
train on, 600 for the golden set, which nothing here learns or chooses from.
"""

from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

FOLDER = Path(__file__).resolve().parent
NAME = "digits-large-1.0.0"
Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
TRAIN = 1197
EPOCHS = 60
BATCH = 64
SEED = 1


def load() -> tuple[tuple[Array, Labels], tuple[Array, Labels]]:
    """Return images (N, 1, 8, 8) in 0..1 and labels (N,), to train on and for the golden set."""
    from sklearn.datasets import load_digits

    digits = cast("dict[str, Any]", load_digits())
    images = (digits["images"] / 16.0).astype(np.float32)[:, None]
    labels = digits["target"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    train, golden = order[:TRAIN], order[TRAIN:]
    return (images[train], labels[train]), (images[golden], labels[golden])


def network() -> nn.Sequential:
    """Return the untrained network: (N, 1, 8, 8) -> logits (N, 10); 325,000 parameters."""

    def block(channels_in: int, channels_out: int) -> list[nn.Module]:
        return [
            nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]

    head = [nn.Flatten(), nn.Linear(128 * 2 * 2, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10)]
    return nn.Sequential(*block(1, 64), *block(64, 128), *head)


def augmented(images: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """Return the images shifted by up to one pixel in each direction, each its own way, with noise of 0.03."""
    count = len(images)
    shift = torch.rand((count, 2), generator=noise) * 2 - 1
    theta = torch.zeros((count, 2, 3))
    theta[:, 0, 0] = theta[:, 1, 1] = 1
    theta[:, :, 2] = shift * 2 / 8
    grid = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    moved = nn.functional.grid_sample(images, grid, align_corners=False)
    return (moved + 0.03 * torch.randn(moved.shape, generator=noise)).clamp(0, 1)


def train(images: Array, labels: Labels) -> nn.Sequential:
    """Return the trained network, in evaluation mode."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    noise = torch.Generator().manual_seed(SEED)
    model, x, y = network(), torch.from_numpy(images), torch.from_numpy(labels)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    batches = -(-len(y) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=EPOCHS * batches)
    model.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(y), generator=noise)
        for rows in order.split(BATCH):
            loss = nn.functional.cross_entropy(model(augmented(x[rows], noise)), y[rows], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def export(model: nn.Sequential, path: Path) -> None:
    """Write the network as ONNX: input `image` float32 (N, 1, 8, 8) in 0..1, output `logits` (N, 10).

    Batch normalisation is folded into the convolution before it.
    """
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    value = "image"

    def add(operator: str, name: str, tensors: tuple[Array, ...] = (), **attributes: Any) -> None:
        nonlocal value
        names = [f"{name}.{role}" for role, _ in zip(("weight", "bias"), tensors, strict=False)]
        weights.extend(numpy_helper.from_array(np.ascontiguousarray(t), n) for t, n in zip(tensors, names, strict=True))
        nodes.append(helper.make_node(operator, [value, *names], [name], name, **attributes))
        value = name

    layers = list(model)
    for position, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d):
            add("Conv", f"conv{position}", folded(layer, layers[position + 1]), pads=[1, 1, 1, 1])
        elif isinstance(layer, nn.ReLU):
            add("Relu", f"relu{position}")
        elif isinstance(layer, nn.MaxPool2d):
            add("MaxPool", f"pool{position}", kernel_shape=[2, 2], strides=[2, 2])
        elif isinstance(layer, nn.Flatten):
            add("Flatten", "flatten")
        elif isinstance(layer, nn.Linear):
            tensors = (layer.weight.detach().numpy(), layer.bias.detach().numpy())
            add("Gemm", f"dense{position}", tensors, transB=1)
    nodes[-1].output[0] = "logits"
    graph = helper.make_graph(
        nodes,
        NAME,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        weights,
    )
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="examples/digits_large", ir_version=9
    )
    onnx.checker.check_model(made, full_check=True)
    path.write_bytes(made.SerializeToString())


def folded(convolution: nn.Conv2d, norm: nn.Module) -> tuple[Array, Array]:
    """Return the weight and bias of a convolution that has the batch normalisation after it inside."""
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    weight = convolution.weight.detach() * gain[:, None, None, None]
    bias = norm.bias.detach() - norm.running_mean * gain
    return weight.numpy(), bias.numpy()


def main() -> None:
    """Train, write everything, print the figures that README.md records."""
    data, golden = load()
    arrays: dict[str, Any] = {"input.image": golden[0], "label": golden[1]}
    np.savez_compressed(FOLDER / "golden.npz", **arrays)
    model = train(*data)
    with torch.no_grad():
        right = (model(torch.from_numpy(golden[0])).argmax(1).numpy() == golden[1]).mean()
    export(model, FOLDER / f"{NAME}.onnx")
    print(f"golden set: accuracy {right:.4f}")


if __name__ == "__main__":
    main()
