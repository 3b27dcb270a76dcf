"""Write the small networks of this folder, by both of torch's exporters: `python make_models.py` (torch, onnxscript, onnx).

Every network has random weights from a fixed seed and is at most 60 KB. Beside each stands an .npz: `input.<name>` and
`output.<name>`, torch's own answers in float32 for two samples, and `more.<name>` for three where the batch is free.
The committed files were written with torch 2.13.0, onnxscript 0.7.2 and onnx 1.23.2.
"""

import io
import math
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional

HERE = Path(__file__).parent
MAX_BYTES = 60_000


class Attention(nn.Module):
    """Multi-head attention written out, so that both exporters give plain operators."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.project(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(width // self.heads)
        if self.causal:
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
        if keep is not None:
            scores = scores + (1.0 - keep[:, None, None, :].float()) * -1e4
        mixed = scores.softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, 4, causal)
        self.wide = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        x = x + self.attention(self.first(x), keep)
        return x + self.wide(self.second(x))


class Encoder(nn.Module):
    """int64 ids and an attention mask in; a class's logits out (BERT's shape)."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 16), nn.Embedding(12, 16)
        self.block, self.head = Block(16, causal=False), nn.Linear(16, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        return self.head(torch.tanh(self.block(x, mask)[:, 0]))


class Decoder(nn.Module):
    """int64 ids in, the next one's logits out, with a causal mask (GPT's shape)."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 16), nn.Embedding(12, 16)
        self.block, self.norm = Block(16, causal=True), nn.LayerNorm(16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        return self.norm(self.block(x)) @ self.words.weight.T


class Detector(nn.Module):
    """A feature pyramid of two levels and YOLO's decoding: boxes (N, anchors, 4) and scores (N, anchors, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU())
        self.down = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.LeakyReLU(0.1))
        self.mix = nn.Sequential(nn.Conv2d(20, 8, 3, 1, 1, groups=4), nn.Hardswish())
        self.heads = nn.ModuleList([nn.Conv2d(8, 14, 1), nn.Conv2d(12, 14, 1)])

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fine = self.stem(image)
        coarse = self.down(fine)
        up = functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
        fine = self.mix(torch.cat([fine, up], 1))
        found = [self.decode(head(x), 16 // x.shape[-1]) for head, x in zip(self.heads, (fine, coarse), strict=True)]
        boxes, scores = zip(*found, strict=True)
        return torch.cat(boxes, 1), torch.cat(scores, 1)

    def decode(self, raw: torch.Tensor, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
        side = raw.shape[-1]
        raw = raw.view(-1, 2, 7, side, side).permute(0, 1, 3, 4, 2)
        place, size, scores = raw.split([2, 2, 3], -1)
        grid = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="xy"), -1).float()
        boxes = torch.cat([(place.sigmoid() * 2 - 0.5 + grid) * stride, size.clamp(-4, 4).exp() * stride], -1)
        return boxes.reshape(-1, 2 * side * side, 4), scores.sigmoid().reshape(-1, 2 * side * side, 3)


class Segmenter(nn.Module):
    """Pooling, a transposed convolution, bilinear resizing and PReLU (U-Net's shape)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.deep = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=2, dilation=2)
        self.norm, self.act = nn.InstanceNorm2d(8, affine=True), nn.PReLU(8)
        self.up, self.head = nn.ConvTranspose2d(8, 6, 2, 2), nn.Conv2d(12, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = functional.elu(self.first(image))
        deep = self.act(self.norm(self.deep(functional.max_pool2d(x, 2))))
        joined = self.head(torch.cat([self.up(deep), x], 1))
        return functional.interpolate(joined, size=(24, 24), mode="bilinear", align_corners=False).softmax(1)


class Mobile(nn.Module):
    """Depthwise separable convolutions with squeeze and excitation (MobileNetV3's shape)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.Conv2d(12, 12, 5, 1, 2, groups=12, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(12), nn.BatchNorm2d(12)])
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.point, self.head = nn.Conv2d(12, 16, 1), nn.Linear(16, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = functional.hardswish(self.norms[0](self.stem(image)))
        x = functional.relu6(self.norms[1](self.depth(x)))
        gate = functional.hardsigmoid(self.excite(functional.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head(functional.adaptive_avg_pool2d(self.point(x * gate), 1).flatten(1))


class Recurrent(nn.Module):
    """A bidirectional LSTM and a GRU over a sequence (a keyword spotter's shape)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True, bidirectional=True)
        self.gru, self.head = nn.GRU(16, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        x, _ = self.lstm(sound)
        x, _ = self.gru(x)
        return self.head(x[:, -1]).log_softmax(-1)


class Sound(nn.Module):
    """Convolutions over time with gates and normalisation over channels (a vocoder's shape)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv1d(4, 8, 3, padding=d, dilation=d) for d in (1, 2, 4)])
        self.norm, self.up = nn.GroupNorm(2, 4), nn.ConvTranspose1d(4, 3, 4, 2, 1)

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            a, b = layer(sound).chunk(2, 1)
            sound = sound + torch.tanh(a) * torch.sigmoid(b)
        return self.up(functional.softplus(self.norm(sound)))


def floats(*shape: int) -> Callable[[int], torch.Tensor]:
    return lambda batch: torch.randn(batch, *shape)


def ids(length: int) -> Callable[[int], torch.Tensor]:
    return lambda batch: torch.randint(0, 50, (batch, length))


def mask(length: int) -> Callable[[int], torch.Tensor]:
    return lambda batch: (torch.arange(length)[None] < torch.randint(3, length + 1, (batch, 1))).long()


NETWORKS: dict[str, tuple[type[nn.Module], dict[str, Callable[[int], torch.Tensor]], list[str]]] = {
    "encoder": (Encoder, {"ids": ids(10), "mask": mask(10)}, ["logits"]),
    "decoder": (Decoder, {"ids": ids(10)}, ["logits"]),
    "detector": (Detector, {"image": floats(3, 16, 16)}, ["boxes", "scores"]),
    "segmenter": (Segmenter, {"image": floats(3, 16, 16)}, ["classes"]),
    "mobile": (Mobile, {"image": floats(3, 24, 24)}, ["logits"]),
    "recurrent": (Recurrent, {"sound": floats(9, 6)}, ["classes"]),
    "sound": (Sound, {"sound": floats(4, 20)}, ["wave"]),
}


def write(name: str, exporter: str) -> None:
    kind, makers, outputs = NETWORKS[name]
    torch.manual_seed(7)
    model = kind()
    for module in model.modules():  # as after training: statistics that are not 0 and 1
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    model.eval()
    torch.manual_seed(11)
    samples = {2: [make(2) for make in makers.values()], 3: [make(3) for make in makers.values()]}
    path = HERE / f"{name}-{exporter}.onnx"
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        told = {"input_names": list(makers), "output_names": outputs}
        if exporter == "script":
            free = {each: {0: "batch"} for each in [*makers, *outputs]}
            torch.onnx.export(model, tuple(samples[2]), path, dynamo=False, opset_version=17, dynamic_axes=free, **told)
        else:
            batch = torch.export.Dim("batch", min=1, max=64)
            shapes = tuple({0: batch} for _ in makers)
            torch.onnx.export(
                model,
                tuple(samples[2]),
                path,
                dynamo=True,
                external_data=False,
                dynamic_shapes=shapes,
                verbose=False,
                **told,
            )
    strip(path)
    size = path.stat().st_size
    assert size <= MAX_BYTES, f"{path.name}: {size} bytes"
    kept: dict[str, np.ndarray] = {}
    with torch.no_grad():
        for batch, inputs in samples.items():
            answers = model(*inputs)
            answers = answers if isinstance(answers, tuple) else (answers,)
            prefix = "" if batch == 2 else "more."
            kept |= {f"{prefix}input.{each}": value.numpy() for each, value in zip(makers, inputs, strict=True)}
            kept |= {f"{prefix}output.{each}": value.numpy() for each, value in zip(outputs, answers, strict=True)}
    np.savez_compressed(HERE / f"{name}.npz", **kept)
    print(f"{path.name}: {size} bytes")


def strip(path: Path) -> None:
    """Leave out where in the source each node came from."""
    model = onnx.load(path)
    del model.metadata_props[:]
    for graph in [model.graph, *model.functions]:
        del graph.metadata_props[:]
        for node in graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
        for value in [*graph.value_info, *getattr(graph, "input", []), *getattr(graph, "output", [])]:
            if not isinstance(value, str):
                del value.metadata_props[:]
    onnx.save(model, path)


if __name__ == "__main__":
    for asked in sys.argv[1:] or NETWORKS:
        write(asked, "script")
        write(asked, "dynamo")
