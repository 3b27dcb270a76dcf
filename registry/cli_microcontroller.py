"""`modelfleet microcontroller`: a release as sources in a firmware's tree, and the data images for it."""

import base64
import binascii
import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from modelfleet.converters.microcontroller.emitting.release import ImageKey, Release
from modelfleet.converters.microcontroller.layout import Layout, laid_out
from modelfleet.registry.cli_images import image
from modelfleet.registry.client import ApiClient
from modelfleet.registry.command import api_options, show
from modelfleet.registry.errors import ConflictError
from modelfleet.registry.exported import Verified, fetch_files, verify_release_of
from modelfleet.signer.errors import FormatError
from modelfleet.signer.image import CODE_FILE, WEIGHTS_FILE
from modelfleet.signer.keys import Key, p256_of_pem
from modelfleet.signer.names import NAME_PATTERN, require
from modelfleet.signer.trust import PolicyChain


@click.group()
def microcontroller() -> None:
    """Models in firmware: sources of a verified release, and data images that bring new weights.

    Example: modelfleet microcontroller export digits 1.0.0 cortex-m4 --root root.json --out ./model
    """


@microcontroller.command("export")
@click.argument("model")
@click.argument("version")
@click.argument("profile")
@click.option(
    "--root",
    type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path),
    required=True,
    help="The tenant's root.json, from its administrator.",
)
@click.option(
    "--layout",
    type=click.Choice([each.value for each in Layout]),
    default=Layout.CMAKE.value,
    show_default=True,
    help="For whose build.",
)
@click.option("--images", metavar="GROUP", help="With the verifier of data images that are approved for GROUP.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="A folder that is not there."
)
@api_options
def export(
    client: ApiClient,
    as_json: bool,
    model: str,
    version: str,
    profile: str,
    root: Path,
    layout: str,
    images: str | None,
    out: Path,
) -> None:
    """Verify a release under root.json and write its sources, and which release they are, into a folder.

    Example: modelfleet microcontroller export digits 1.0.0 cortex-m4 --root root.json --images shops --out firmware/model
    """
    if out.exists():
        raise ConflictError(f"{out} is there already: choose another --out")
    group = None if images is None else require(images, NAME_PATTERN, "--images")
    verified = verify_release_of(
        client, (model, version, profile), _chain(client, model, version, profile), root.read_bytes(), datetime.now(UTC)
    )
    release = _release(verified, group or "")
    files = laid_out(fetch_files(client, verified.manifest), release, Layout(layout), images=group is not None)
    _write(files, out)
    told = {"folder": str(out), "files": len(files), "manifest_sha256": verified.sha256, "version": version}
    show(told, as_json, ("folder", "files", "version", "manifest_sha256"))


def _chain(client: ApiClient, model: str, version: str, profile: str) -> PolicyChain:
    found: Mapping[str, Any] = client.get(f"/v1/variants/{model}/{version}/{profile}/attestations")
    try:
        return PolicyChain(
            targets=base64.b64decode(found["targets"]),
            policy=base64.b64decode(found["policy"]),
            roots=tuple(base64.b64decode(each) for each in found["roots"]),
        )
    except (KeyError, TypeError, binascii.Error) as error:
        raise FormatError(f"expected what proves the policy from the server, got something else: {error}") from error


def _release(verified: Verified, group: str) -> Release:
    manifest = verified.manifest
    names = {file.name: file for file in manifest.files}
    if not {CODE_FILE, WEIGHTS_FILE} <= names.keys() or manifest.confidential:
        raise ConflictError(f"{manifest.path} holds no sources for a microcontroller: choose a profile of runtime c99")
    return Release(
        tenant=manifest.tenant,
        group=group,
        model=manifest.model,
        version=manifest.version,
        profile=manifest.profile,
        counter=manifest.counter,
        manifest_sha256=verified.sha256,
        shapes_sha256=names[CODE_FILE].sha256,
        weights_bytes=names[WEIGHTS_FILE].length,
        keys=[_image_key(key) for key in verified.keys],
    )


def _image_key(key: Key) -> ImageKey:
    numbers = p256_of_pem(str(key.keyval["public"])).public_numbers()
    point = b"\x04" + numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
    return ImageKey(keyid=bytes.fromhex(key.keyid), point=point)


def _write(files: Mapping[str, bytes], out: Path) -> None:
    """Make the folder with everything in it, or not at all."""
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".exporting-", dir=out.absolute().parent))
    try:
        for name, data in files.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_bytes(data)
        made.chmod(0o755)
        made.rename(out)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


microcontroller.add_command(image)
