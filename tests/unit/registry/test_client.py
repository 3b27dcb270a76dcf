import socket
import threading
import time
from pathlib import Path

import pytest

from modelfleet.registry.client import ApiClient
from modelfleet.registry.context import UploadLimits
from modelfleet.registry.errors import ApiError, ServerUnreachableError
from tests.unit.registry.conftest import serve


def test_asks_and_sends_json(fleet, served: str) -> None:
    client = ApiClient(f"{served}/", fleet.tokens["admin"])
    assert client.get("/v1/healthz") == {"status": "ok"}
    assert client.post("/v1/groups", {"name": "line"})["name"] == "line"
    assert [row["name"] for row in client.get("/v1/groups")["groups"]] == ["line"]
    assert client.get("/v1/audit", action="group.create", subject=None)["records"][0]["subject"] == "group/line"


def test_uploads_files_as_they_are(fleet, served: str, tmp_path: Path) -> None:
    parts: dict[str, Path | bytes] = dict(fleet.publication().parts())
    model = tmp_path / "model.onnx"
    model.write_bytes(fleet.publication().model)
    client = ApiClient(served, fleet.tokens["publisher"])
    version = client.upload("/v1/versions", {**parts, "model": model})
    assert (version["version"], version["source_length"]) == ("1.0.0", model.stat().st_size)
    fleet.comes_to_store(1, 0, 4, 0)


def test_a_refusal_says_what_the_server_said(fleet, served: str) -> None:
    with pytest.raises(ApiError, match="404: no version m@1") as caught:
        ApiClient(served, fleet.tokens["viewer"]).get("/v1/versions/m/1")
    assert caught.value.status == 404
    assert not caught.value.untrusted


def test_a_missing_token_is_a_refusal(served: str) -> None:
    with pytest.raises(ApiError, match="401"):
        ApiClient(served).get("/v1/versions")


def test_a_server_that_is_not_there_is_unreachable() -> None:
    began = time.monotonic()
    with pytest.raises(ServerUnreachableError, match=r"127\.0\.0\.1:9 did not answer"):
        ApiClient("http://127.0.0.1:9").get("/v1/healthz")
    assert time.monotonic() - began < 10


def test_a_request_is_repeated_until_a_connection_is_made(fleet) -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    address = listener.getsockname()
    listener.close()
    answered: list[bytes] = []

    def serve_late() -> None:
        time.sleep(0.3)
        with socket.create_server(address) as late:
            connection, _ = late.accept()
            with connection:
                answered.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    thread = threading.Thread(target=serve_late)
    thread.start()
    assert ApiClient(f"http://127.0.0.1:{address[1]}").post("/v1/groups", {"name": "a"}) == {}
    thread.join(5)
    assert len(answered) == 1


def test_a_request_that_was_sent_is_not_sent_again() -> None:
    requests: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(2)

        def drop_all() -> None:
            try:
                while True:
                    connection, _ = listener.accept()
                    requests.append(connection.recv(65536))
                    connection.close()
            except OSError:
                pass  # nobody came any more

        thread = threading.Thread(target=drop_all)
        thread.start()
        with pytest.raises(ServerUnreachableError):
            ApiClient(f"http://127.0.0.1:{listener.getsockname()[1]}").post("/v1/groups", {"name": "a"})
        thread.join(5)
    assert len(requests) == 1


def test_an_answer_that_is_no_json_is_a_refusal() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 5\r\n\r\n<html")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ApiError, match="502: <html"):
            ApiClient(f"http://127.0.0.1:{listener.getsockname()[1]}").get("/v1/healthz")
        thread.join(5)


def test_an_upload_that_is_too_large_is_told_as_such(make_fleet, tmp_path: Path) -> None:
    fleet = make_fleet(limits=UploadLimits(model_bytes=1_000_000))
    model = tmp_path / "model.onnx"
    for length in (1_000_001, 50_000_000):  # refused while it streams, and by its announced length
        model.write_bytes(bytes(length))
        with serve(fleet.app) as url, pytest.raises(ApiError, match="413") as caught:
            ApiClient(url, fleet.tokens["publisher"]).upload("/v1/versions", {"model": model, "card": b"x"})
        assert caught.value.status == 413
    fleet.comes_to_store(0, 0, 0, 0)
