"""Golden files of confidential versions: what a device of this version must be able to open for ever."""

import io
from pathlib import Path

from modelfleet.agent_client.identity import read_key
from modelfleet.signer.confidential import file_context, unwrap_key
from modelfleet.signer.manifest import encode_manifest, parse_manifest
from modelfleet.signer.names import sha256_of
from modelfleet.signer.segments import decrypted

GOLDEN = Path(__file__).parent / "confidential"
DEVICE = "0b6e1a2c-93a5-4c59-9d0e-5a3f0a3c7b11"
PLAIN = b"the weights of a model that nobody may read\n"


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def test_a_confidential_manifest_parses_and_encodes_again_byte_for_byte() -> None:
    manifest = parse_manifest(golden("manifest.json"))
    assert encode_manifest(manifest) == golden("manifest.json")
    assert (manifest.format, manifest.confidential) == ("2.0", True)
    assert manifest.file("model.onnx").sha256 == sha256_of(golden("model.onnx.sealed"))
    assert manifest.file("model.onnx").content_sha256 == sha256_of(PLAIN)


def test_a_key_and_a_file_from_the_past_still_open() -> None:
    manifest = parse_manifest(golden("manifest.json"))
    data_key = unwrap_key(
        golden("wrapped-key.json"),
        read_key(GOLDEN / "encryption.pem"),
        tenant=manifest.tenant,
        device=DEVICE,
        manifest_sha256=sha256_of(golden("manifest.json")),
    )
    assert data_key == bytes(range(32))
    context = file_context(
        tenant=manifest.tenant,
        model=manifest.model,
        version=manifest.version,
        profile=manifest.profile,
        name="model.onnx",
    )
    assert b"".join(decrypted(io.BytesIO(golden("model.onnx.sealed")), data_key, context)) == PLAIN


def test_a_manifest_that_is_not_confidential_has_no_plain_fields() -> None:
    plain = (Path(__file__).parent / "signer" / "manifest.json").read_bytes()
    assert b"plain_" not in encode_manifest(parse_manifest(plain))
