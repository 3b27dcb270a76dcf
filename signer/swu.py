"""What an update container of swupdate (`.swu`) says and does: `sw-description` and its activation script, made from a manifest.

The signer makes both by itself (`swu_release`), so that nobody tells it a path on the device, a digest or a command. The registry
only packs what it was given together with the variant's files. On the device, below the root:

    <slot>/<first 16 digits of the manifest's digest>/   the files and manifest.json
    <slot>/current, <slot>/previous                      symbolic links, replaced by a rename
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from modelfleet.signer.errors import FormatError, PlanError
from modelfleet.signer.manifest import Manifest
from modelfleet.signer.names import NAME_PATTERN, require, sha256_of

DESCRIPTION_NAME: Final = "sw-description"
SIGNATURE_NAME: Final = "sw-description.sig"
MANIFEST_NAME: Final = "manifest.json"
SCRIPT_NAME: Final = "activate.sh"
DEFAULT_ROOT: Final = "/var/lib/modelfleet/slots"
MAX_MEMBER_BYTES: Final = 2**32 - 1
"""A member of a newc archive has its length in 8 hexadecimal digits."""
_ROOT = re.compile(r"(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)+")
_SCRIPT: Final = """#!/bin/sh
# Makes {folder} the current content of its slot by one rename, keeps the one before, removes older ones.
set -eu
cd "{slot}"
chmod -R a+rX "{folder}"
sync
before=$(readlink current || :)
if [ -n "$before" ] && [ "$before" != "{folder}" ]; then
  ln -sfn "$before" previous.new
  mv -T previous.new previous
fi
ln -sfn "{folder}" current.new
mv -T current.new current
sync
kept=$(readlink previous || :)
for old in *; do
  if [ -d "$old" ] && [ ! -L "$old" ] && [ "$old" != "{folder}" ] && [ "$old" != "$kept" ]; then
    rm -rf -- "./$old"
  fi
done
"""


@dataclass(frozen=True, kw_only=True)
class SwuMember:
    """One member of the container after the description and its signature: its name there, its digest and its length."""

    name: str
    sha256: str
    length: int


@dataclass(frozen=True, kw_only=True)
class SwuPlan:
    """A container that is fully determined, but for the signature: `description` and `script` are its small texts."""

    description: bytes
    script: bytes
    members: tuple[SwuMember, ...]


def require_root(root: str) -> str:
    """Return the folder on devices below which slots lie (PlanError: not absolute, or with characters that a shell reads)."""
    if len(root) > 200 or _ROOT.fullmatch(root) is None:
        raise PlanError(f"expected an absolute folder of letters, digits, `.`, `_` and `-`, got {root[:80]!r}")
    return root


def plan_swu(manifest: Manifest, data: bytes, slot: str, root: str) -> SwuPlan:
    """Return the container that installs the variant into a slot; the same arguments give the same bytes.

    Args:
        data: the manifest's bytes, which go along.

    Raises:
        PlanError: a confidential variant, or a file of 4 GiB or more. FormatError: no name of a slot.
    """
    require(slot, NAME_PATTERN, "slot")
    if manifest.confidential:
        raise PlanError(f"{manifest.path} is confidential: swupdate cannot open it")
    folder = sha256_of(data)[:16]
    slot_folder = f"{require_root(root)}/{slot}"
    script = _SCRIPT.format(slot=slot_folder, folder=folder).encode()
    members = (*_files(manifest), SwuMember(name=MANIFEST_NAME, sha256=sha256_of(data), length=len(data)))
    activation = SwuMember(name=SCRIPT_NAME, sha256=sha256_of(script), length=len(script))
    description = _describe(manifest, members, activation, f"{slot_folder}/{folder}")
    return SwuPlan(description=description.encode(), script=script, members=(*members, activation))


def archived_name(index: int, name: str) -> str:
    """Return the name in the container of the manifest's file number `index`: none is a name that swupdate reads itself."""
    return f"{index:03d}-{name}"


def _files(manifest: Manifest) -> Iterator[SwuMember]:
    for index, file in enumerate(manifest.files):
        if file.length > MAX_MEMBER_BYTES:
            raise PlanError(f"{file.name}: expected less than 4 GiB, as a .swu holds it, got {file.length} bytes")
        yield SwuMember(name=archived_name(index, file.name), sha256=file.sha256, length=file.length)


def _describe(manifest: Manifest, members: tuple[SwuMember, ...], script: SwuMember, folder: str) -> str:
    names = [*(file.name for file in manifest.files), MANIFEST_NAME]
    files = ",\n".join(
        f"    {{ filename = {_text(member.name)}; path = {_text(f'{folder}/{name}')}; sha256 = {_text(member.sha256)};\n"
        '      properties: { create-destination = "true"; atomic-install = "true"; }; }'
        for member, name in zip(members, names, strict=True)
    )
    return (
        "software = {\n"
        f"  version = {_text(manifest.version)};\n"
        f"  description = {_text(f'{manifest.model} for {manifest.profile}')};\n"
        f"  hardware-compatibility: [ {_text(manifest.profile)} ];\n"
        f"  files: (\n{files}\n  );\n"
        f'  scripts: (\n    {{ filename = {_text(script.name)}; type = "postinstall"; sha256 = {_text(script.sha256)}; }}\n  );\n'
        "};\n"
    )


def _text(value: str) -> str:
    # Names, versions and digests are of patterns without quotes: this is the second lock.
    if re.fullmatch(r"[A-Za-z0-9/._ -]*", value) is None:
        raise FormatError(f"expected a name that libconfig needs no escapes for, got {value[:80]!r}")
    return f'"{value}"'
