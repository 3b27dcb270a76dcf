"""`make bench SUITE=quantize`: every precision of ONNX Runtime beside float, through the conversion that a build runs.

Models: digits-large (examples/digits_large, 326,000 parameters: a network as people make them, with more than the task needs),
digits 1.2.0 (examples/digits, 9,930 parameters: made small by hand) and `ic` of MLPerf Tiny (examples/mlperf_tiny). Sizes are of
the variants' files against the file of the model given. Accuracy is of the golden set with labels, on which no model was trained;
pruned variants were fitted to its first third and judged by its second, so accuracy is shown for the last third as well, and the
smallest variant must hold on both. The samples that came with `ic` are noise without labels: they calibrate it and time it,
and say nothing of its accuracy; it is not pruned.
"""

import dataclasses
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import msgspec
import numpy as np

from modelfleet.benchmarks.golden import GoldenSet, load_golden, predictions, save_golden
from modelfleet.benchmarks.measure import answers
from modelfleet.benchmarks.runtimes.onnxruntime import open_onnxruntime
from modelfleet.benchmarks.session import Array, Session
from modelfleet.benchmarks.suites._report import Pair, Target, alternate, percentile, seconds_of, show, verdict
from modelfleet.converters.convert import convert
from modelfleet.converters.onnxruntime.judge import PARTS
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision, Tolerance, load_profiles

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PRECISIONS = (
    Precision.FLOAT,
    Precision.FP16,
    Precision.INT8,
    Precision.INT8_DYNAMIC,
    Precision.INT4_WEIGHTS,
    Precision.PRUNED,
    Precision.PRUNED_INT8,
    Precision.PRUNED_INT4,
)
UNPRUNED = tuple(precision for precision in PRECISIONS if not precision.startswith("pruned"))
WIDE = Tolerance(rtol=0.5, atol=0.5, mismatch_share=0.1)
RUNS = 300

TARGET_INT8_RATIO = 3.5
TARGET_INT8_POINTS = 0.5
TARGET_SMALLEST_RATIO = 20.0
TARGET_SMALLEST_POINTS = 2.0
LARGE, SMALL, UNLABELLED = "digits-large", "digits 1.2.0", "ic (ResNet-8)"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One precision of one model.

    size is the bytes of the file; accuracy and unseen are shares of the whole golden set and of its last third, None without
    labels; agreement is the share of samples with the original's class; latency is beside the float variant's.
    """

    precision: Precision
    size: int
    accuracy: float | None
    unseen: float | None
    agreement: float
    latency: Pair


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All precisions of one model; size is of the file given, accuracies as `Row`'s."""

    name: str
    samples: int
    size: int
    accuracy: float | None
    unseen: float | None
    rows: Sequence[Row]

    def ratio(self, row: Row) -> float:
        """Return how many times smaller than the model given the variant is."""
        return self.size / row.size

    def points_lost(self, row: Row) -> float:
        """Return the percentage points of accuracy that the variant loses; negative where it gains."""
        assert self.accuracy is not None and row.accuracy is not None
        return 100.0 * (self.accuracy - row.accuracy)

    def unseen_points_lost(self, row: Row) -> float:
        """Return the same of the last third."""
        assert self.unseen is not None and row.unseen is not None
        return 100.0 * (self.unseen - row.unseen)

    def of(self, precision: Precision) -> Row:
        """Return the row of a precision."""
        return next(row for row in self.rows if row.precision is precision)

    def smallest(self, points: float) -> Row:
        """Return the row of the least bytes that loses at most so many points, of the whole set and of its last third."""
        held = (row for row in self.rows if max(self.points_lost(row), self.unseen_points_lost(row)) <= points)
        return min(held, key=lambda row: row.size)


def main() -> int:
    """Convert, compare, and return the exit status."""
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as folder:
        work = Path(folder)
        ic_golden = work / "ic-golden.npz"
        save_golden(ic_samples(), ic_golden)
        large, small = EXAMPLES / "digits_large", EXAMPLES / "digits"
        found = [
            compare(LARGE, large / "digits-large-1.0.0.onnx", large / "golden.npz", PRECISIONS, work / "large"),
            compare(SMALL, small / "digits-1.2.0.onnx", small / "golden.npz", PRECISIONS, work / "small"),
            compare(UNLABELLED, EXAMPLES / "mlperf_tiny" / "ic_f32.onnx", ic_golden, UNPRUNED, work / "ic"),
        ]
    for comparison in found:
        show_rows(comparison)
    return verdict("quantize", targets(*found))


def targets(large: Comparison, small: Comparison, unlabelled: Comparison) -> list[Target]:
    """Return what the figures are held against: the sizes of trained models, and the accuracy where there are labels."""
    found: list[Target] = []
    for comparison in (large, unlabelled):
        what, got = f"int8 smaller, {comparison.name}", comparison.ratio(comparison.of(Precision.INT8))
        found.append(Target(what=what, got=got, limit=TARGET_INT8_RATIO, unit="times", at_most=False))
    for comparison in (large, small):
        what, got = f"int8 accuracy lost, {comparison.name}", comparison.points_lost(comparison.of(Precision.INT8))
        found.append(Target(what=what, got=got, limit=TARGET_INT8_POINTS, unit="points"))
    for comparison in (large, small):
        least = comparison.smallest(TARGET_SMALLEST_POINTS)
        what = f"smallest within {TARGET_SMALLEST_POINTS:g} points ({least.precision}), {comparison.name}"
        got = comparison.ratio(least)
        found.append(Target(what=what, got=got, limit=TARGET_SMALLEST_RATIO, unit="times", at_most=False))
    return found


def compare(name: str, source: Path, golden_path: Path, precisions: Sequence[Precision], work: Path) -> Comparison:
    """Return how each precision of `source` compares with the model given."""
    golden = load_golden(golden_path)
    original, float_ = open_onnxruntime(source), build(source, golden_path, Precision.FLOAT, work / "reference")[1]
    right = predictions(answers(original, golden))
    samples = cycle([golden.sample(index) for index in range(len(golden))])

    def run(session: Session) -> float:
        sample = next(samples)
        return seconds_of(lambda: session.run(sample))

    def measured(precision: Precision) -> Row:
        size, session = build(source, golden_path, precision, work / precision)
        got = predictions(answers(session, golden))
        return Row(
            precision=precision,
            size=size,
            accuracy=_share(got, golden.labels),
            unseen=_share(_last(got), _last(golden.labels)),
            agreement=int(np.count_nonzero(got == right)) / len(golden),
            latency=alternate(lambda: run(session), lambda: run(float_), rounds=RUNS),
        )

    return Comparison(
        name=name,
        samples=len(golden),
        size=source.stat().st_size,
        accuracy=_share(right, golden.labels),
        unseen=_share(_last(right), _last(golden.labels)),
        rows=[measured(precision) for precision in precisions],
    )


def build(source: Path, golden: Path, precision: Precision, folder: Path) -> tuple[int, Session]:
    """Convert `source` as the worker's first step does; return the size of the variant's files and the opened variant."""
    out, work = folder / "out", folder / "work"
    for path in (out, work):
        path.mkdir(parents=True)
    converted = convert(
        {
            "source": str(source),
            "golden": str(golden),
            "work": str(work),
            "out": str(out),
            "profile": msgspec.to_builtins(profile()),
            "precision": precision.value,
        }
    )
    size = sum(path.stat().st_size for path in out.iterdir())
    return size, open_onnxruntime(out / str(converted["entry"]))


def profile() -> HardwareProfile:
    """Return the profile of Linux machines, with every precision and `linux-cpu-small`'s tolerance of pruned ones."""
    tolerances: Mapping[Precision, Tolerance] = dict.fromkeys(PRECISIONS, WIDE)
    return dataclasses.replace(load_profiles()["linux-cpu-float"], precisions=PRECISIONS, tolerances=tolerances)


def ic_samples() -> GoldenSet:
    """Return the six samples that came with `ic` (zeros, and five of noise) and their mirror images, with the float answers."""
    with np.load(EXAMPLES / "mlperf_tiny" / "ic_f32_io.npz", allow_pickle=False) as arrays:
        images: Array = arrays["x"].reshape(-1, 32, 32, 3)
    images = np.concatenate([images, images[:, :, ::-1, :]])
    unlabelled = GoldenSet(inputs={"input_1": np.ascontiguousarray(images)}, expected={}, labels=None)
    original = open_onnxruntime(EXAMPLES / "mlperf_tiny" / "ic_f32.onnx")
    return GoldenSet(inputs=unlabelled.inputs, expected=answers(original, unlabelled), labels=None)


def show_rows(comparison: Comparison) -> None:
    """Print the table of one model."""
    labelled = comparison.accuracy is not None
    rows = [
        (
            row.precision,
            f"{row.size:,}",
            f"{comparison.ratio(row):.2f}",
            _text(row.accuracy),
            f"{comparison.points_lost(row):+.2f}" if labelled else "",
            _text(row.unseen),
            f"{row.agreement:.4f}" if labelled else "noise",
            f"{percentile(row.latency.ours, 0.5) * 1e6:.0f}",
            f"{row.latency.ratio:.2f}",
        )
        for row in comparison.rows
    ]
    title = f"{comparison.name}: {comparison.size:,} bytes as given, {comparison.samples} samples"
    if labelled:
        title += f", accuracy {_text(comparison.accuracy)}, last third {_text(comparison.unseen)}"
    columns = (
        "precision",
        "bytes",
        "smaller",
        "accuracy",
        "points lost",
        "last third",
        "same class",
        "p50 µs",
        "× float",
    )
    show(title, columns, rows)


def _last(values: Array | None) -> Array | None:
    """Return the part that no variant was fitted to or judged by."""
    return None if values is None else values[(PARTS - 1) * (len(values) // PARTS) :]


def _share(got: Array | None, labels: Array | None) -> float | None:
    if got is None or labels is None:
        return None
    return int(np.count_nonzero(got == labels)) / len(labels)


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(main())
