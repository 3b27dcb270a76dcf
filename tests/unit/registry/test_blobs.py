import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from modelfleet.registry import served_files
from modelfleet.registry.served_files import accepts_gzip
from modelfleet.registry.store import S3Store
from modelfleet.signer.names import sha256_of

DATA = random.Random(1).randbytes(100_000)  # the same in every test process
SHA256 = sha256_of(DATA)


@pytest.fixture
def get(fleet):
    fleet.registry.store.put(DATA)
    client = fleet.as_("viewer")

    def ask(sha256: str = SHA256, **headers: str):
        return client.get(
            f"/v1/blobs/{sha256}", headers={name.replace("_", "-"): value for name, value in headers.items()}
        )

    return ask


def test_a_blob_comes_whole_with_its_digest_as_etag(get) -> None:
    answer = get()
    assert (answer.status_code, answer.content) == (200, DATA)
    assert answer.headers["etag"] == f'"{SHA256}"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert "immutable" in answer.headers["cache-control"]


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-9", 0, 9),
        ("bytes=500-", 500, 99_999),
        ("bytes=-10", 99_990, 99_999),
        ("bytes=99990-200000", 99_990, 99_999),
    ],
)
def test_a_range_comes_as_asked(get, asked: str, first: int, last: int) -> None:
    answer = get(range=asked)
    assert answer.status_code == 206
    assert answer.content == DATA[first : last + 1]
    assert answer.headers["content-range"] == f"bytes {first}-{last}/100000"
    assert answer.headers["etag"] == f'"{SHA256}"'


def test_a_range_beyond_the_end_is_not_satisfiable(get) -> None:
    answer = get(range="bytes=100000-")
    assert answer.status_code == 416
    assert answer.headers["content-range"] == "bytes */100000"


def test_a_resumed_download_goes_on_only_in_the_same_bytes(get) -> None:
    assert get(range="bytes=10-", if_range=f'"{SHA256}"').status_code == 206
    other = get(range="bytes=10-", if_range='"another"')
    assert (other.status_code, other.content) == (200, DATA)
    weak = get(range="bytes=10-", if_range=f'W/"{SHA256}"')
    assert weak.status_code == 200


@pytest.mark.parametrize("tag", [f'"{SHA256}"', f'"x", "{SHA256}"', f'W/"{SHA256}"', "*"])
def test_what_the_client_has_is_not_sent_again(get, tag: str) -> None:
    answer = get(if_none_match=tag)
    assert (answer.status_code, answer.content) == (304, b"")


@pytest.mark.parametrize("name", ["0" * 64, "x", "..%2f..%2fregistry.db", "%00", SHA256.upper(), "incoming"])
def test_a_blob_that_is_not_there_is_not_found(get, name: str) -> None:
    answer = get(name)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_blob_in_s3_is_a_redirect_to_where_it_lies(fleet) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", **keys)
        client.create_bucket(Bucket="models")
        fleet.registry = replace(fleet.registry, store=S3Store("models", client))
        fleet.app.state.registry = fleet.registry
        fleet.registry.store.put(DATA)
        answer = fleet.as_("viewer").get(f"/v1/blobs/{SHA256}", follow_redirects=False)
        assert answer.status_code == 307
        assert answer.headers["location"].startswith(f"http://{host}:{port}/models/blobs/{SHA256}?")
        assert fleet.as_("viewer").get(f"/v1/blobs/{'0' * 64}", follow_redirects=False).status_code == 404
    finally:
        server.stop()


def test_metadata_is_there_for_everybody(fleet) -> None:
    for file in ("1.root.json", "timestamp.json", "1.targets.json", "1.snapshot.json"):
        answer = fleet.anonymous.get(f"/tuf/acme/metadata/{file}")
        assert answer.status_code == 200
        assert answer.content == (fleet.paths.metadata_dir / file).read_bytes()
        tag = {"if-none-match": answer.headers["etag"]}
        assert fleet.anonymous.get(f"/tuf/acme/metadata/{file}", headers=tag).status_code == 304
    assert fleet.anonymous.get("/tuf/acme/metadata/timestamp.json").headers["cache-control"] == "no-cache"


def test_a_target_is_there_for_everybody_under_its_digest(fleet) -> None:
    (policy,) = fleet.paths.targets_dir.rglob("*.policy.json")
    answer = fleet.anonymous.get(f"/tuf/acme/targets/trust/{policy.name}")
    assert answer.status_code == 200
    assert policy.name == f"{sha256_of(answer.content)}.policy.json"


@pytest.mark.parametrize(
    "path",
    [
        "/tuf/acme/metadata/2.root.json",
        "/tuf/acme/metadata/.lock",
        "/tuf/acme/metadata/..%2f..%2f..%2froot.json",
        "/tuf/acme/metadata/root.json%00",
        "/tuf/acme/targets/../../../root.json",
        "/tuf/acme/targets/%2e%2e/metadata/timestamp.json",
        "/tuf/acme/targets/..%2f..%2f..%2fservice%2fsnapshot.pem",
        "/tuf/acme/targets/..%5c..%5croot.json",
        "/tuf/acme/targets//etc/passwd",
        "/tuf/acme/targets/",
        "/tuf/acme/targets/trust",
        "/tuf/acme/targets/" + "a/" * 40,
        "/tuf/other/metadata/timestamp.json",
        "/tuf/..%2facme/metadata/timestamp.json",
        "/tuf/%2e/metadata/timestamp.json",
    ],
)
def test_no_path_leads_out_of_the_served_folders(fleet, path: str) -> None:
    answer = fleet.anonymous.get(path)
    assert answer.status_code == 404
    assert "PRIVATE KEY" not in answer.text
    assert str(fleet.folder) not in answer.text


def test_metadata_travels_packed_to_those_who_take_it(fleet) -> None:
    path = "/tuf/acme/metadata/1.targets.json"
    plain = fleet.anonymous.get(path, headers={"accept-encoding": "identity"})
    packed = fleet.anonymous.get(path, headers={"accept-encoding": "br;q=0.5, GZIP;q=0.1"})
    assert "content-encoding" not in plain.headers
    assert (packed.headers["content-encoding"], packed.headers["vary"]) == ("gzip", "accept-encoding")
    assert packed.content == plain.content
    assert int(packed.headers["content-length"]) < len(plain.content)
    assert packed.headers["etag"] == plain.headers["etag"]
    assert packed.headers["etag"].startswith('W/"')


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        (None, False),
        ("", False),
        ("gzip", True),
        ("x-gzip", True),
        ("deflate, gzip;q=1.0", True),
        ("*", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("*;q=0", False),
        ("identity", False),
        ("gzip;q=oops", False),
    ],
)
def test_accept_encoding_is_read_as_it_is_meant(header: str | None, taken: bool) -> None:
    assert accepts_gzip(header) is taken


def test_a_replaced_file_is_served_anew(fleet) -> None:
    before = fleet.anonymous.get("/tuf/acme/metadata/timestamp.json")
    fleet.paths.repository().refresh(datetime.now(UTC) + timedelta(hours=13))
    after = fleet.anonymous.get("/tuf/acme/metadata/timestamp.json", headers={"if-none-match": before.headers["etag"]})
    assert after.status_code == 200
    assert after.content == (fleet.paths.metadata_dir / "timestamp.json").read_bytes() != before.content


def test_what_is_kept_in_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_files, "MAX_CACHED_BYTES", 10_000)
    monkeypatch.setattr(served_files, "MAX_FILE_BYTES", 4_000)
    files = served_files.ServedFiles()
    for number in range(20):
        (tmp_path / str(number)).write_bytes(random.Random(number).randbytes(1_000 if number else 5_000))
    for number in [*range(20), 3, 3]:
        found = files.read(tmp_path / str(number))
        assert found is not None
        assert found.plain == (tmp_path / str(number)).read_bytes()
        assert files._bytes == sum(served.size for _, served in files._files.values()) <= 10_000
    assert tmp_path / "0" not in files._files
    (tmp_path / "3").write_bytes(b"replaced")
    found = files.read(tmp_path / "3")
    assert found is not None
    assert found.plain == b"replaced"
    assert files._bytes == sum(served.size for _, served in files._files.values())
    assert files.read(tmp_path / "none") is None
    assert files.read(tmp_path) is None


def test_a_root_that_is_not_there_costs_few_bytes(fleet) -> None:
    answer = fleet.anonymous.get("/tuf/acme/metadata/2.root.json")
    assert (answer.status_code, answer.content, answer.headers["cache-control"]) == (404, b"", "no-cache")
