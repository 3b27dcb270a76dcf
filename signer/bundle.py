"""OpenSSF Model Signing v1.0 bundles, so that anybody can check a variant with the public `model_signing verify key`.

The format is that of model_signing 1.1 serialised by files: an in-toto statement in a DSSE envelope inside a Sigstore bundle
v0.3. One bundle is over the variant's directory, one over its entry file alone, whose name in the statement is then `.`.
Sources: github.com/sigstore/model-transparency (payload) and docs.sigstore.dev/about/bundle.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from modelfleet.signer.dsse import pre_authentication
from modelfleet.signer.errors import FormatError
from modelfleet.signer.keys import Signer
from modelfleet.signer.manifest import Manifest
from modelfleet.signer.statements import IN_TOTO_PAYLOAD_TYPE, IN_TOTO_STATEMENT_TYPE

BUNDLE_MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
MODEL_SIGNING_PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"
BUNDLE_FILE: Final = "model.sig"
"""Where an ISV finds the bundle beside the variant's files; it is no part of what it signs."""


def entry_bundle_file(entry: str) -> str:
    """Return the name of the bundle over the entry file alone: beside it, and no part of what the other bundle signs."""
    return f"{entry}.sig"


def sign_bundle(manifest: Manifest, releases: Signer) -> bytes:
    """Return the JSON of a bundle over all files of the variant, signed with the releases key (ECDSA P-256, SHA-256).

    Of a confidential variant it names the plain files: only of those has a gate said anything.

    Raises:
        FormatError: a file has a name that verifiers would leave out, being a bundle's.
    """
    ignored = [BUNDLE_FILE, entry_bundle_file(manifest.entry)]
    taken = sorted({file.name for file in manifest.files}.intersection(ignored))
    if taken:
        raise FormatError(f"expected no file called {taken[0]!r} in a variant: a signature lies there")
    digests = {file.name: file.content_sha256 for file in manifest.files}
    return _sign(_statement(manifest.path.removesuffix("/manifest.json"), digests, ignored), releases)


def sign_entry_bundle(manifest: Manifest, releases: Signer) -> bytes:
    """Return the JSON of a bundle over the variant's entry file alone, for whoever ships just that."""
    digest = manifest.file(manifest.entry).content_sha256
    return _sign(
        _statement(f"{manifest.path.removesuffix('/manifest.json')}/{manifest.entry}", {".": digest}, []), releases
    )


def _sign(statement: Mapping[str, object], releases: Signer) -> bytes:
    payload = msgspec.json.encode(statement)
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


def _statement(name: str, digests: Mapping[str, str], ignored: Sequence[str]) -> dict[str, object]:
    files = sorted(digests.items())
    # The subject's digest is SHA-256 over the files' digests in the order of their names.
    root = hashlib.sha256(b"".join(bytes.fromhex(digest) for _, digest in files)).hexdigest()
    resources = [{"name": file, "algorithm": "sha256", "digest": digest} for file, digest in files]
    serialization = {
        "method": "files",
        "hash_type": "sha256",
        "allow_symlinks": False,
        "ignore_paths": list(ignored),
    }
    return {
        "_type": IN_TOTO_STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": MODEL_SIGNING_PREDICATE_TYPE,
        "predicate": {"serialization": serialization, "resources": resources},
    }


def _hint(releases: Signer) -> str:
    pem = str(releases.public_key.keyval["public"])
    return hashlib.sha256(pem.encode()).hexdigest()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
