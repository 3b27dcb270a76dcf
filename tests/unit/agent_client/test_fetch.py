"""Downloads against servers that cut, stall, lie and never end."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from modelfleet.agent_client.errors import HttpStatusError, TransferError
from modelfleet.agent_client.fetch import Deadlines, HttpClient
from modelfleet.signer.errors import DigestError
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


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


@pytest.fixture
def client() -> Iterator[HttpClient]:
    made = HttpClient(deadlines=QUICK)
    yield made
    made.close()


def cut_after(count: int) -> Respond:
    def respond(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("ETag", f'"{SHA256}"')
        request.send_header("Content-Length", str(len(DATA)))
        request.end_headers()
        request.wfile.write(DATA[:count])
        request.close_connection = True

    return respond


def fetch(client: HttpClient, site: Site, path: Path) -> None:
    client.fetch_file(site.url, path, sha256=SHA256, length=len(DATA))


def test_writes_the_file_whole(client: HttpClient, site: Site, tmp_path: Path) -> None:
    fetch(client, site, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_resumes_after_a_cut_where_it_stopped(client: HttpClient, site: Site, tmp_path: Path) -> None:
    whole, site.respond = site.respond, cut_after(300_000)
    with pytest.raises(TransferError):
        fetch(client, site, tmp_path / "file")
    assert not (tmp_path / "file").exists()
    kept = (tmp_path / "file.part").stat().st_size
    assert 0 < kept <= 300_000
    site.respond = whole
    fetch(client, site, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA
    assert site.asked[-1]["Range"] == f"bytes={kept}-"
    assert site.asked[-1]["If-Range"] == f'"{SHA256}"'


def test_starts_again_when_the_server_has_another_etag(client: HttpClient, site: Site, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"of something else")
    site.respond = lambda request: send(request, DATA, etag="another")
    fetch(client, site, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA


def test_starts_again_when_the_partial_file_has_rotted(client: HttpClient, site: Site, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"\x00" * 1000)
    with pytest.raises(TransferError):
        fetch(client, site, tmp_path / "file")
    fetch(client, site, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA


def test_refuses_other_bytes_of_the_same_length(client: HttpClient, site: Site, tmp_path: Path) -> None:
    site.respond = lambda request: send(request, b"\x01" + DATA[1:], etag=SHA256)
    with pytest.raises(DigestError, match="sha256"):
        fetch(client, site, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_refuses_what_announces_itself_as_too_long(client: HttpClient, site: Site, tmp_path: Path) -> None:
    site.respond = lambda request: send(request, DATA + b"more", etag=SHA256)
    with pytest.raises(DigestError, match="announced"):
        fetch(client, site, tmp_path / "file")


def test_stops_at_the_signed_length_when_data_is_endless(client: HttpClient, site: Site, tmp_path: Path) -> None:
    sent = 0

    def endless(request: BaseHTTPRequestHandler) -> None:
        nonlocal sent
        request.send_response(200)
        request.send_header("Connection", "close")
        request.end_headers()
        for _ in range(1000):
            request.wfile.write(DATA)
            sent += len(DATA)

    site.respond = endless
    kept: list[int] = []
    with pytest.raises(DigestError, match="got more"):
        client.fetch_file(site.url, tmp_path / "file", sha256=SHA256, length=len(DATA), on_piece=kept.append)
    assert sum(kept) <= len(DATA)
    assert (tmp_path / "file.part").stat().st_size <= len(DATA)
    assert sent < 100 * len(DATA)


def one_byte_at_a_time(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(DATA)))
    request.end_headers()
    for byte in DATA[:200]:
        request.wfile.write(bytes([byte]))
        time.sleep(0.05)


def headers_that_never_end(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for _ in range(200):
        request.wfile.write(b"X: y\r\n")
        time.sleep(0.05)


def silence(_request: BaseHTTPRequestHandler) -> None:
    time.sleep(5)


@pytest.mark.parametrize("respond", [one_byte_at_a_time, headers_that_never_end, silence])
def test_ends_a_slow_retrieval_at_its_deadline(
    respond: Respond, client: HttpClient, site: Site, tmp_path: Path
) -> None:
    site.respond = respond
    started = time.monotonic()
    with pytest.raises(TransferError):
        fetch(client, site, tmp_path / "file")
    assert time.monotonic() - started < 2.5


def test_reads_no_more_of_a_document_than_it_may(client: HttpClient, site: Site) -> None:
    with pytest.raises(TransferError, match="at most 1000 bytes"):
        client.get(site.url, max_bytes=1000)


def test_says_the_status_of_a_refusal(client: HttpClient, site: Site) -> None:
    site.respond = lambda request: send(request, b'{"detail": "gone"}', 410)
    with pytest.raises(HttpStatusError) as raised:
        client.get(site.url, max_bytes=1000)
    assert (raised.value.status, raised.value.body) == (410, b'{"detail": "gone"}')


def test_an_unreachable_server_is_a_transfer_error(client: HttpClient, site: Site) -> None:
    url = site.url
    site.close()
    with pytest.raises(TransferError):
        client.get(url, max_bytes=1000)
    site.__init__()


def test_uses_a_connection_again_and_survives_its_end(client: HttpClient, site: Site) -> None:
    for _ in range(3):
        assert client.get(site.url, max_bytes=len(DATA)).body == DATA
    site.respond = lambda request: (send(request, DATA), setattr(request, "close_connection", True))[0]
    for _ in range(3):
        assert client.get(site.url, max_bytes=len(DATA)).status == 200


def test_shows_its_token_to_its_own_server_only(site: Site) -> None:
    other = Site()
    client = HttpClient(token=lambda: "secret", server=site.url, deadlines=QUICK)

    def redirect(request: BaseHTTPRequestHandler) -> None:
        request.send_response(307)
        request.send_header("Location", other.url)
        request.send_header("Content-Length", "0")
        request.end_headers()

    site.respond = redirect
    assert client.get(site.url, max_bytes=len(DATA)).body == DATA
    assert site.asked[0]["Authorization"] == "Bearer secret"
    assert "Authorization" not in other.asked[0]
    client.close()
    other.close()


def test_follows_no_endless_redirects(client: HttpClient, site: Site) -> None:
    def redirect(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", site.url)
        request.send_header("Content-Length", "0")
        request.end_headers()

    site.respond = redirect
    with pytest.raises(TransferError, match="redirects"):
        client.get(site.url, max_bytes=1000)


def test_opens_nothing_but_http(client: HttpClient) -> None:
    with pytest.raises(TransferError, match="http"):
        client.get("file:///etc/passwd", max_bytes=1000)


@pytest.mark.parametrize(
    "answer", [b"", b"\x00\xff\xfe rubbish\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"X" * 70_000 + b"\r\n\r\n"]
)
def test_what_is_no_http_is_a_transfer_error(answer: bytes, client: HttpClient, site: Site) -> None:
    def respond(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(answer)
        request.close_connection = True

    site.respond = respond
    with pytest.raises(TransferError):
        client.get(site.url, max_bytes=1000)
