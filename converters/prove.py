"""The proof: the variant's answers against onnxruntime's on the original, and its benchmark. Steps in child processes.

The original runs unoptimised and unconverted: what normalising or converting broke shows. A variant without this proof does not
exist.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from modelfleet.benchmarks.batching import BatchLimits, batch_of, has_free_batch, tune_batch
from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.golden import GoldenSet, load_golden, mismatch_share, save_golden
from modelfleet.benchmarks.measure import answers, measure
from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession
from modelfleet.benchmarks.session import Outputs, Session
from modelfleet.converters.errors import ConversionError, ParityError
from modelfleet.converters.graphs import places, read_model
from modelfleet.converters.parity import Parity, parity, scaled_tolerance
from modelfleet.converters.request import profile_of
from modelfleet.converters.table import converter_for
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision
from modelfleet.signer.manifest import Tolerance

DEVICE_SAMPLES: Final = 512
BATCH_PROVED: Final = 3
"""Odd, so that no power of two that a runtime rounds to hides what is wrong."""
# The publisher's own outputs may come from another runtime (the training framework).
PUBLISHER_TOLERANCE: Final = Tolerance(rtol=1e-3, atol=1e-4)


def prove(request: Mapping[str, Any]) -> Mapping[str, object]:
    """Return the proof's figures and write the device golden set.

    Args:
        request: `source`, `golden`, `entry`: files; `device_golden`: the file to write; `profile`; `precision`.

    Raises:
        ConversionError: the variant's inputs or outputs are others, or (ParityError) its answers lie outside the tolerance,
            one by one or in a batch; names the node that computes the worst output.
        GoldenSetError: the publisher's expected outputs are not the original's.
    """
    profile, precision = profile_of(request["profile"]), Precision(request["precision"])
    source, golden = Path(request["source"]), load_golden(Path(request["golden"]))
    original = OnnxRuntimeSession(source, optimise=False)
    variant = converter_for(profile).open(Path(request["entry"]))
    _require_same_interface(original, variant, profile)
    expected, got = answers(original, golden), answers(variant, golden)
    _require_publishers_outputs(golden, expected, source, profile)
    tolerance = scaled_tolerance(profile.tolerances[precision], expected)
    found = parity(expected, got, tolerance, golden.labels)
    _require_parity(found, tolerance, source, profile)
    _require_batches(original, variant, golden, tolerance, source, profile)
    device = GoldenSet(inputs=golden.inputs, expected=expected, labels=golden.labels).head(DEVICE_SAMPLES)
    save_golden(device, Path(request["device_golden"]))
    return {
        "parity": found.to_dict(),
        "tolerance": msgspec.to_builtins(tolerance),
        "inputs": msgspec.to_builtins(variant.inputs),
        "outputs": msgspec.to_builtins(variant.outputs),
    }


def benchmark(request: Mapping[str, Any]) -> Mapping[str, object]:
    """Return `Measurement` figures of the variant, measured by itself in a process of its own; `batch` as `BatchFigures`.

    Args:
        request: `entry`, `device_golden`: files; `tolerance`; `runs`; `profile`; `latency_ms`, `batch_bytes`: limits of a
            batch, None: no batches are measured; `samples`: only the first so many, None: all.
    """
    profile = profile_of(request["profile"])
    golden = load_golden(Path(request["device_golden"]))
    golden = golden.head(request.get("samples") or len(golden))
    tolerance = msgspec.convert(request["tolerance"], Tolerance)
    converter, entry = converter_for(profile), Path(request["entry"])
    opened: list[Session] = []

    def open_entry() -> Session:
        opened.append(converter.open(entry))
        return opened[0]

    runs = min(request["runs"], request.get("samples") or request["runs"])
    found = measure(open_entry, golden, runs=runs, tolerance=tolerance).to_dict()
    if request.get("latency_ms") is None:
        return found
    limits = BatchLimits(latency_ms=request["latency_ms"], memory_bytes=request["batch_bytes"])
    batch = tune_batch(opened[0], golden, limits, tolerance)
    return {**found, "batch": None if batch is None else batch.to_dict()}


def _require_same_interface(original: Session, variant: Session, profile: HardwareProfile) -> None:
    for what, expected, got in (
        ("inputs", original.inputs, variant.inputs),
        ("outputs", original.outputs, variant.outputs),
    ):
        wanted, found = [(t.name, t.dtype) for t in expected], [(t.name, t.dtype) for t in got]
        if wanted != found:
            raise ConversionError("", profile.name, f"{what}: expected {wanted}, got {found}")


def _require_publishers_outputs(golden: GoldenSet, expected: Outputs, source: Path, profile: HardwareProfile) -> None:
    for name, array in golden.expected.items():
        share = mismatch_share(expected, {name: array}, PUBLISHER_TOLERANCE)
        if share > 0:
            reason = f"output {name!r}: expected the golden set's values, got others from onnxruntime in {share:.2%} of elements"
            raise ConversionError(producer_of(source, name), profile.name, reason)


def _require_parity(found: Parity, tolerance: Tolerance, source: Path, profile: HardwareProfile) -> None:
    if found.mismatch_share > tolerance.mismatch_share:
        reason = (
            f"output {found.worst_output!r}: expected at most {tolerance.mismatch_share:.2%} of elements outside "
            f"{tolerance.atol:.3g} + {tolerance.rtol:g} * |original|, got {found.mismatch_share:.2%} "
            f"(largest error {found.max_error:.3g})"
        )
        raise ParityError(producer_of(source, found.worst_output), profile.name, reason, found.to_dict())


def _require_batches(
    original: Session,
    variant: Session,
    golden: GoldenSet,
    tolerance: Tolerance,
    source: Path,
    profile: HardwareProfile,
) -> None:
    """Refuse a variant that says it takes any batch, and answers a batch otherwise than the original does.

    An original that takes no batch, whatever it says, promises nothing that could be compared.
    """
    if not has_free_batch(original) or not has_free_batch(variant):
        return
    inputs, _ = batch_of(golden, BATCH_PROVED)
    try:
        expected = original.run(inputs)
    except MeasureError:
        return
    try:
        got = variant.run(inputs)
    except MeasureError as error:
        reason = f"a batch of {BATCH_PROVED}: expected answers as from the original, got {error}"
        raise ConversionError("", profile.name, reason) from error
    for name, value in expected.items():
        share = mismatch_share(got, {name: value}, tolerance)
        if share > tolerance.mismatch_share:
            reason = (
                f"output {name!r} of a batch of {BATCH_PROVED}: expected at most {tolerance.mismatch_share:.2%} of elements "
                f"outside the tolerance, got {share:.2%}"
            )
            raise ConversionError(producer_of(source, name), profile.name, reason)


def producer_of(source: Path, output: str) -> str:
    """Return the name of the node of the original that computes `output`, "" where none does."""
    for place in places(read_model(source)):
        if output in place.node.output and place.depth == 0:
            return place.name
    return ""
