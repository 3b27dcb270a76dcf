"""`modelfleet microcontroller image`: new weights for firmware in the field, approved by people, signed by the signer.

An approval is signed here, with the approver's own key; what the server answers is verified before it becomes a file.
"""

import base64
import binascii
import hashlib
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import click

from modelfleet.registry.client import ApiClient
from modelfleet.registry.command import api_options, end_with, json_option, show
from modelfleet.registry.errors import NotFoundError
from modelfleet.signer.dsse import MAX_ENVELOPE_BYTES
from modelfleet.signer.errors import DigestError, FormatError, SignerError
from modelfleet.signer.files import write_durably
from modelfleet.signer.image import (
    CODE_FILE,
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    ImageHeader,
    parse_header,
    verify_header,
    verify_image,
)
from modelfleet.signer.keys import Key, load_signer, public_key_of_pem
from modelfleet.signer.manifest import Manifest, parse_manifest
from modelfleet.signer.names import SHA256_PATTERN, require, sha256_of
from modelfleet.signer.parse import parse_json
from modelfleet.signer.sign import sign_approval
from modelfleet.signer.statements import Approval

APPROVAL_LIFE: Final = timedelta(days=180)
IMAGE_PLAN: Final = sha256_of(b"modelfleet data image")
"""Stands in an approval for the plan of a rollout: an image has none."""
COLUMNS = ("model", "version", "profile", "group", "serial", "counter", "replaces", "payload_bytes")
_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
_NEW_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def image() -> None:
    """Data images: new weights that firmware verifies and takes by itself.

    Example: modelfleet microcontroller image show update.bin
    """


@image.command("approve")
@click.argument("model")
@click.argument("version")
@click.argument("profile")
@click.option("--group", "groups", multiple=True, required=True, help="For which devices; repeat for more.")
@click.option("--author", required=True, help="Who asked for it; never the approver.")
@click.option(
    "--key", required=True, help="URI of your key, such as file:/path/approver.pem; it stays on this machine."
)
@click.option("--out", type=_NEW_FILE, required=True, help="The file to write.")
@click.option("--yes", is_flag=True, help="Sign without asking.")
@api_options
def approve_image(
    client: ApiClient,
    as_json: bool,
    model: str,
    version: str,
    profile: str,
    groups: tuple[str, ...],
    author: str,
    key: str,
    out: Path,
    yes: bool,
) -> None:
    """Approve data images of MODEL VERSION PROFILE, also as a way back to it, and write the approval to a file.

    Example: modelfleet microcontroller image approve digits 1.1.0 cortex-m4 --group shops --author alice
    --key file:/home/bob/approver.pem --out bob.approval
    """
    signer = load_signer(key)
    data, manifest = _manifest(client, model, version, profile)
    now = datetime.now(UTC)
    approval = Approval(
        tenant=manifest.tenant,
        model=manifest.model,
        version=manifest.version,
        releases={manifest.profile: sha256_of(data)},
        groups=groups,
        plan_sha256=IMAGE_PLAN,
        author=author,
        issued=now,
        not_after=now + APPROVAL_LIFE,
    )
    if not as_json:
        click.echo(
            f"This approves {model}@{version} on {profile}, asked for by {author}, until {approval.not_after:%Y-%m-%d}:"
        )
        click.echo(f"  manifest {sha256_of(data)}, release counter {manifest.counter}")
        click.echo(f"  groups: {', '.join(groups)}")
    if not yes:
        click.confirm("Sign this approval?", abort=True, err=True)
    write_durably(out, sign_approval(approval, signer))
    show({"file": str(out), "manifest_sha256": sha256_of(data), "groups": list(groups)}, as_json, ("file", "groups"))


@image.command("build")
@click.argument("model")
@click.argument("version")
@click.argument("profile")
@click.option("--group", required=True, help="For which devices; the approvals must name it.")
@click.option(
    "--approval", "approvals", type=_FILE, multiple=True, help="A file of `image approve`; one for each person."
)
@click.option("--downgrade", is_flag=True, help="Devices may take it over a newer release: signed into the image.")
@click.option("--key", type=_FILE, required=True, help="releases.pub, to verify the answer with.")
@click.option("--out", type=_NEW_FILE, required=True, help="The file to write.")
@api_options
def build_image(
    client: ApiClient,
    as_json: bool,
    model: str,
    version: str,
    profile: str,
    group: str,
    approvals: tuple[Path, ...],
    downgrade: bool,
    key: Path,
    out: Path,
) -> None:
    """Have the signer sign the data image of MODEL VERSION PROFILE, and write it to a file.

    Example: modelfleet microcontroller image build digits 1.1.0 cortex-m4 --group shops --approval bob.approval
    --key releases.pub --out update.bin
    """
    body = {
        "group": group,
        "approvals": [parse_json(_read(path, MAX_ENVELOPE_BYTES), max_bytes=MAX_ENVELOPE_BYTES) for path in approvals],
        "downgrade": downgrade,
    }
    where = f"/v1/variants/{quote(model)}/{quote(version, safe='')}/{quote(profile, safe='')}/image"
    header = _header(client.post(where, body))
    said = verify_header(header, _key(key))
    _require_asked(said, (model, version, profile, group), downgrade)
    with tempfile.TemporaryDirectory() as folder:
        payload = Path(folder) / "payload"
        client.download(f"/v1/blobs/{said.payload_sha256}", payload)
        whole = header + _read(payload, MAX_PAYLOAD_BYTES)
    verify_image(whole, _key(key))
    write_durably(out, whole)
    show({"file": str(out), **_told(said)}, as_json, ("file", *COLUMNS))


@image.command("show")
@click.argument("file", type=_FILE)
@json_option
def show_image(file: Path, as_json: bool) -> None:
    """Show what the header of FILE says; nothing is verified.

    Example: modelfleet microcontroller image show update.bin --json
    """
    try:
        show(_told(parse_header(_read(file, HEADER_BYTES, cut=True))), as_json, COLUMNS)
    except SignerError as error:
        end_with(error, as_json)


@image.command("verify")
@click.argument("file", type=_FILE)
@click.option("--key", type=_FILE, required=True, help="releases.pub, from the administrator.")
@click.option("--code", type=_FILE, help="model.c of a firmware, to be that which the weights are for.")
@json_option
def verify_file(file: Path, key: Path, code: Path | None, as_json: bool) -> None:
    """Verify FILE as a device does, with the releases key; needs no server.

    Exit status 3: somebody else signed it, or it is not what was signed.

    Example: modelfleet microcontroller image verify update.bin --key releases.pub --code firmware/model/model.c
    """
    try:
        said = verify_image(_read(file, HEADER_BYTES + MAX_PAYLOAD_BYTES), _key(key))
        if code is not None and hashlib.sha256(code.read_bytes()).hexdigest() != said.shapes_sha256:
            raise DigestError(
                f"{code}: expected the {CODE_FILE} of the shapes digest {said.shapes_sha256}, got another"
            )
    except SignerError as error:
        end_with(error, as_json)
    show(_told(said), as_json, COLUMNS)


def _manifest(client: ApiClient, model: str, version: str, profile: str) -> tuple[bytes, Manifest]:
    """Return the variant's manifest, which is for just what was asked."""
    found = client.get("/v1/variants", model=model, version=version, profile=profile)["variants"]
    if not found or found[0]["manifest_sha256"] is None:
        raise NotFoundError(f"no built variant of {model}@{version} for profile {profile}: see `modelfleet variants`")
    sha256 = require(str(found[0]["manifest_sha256"]), SHA256_PATTERN, "digest")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.json"
        if client.download(f"/v1/blobs/{sha256}", path) != sha256:
            raise DigestError(f"manifest: expected sha256 {sha256}, got other bytes")
        data = path.read_bytes()
    manifest = parse_manifest(data)
    if (manifest.model, manifest.version, manifest.profile) != (model, version, profile):
        raise DigestError(f"expected the manifest of {model}@{version} on {profile}, got that of {manifest.path}")
    return data, manifest


def _header(answer: Any) -> bytes:
    try:
        return base64.b64decode(str(answer["header"]), validate=True)
    except (binascii.Error, KeyError, TypeError) as error:
        raise FormatError(f"expected a header in base64 from the server, got something else: {error}") from error


def _require_asked(said: ImageHeader, asked: tuple[str, str, str, str], downgrade: bool) -> None:
    found = (said.model, said.version, said.profile, said.group, said.downgrade)
    if found != (*asked, downgrade):
        raise DigestError(f"expected an image of {(*asked, downgrade)}, the server answered with one of {found}")


def _told(header: ImageHeader) -> dict[str, Any]:
    return {
        name: getattr(header, name)
        for name in (*COLUMNS, "tenant", "payload_sha256", "shapes_sha256", "manifest_sha256")
    }


def _key(path: Path) -> Key:
    return public_key_of_pem(_read(path, MAX_ENVELOPE_BYTES).decode("ascii", "replace"))


def _read(path: Path, most: int, *, cut: bool = False) -> bytes:
    with path.open("rb") as file:
        data = file.read(most if cut else most + 1)
    if len(data) > most:
        raise FormatError(f"{path}: expected at most {most} bytes")
    return data
