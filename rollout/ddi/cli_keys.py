"""`modelfleet ddi keys`: the key that signs containers for swupdate, on the machine of the signer process."""

import json
from datetime import UTC, datetime
from pathlib import Path

import click

from modelfleet.signer.cms import read_certificate, self_signed
from modelfleet.signer.command import absolute, data_options, guarded, json_option, opened
from modelfleet.signer.errors import KeyUriError
from modelfleet.signer.files import write_durably
from modelfleet.signer.keys import load_signer, make_key

KEY_FILE, CERTIFICATE_FILE = "swu.pem", "swu.crt.pem"
_CERTIFICATE = click.option(
    "--certificate",
    envvar="MODELFLEET_DDI_CERTIFICATE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the certificate lies (MODELFLEET_DDI_CERTIFICATE); default: signer/swu.crt.pem in the data folder.",
)


@click.group()
def keys() -> None:
    """The key that signs .swu containers: what swupdate's devices trust.

    Example: modelfleet ddi keys init --data ./fleet --tenant acme
    """


@keys.command()
@data_options
@click.option(
    "--key",
    envvar="MODELFLEET_DDI_KEY",
    help="URI of a key that is there already (MODELFLEET_DDI_KEY); default: a new file signer/swu.pem.",
)
@_CERTIFICATE
@json_option
@guarded
def init(data: Path, tenant: str, key: str | None, certificate: Path | None, as_json: bool) -> None:
    """Make the key and its certificate, once; the running service takes them with the next container.

    Give every swupdate the certificate: swupdate -k swu.crt.pem. With a key of your own the service needs MODELFLEET_DDI_KEY.

    Example: modelfleet ddi keys init --data ./fleet --tenant acme
    """
    folder = opened(data, tenant).data_dir / "signer"
    target = certificate or folder / CERTIFICATE_FILE
    if target.exists():
        raise KeyUriError(f"{target} exists: devices trust it; `modelfleet ddi keys show` prints it")
    uri = absolute([key])[0] if key is not None else f"file:{folder / KEY_FILE}"
    if key is None and not (folder / KEY_FILE).exists():
        make_key(uri)
    write_durably(target, self_signed(load_signer(uri), f"modelfleet {tenant} swu", datetime.now(UTC)))
    _show(uri, target, as_json)


@keys.command("show")
@data_options
@_CERTIFICATE
@json_option
@guarded
def show_keys(data: Path, tenant: str, certificate: Path | None, as_json: bool) -> None:
    """Print the certificate that devices trust.

    Example: modelfleet ddi keys show --data ./fleet --tenant acme > swu.crt.pem
    """
    target = certificate or opened(data, tenant).data_dir / "signer" / CERTIFICATE_FILE
    if not target.exists():
        raise KeyUriError(f"no certificate at {target}: run `modelfleet ddi keys init` first")
    pem = target.read_text()
    ends = read_certificate(pem.encode()).not_valid_after_utc
    click.echo(json.dumps({"certificate": pem, "expires_at": ends.isoformat()}) if as_json else pem, nl=as_json)


def _show(uri: str, certificate: Path, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"key": uri, "certificate": str(certificate)}))
        return
    click.echo(f"made {certificate}: copy it to every device as swupdate's -k")
