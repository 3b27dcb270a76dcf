"""OpenSSF Model Signing v1.0 bundles, so that anybody can check a variant with the public `model_signing verify key`.

The format is that of model_signing 1.1 for a directory serialised by files: an in-toto statement in a DSSE envelope inside
a Sigstore bundle v0.3. Sources: github.com/sigstore/model-transparency (payload) and docs.sigstore.dev/about/bundle.
"""

import base64
import hashlib
from typing import Final

import msgspec

from modelfleet.signer.dsse import pre_authentication
from modelfleet.signer.keys import Signer
from modelfleet.signer.manifest import Manifest
from modelfleet.signer.statements import IN_TOTO_PAYLOAD_TYPE, IN_TOTO_STATEMENT_TYPE

BUNDLE_MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
MODEL_SIGNING_PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"
BUNDLE_FILE: Final = "model.sig"
"""Where an ISV finds the bundle beside the variant's files; it is no part of what it signs."""


def sign_bundle(manifest: Manifest, releases: Signer) -> bytes:
    """Return the JSON of a bundle over all files of the variant, signed with the releases key (ECDSA P-256, SHA-256).

    Of a confidential variant it names the plain files: only of those has a gate said anything.
    """
    payload = msgspec.json.encode(_statement(manifest))
    signature = releases.sign(pre_authentication(payload, IN_TOTO_PAYLOAD_TYPE))
    envelope = {
        "payload": _base64(payload),
        "payloadType": IN_TOTO_PAYLOAD_TYPE,
        "signatures": [{"sig": _base64(bytes.fromhex(signature.signature)), "keyid": ""}],
    }
    material: dict[str, object] = {"publicKey": {"hint": _hint(releases)}, "tlogEntries": []}
    return msgspec.json.encode(
        {"mediaType": BUNDLE_MEDIA_TYPE, "verificationMaterial": material, "dsseEnvelope": envelope}
    )


def _statement(manifest: Manifest) -> dict[str, object]:
    files = sorted(manifest.files, key=lambda file: file.name)
    # The subject's digest is SHA-256 over the files' digests in the order of their names.
    root = hashlib.sha256(b"".join(bytes.fromhex(file.content_sha256) for file in files)).hexdigest()
    resources = [{"name": file.name, "algorithm": "sha256", "digest": file.content_sha256} for file in files]
    serialization = {
        "method": "files",
        "hash_type": "sha256",
        "allow_symlinks": False,
        "ignore_paths": [BUNDLE_FILE],
    }
    return {
        "_type": IN_TOTO_STATEMENT_TYPE,
        "subject": [{"name": manifest.path.removesuffix("/manifest.json"), "digest": {"sha256": root}}],
        "predicateType": MODEL_SIGNING_PREDICATE_TYPE,
        "predicate": {"serialization": serialization, "resources": resources},
    }


def _hint(releases: Signer) -> str:
    pem = str(releases.public_key.keyval["public"])
    return hashlib.sha256(pem.encode()).hexdigest()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
