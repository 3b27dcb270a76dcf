"""One signer process for each data folder, whichever of the service's processes started it.

The process that holds the folder's lock runs the signer and writes down where it listens; the others read that at every call. The
kernel gives the lock back when its holder dies, and the signer ends with its parent: another process then starts the next one.
"""

import logging
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from modelfleet.service.errors import SignerStartError
from modelfleet.service.signer_process import START_TIMEOUT_SECONDS, SignerProcess
from modelfleet.signer.client import SignerClient
from modelfleet.signer.errors import SignerUnavailableError
from modelfleet.signer.files import folder_lock, write_durably
from modelfleet.signer.swu_release import SwuKey

HANDOVER_SECONDS = 5.0
"""For this long a new signer is started again and again: a former one, whose parent has died, still holds its state."""
LOOK_SECONDS = 1.0

log = logging.getLogger(__name__)


class SharedSigner:
    """Has a signer answer for one tenant of a data folder, until `stop`.

    Attributes:
        client: calls it, wherever it runs.
    """

    def __init__(self, data: Path, tenant: str, swu: SwuKey | None = None) -> None:
        self._data, self._tenant, self._swu = data, tenant, swu
        self._folder = data / "service" / "signers" / tenant
        self._where = self._folder / "socket"
        self.client = SignerClient(self.find_socket)
        self._process: SignerProcess | None = None
        self._held = ExitStack()
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="shared-signer", daemon=True)

    def start(self) -> None:
        """Return when a signer answers: this process' own, or the one that is there.

        Raises:
            SignerStartError: none does; the message is the signer's own where this process started it.
        """
        until = time.monotonic() + START_TIMEOUT_SECONDS
        while not self._take_over() and not self._answers():
            if time.monotonic() > until:
                raise SignerStartError(
                    f"another process holds {self._folder}, and its signer did not answer within {START_TIMEOUT_SECONDS} s"
                )
            time.sleep(0.1)
        self._watcher.start()

    def stop(self) -> None:
        """End the signer where it is this process', so that another process starts the next one."""
        self._stopping.set()
        if self._watcher.is_alive():
            self._watcher.join(HANDOVER_SECONDS + START_TIMEOUT_SECONDS)
        if self._process is not None:
            self._process.stop()
        self._held.close()

    def find_socket(self) -> Path:
        """Return where the signer listens (SignerUnavailableError: none was ever started here)."""
        try:
            return Path(self._where.read_text())
        except OSError as error:
            raise SignerUnavailableError(f"expected {self._where} to tell where the signer listens: {error}") from error

    def _take_over(self) -> bool:
        """Run the signer, unless another process does; whether this one does."""
        if self._process is not None:
            return True
        try:
            self._held.enter_context(folder_lock(self._folder, wait=False))
        except BlockingIOError:
            return False
        try:
            self._process = self._started()
        except BaseException:
            self._held.close()
            raise
        write_durably(self._where, str(self._process.socket).encode(), mode=0o600)
        return True

    def _started(self) -> SignerProcess:
        until = time.monotonic() + HANDOVER_SECONDS
        while True:
            process = SignerProcess(self._data, self._tenant, self._swu)
            try:
                process.start()
            except SignerStartError:
                process.stop()
                if time.monotonic() > until or self._stopping.wait(0.2):
                    raise
            else:
                return process

    def _answers(self) -> bool:
        try:
            self.client.status()
        except SignerUnavailableError:
            return False
        return True

    def _watch(self) -> None:
        while self._process is None and not self._stopping.wait(LOOK_SECONDS):
            try:
                if self._take_over():
                    log.warning("the signer's process was lost; this one runs it now", extra={"tenant": self._tenant})
            except SignerStartError:
                log.exception("no signer could be started")
