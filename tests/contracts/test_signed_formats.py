"""Golden files of everything that is signed: devices in the field parse these bytes, whatever this code becomes.

A test that fails here says that the format has changed. Adding an optional field is a new minor format and leaves every
golden file valid; anything else is a new major format, and a new set of files beside the old one.
"""

from pathlib import Path

import msgspec
import pytest

from modelfleet.signer.desired import Assignment, GroupDocument, bucket_of, needs_of
from modelfleet.signer.dsse import verify_envelope
from modelfleet.signer.keys import key_id
from modelfleet.signer.manifest import Manifest, encode_manifest, parse_manifest
from modelfleet.signer.parse import parse_struct
from modelfleet.signer.provenance import ProvenanceStatement, TestResultStatement
from modelfleet.signer.sign import PAYLOAD_TYPES, encode_payload
from modelfleet.signer.statements import Approval, GateStatement, PublicKey, Source, TrustPolicy
from modelfleet.signer.trust import parse_policy
from modelfleet.signer.windows import Conditions, Window

GOLDEN = Path(__file__).parent / "signer"
FORMATS: dict[str, type[msgspec.Struct]] = {
    "manifest": Manifest,
    "group": GroupDocument,
    "group.windows": GroupDocument,
    "assignment": Assignment,
    "source": Source,
    "approval": Approval,
    "approval.emergency": Approval,
    "gate": GateStatement,
    "provenance": ProvenanceStatement,
    "test_result": TestResultStatement,
    "policy": TrustPolicy,
}


def golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.json").read_bytes()


@pytest.mark.parametrize("name", FORMATS)
def test_parses_and_encodes_again_byte_for_byte(name: str) -> None:
    assert encode_payload(parse_struct(golden(name), FORMATS[name])) == golden(name)


@pytest.mark.parametrize("name", FORMATS)
def test_every_field_of_the_type_stands_in_a_golden_file_and_no_other_does(name: str) -> None:
    written = set[str]().union(
        *(msgspec.json.decode(golden(each)) for each in FORMATS if FORMATS[each] is FORMATS[name])
    )
    assert written == {field.encode_name for field in msgspec.structs.fields(FORMATS[name])}


def test_a_manifest_is_parsed_and_encoded_by_its_own_functions() -> None:
    assert encode_manifest(parse_manifest(golden("manifest"))) == golden("manifest")
    assert parse_manifest(golden("manifest")).path == "models/digits/1.0.0/linux-cpu-float/manifest.json"


def test_the_policy_is_accepted_as_a_device_accepts_it() -> None:
    assert parse_policy(golden("policy"), tenant="acme").approvals_required == 2


def test_an_envelope_signed_in_the_past_still_verifies() -> None:
    director = parse_struct(golden("director.pub"), PublicKey)
    payload, _ = verify_envelope(
        golden("group.envelope"), "application/vnd.modelfleet.group+json", {key_id(director): director}
    )
    assert payload == golden("group")


def test_payload_types_never_change() -> None:
    assert {kind.__name__: name for kind, name in PAYLOAD_TYPES.items()} == {
        "GroupDocument": "application/vnd.modelfleet.group+json",
        "Assignment": "application/vnd.modelfleet.assignment+json",
        "Source": "application/vnd.modelfleet.source+json",
        "Approval": "application/vnd.modelfleet.approval+json",
        "GateStatement": "application/vnd.in-toto+json",
    }


@pytest.mark.parametrize(
    ("salt", "device", "bucket"),
    [
        ("salt", "0b6e1a2c-93a5-4c59-9d0e-5a3f0a3c7b11", 0xAEC9BB61),
        ("", "00000000-0000-0000-0000-000000000000", 0xD7823205),
    ],
)
def test_a_devices_bucket_never_changes(salt: str, device: str, bucket: int) -> None:
    assert bucket_of(salt, device) == bucket


def test_windows_and_conditions_are_read_as_they_were_written() -> None:
    document = parse_struct(golden("group.windows"), GroupDocument)
    assert document.must_understand == needs_of(document.slots.values()) == ("conditions", "windows")
    night, noon = document.slots["classifier"].candidates[0].windows or ()
    assert night == Window(days=("sat", "sun"), start="22:30", minutes=240, zone="Europe/Berlin")
    assert noon == Window(start="12:00", minutes=60, zone="device")
    wished = Conditions(network="unmetered", power="external", battery_at_least=0.5)
    assert document.slots["classifier"].candidates[0].conditions == wished
