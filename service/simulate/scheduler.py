"""One clock for a whole fleet, and the turns that devices take on it.

The agent's logic blocks where it waits for bytes or a measurement. Here each turn runs in a greenlet: what waits is parked, and
goes on when its moment has come, so that 100,000 of them share one thread. Time is virtual (it jumps to what is due next) or
follows the machine's clock. It never leaves out what is due: where the machine cannot keep up, the fleet's clock falls behind,
and no device takes the simulator's slowness for its own.
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

    Attributes:
        turns: how many a device had.
        behind: the seconds by which the fleet's clock was behind the machine's at most.
    """

    def __init__(self, began_at: datetime, *, real: bool = False) -> None:
        self.began_at = began_at
        self._real, self._real_from = real, time.monotonic()
        self._now = 0.0
        self._due: list[tuple[float, int, Act]] = []
        self._numbers = itertools.count()
        self._hub = getcurrent()
        self._idle: list[greenlet] = []
        self.turns = 0
        self.behind = 0.0

    def now(self) -> float:
        """Return the fleet's seconds since the beginning."""
        return self._now

    def elapsed(self) -> float:
        """Return the machine's seconds since the beginning."""
        return time.monotonic() - self._real_from

    def clock(self) -> datetime:
        """Return the time of day, aware UTC."""
        return self.began_at + timedelta(seconds=self.now())

    def at(self, when: float, act: Act) -> None:
        """Do `act` at that second, or as soon as possible after it; it must not block."""
        heapq.heappush(self._due, (when, next(self._numbers), act))

    def run_due(self, until: float) -> float:
        """Do what is due up to `until`, at most about 50 ms of it in real time; return the seconds to the next thing.

        The clock stands at `until` afterwards, unless the 50 ms were not enough.
        """
        due, ends = self._due, time.monotonic() + 0.05
        while due and due[0][0] <= until:
            when, _, act = heapq.heappop(due)
            self._now = max(self._now, when)
            act()
            if self._real and time.monotonic() > ends:
                self.behind = max(self.behind, until - self._now)
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
