import hashlib
import io
import os
import resource
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from modelfleet.registry.errors import NotFoundError, StoreError, StoreFullError
from modelfleet.registry.store import BlobStore, FolderStore, S3Store

NOBODYS = "0" * 64


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "folder":
        return FolderStore(tmp_path / "blobs")
    return s3_store_at(request.getfixturevalue("s3_url"), tmp_path.name.lower().replace("_", "-"))


def s3_store_at(url: str, bucket: str) -> S3Store:
    client = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="secret"
    )
    name = f"b-{hashlib.sha256(bucket.encode()).hexdigest()[:20]}"
    client.create_bucket(Bucket=name)
    return S3Store(name, client)


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_keeps_bytes_under_their_digest(store: BlobStore) -> None:
    data = os.urandom(3 * 1024 * 1024 + 1)
    sha256 = store.put(io.BytesIO(data))
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert store.exists(sha256)
    assert store.size(sha256) == len(data)
    with store.open(sha256) as blob:
        blob.seek(5)
        assert blob.read(10) == data[5:15]
        blob.seek(0)
        assert blob.read() == data


def test_putting_the_same_bytes_again_changes_nothing(store: BlobStore) -> None:
    assert store.put(b"once") == store.put(b"once")
    with store.open(store.put(b"once")) as blob:
        assert blob.read() == b"once"


def test_puts_from_where_the_source_stands(store: BlobStore) -> None:
    source = io.BytesIO(b"head-body")
    source.seek(5)
    assert store.put(source) == hashlib.sha256(b"body").hexdigest()


def test_a_blob_that_is_not_there_is_not_found(store: BlobStore) -> None:
    assert not store.exists(NOBODYS)
    for ask in (store.open, store.size, store.path, store.link):
        if ask in (store.path, store.link) and ask(store.put(b"x")) is None:
            continue  # this store has no files, or no links
        with pytest.raises(NotFoundError):
            ask(NOBODYS)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64, "0" * 63, "0" * 64 + "\n", "..", "incoming"])
def test_a_name_that_is_no_digest_names_no_blob(store: BlobStore, name: str) -> None:
    assert not store.exists(name)
    for ask in (store.open, store.size):
        with pytest.raises(NotFoundError):
            ask(name)


def test_folder_gives_files_and_no_links(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    sha256 = store.put(b"data")
    path = store.path(sha256)
    assert path is not None
    assert path.read_bytes() == b"data"
    assert store.link(sha256) is None


def test_s3_gives_a_link_that_anybody_can_read(s3_url: str) -> None:
    store = s3_store_at(s3_url, "linked")
    sha256 = store.put(b"linked bytes")
    link = store.link(sha256)
    assert link is not None
    assert store.path(sha256) is None
    with urllib.request.urlopen(link) as answer:
        assert answer.read() == b"linked bytes"


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * 1024, hard))  # the kernel refuses to write beyond
    try:
        with pytest.raises(StoreFullError, match="nothing was stored"):
            store.put(io.BytesIO(bytes(2 * 1024 * 1024)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files_below(tmp_path) == []
    assert store.exists(store.put(bytes(2 * 1024 * 1024)))


def test_a_source_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    class Broken(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:
            if self.tell_once:
                raise ConnectionResetError("the sender went away")
            self.tell_once = True
            buffer[:4] = b"half"
            return 4

        tell_once = False

    store = FolderStore(tmp_path)
    with pytest.raises(ConnectionResetError):
        store.put(io.BufferedReader(Broken()))
    assert files_below(tmp_path) == []


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path: Path) -> None:
    FolderStore(tmp_path)
    old, new = tmp_path / "incoming" / "old", tmp_path / "incoming" / "new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 90_000,) * 2)
    FolderStore(tmp_path)
    assert not old.exists()
    assert new.exists()


def test_many_writers_of_the_same_bytes_make_one_blob(
    tmp_path: Path, at_once: Callable[[int, Callable[[int], object]], list[object]]
) -> None:
    store, data = FolderStore(tmp_path), os.urandom(200_000)
    assert set(at_once(8, lambda _: store.put(data))) == {hashlib.sha256(data).hexdigest()}
    assert len(files_below(tmp_path)) == 1


def test_an_s3_that_does_not_answer_is_a_store_error() -> None:
    from botocore.config import Config

    client = boto3.client(
        "s3",
        endpoint_url="http://127.0.0.1:9",
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=1),
    )
    with pytest.raises(StoreError):
        S3Store("bucket", client).put(b"data")


def test_an_s3_without_the_bucket_is_a_store_error(s3_url: str) -> None:
    store = s3_store_at(s3_url, "there")
    missing = S3Store("not-there", store._client)
    with pytest.raises(StoreError):
        missing.put(b"data")
