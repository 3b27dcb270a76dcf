"""The signer process's socket: one thread per connection, one request each, total deadlines, bounded sizes.

A malformed request closes its own connection with an error reply and disturbs nobody else.
"""

import contextlib
import logging
import os
import socket
import socketserver
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from modelfleet.signer.errors import SignerError, SignerUnavailableError
from modelfleet.signer.releases import ReleaseSigner
from modelfleet.signer.wire import Reply, Request, parse_request, receive_message, refusal, send_message

REQUEST_SECONDS = 10.0
"""From the connection's start until its request has come; as long again for the reply to go."""
MAX_CONNECTIONS = 32

log = logging.getLogger(__name__)


class SignerServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Listens on a Unix socket that only this user can open, until `shutdown`.

    Raises:
        SignerUnavailableError: another signer answers on that socket, or the path cannot be bound.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, socket_path: Path, signer: ReleaseSigner, *, request_seconds: float = REQUEST_SECONDS) -> None:
        self.signer = signer
        self.request_seconds = request_seconds
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        _remove_stale(socket_path)
        with _private_umask():
            try:
                super().__init__(str(socket_path), _Connection)
            except OSError as error:
                raise SignerUnavailableError(f"cannot listen on {socket_path}: {error}") from error

    def process_request(self, request: "socket.socket | tuple[bytes, socket.socket]", client_address: object) -> None:
        """Answer in a thread of its own, or close at once where too many are open."""
        if not self._free.acquire(blocking=False):
            log.warning("closed a connection", extra={"open": MAX_CONNECTIONS})
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(
        self, request: "socket.socket | tuple[bytes, socket.socket]", client_address: object
    ) -> None:
        """Answer one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002  # socketserver calls it
        """Log what no reply could tell; the server goes on."""
        log.exception("a connection failed")


class _Connection(socketserver.BaseRequestHandler):
    request: socket.socket

    def handle(self) -> None:
        assert isinstance(self.server, SignerServer)
        with contextlib.suppress(OSError, SignerUnavailableError):  # a peer that went away or is too slow
            reply = self._reply(self.server)
            send_message(self.request, reply, time.monotonic() + self.server.request_seconds)

    def _reply(self, server: SignerServer) -> Reply:
        ends = time.monotonic() + server.request_seconds
        try:
            return _answer(server.signer, parse_request(receive_message(self.request, ends)))
        except SignerError as error:
            log.info("refused a request", extra={"kind": type(error).__name__, "reason": str(error)})
            return refusal(error)


def _answer(signer: ReleaseSigner, request: Request) -> Reply:
    try:
        return signer.answer(request)
    except OSError as error:  # the state folder: a full disk, for instance
        log.error("the state folder failed", extra={"reason": str(error)})
        return refusal(SignerUnavailableError(f"the signer could not store its state: {error}"))


def _remove_stale(path: Path) -> None:
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)  # a killed process leaves its socket behind
            return
    raise SignerUnavailableError(f"another signer listens on {path}: stop it first")


@contextmanager
def _private_umask() -> Generator[None]:
    """Create files for this user alone: between bind and chmod anybody could connect."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)
