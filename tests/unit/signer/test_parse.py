import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleet.agent_client.protocol import Metrics, encode, parse_metrics
from modelfleet.signer.desired import Assignment, GroupDocument
from modelfleet.signer.errors import FormatError, UntrustedError
from modelfleet.signer.manifest import Manifest, encode_manifest, parse_manifest
from modelfleet.signer.names import manifest_path
from modelfleet.signer.parse import parse_canonical, parse_json, parse_struct
from modelfleet.signer.sign import encode_payload
from tests.unit.signer.samples import candidate, group, manifest, release

HOSTILE = {
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": -Infinity}',
    "a float out of range": b'{"a": 1e999}',
    "an integer beyond 2**53 - 1": b'{"a": 9007199254740992}',
    "a very long integer": b'{"a": ' + b"9" * 5000 + b"}",
    "a duplicate key": b'{"a": 1, "a": 1}',
    "a duplicate key spelt with an escape": b'{"a": 1, "\\u0061": 1}',
    "nesting too deep": b"[" * 17 + b"]" * 17,
    "a bracket bomb": b"[" * 60000,
    "escaped quotes without end": b'"' + b'\\"' * 30000,
    "an escape without end": b'["\\',
    "trailing bytes": b"{} {}",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "invalid UTF-8": b'{"a": "\xff"}',
    "a lone surrogate": b'{"a": "\\ud800"}',
    "a lone surrogate as a key": b'{"\\ud800": 1}',
    "a comment": b"{} // no",
    "single quotes": b"{'a': 1}",
    "nothing": b"",
    "too many bytes": b" " * 65537,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refuses(name: str) -> None:
    with pytest.raises(FormatError):
        parse_json(HOSTILE[name])


def test_brackets_in_strings_do_not_count_as_nesting() -> None:
    assert parse_json(json.dumps({"a": '[[[{"\\' * 40}).encode()) == {"a": '[[[{"\\' * 40}


def deepest(data: bytes) -> int:
    """The deepest nesting by the plain scan: byte by byte, brackets within strings left out, an escape two bytes long."""
    depth = most = place = 0
    in_string = False
    while place < len(data):
        byte = data[place : place + 1]
        if in_string and byte == b"\\":
            place += 1
        elif byte == b'"':
            in_string = not in_string
        elif not in_string:
            depth += (byte in b"[{") - (byte in b"]}")
            most = max(most, depth)
        place += 1
    return most


# Whole runs, so that depths on both sides of the limit come up; `\n` and a byte beyond ASCII, for the pattern's sake.
PIECES = st.sampled_from([b"[", b"{", b"]", b"}", b"[" * 9, b"}" * 9, b'"', b"\\", b'\\"', b"\n", b"\xff", b"1"])


@settings(max_examples=500, deadline=None)
@given(pieces=st.lists(PIECES, max_size=40), max_depth=st.integers(1, 20))
def test_the_depth_that_is_refused_is_that_of_a_plain_scan(pieces: list[bytes], max_depth: int) -> None:
    data = b"".join(pieces)
    try:
        parse_json(data, max_depth=max_depth)
    except FormatError as error:
        assert ("nesting" in str(error)) == (deepest(data) > max_depth)
    else:
        assert deepest(data) <= max_depth


def test_accepts_the_deepest_nesting_and_the_largest_integer() -> None:
    assert parse_json(b"[" * 16 + b"9007199254740991" + b"]" * 16)


def test_keeps_reading_documents_with_fields_that_a_newer_minor_format_added() -> None:
    newer = json.loads(encode_manifest(manifest())) | {"format": "1.7", "added_later": {"x": [1]}}
    assert parse_manifest(json.dumps(newer).encode()).model == "digits"


@pytest.mark.parametrize("found", ["3.0", "0.9", "", "x", 1, None])
def test_refuses_another_major_format(found: object) -> None:
    newer = json.loads(encode_manifest(manifest())) | {"format": found}
    with pytest.raises(FormatError, match="expected format"):
        parse_manifest(json.dumps(newer).encode())


@pytest.mark.parametrize(
    "path",
    ["../x", "a/../b", "a//b", "./a", "a/.", "a\\b", "a%2fb", "a\x00b", "a\nb", "/a", "a/", "A", "", "é", "a" * 300],
)
def test_refuses_model_names_that_could_leave_their_folder(path: str) -> None:
    with pytest.raises(FormatError):
        manifest_path(path, "1.0.0", "p")
    data = json.loads(encode_manifest(manifest())) | {"model": path}
    with pytest.raises(FormatError):
        parse_manifest(json.dumps(data).encode())


def test_a_manifest_must_name_each_file_once_and_its_entry_among_them() -> None:
    valid = json.loads(encode_manifest(manifest()))
    for change in ({"files": valid["files"] * 2}, {"entry": "other.onnx"}, {"golden": "other.npz"}, {"files": []}):
        with pytest.raises(FormatError):
            parse_manifest(json.dumps(valid | change).encode())
    assert parse_manifest(json.dumps(valid).encode()) == manifest()


VALID = encode_payload(group(release(), candidate(release(sha256="5" * 64))))


@settings(max_examples=200, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.binary(min_size=0, max_size=4)), min_size=1, max_size=3)
)
def test_a_mutated_document_parses_or_is_untrusted_and_nothing_else(edits: list[tuple[int, bytes]]) -> None:
    data = bytearray(VALID)
    for position, replacement in edits:
        data[position : position + 1] = replacement
    for kind in (GroupDocument, Assignment, Manifest):
        try:
            parse_struct(bytes(data), kind)
        except UntrustedError:
            continue


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=12), children, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(value=JSON_VALUES, field=st.sampled_from(sorted(json.loads(VALID))))
def test_any_json_in_any_field_parses_or_is_untrusted(value: object, field: str) -> None:
    data = json.dumps(json.loads(VALID) | {field: value}).encode()
    try:
        parse_struct(data, GroupDocument)
    except UntrustedError:
        return


DEVICE = "6f3a1c52-8a0e-4c7e-9d3b-2f6f0c1d4e5a"
COUNTED = encode(
    Metrics(
        device=DEVICE, boot=3, seq=40, slot="detector", activation=2, sha256="a" * 64, n=9, errors=1, latency=(0, 9)
    )
)
LOOKS_RIGHT = {
    "a duplicate key": COUNTED.replace(b'"seq":40', b'"seq":41,"seq":40'),
    "an unknown field with a duplicate key": COUNTED[:-1] + b',"more":{"a":1,"a":2}}',
    "an unknown field with an integer too large": COUNTED[:-1] + b',"more":9007199254740992}',
    "an unknown field nested too deep": COUNTED[:-1] + b',"more":' + b"[" * 17 + b"]" * 17 + b"}",
    "another major format": COUNTED.replace(b'"format":"1.0"', b'"format":"2.0"'),
    "trailing bytes": COUNTED + b" {}",
    "more errors than inferences": COUNTED.replace(b'"errors":1', b'"errors":10'),
    "an integer too large": COUNTED.replace(b'"n":9', b'"n":9007199254740992'),
}


@pytest.mark.parametrize("name", LOOKS_RIGHT)
def test_the_short_way_refuses_what_the_long_way_refuses(name: str) -> None:
    assert parse_canonical(COUNTED, Metrics) == parse_struct(COUNTED, Metrics)
    with pytest.raises(FormatError):
        parse_struct(LOOKS_RIGHT[name], Metrics)
    with pytest.raises(FormatError):
        parse_metrics(LOOKS_RIGHT[name])


@pytest.mark.parametrize(
    "change", [(b'"slow":0,', b""), (b'"n":9', b'"n" : 9'), (b'"1.0"', b'"1.7"'), (b"}", b',"new":{}}')]
)
def test_bytes_that_we_would_write_otherwise_go_the_long_way(change: tuple[bytes, bytes]) -> None:
    changed = COUNTED.replace(*change)
    assert changed != COUNTED
    assert parse_metrics(changed) == parse_struct(changed, Metrics)
