"""A server on loopback whose every answer a test writes itself."""

import hashlib
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from modelfleet.agent_client.http_client import Deadlines
from tests.unit.agent_client.fleet import send

DATA = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(DATA).hexdigest()
QUICK = Deadlines(connect_seconds=1.0, stall_seconds=0.5, total_seconds=1.0, bytes_per_second=10_000_000)

Respond = Callable[[BaseHTTPRequestHandler], None]


class Site:
    """A server on loopback that answers as the test says, and remembers what it was asked."""

    def __init__(self) -> None:
        self.respond: Respond = lambda request: send(request, DATA, etag=SHA256)
        self.asked: list[dict[str, str]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.asked.append(dict(self.headers))
                try:
                    site.respond(self)
                except OSError:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1/blobs/{SHA256}"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()
