"""model_release.c and .h: which release a folder of sources is, in the program itself, and what data images it takes.

The manifest lists the digests of the variant's files, so none of them can hold the manifest's own. What is written here comes
after the manifest was verified, and is no file of the variant.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

RELEASE_SOURCE: Final = "model_release.c"
RELEASE_HEADER: Final = "model_release.h"


@dataclass(frozen=True, kw_only=True)
class ImageKey:
    """A key that may sign data images: its id and public point, 32 and 65 bytes."""

    keyid: bytes
    point: bytes


@dataclass(frozen=True, kw_only=True)
class Release:
    """A verified release. All texts are names of signed documents; digests in hexadecimal; group: of the devices built for."""

    tenant: str
    group: str
    model: str
    version: str
    profile: str
    counter: int
    manifest_sha256: str
    shapes_sha256: str
    weights_bytes: int
    keys: Sequence[ImageKey]


_SOURCE: Final = """\
/* {model} {version} for {profile}: written by `modelfleet microcontroller export` from a verified manifest. */
#include "model.h"
{include}
const uint8_t MODEL_NAME(manifest_sha256)[32] = {{{manifest}}};
const char MODEL_NAME(name)[] = "{model}";
const char MODEL_NAME(version)[] = "{version}";
"""
_IMAGES: Final = """
const uint64_t MODEL_NAME(counter) = {counter}u;
static const uint8_t shapes[32] = {{{shapes}}};
static const struct modelfleet_image_key keys[{count}] = {{
{keys}
}};
const struct modelfleet_image_expected MODEL_NAME(images) = {{
    "{tenant}", "{model}", "{profile}", "{group}", shapes, {weights}u, keys, {count}u,
}};
"""
_HEADER: Final = """\
/* What data images this firmware takes: those of {model} for {profile}, approved for {group}, for this very code. */
#include "model.h"
#include "modelfleet_banks.h"

#ifdef __cplusplus
extern "C" {{
#endif
extern const uint64_t MODEL_NAME(counter); /* the release counter of model_weights */
extern const struct modelfleet_image_expected MODEL_NAME(images);
#ifdef __cplusplus
}}
#endif
"""


def release_files(release: Release, *, images: bool) -> dict[str, bytes]:
    """Return file name -> content. images: with what data images are verified against, which needs the verifier's files."""
    include = f'#include "{RELEASE_HEADER}"\n' if images else ""
    fields = {"model": release.model, "version": release.version, "profile": release.profile}
    source = _SOURCE.format(**fields, include=include, manifest=_bytes(bytes.fromhex(release.manifest_sha256)))
    if not images:
        return {RELEASE_SOURCE: source.encode()}
    keys = ",\n".join(f"    {{{{{_bytes(key.keyid)}}}, {{{_bytes(key.point)}}}}}" for key in release.keys)
    source += _IMAGES.format(
        **fields,
        counter=release.counter,
        shapes=_bytes(bytes.fromhex(release.shapes_sha256)),
        keys=keys,
        count=len(release.keys),
        tenant=release.tenant,
        group=release.group,
        weights=release.weights_bytes,
    )
    return {RELEASE_SOURCE: source.encode(), RELEASE_HEADER: _HEADER.format(**fields, group=release.group).encode()}


def _bytes(data: bytes) -> str:
    return ", ".join(map(str, data))
