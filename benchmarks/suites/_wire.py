"""A relay on loopback that counts what a client sends and gets, headers and all, below any HTTP library."""

import contextlib
import socket
import threading
from collections.abc import Generator
from dataclasses import dataclass, field

PIECE_BYTES = 64 * 1024


@dataclass
class Counted:
    """Bytes of requests and of answers since the last `reset`."""

    sent: int = 0
    received: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reset(self) -> None:
        """Start again from nothing."""
        with self.lock:
            self.sent = self.received = 0


@contextlib.contextmanager
def relay(port: int) -> Generator[tuple[int, Counted]]:
    """Pass everything on to the loopback port, and yield the relay's own port and the count."""
    counted = Counted()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=_accept, args=(listening, port, counted), daemon=True).start()
        yield listening.getsockname()[1], counted


def _accept(listening: socket.socket, port: int, counted: Counted) -> None:
    with contextlib.suppress(OSError):  # closed: the measurement is over
        while True:
            client, _ = listening.accept()
            server = socket.create_connection(("127.0.0.1", port))
            for source, target, name in ((client, server, "sent"), (server, client, "received")):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=_pass, args=(source, target, counted, name), daemon=True).start()


def _pass(source: socket.socket, target: socket.socket, counted: Counted, name: str) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(PIECE_BYTES):
            with counted.lock:
                setattr(counted, name, getattr(counted, name) + len(piece))
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)
