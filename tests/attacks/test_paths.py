"""Path tricks: refused at publish, and again on the device, whoever signed them."""

import json

import msgspec
import pytest

from modelfleet.signer.errors import (
    FormatError,
)
from modelfleet.signer.manifest import ManifestFile, encode_manifest, parse_manifest
from modelfleet.signer.names import sha256_of
from tests.attacks.forge import manifest_of
from tests.attacks.machine import Machine
from tests.unit.agent_client.fleet import Fleet

TRICKS = {
    "parent": "..",
    "self": ".",
    "empty": "",
    "backslash": "a\\b",
    "percent": "%2e%2e",
    "newline": "a\n",
    "nul": "a\x00",
    "escape": "a\x1b[2J",
    "absolute": "/etc",
    "hidden": ".ssh",
    "drive": "c:",
    "space": "a b",
    "unicode": "a\u2024\u2024",
}


@pytest.mark.parametrize("part", TRICKS.values(), ids=TRICKS.keys())
def test_path_trick_in_a_manifests_path(part: str, machine: Machine, fleet: Fleet) -> None:
    """At publish: no manifest is read, and so none is signed, whose path would hold such a part."""
    honest = manifest_of(fleet, fleet.release("1.0.0"))
    parse_manifest(encode_manifest(honest))
    for field, value in (("model", f"digits/{part}"), ("model", part), ("version", part), ("profile", part)):
        with pytest.raises(FormatError):
            parse_manifest(encode_manifest(msgspec.structs.replace(honest, **{field: value})))
        with pytest.raises(FormatError):
            _ = msgspec.structs.replace(honest, **{field: value}).path


@pytest.mark.parametrize("part", TRICKS.values(), ids=TRICKS.keys())
def test_path_trick_in_a_file_name_that_everybody_signed(part: str, machine: Machine, fleet: Fleet) -> None:
    """On the device: neither the releases key nor an approver can make it write outside of the slot."""
    honest = fleet.release("1.0.0", seed=2)
    assert machine.verify(honest).version == "1.0.0"
    manifest = manifest_of(fleet, honest)
    bent = json.loads(encode_manifest(manifest))
    bent["files"][0]["name"] = bent["entry"] = f"{part}/evil" if part in ("..", "/etc") else part
    data = json.dumps(bent).encode()
    fleet.sign_target(honest.path, data)
    release = msgspec.structs.replace(
        honest, sha256=sha256_of(data), length=len(data), approvals=(fleet.approve(manifest, sha256_of(data)),)
    )
    with pytest.raises(FormatError):
        machine.verify(release)


@pytest.mark.parametrize("part", TRICKS.values(), ids=TRICKS.keys())
def test_path_trick_in_a_target_name(part: str, machine: Machine, fleet: Fleet) -> None:
    """On the device: the director cannot make it ask for a path that is no manifest's."""
    machine.is_assigned()
    release = fleet.release("1.0.0")
    fleet.stable = release
    machine.hears(fleet.group_document())
    asked = len(fleet.server.requests)
    for path in (f"models/digits/{part}/linux-cpu-float/manifest.json", f"{part}/manifest.json", f"models/{part}"):
        fleet.stable = msgspec.structs.replace(release, path=path)
        with pytest.raises(FormatError):
            machine.hears(fleet.group_document())
    assert len(fleet.server.requests) == asked


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx.part"])
def test_path_trick_with_a_name_that_the_slot_itself_uses(name: str, fleet: Fleet) -> None:
    """`manifest.json` says that a slot's directory is complete, `.part` that a file is not."""
    honest = manifest_of(fleet, fleet.release("1.0.0"))
    parse_manifest(encode_manifest(honest))
    extra = ManifestFile(name=name, sha256="b" * 64, length=100, role="extra")
    bent = encode_manifest(honest).replace(b'"files":[', b'"files":[' + msgspec.json.encode(extra) + b",")
    with pytest.raises(FormatError, match="name"):
        parse_manifest(bent)


@pytest.mark.parametrize("name", ["Manifest.json", "MANIFEST.JSON", "GOLDEN.NPZ", "model.PART"])
def test_a_file_name_that_only_its_case_tells_from_another(name: str, fleet: Fleet) -> None:
    """On a Mac the one would replace the other after it was verified, the slot's own manifest among them."""
    honest = manifest_of(fleet, fleet.release("1.0.0"))
    bent = json.loads(encode_manifest(honest))
    parse_manifest(json.dumps(bent).encode())
    bent["files"].append({**bent["files"][0], "name": name})
    with pytest.raises(FormatError, match=r"same name|a slot uses itself"):
        parse_manifest(json.dumps(bent).encode())
