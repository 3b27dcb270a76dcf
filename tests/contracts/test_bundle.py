"""Golden files of a bundle: a stick that was written by an older server is read by a newer agent, and the other way round."""

import io
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from modelfleet.signer.errors import FormatError
from modelfleet.signer.offline import (
    BLOCK_BYTES,
    END,
    Index,
    IndexedFile,
    assignment_name,
    blob_name,
    encode_index,
    group_document_name,
    metadata_name,
    padding,
    parse_index,
    read_tar_header,
    tar_header,
    wrapped_key_name,
)

GOLDEN = Path(__file__).parent / "offline"
DEVICE = "3f0c0000-0000-4000-8000-00000000000a"
DIGEST = "ab" * 32
NAMES = [
    metadata_name("timestamp.json"),
    metadata_name("12.bins-3f.json"),
    blob_name(DIGEST),
    assignment_name(DEVICE),
    group_document_name("l" * 64, "p" * 64),
    wrapped_key_name(DEVICE, DIGEST),
]


def index() -> Index:
    return Index(
        tenant="acme",
        made=datetime(2026, 3, 1, 12, tzinfo=UTC),
        expires=datetime(2026, 3, 31, 12, tzinfo=UTC),
        notes=("approval of digits 1.0.0 ends 2026-03-20 00:00:00 UTC, before the bundle does",),
        devices=(DEVICE,),
        files=tuple(IndexedFile(name=name, length=n, sha256=DIGEST) for n, name in enumerate(NAMES)),
    )


def test_the_table_of_contents_is_written_and_read_as_ever() -> None:
    golden = (GOLDEN / "bundle.json").read_bytes()
    assert encode_index(index()) == golden
    assert parse_index(golden) == index()


def test_a_header_is_written_and_read_as_ever() -> None:
    golden = bytes.fromhex((GOLDEN / "header.hex").read_text())
    assert tar_header(blob_name(DIGEST), 1000) == golden
    assert read_tar_header(golden) == (blob_name(DIGEST), 1000)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [0, 1, 511, 512, 8**11 - 1])
def test_every_name_and_length_goes_through_a_header(name: str, length: int) -> None:
    assert read_tar_header(tar_header(name, length)) == (name, length)


def test_a_file_that_is_too_long_for_a_header_is_told() -> None:
    with pytest.raises(FormatError, match="at most"):
        tar_header(blob_name(DIGEST), 8**11)


def test_any_tar_can_list_an_archive() -> None:
    data = b"".join(tar_header(name, 3) + b"abc" + bytes(padding(3)) for name in NAMES) + END
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == NAMES
        member = archive.extractfile(NAMES[-1])
        assert member is not None
        assert member.read() == b"abc"


def test_a_newer_minor_format_is_read_and_a_newer_major_one_is_refused() -> None:
    golden = (GOLDEN / "bundle.json").read_bytes()
    assert parse_index(golden.replace(b'"format":"1.0"', b'"format":"1.7","more":[]')) == Index(
        **{**{name: getattr(index(), name) for name in Index.__struct_fields__}, "format": "1.7"}
    )
    with pytest.raises(FormatError, match="upgrade this program"):
        parse_index(golden.replace(b'"format":"1.0"', b'"format":"2.0"'))


def test_a_table_of_contents_names_each_file_once() -> None:
    twice = Index(**{**{name: getattr(index(), name) for name in Index.__struct_fields__}, "files": index().files * 2})
    with pytest.raises(FormatError, match="once"):
        parse_index(encode_index(twice))


def test_an_archive_ends_with_an_empty_block() -> None:
    assert read_tar_header(END[:BLOCK_BYTES]) is None
