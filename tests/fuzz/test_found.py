"""What hostile bytes have brought to light: each input once left as a foreign error."""

import base64

import pytest

from modelfleet.agent_client.certificates import parse_certificate
from modelfleet.agent_client.errors import StorageError, TransferError
from modelfleet.agent_client.http_client import HttpClient
from tests.attacks.service import Service
from tests.fuzz.parsers import certificate
from tests.fuzz.test_http import QUICK, Liar, liar, service, template

__all__ = ["liar", "service", "template"]


def test_a_certificate_of_an_unknown_version_is_refused() -> None:
    lines = certificate().decode().splitlines()
    data = base64.b64decode("".join(lines[1:-1])).replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x1c", 1)
    pem = "\n".join([lines[0], base64.b64encode(data).decode(), lines[-1]])
    with pytest.raises(StorageError, match=r"certificate\.pem"):
        parse_certificate(pem, "certificate.pem")


@pytest.mark.parametrize("location", [b"/elsewhere\x8d", b"http://[::1", b"http://host:port/", b"ftp://host/"])
def test_a_redirect_to_no_url_is_a_failed_transfer(location: bytes, liar: Liar) -> None:
    liar.answer = b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n"
    with pytest.raises(TransferError, match="expected"):
        HttpClient(deadlines=QUICK).get(f"{liar.url}/", max_bytes=100)


def test_half_a_surrogate_pair_in_a_body_is_refused(service: Service) -> None:
    answer = service.post(
        "/v1/rollouts",
        b'{"model":"a","version":"1.0.0","slot":"s","groups":["g"],"plan":{"al\xed\xa0\x80":1}}',
        role="admin",
    )
    assert 400 <= answer.status_code < 500, answer.text
