"""The thread that sends what is due, in every process that runs a controller."""

import logging
import threading
from collections.abc import Callable
from datetime import datetime

from modelfleet.rollout.webhooks.send import Sender

PAUSE_SECONDS = 1.0
STOP_SECONDS = 15.0

log = logging.getLogger(__name__)


class Sending:
    """Sends until it is stopped; what was under way at a stop is sent again by whoever comes next, under the same id."""

    def __init__(self, sender: Sender, clock: Callable[[], datetime]) -> None:
        self._sender, self._clock = sender, clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after what is under way."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                sent = self._sender.send_due(self._clock())
            except Exception:  # the database may be back in a moment
                log.exception("webhooks could not be sent")
                sent = 0
            if not sent:
                self._stopping.wait(PAUSE_SECONDS)
