"""Names, digests and paths as they may appear in signed documents: one set of patterns for both sides.

They are refused at publish and again on the device, so that no path trick survives either side alone. Every pattern ends
at the very end of the text: `$` would let a newline through.
"""

import hashlib
import re
from typing import Annotated

import msgspec

from modelfleet.signer.errors import FormatError

PART = r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?"
NAME_PATTERN = rf"^{PART}\Z"
MODEL_PATTERN = rf"^{PART}(?:/{PART}){{0,3}}\Z"
FILE_PATTERN = r"^[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9_])?\Z"
PATH_PATTERN = r"^models(?:/[a-z0-9][a-z0-9._-]{0,63}){3,6}/manifest\.json\Z"
SHA256_PATTERN = r"^[0-9a-f]{64}\Z"
# SemVer 2.0.0, section "Is there a suggested regular expression", lower-case identifiers only.
VERSION_PATTERN = (
    r"^(?:0|[1-9][0-9]{0,8})\.(?:0|[1-9][0-9]{0,8})\.(?:0|[1-9][0-9]{0,8})"
    r"(?:-(?:0|[1-9][0-9]*|[0-9]*[a-z-][0-9a-z-]*)(?:\.(?:0|[1-9][0-9]*|[0-9]*[a-z-][0-9a-z-]*)){0,8})?\Z"
)

Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
"""A tenant, group, profile or slot: lower case, digits, `.`, `_`, `-`; at most 64 characters."""
ModelName = Annotated[str, msgspec.Meta(pattern=MODEL_PATTERN)]
"""One to four `Name` parts joined by `/`."""
FileName = Annotated[str, msgspec.Meta(pattern=FILE_PATTERN)]
"""A file inside a slot: no directory, never starting or ending with a dot."""
ManifestPath = Annotated[str, msgspec.Meta(pattern=PATH_PATTERN, max_length=512)]
"""A path as `manifest_path` makes it."""
Sha256 = Annotated[str, msgspec.Meta(pattern=SHA256_PATTERN)]
SemVer = Annotated[str, msgspec.Meta(pattern=VERSION_PATTERN, max_length=64)]
"""SemVer 2.0.0 without build metadata."""
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]


def sha256_of(data: bytes) -> str:
    """Return the lower-case hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def require(value: str, pattern: str, what: str) -> str:
    """Return `value` if it matches `pattern`.

    Raises:
        FormatError: it does not; the message names `what`.
    """
    if len(value) > 256 or re.fullmatch(pattern, value) is None:
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
