"""Device tokens are used once: what a token's `jti` is for (RFC 7519, 4.1.7), remembered until the token has expired.

The memory is the process's own and bounded: a device may have `PER_DEVICE` live tokens, all of them together `IN_ALL`. Nothing
is forgotten early to make room, since that would let an enrolled device flush another one's tokens out; whoever signs more is
refused (429). docs/decisions/0010 says why it is not a table.
"""

import hashlib
import threading
from collections import Counter, deque

from modelfleet.registry.errors import TooManyTokensError, UnauthenticatedError

PER_DEVICE = 5_000
IN_ALL = 200_000


class ReplayCache:
    """Remembers which tokens were used. May be called from any thread.

    Args:
        per_device, in_all: how many tokens are remembered at once.
    """

    def __init__(self, *, per_device: int = PER_DEVICE, in_all: int = IN_ALL) -> None:
        self._per_device, self._in_all = per_device, in_all
        self._lock = threading.Lock()
        self._used: set[bytes] = set()
        self._until: deque[tuple[float, str, bytes]] = deque()
        self._counts: Counter[str] = Counter()

    def use(self, device: str, jti: str, *, now: float, remember_seconds: float) -> None:
        """Take note that this device's token was used, for `remember_seconds`, at least as long as it could be valid.

        Args:
            remember_seconds: the same at every call, so that what is forgotten next is always the oldest.

        Raises:
            UnauthenticatedError: it was used before. TooManyTokensError: there is no room.
        """
        mark = hashlib.sha256(f"{device}\0{jti}".encode()).digest()[:16]
        with self._lock:
            self._forget(now)
            if mark in self._used:
                raise UnauthenticatedError("the device token was used before: sign a new one for each request")
            if self._counts[device] >= self._per_device or len(self._used) >= self._in_all:
                raise TooManyTokensError("more device tokens than this server remembers: try again in five minutes")
            self._used.add(mark)
            self._until.append((now + remember_seconds, device, mark))
            self._counts[device] += 1

    def _forget(self, now: float) -> None:
        while self._until and self._until[0][0] < now:
            _, device, mark = self._until.popleft()
            self._used.discard(mark)
            self._counts[device] -= 1
            if not self._counts[device]:
                del self._counts[device]
