"""Measure one variant here: load time, latency, peak memory, accuracy and agreement with the expected outputs.

Latency is of single-sample inferences, as a device makes them, after a warm-up that is not counted. Every output is
checked for shape, dtype and finiteness. The figures hold for this machine as loaded as it is; nothing is scaled.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.golden import GoldenSet, accuracy, load_golden, mismatch_share, require_golden_fits
from modelfleet.benchmarks.memory import MemoryPeak
from modelfleet.benchmarks.runtimes.table import OPENERS, open_session
from modelfleet.benchmarks.session import Elsewhere, Outputs, Session, SessionFactory, SessionOpener, require_outputs
from modelfleet.signer.manifest import Tolerance

WARM_UP = 5
DEFAULT_RUNS = 50

__all__ = ["Measurement", "answers", "measure", "measure_file", "open_session"]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was measured. Latencies and load_ms in milliseconds; accuracy and mismatch_share as shares, None where unknown.

    samples is the size of the golden set. load_ms and peak_memory_bytes (resident memory added, see `memory`) include the
    import of the runtime where this process had not yet imported it.
    """

    samples: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    load_ms: float
    peak_memory_bytes: int
    accuracy: float | None
    mismatch_share: float | None

    def to_dict(self) -> dict[str, object]:
        """Return the figures as plain JSON values."""
        return asdict(self)


def measure(
    session_factory: SessionFactory,
    golden: GoldenSet,
    *,
    runs: int = DEFAULT_RUNS,
    tolerance: Tolerance | None = None,
    clock: Callable[[], float] = time.perf_counter,
    between: Callable[[], None] = lambda: None,
) -> Measurement:
    """Open the model, run every golden sample once and `runs` inferences at least, and return the figures.

    Args:
        session_factory: opens the model; called once.
        golden: the samples, N >= 8.
        runs: the least number of timed inferences; samples are repeated where the set is smaller.
        tolerance: when given, and the set has expected outputs, mismatch_share is computed by it.
        clock: seconds, monotonic.
        between: called before each inference; its time counts for none.

    Raises:
        MeasureError: the model does not load, an inference failed, or an output was not finite or of a wrong shape.
        GoldenSetError: the set does not fit the model.
    """
    memory, started = MemoryPeak(), clock()
    session = session_factory()
    load_ms = (clock() - started) * 1000
    require_golden_fits(golden, session.inputs, session.outputs)
    for index in range(min(WARM_UP, len(golden))):
        between()
        session.run(golden.sample(index))
    outputs, latencies_ms = _run_all(session, golden, runs, clock, between)
    p50, p95, p99 = (float(value) for value in np.percentile(latencies_ms, [50, 95, 99], method="higher"))
    return Measurement(
        samples=len(golden),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        load_ms=load_ms,
        peak_memory_bytes=memory.bytes() + (session.peak_memory_bytes if isinstance(session, Elsewhere) else 0),
        accuracy=None if golden.labels is None else accuracy(outputs, golden.labels),
        mismatch_share=mismatch_share(outputs, golden.expected, tolerance) if tolerance and golden.expected else None,
    )


def measure_file(
    path: Path,
    runtime: str,
    golden: Path | bytes | GoldenSet,
    *,
    runs: int = DEFAULT_RUNS,
    tolerance: Tolerance | None = None,
    threads: int = 1,
    openers: Mapping[str, SessionOpener] = OPENERS,
) -> Measurement:
    """Measure the model file `path`, opened with `runtime` (errors as `measure` and `load_golden`)."""
    loaded = golden if isinstance(golden, GoldenSet) else load_golden(golden)
    return measure(
        lambda: open_session(path, runtime, threads=threads, openers=openers), loaded, runs=runs, tolerance=tolerance
    )


def answers(session: Session, golden: GoldenSet) -> Outputs:
    """Return output name -> array (N, ...): the session's answer to every sample, checked (errors as `measure`)."""
    require_golden_fits(golden, session.inputs, session.outputs)
    outputs, _ = _run_all(session, golden, len(golden), time.perf_counter)
    return outputs


def _run_all(
    session: Session,
    golden: GoldenSet,
    runs: int,
    clock: Callable[[], float],
    between: Callable[[], None] = lambda: None,
) -> tuple[Outputs, list[float]]:
    collected: list[Outputs] = []
    latencies_ms: list[float] = []
    for index in range(max(runs, len(golden))):
        sample = golden.sample(index % len(golden))
        between()
        started = clock()
        outputs = session.run(sample)
        latencies_ms.append((clock() - started) * 1000)
        require_outputs(outputs, session.outputs)
        if index < len(golden):
            collected.append(outputs)
    return _joined(collected), latencies_ms


def _joined(collected: list[Outputs]) -> Outputs:
    for outputs in collected:
        for name, value in outputs.items():
            if value.shape[:1] != (1,) or value.shape != collected[0][name].shape:
                raise MeasureError(f"output {name!r}: expected one row per sample, got shape {[*value.shape]}")
    return {name: np.concatenate([outputs[name] for outputs in collected]) for name in collected[0]}
