"""Confidential releases for the agent's test server: encrypted as the registry does, the keys handed out as it does."""

import base64
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from modelfleet.registry.encrypt import encrypt
from modelfleet.signer.confidential import file_context, wrap_key
from modelfleet.signer.desired import Release
from modelfleet.signer.manifest import CONFIDENTIAL_FORMAT, ManifestFile
from modelfleet.signer.names import sha256_of
from tests.unit.agent_client.fleet import PROFILE, TENANT, Fleet, golden_of, linear_model, send

SEGMENTS = 3 * 1024 * 1024
"""Padding that makes a model of four segments."""
Tamper = Callable[[str, bytes], bytes]


def context_of(name: str, *, model: str = "digits", version: str) -> bytes:
    """The associated data of a file of these releases."""
    return file_context(tenant=TENANT, model=model, version=version, profile=PROFILE, name=name)


def sealed(plain: bytes, key: bytes, context: bytes) -> bytes:
    """Encrypt as the registry does."""
    target = io.BytesIO()
    encrypt(io.BytesIO(plain), target, key, context)
    return target.getvalue()


@dataclass
class Vault:
    """The registry's part for one fleet: data keys by manifest digest; `hands_out` bends what a device is answered."""

    fleet: Fleet
    keys: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    hands_out: Callable[[str, str], bytes | None] | None = None
    closed: bool = False

    def __post_init__(self) -> None:
        self.fleet.server.fault = self._answer

    def release(
        self,
        version: str,
        *,
        seed: int = 1,
        padding: int = 0,
        key: bytes | None = None,
        tamper: Tamper = lambda _name, data: data,
        plain_says: Callable[[bytes], str] = sha256_of,
    ) -> Release:
        """Publish a confidential release; `tamper` changes its ciphertext before it is signed, `plain_says` its digests."""
        data_key = key or os.urandom(32)
        plain = {"model.onnx": linear_model(seed, padding=padding), "golden.npz": golden_of(seed)}
        files: list[ManifestFile] = []
        for name, data in plain.items():
            ciphertext = tamper(name, sealed(data, data_key, context_of(name, version=version)))
            self.fleet.server.blobs[sha256_of(ciphertext)] = ciphertext
            role = "golden" if name == "golden.npz" else "model"
            files.append(
                ManifestFile(
                    name=name,
                    sha256=sha256_of(ciphertext),
                    length=len(ciphertext),
                    role=role,
                    plain_sha256=plain_says(data),
                    plain_length=len(data),
                )
            )
        released = self.fleet.release(
            version, seed=seed, padding=padding, files=tuple(files), format=CONFIDENTIAL_FORMAT
        )
        for data in plain.values():
            self.fleet.server.blobs.pop(sha256_of(data), None)  # the test server's own, plain
        self.keys[released.sha256] = data_key
        return released

    def wrapped(self, device: str, manifest_sha256: str, *, key: bytes | None = None) -> bytes:
        """The data key as the device may have it."""
        public = self.fleet.server.enrolments[device]["encryption_key"]
        data_key = key or self.keys[manifest_sha256]
        return wrap_key(data_key, public, tenant=TENANT, device=device, manifest_sha256=manifest_sha256)

    def _answer(self, request: BaseHTTPRequestHandler) -> bool:
        if not request.path.startswith("/v1/device/keys/"):
            return False
        manifest_sha256, device = request.path.rpartition("/")[2], _sender(request)
        self.asked.append((device, manifest_sha256))
        answer = None if self.closed else (self.hands_out or self.wrapped)(device, manifest_sha256)
        send(request, answer or b'{"detail": "closed"}', 200 if answer else 403)
        return True


def _sender(request: BaseHTTPRequestHandler) -> str:
    claims = request.headers["Authorization"].split(".")[1]
    return json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["sub"]
