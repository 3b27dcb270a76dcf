"""The signer as a child process: the releases key is opened there and never in this process.

The child ends with its parent (a pipe to its standard input closes), is started again when it dies, and answers on a
Unix socket in a folder that only this user can enter.
"""

import logging
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from modelfleet.service.errors import SignerStartError
from modelfleet.signer.client import SignerClient
from modelfleet.signer.errors import SignerUnavailableError
from modelfleet.signer.key_book import locate
from modelfleet.signer.swu_release import SwuKey

START_TIMEOUT_SECONDS = 20

log = logging.getLogger(__name__)


class SignerProcess:
    """Runs `modelfleet-signer serve` for one tenant until `stop`; `swu` is what signs containers for swupdate."""

    def __init__(self, data: Path, tenant: str, swu: SwuKey | None = None) -> None:
        self._runtime_dir = Path(tempfile.mkdtemp(prefix="modelfleet-"))  # a socket path holds 107 bytes at most
        self.socket = self._runtime_dir / "signer.sock"
        self._command = [sys.executable, "-m", "modelfleet.signer.cli", "serve"]
        paths = locate(data, tenant)
        self._command += ["--socket", str(self.socket), "--tenant", tenant, "--state", str(paths.signer_state)]
        self._command += ["--key", paths.releases_key, "--root", str(paths.root_json)]
        if swu is not None:
            self._command += ["--swu-key", swu.uri, "--swu-certificate", str(swu.certificate), "--swu-root", swu.root]
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="signer-watcher", daemon=True)

    def start(self) -> None:
        """Start the process and wait until it answers.

        Raises:
            SignerStartError: it ended or did not answer in time; its own message is on standard error.
        """
        self._spawn()
        self._await_answer()
        self._watcher.start()

    def stop(self) -> None:
        """End the process by its id and remove its socket."""
        self._stopping.set()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
        shutil.rmtree(self._runtime_dir, ignore_errors=True)

    def _spawn(self) -> None:
        # Its standard output is not ours (the ready line goes there), and Ctrl-C in a terminal is for us alone.
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=sys.stderr, start_new_session=True
        )

    def _await_answer(self) -> None:
        client, until = SignerClient(self.socket), time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < until:
            assert self._process is not None
            if self._process.poll() is not None:
                raise SignerStartError(
                    f"the signer process ended with {self._process.returncode}; its message is above"
                )
            try:
                client.status()
            except SignerUnavailableError:
                time.sleep(0.05)
            else:
                return
        raise SignerStartError(f"the signer process did not answer within {START_TIMEOUT_SECONDS} s")

    def _watch(self) -> None:
        while not self._stopping.wait(1.0):
            assert self._process is not None
            if self._process.poll() is not None:
                log.error("signer process ended, starting it again", extra={"returncode": self._process.returncode})
                self._spawn()
