"""Find the batch size at which a variant answers most samples a second, within its limits of latency and memory.

Sizes are doubled from 1 for as long as that gains 5 % at least. The answers to a batch must be those to its samples one by one: a
size at which they are not, or that the runtime refuses, is not offered.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.golden import GoldenSet, mismatch_share
from modelfleet.benchmarks.memory import MemoryPeak
from modelfleet.benchmarks.session import Inputs, Session
from modelfleet.signer.manifest import Tolerance

BATCHES: Final = (1, 2, 4, 8, 16, 32)
MIN_GAIN: Final = 1.05
MIN_RUNS: Final = 5
SECONDS_EACH: Final = 0.15


@dataclass(frozen=True, kw_only=True)
class BatchFigures:
    """`best`: the size with most samples a second; samples_per_s: size -> figure; p95_ms: size -> of the whole batch.

    stopped: why no larger size was tried, "" where the largest of `BATCHES` was.
    """

    best: int
    samples_per_s: Mapping[int, float]
    p95_ms: Mapping[int, float]
    stopped: str = ""

    def to_dict(self) -> dict[str, object]:
        """Return the figures as plain JSON values; sizes become text, as JSON's keys are."""
        shown = asdict(self)
        for name in ("samples_per_s", "p95_ms"):
            shown[name] = {str(size): round(value, 3) for size, value in shown[name].items()}
        return shown


@dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """latency_ms bounds the p95 of one batch, memory_bytes what the batch adds to the process."""

    latency_ms: float
    memory_bytes: int


def has_free_batch(session: Session) -> bool:
    """Whether the first dimension of every input and output is free."""
    tensors = [*session.inputs, *session.outputs]
    return bool(tensors) and all(tensor.shape[:1] == (None,) for tensor in tensors)


def tune_batch(
    session: Session,
    golden: GoldenSet,
    limits: BatchLimits,
    tolerance: Tolerance,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> BatchFigures | None:
    """Measure batches of `golden`'s samples, which are repeated where they are fewer; None where the batch is fixed.

    Args:
        session: an opened variant that answers single samples rightly.
        golden: with the expected outputs of every sample.
        limits: of one batch.
        tolerance: in the outputs' own units.
        clock: seconds, monotonic.
    """
    if not has_free_batch(session):
        return None
    speeds, p95s = dict[int, float](), dict[int, float]()
    stopped = ""
    for size in BATCHES:
        memory = MemoryPeak()
        try:
            times = _times(session, golden, size, tolerance, clock)
        except MeasureError as error:
            stopped = f"a batch of {size}: {error}"[:200]
            break
        p95 = float(np.percentile(times, 95, method="higher")) * 1000
        speed = size / float(np.median(times))
        stopped = _beyond(size, p95, memory.bytes(), limits)
        if stopped and speeds:
            break
        gained = speed / max(speeds.values(), default=speed / 2)
        speeds[size], p95s[size] = speed, p95
        if stopped or gained < MIN_GAIN:
            stopped = stopped or f"a batch of {size}: gained {gained - 1:+.0%}, less than 5 %"
            break
    if not speeds:
        return None
    return BatchFigures(
        best=max(speeds, key=lambda size: speeds[size]), samples_per_s=speeds, p95_ms=p95s, stopped=stopped
    )


def batch_of(golden: GoldenSet, size: int) -> tuple[Inputs, Inputs]:
    """Return `size` samples as one batch, and what is expected of it; samples are repeated where there are fewer."""
    rows = np.arange(size) % len(golden)
    inputs = {name: np.ascontiguousarray(array[rows]) for name, array in golden.inputs.items()}
    return inputs, {name: array[rows] for name, array in golden.expected.items()}


def _times(
    session: Session, golden: GoldenSet, size: int, tolerance: Tolerance, clock: Callable[[], float]
) -> list[float]:
    inputs, expected = batch_of(golden, size)
    share = mismatch_share(session.run(inputs), expected, tolerance)
    if share > tolerance.mismatch_share:
        raise MeasureError(f"expected the answers to single samples, got others in {share:.2%} of elements")
    times: list[float] = []
    begun = clock()
    while len(times) < MIN_RUNS or clock() - begun < SECONDS_EACH:
        started = clock()
        session.run(inputs)
        times.append(max(clock() - started, 1e-9))
    return times


def _beyond(size: int, p95_ms: float, memory_bytes: int, limits: BatchLimits) -> str:
    if p95_ms > limits.latency_ms:
        return f"a batch of {size}: expected a p95 of at most {limits.latency_ms:g} ms, got {p95_ms:.3g} ms"
    if memory_bytes > limits.memory_bytes:
        return f"a batch of {size}: expected at most {limits.memory_bytes} bytes of memory, got {memory_bytes}"
    return ""
