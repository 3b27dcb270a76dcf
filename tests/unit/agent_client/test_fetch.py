"""Downloads of files against servers that cut, stall, lie and never end."""

import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from modelfleet.agent_client.errors import TransferError
from modelfleet.agent_client.http_client import HttpClient
from modelfleet.signer.errors import DigestError
from tests.unit.agent_client.fleet import send
from tests.unit.agent_client.site_server import DATA, SHA256, Respond, Site


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
    assert "If-Range" not in site.asked[-1]  # servers name the same bytes by tags of their own


def test_starts_again_when_the_server_knows_no_ranges(client: HttpClient, site: Site, tmp_path: Path) -> None:
    def whole(request: BaseHTTPRequestHandler) -> None:
        del request.headers["Range"]
        send(request, DATA)

    (tmp_path / "file.part").write_bytes(b"of something else")
    site.respond = whole
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
