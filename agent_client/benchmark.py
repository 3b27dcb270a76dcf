"""The device's own measurement of a variant, before it may run: on the golden set that came with it, on this machine.

The limits are the manifest's and the rollout's together, the stricter of the two each.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from modelfleet.agent_client.confidential import open_variant, read_golden
from modelfleet.agent_client.errors import BenchmarkError
from modelfleet.agent_client.model import SessionOpener
from modelfleet.agent_client.protocol import Bench
from modelfleet.agent_client.slots import MANIFEST_NAME, digest_of
from modelfleet.benchmarks.errors import BenchmarksError, MeasureError
from modelfleet.benchmarks.golden import GoldenSet, load_golden
from modelfleet.benchmarks.measure import Measurement, measure
from modelfleet.benchmarks.runtimes.table import PROVED_ON_DEVICE
from modelfleet.benchmarks.session import Session
from modelfleet.signer.desired import Limits
from modelfleet.signer.errors import DigestError
from modelfleet.signer.manifest import Manifest

RUNS = 50


def measure_variant(
    folder: Path,
    manifest: Manifest,
    openers: Mapping[str, SessionOpener],
    limits: Limits,
    between: Callable[[], None] = lambda: None,
) -> Bench:
    """Return what this device measures of the variant in `folder`, which holds every limit.

    Args:
        folder: a verified directory.
        manifest: what was verified there.
        openers: runtime name -> opener; the application's model is opened by the same.
        limits: the rollout's.
        between: called before each inference; it raises nothing.

    Raises:
        DigestError: a confidential variant does not open to what was signed.
        BenchmarkError: it misses a limit, does not open or does not answer; the message says expected and got.
        OSError: it cannot be read.
    """
    opener = openers[manifest.runtime]
    sha256 = digest_of(folder / MANIFEST_NAME)

    def open_entry() -> Session:
        return open_variant(folder, manifest, sha256, opener)

    try:
        golden = load_golden(read_golden(folder, manifest, sha256))
        _require_answers(golden, manifest)
        found = measure(open_entry, golden, runs=RUNS, tolerance=manifest.tolerance, between=between)
    except (DigestError, OSError):  # a disk that cannot be read says nothing of the model
        raise
    except BenchmarksError as error:
        raise BenchmarkError(f"{manifest.model} {manifest.version} on this device: {error}") from error
    except Exception as error:
        raise BenchmarkError(
            f"{manifest.model} {manifest.version} on this device: {type(error).__name__}: {error}"
        ) from error
    bench = _bench(found)
    misses = missed(bench, manifest, limits)
    if misses:
        raise BenchmarkError(f"{manifest.model} {manifest.version} on this device: {'; '.join(misses)}", bench=bench)
    return bench


def _require_answers(golden: GoldenSet, manifest: Manifest) -> None:
    """Where the server could not run what the device runs, the device's comparison is the proof: it needs all answers."""
    lacking = sorted({tensor.name for tensor in manifest.outputs} - set(golden.expected))
    if manifest.runtime in PROVED_ON_DEVICE and lacking:
        raise MeasureError(
            f"golden set: expected the original's answers of {lacking}, got none: nothing proves it here"
        )


def missed(bench: Bench, manifest: Manifest, limits: Limits) -> list[str]:
    """Return what the figures miss, each as `what: expected ..., got ...`; empty: all holds."""
    latency_ms = min(manifest.limits.latency_ms, limits.latency_ms)
    least = max(manifest.limits.accuracy or 0.0, limits.accuracy or 0.0)
    tolerated = manifest.tolerance.mismatch_share
    found: list[str] = []
    if bench.p95_ms > latency_ms:
        found.append(f"latency p95: expected <= {latency_ms:g} ms, got {bench.p95_ms:.2f}")
    if bench.accuracy is not None and bench.accuracy < least:
        found.append(f"accuracy: expected >= {least:g}, got {bench.accuracy:.4f}")
    if bench.mismatch_share is not None and bench.mismatch_share > tolerated:
        found.append(f"outputs beyond tolerance: expected a share <= {tolerated:g}, got {bench.mismatch_share:.4f}")
    if bench.peak_memory_bytes > manifest.limits.memory_bytes:
        found.append(f"memory: expected <= {manifest.limits.memory_bytes} bytes, got {bench.peak_memory_bytes}")
    return found


def _bench(found: Measurement) -> Bench:
    return Bench(
        samples=found.samples,
        p50_ms=found.p50_ms,
        p95_ms=found.p95_ms,
        p99_ms=found.p99_ms,
        load_ms=found.load_ms,
        peak_memory_bytes=found.peak_memory_bytes,
        accuracy=found.accuracy,
        mismatch_share=found.mismatch_share,
    )
