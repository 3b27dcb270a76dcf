"""Requests to servers that refuse, redirect, speak no HTTP, or are not there."""

from http.server import BaseHTTPRequestHandler

import pytest

from modelfleet.agent_client.errors import HttpStatusError, InsecureUrlError, TransferError
from modelfleet.agent_client.http_client import HttpClient
from tests.unit.agent_client.fleet import send
from tests.unit.agent_client.site_server import DATA, QUICK, Site


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


@pytest.mark.parametrize("url", ["http://203.0.113.9", "http://fleet.example:8080", "http://[2001:db8::1]/"])
def test_plain_http_to_another_machine_is_refused_unless_it_is_allowed(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InsecureUrlError, match="MODELFLEET_ALLOW_HTTP"):
        HttpClient(server=url)
    for allowed in ("https://fleet.example", "http://127.0.0.1:8080", "http://localhost:1", "http://[::1]:1", ""):
        HttpClient(server=allowed)
    monkeypatch.setenv("MODELFLEET_ALLOW_HTTP", "1")
    HttpClient(server=url)
