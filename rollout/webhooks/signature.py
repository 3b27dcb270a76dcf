"""How a webhook is signed: the Standard Webhooks specification (standardwebhooks.com, version 1), HMAC-SHA256.

The signed text is `id.timestamp.body`; the header `webhook-signature` holds `v1,` and the base64 of its HMAC. An endpoint's
secret is derived from the service's one key (HKDF, RFC 5869), so that no secret of an endpoint lies in the database.
"""

import base64
import hashlib
import hmac
import os
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from modelfleet.rollout.errors import WebhookKeyError
from modelfleet.signer.files import write_durably

KEY_BYTES = 32
TOLERANCE_SECONDS = 300
"""How far from now a timestamp may lie for a receiver that verifies: an old delivery, replayed, is refused."""

_PREFIX = "whsec_"


class WebhookKey:
    """The service's key that all secrets of endpoints come from.

    Args:
        path: a file of 32 random bytes, readable by its owner alone; made where there is none.

    Raises:
        WebhookKeyError: the file holds something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def secret(self, endpoint: str, generation: int) -> str:
        """Return an endpoint's secret as its receiver is given it, `whsec_...`; another one with each generation."""
        info = f"modelfleet webhook {endpoint} {generation}".encode()
        derived = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(self._read())
        return _PREFIX + base64.b64encode(derived).decode()

    def _read(self) -> bytes:
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(self._path, os.urandom(KEY_BYTES), mode=0o600)
        key = self._path.read_bytes()
        if len(key) != KEY_BYTES:
            raise WebhookKeyError(f"{self._path}: expected {KEY_BYTES} bytes, got {len(key)}: restore it from a backup")
        return key


def sign(secret: str, delivery: str, at: datetime, body: bytes) -> dict[str, str]:
    """Return the headers of a delivery.

    Args:
        secret: the endpoint's.
        delivery: its id, the same at every attempt: receivers take an id once.
        at: of this attempt, aware.
    """
    seconds = str(int(at.timestamp()))
    return {
        "webhook-id": delivery,
        "webhook-timestamp": seconds,
        "webhook-signature": f"v1,{_mac(secret, delivery, seconds, body)}",
    }


def verify(secret: str, headers: Mapping[str, str], body: bytes, now: datetime) -> bool:
    """Whether a delivery is what the holder of `secret` sent, and not long ago: what a receiver does."""
    delivery, seconds = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if re.fullmatch(r"[0-9]{1,12}", seconds) is None or abs(now.timestamp() - int(seconds)) > TOLERANCE_SECONDS:
        return False
    expected = _mac(secret, delivery, seconds, body)
    given = (part.partition(",") for part in headers.get("webhook-signature", "").split())
    return any(version == "v1" and hmac.compare_digest(mac, expected) for version, _, mac in given)


def _mac(secret: str, delivery: str, seconds: str, body: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    text = f"{delivery}.{seconds}.".encode() + body
    return base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
