"""`make bench SUITE=quantize`: int8 variants beside float ones, through the conversion that a build runs.

Models: `ic_f32` of MLPerf Tiny (examples/mlperf_tiny) and examples/digits. Sizes are of the variants' files, accuracy is of the
golden set with labels, latencies are of the same samples in turn. The samples that came with `ic` are noise without labels: they
calibrate it and time it, and say nothing of its accuracy.
"""

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import msgspec
import numpy as np
from onnx import numpy_helper

from modelfleet.benchmarks.golden import GoldenSet, accuracy, load_golden, predictions, save_golden
from modelfleet.benchmarks.measure import answers
from modelfleet.benchmarks.runtimes.onnxruntime import open_onnxruntime
from modelfleet.benchmarks.session import Array, Session
from modelfleet.benchmarks.suites._report import Pair, Target, alternate, bar, percentile, seconds_of, show, verdict
from modelfleet.converters.convert import convert
from modelfleet.converters.graphs import read_model
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision, load_profiles

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PROFILES: Mapping[Precision, str] = {Precision.FLOAT: "linux-cpu-float", Precision.INT8: "linux-cpu-int8"}
RUNS = 1000

TARGET_SIZE_RATIO = 3.8
TARGET_POINTS = 0.5
LARGER = "ic (ResNet-8)"
DIGITS = "digits 1.2.0"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One converted variant, opened; `weights` are the bytes of its tensors of two dimensions and more."""

    size: int
    weights: int
    session: Session


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One model's two variants on one golden set; accuracies are shares, None without labels."""

    name: str
    samples: int
    float_: Variant
    int8: Variant
    float_accuracy: float | None
    int8_accuracy: float | None
    agreement: float
    latency: Pair

    @property
    def size_ratio(self) -> float:
        """How many times smaller the int8 file is."""
        return self.float_.size / self.int8.size

    @property
    def points_lost(self) -> float:
        """Percentage points of accuracy that int8 loses; negative where it gains."""
        assert self.float_accuracy is not None and self.int8_accuracy is not None
        return 100.0 * (self.float_accuracy - self.int8_accuracy)


def main() -> int:
    """Convert, compare, and return the exit status."""
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as folder:
        work = Path(folder)
        ic_golden = work / "ic-golden.npz"
        save_golden(ic_samples(), ic_golden)
        found = [
            compare(LARGER, EXAMPLES / "mlperf_tiny" / "ic_f32.onnx", ic_golden, work / "ic"),
            compare(
                DIGITS, EXAMPLES / "digits" / "digits-1.2.0.onnx", EXAMPLES / "digits" / "golden.npz", work / "digits"
            ),
        ]
    show_sizes(found)
    show_answers(found)
    show_latencies(found)
    larger, digits = found
    return verdict(
        "quantize",
        [
            Target(
                what=f"size, float over int8, {LARGER}", got=larger.size_ratio, limit=TARGET_SIZE_RATIO, at_most=False
            ),
            Target(what=f"accuracy lost, {DIGITS}", got=digits.points_lost, limit=TARGET_POINTS, unit="points"),
        ],
    )


def compare(name: str, source: Path, golden_path: Path, work: Path) -> Comparison:
    """Return how the int8 variant of `source` compares with the float one."""
    variants = {precision: build(source, golden_path, precision, work / precision) for precision in PROFILES}
    float_, int8 = variants[Precision.FLOAT], variants[Precision.INT8]
    golden = load_golden(golden_path)
    expected, got = answers(float_.session, golden), answers(int8.session, golden)
    samples = cycle([golden.sample(index) for index in range(len(golden))])

    def run(session: Session) -> float:
        sample = next(samples)
        return seconds_of(lambda: session.run(sample))

    return Comparison(
        name=name,
        samples=len(golden),
        float_=float_,
        int8=int8,
        float_accuracy=None if golden.labels is None else accuracy(expected, golden.labels),
        int8_accuracy=None if golden.labels is None else accuracy(got, golden.labels),
        agreement=int(np.count_nonzero(predictions(expected) == predictions(got))) / len(golden),
        latency=alternate(lambda: run(int8.session), lambda: run(float_.session), rounds=RUNS),
    )


def build(source: Path, golden: Path, precision: Precision, folder: Path) -> Variant:
    """Convert `source` as the worker's first step does, and open the result."""
    out, work = folder / "out", folder / "work"
    for path in (out, work):
        path.mkdir(parents=True)
    profile: HardwareProfile = load_profiles()[PROFILES[precision]]
    converted = convert(
        {
            "source": str(source),
            "golden": str(golden),
            "work": str(work),
            "out": str(out),
            "profile": msgspec.to_builtins(profile),
            "precision": precision.value,
        }
    )
    entry = out / str(converted["entry"])
    return Variant(size=entry.stat().st_size, weights=weight_bytes(entry), session=open_onnxruntime(entry))


def weight_bytes(entry: Path) -> int:
    """Return the bytes of a model's initializers of two dimensions and more."""
    tensors = read_model(entry).graph.initializer
    return sum(numpy_helper.to_array(tensor).nbytes for tensor in tensors if len(tensor.dims) >= 2)


def ic_samples() -> GoldenSet:
    """Return the six samples that came with `ic` (zeros, and five of noise) and their mirror images, with the float answers."""
    with np.load(EXAMPLES / "mlperf_tiny" / "ic_f32_io.npz", allow_pickle=False) as arrays:
        images: Array = arrays["x"].reshape(-1, 32, 32, 3)
    images = np.concatenate([images, images[:, :, ::-1, :]])
    unlabelled = GoldenSet(inputs={"input_1": np.ascontiguousarray(images)}, expected={}, labels=None)
    original = open_onnxruntime(EXAMPLES / "mlperf_tiny" / "ic_f32.onnx")
    return GoldenSet(inputs=unlabelled.inputs, expected=answers(original, unlabelled), labels=None)


def show_sizes(found: list[Comparison]) -> None:
    rows: list[tuple[object, ...]] = []
    for comparison in found:
        longest = comparison.float_.size
        for word, variant in (("float", comparison.float_), ("int8", comparison.int8)):
            ratios = (longest / variant.size, comparison.float_.weights / variant.weights)
            rows.append(
                (
                    f"{comparison.name}, {word}",
                    f"{variant.size:,}",
                    f"{variant.weights:,}",
                    f"{variant.size - variant.weights:,}",
                    *(f"{ratio:.2f}" for ratio in ratios),
                    bar(variant.size, longest),
                )
            )
    columns = ("variant", "file bytes", "weights", "all else", "file ratio", "weight ratio", "")
    show("size", columns, rows)


def show_answers(found: list[Comparison]) -> None:
    rows = [
        (
            comparison.name,
            comparison.samples,
            _share(comparison.float_accuracy),
            _share(comparison.int8_accuracy),
            "no labels" if comparison.float_accuracy is None else f"{comparison.points_lost:+.2f}",
            "noise" if comparison.float_accuracy is None else _share(comparison.agreement),
        )
        for comparison in found
    ]
    show("answers", ("model", "samples", "float accuracy", "int8 accuracy", "points lost", "same class"), rows)


def show_latencies(found: list[Comparison]) -> None:
    rows = [
        (
            comparison.name,
            f"{percentile(comparison.latency.peer, 0.5) * 1e6:.1f}",
            f"{percentile(comparison.latency.ours, 0.5) * 1e6:.1f}",
            f"{comparison.latency.ratio:.2f}",
        )
        for comparison in found
    ]
    show(
        f"latency, median of {RUNS} inferences in turn, no target",
        ("model", "float µs", "int8 µs", "int8 / float"),
        rows,
    )


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(main())
