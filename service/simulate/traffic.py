"""What applications on a device ask of its model, and what is counted of it: drawn when somebody reads the counters.

It goes on while the agent is down, since applications are processes of their own.
"""

import functools
import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from modelfleet.agent_client.counters import Counts
from modelfleet.agent_client.protocol import LATENCY_BUCKETS_MS
from modelfleet.agent_client.slots import Pointer
from modelfleet.service.simulate.world import Behaviour, Kind, World

SPREAD = 0.25
"""Standard deviation of the logarithm of an inference's latency."""
CLASSES = (0.4, 0.3, 0.2, 0.1)
"""How often each class is predicted."""
UNKNOWN = Behaviour()


class Traffic:
    """Inferences of one slot under its present activation."""

    __slots__ = ("_classes", "_errors", "_kind", "_latency", "_limit_ms", "_n", "_sha256", "_slow", "_until", "_world")

    def __init__(self, world: World, kind: Kind) -> None:
        self._world, self._kind = world, kind
        self._begin("", math.inf)

    def switched(self, pointer: Pointer | None) -> None:
        """Count anew: another activation begins, or (None) there is no model to ask."""
        if pointer is None:
            self._begin("", math.inf)
        else:
            self._begin(pointer.sha256, pointer.latency_ms)

    def counts(self) -> Counts:
        """Return what was counted up to now."""
        now = self._world.scheduler.now()
        if self._sha256:
            self._draw(now - self._until)
        self._until = now
        return Counts(
            n=self._n,
            errors=self._errors,
            slow=self._slow,
            latency=tuple(self._latency.tolist()),
            classes=tuple(self._classes.tolist()),
        )

    def _begin(self, sha256: str, limit_ms: float) -> None:
        self._sha256, self._limit_ms = sha256, limit_ms
        self._n = self._errors = self._slow = 0
        self._latency: npt.NDArray[np.int64] = np.zeros(len(LATENCY_BUCKETS_MS) + 1, np.int64)
        self._classes: npt.NDArray[np.int64] = np.zeros(len(CLASSES), np.int64)
        self._until = self._world.scheduler.now()

    def _draw(self, seconds: float) -> None:
        rng, behaviour = self._world.rng, self._world.behaviours.get(self._sha256, UNKNOWN)
        more = int(rng.poisson(max(0.0, seconds) * self._kind.per_minute / 60.0))
        if not more:
            return
        median = self._kind.latency_ms * behaviour.latency_factor
        self._n += more
        self._errors += int(rng.binomial(more, behaviour.error_share))
        self._slow += int(rng.binomial(more, share_above(median, self._limit_ms)))
        self._latency += rng.multinomial(more, buckets(median))
        self._classes += rng.multinomial(more, CLASSES)


@functools.lru_cache(maxsize=256)
def buckets(median_ms: float) -> tuple[float, ...]:
    """Return how often each cell of the latency histogram is hit; they sum to 1."""
    below = [1.0 - share_above(median_ms, edge) for edge in LATENCY_BUCKETS_MS]
    shares = np.diff([0.0, *below, 1.0]).clip(0.0)
    return tuple((shares / shares.sum()).tolist())


@functools.lru_cache(maxsize=1024)
def share_above(median_ms: float, limit_ms: float) -> float:
    """Return the share of inferences that take longer than `limit_ms`."""
    if limit_ms == math.inf:
        return 0.0
    return 1.0 - NormalDist().cdf(math.log(limit_ms / median_ms) / SPREAD)
