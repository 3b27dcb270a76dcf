"""Names, digests and paths as they may appear in signed documents: one set of patterns for both sides.

They are refused at publish and again on the device, so that no path trick survives either side alone.
"""

import hashlib
import re
from typing import Annotated

import msgspec

from modelfleet.signer.errors import FormatError

_PART = r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?"
NAME_PATTERN = rf"^{_PART}$"
MODEL_PATTERN = rf"^{_PART}(?:/{_PART}){{0,3}}$"
FILE_PATTERN = r"^[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9_])?$"
SHA256_PATTERN = r"^[0-9a-f]{64}$"
# SemVer 2.0.0, section "Is there a suggested regular expression", lower-case identifiers only.
VERSION_PATTERN = (
    r"^(?:0|[1-9]\d{0,8})\.(?:0|[1-9]\d{0,8})\.(?:0|[1-9]\d{0,8})"
    r"(?:-(?:0|[1-9]\d*|\d*[a-z-][0-9a-z-]*)(?:\.(?:0|[1-9]\d*|\d*[a-z-][0-9a-z-]*)){0,8})?$"
)

Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
"""A tenant, group, profile or slot: lower case, digits, `.`, `_`, `-`; at most 64 characters."""
ModelName = Annotated[str, msgspec.Meta(pattern=MODEL_PATTERN)]
"""One to four `Name` parts joined by `/`."""
FileName = Annotated[str, msgspec.Meta(pattern=FILE_PATTERN)]
"""A file inside a slot: no directory, never starting or ending with a dot."""
Sha256 = Annotated[str, msgspec.Meta(pattern=SHA256_PATTERN)]
SemVer = Annotated[str, msgspec.Meta(pattern=VERSION_PATTERN, max_length=64)]
"""SemVer 2.0.0 without build metadata."""
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]


def sha256_of(data: bytes) -> str:
    """Return the lower-case hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def require(value: str, pattern: str, what: str) -> str:
    """Return `value` if it matches `pattern`.

    Raises:
        FormatError: it does not; the message names `what`.
    """
    if len(value) > 256 or re.fullmatch(pattern.strip("^$"), value) is None:
        raise FormatError(f"{what}: expected to match {pattern}, got {value[:80]!r}")
    return value


def manifest_path(model: str, version: str, profile: str) -> str:
    """Return the TUF target path of a variant's manifest.

    Raises:
        FormatError: a part is no valid name (no `..`, `.`, empty part, backslash, `%` or control character can pass).
    """
    require(model, MODEL_PATTERN, "model")
    require(version, VERSION_PATTERN, "version")
    require(profile, NAME_PATTERN, "profile")
    return f"models/{model}/{version}/{profile}/manifest.json"
