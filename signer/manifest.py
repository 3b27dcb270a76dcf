"""The manifest: the signed description of one variant, a TUF target of at most 64 KiB.

That of a confidential version has major format 2, so that an agent which cannot decrypt refuses it, and never opens bytes
that no gate has seen: its `sha256` and `length` are the ciphertexts', the gates speak of `plain_sha256`.
"""

from typing import Annotated, Literal

import msgspec

from modelfleet.signer.names import Count, FileName, ModelName, Name, SemVer, Sha256, manifest_path
from modelfleet.signer.parse import convert, parse_json
from modelfleet.signer.segments import ciphertext_length

MAX_MANIFEST_BYTES = 64 * 1024

Role = Literal["model", "weights", "golden", "extra"]
Channel = Literal["stable", "preview", "specialized"]


PLAIN_FORMAT = "1.0"
CONFIDENTIAL_FORMAT = "2.0"


class ManifestFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a variant: its name in the slot, its digest and its length in bytes, as it travels and lies on disks.

    The plain fields are those of a confidential variant's file: digest and length of what the ciphertext holds.
    """

    name: FileName
    sha256: Sha256
    length: Count
    role: Role
    plain_sha256: Sha256 | msgspec.UnsetType = msgspec.UNSET
    plain_length: Count | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        if (self.plain_sha256 is msgspec.UNSET) != (self.plain_length is msgspec.UNSET):
            raise ValueError("plain_sha256 and plain_length come together")
        if self.plain_length is not msgspec.UNSET and self.length != ciphertext_length(self.plain_length):
            raise ValueError(f"{self.name}: no ciphertext of {self.plain_length} bytes is {self.length} long")

    @property
    def confidential(self) -> bool:
        """Whether the file is ciphertext."""
        return self.plain_sha256 is not msgspec.UNSET

    @property
    def content_sha256(self) -> str:
        """The digest of what a runtime opens: what gates, and everybody who judges the content, speak of."""
        return self.sha256 if self.plain_sha256 is msgspec.UNSET else self.plain_sha256


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """An input or output: `dtype` is numpy's name, a free dimension of `shape` is null."""

    name: Annotated[str, msgspec.Meta(max_length=256)]
    dtype: Annotated[str, msgspec.Meta(max_length=16)]
    shape: Annotated[tuple[int | None, ...], msgspec.Meta(max_length=16)]


class ManifestLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What the variant must hold on the device's own benchmark.

    latency_ms bounds the p95 of one inference; accuracy is a share of the golden set, absent where it has no labels.
    """

    latency_ms: Annotated[float, msgspec.Meta(gt=0)]
    memory_bytes: Count
    accuracy: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None


class Tolerance(msgspec.Struct, frozen=True, kw_only=True):
    """How far an output may lie from the original's: |variant - original| <= atol + rtol * |original|.

    mismatch_share is the share of elements that may lie outside (0 for float variants).
    """

    rtol: Annotated[float, msgspec.Meta(ge=0)]
    atol: Annotated[float, msgspec.Meta(ge=0)]
    mismatch_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The signed description of one variant.

    `entry` names the file that the runtime opens, `golden` the device golden set; `counter` is the release counter,
    one per version of a model, growing. `parameters` are the application's own signed strings and integers.
    """

    format: str = PLAIN_FORMAT
    tenant: Name
    model: ModelName
    version: SemVer
    channel: Channel
    profile: Name
    runtime: Name
    precision: Name
    counter: Count
    source_sha256: Sha256
    files: Annotated[tuple[ManifestFile, ...], msgspec.Meta(min_length=1, max_length=256)]
    entry: FileName
    golden: FileName
    inputs: Annotated[tuple[Tensor, ...], msgspec.Meta(min_length=1, max_length=64)]
    outputs: Annotated[tuple[Tensor, ...], msgspec.Meta(min_length=1, max_length=64)]
    limits: ManifestLimits
    tolerance: Tolerance
    parameters: Annotated[dict[str, str | int], msgspec.Meta(max_length=64)] = {}

    def __post_init__(self) -> None:
        names = [file.name for file in self.files]
        folded = [name.lower() for name in names]  # file systems of Macs and Windows do not tell them apart
        if len(set(folded)) != len(names):
            raise ValueError("two files have the same name")
        if any(name == "manifest.json" or name.endswith(".part") for name in folded):
            raise ValueError("a file has a name that a slot uses itself: manifest.json or *.part")
        if self.entry not in names or self.golden not in names:
            raise ValueError("entry and golden must name files of the manifest")
        if any(file.confidential != self.confidential for file in self.files):
            raise ValueError("the files of format 1 are plain, all those of format 2 are ciphertext")

    @property
    def confidential(self) -> bool:
        """Whether the variant's files are ciphertext."""
        return self.format.split(".")[0] == CONFIDENTIAL_FORMAT.split(".")[0]

    @property
    def path(self) -> str:
        """The TUF target path of this manifest."""
        return manifest_path(self.model, self.version, self.profile)

    def file(self, name: str) -> ManifestFile:
        """Return the entry of the file called `name` (KeyError: there is none)."""
        for entry in self.files:
            if entry.name == name:
                return entry
        raise KeyError(name)


def parse_manifest(data: bytes) -> Manifest:
    """Return the manifest in `data`.

    Raises:
        FormatError: over 64 KiB, not strict JSON, or not a manifest of major format 1 or 2.
    """
    return convert(parse_json(data, max_bytes=MAX_MANIFEST_BYTES), Manifest, majors=(1, 2))


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes that are signed and stored: JSON in one fixed order, so equal manifests have equal digests."""
    return msgspec.json.encode(manifest, order="deterministic")
