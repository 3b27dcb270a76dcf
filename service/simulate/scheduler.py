"""One clock for a whole fleet, and the turns that devices take on it.

The agent's logic blocks where it waits for bytes or a measurement. Here each turn runs in a greenlet: what waits is parked, and
goes on when its moment has come, so that 100,000 of them share one thread. Time is virtual (it jumps to what is due next) or
the machine's own.
"""

import heapq
import itertools
import time
from collections.abc import Callable
from datetime import datetime, timedelta

from greenlet import getcurrent, greenlet

Act = Callable[[], None]


class Scheduler:
    """Does things at their time, in order; what is due at one moment is done in the order in which it was asked for.

    Args:
        began_at: what the clock says at 0 seconds.
        real: follow the machine's clock; False: virtual time.
    """

    def __init__(self, began_at: datetime, *, real: bool = False) -> None:
        self.began_at = began_at
        self._real_from = time.monotonic() if real else None
        self._now = 0.0
        self._due: list[tuple[float, int, Act]] = []
        self._numbers = itertools.count()
        self._hub = getcurrent()
        self._idle: list[greenlet] = []
        self.turns = 0

    def now(self) -> float:
        """Return the seconds since the beginning."""
        return self._now if self._real_from is None else time.monotonic() - self._real_from

    def clock(self) -> datetime:
        """Return the time of day, aware UTC."""
        return self.began_at + timedelta(seconds=self.now())

    def at(self, when: float, act: Act) -> None:
        """Do `act` at that second, or as soon as possible after it; it must not block."""
        heapq.heappush(self._due, (when, next(self._numbers), act))

    def run_due(self, until: float) -> float:
        """Do what is due up to `until`, at most about 50 ms of it in real time; return the seconds to the next thing.

        In virtual time the clock stands at `until` afterwards, whatever was done.
        """
        due, real = self._due, self._real_from is not None
        ends = time.monotonic() + 0.05
        while due and due[0][0] <= until:
            when, _, act = heapq.heappop(due)
            self._now = max(self._now, when)
            act()
            if real and time.monotonic() > ends:
                return 0.0
        self._now = max(self._now, until)
        return due[0][0] - self.now() if due else 1.0

    def turn(self, act: Act) -> None:
        """Do what may block (`park`); returns when it is over, or waits."""
        self.turns += 1
        runner = self._idle.pop() if self._idle else greenlet(self._run, parent=self._hub)
        runner.switch(act)

    def park(self) -> None:
        """Within a turn: wait until `resume` is called with the greenlet that is current now."""
        self._hub.switch()

    def resume(self, parked: greenlet) -> None:
        """Let a parked turn go on; returns when it is over, or waits again."""
        parked.switch()

    def _run(self, act: Act) -> None:
        """Do one turn after another: a greenlet is dearer to make than to use again."""
        while True:
            act()
            self._idle.append(getcurrent())
            act = self._hub.switch()
