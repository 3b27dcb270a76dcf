"""`modelfleet ca`: the fleet CA's certificate and revocation list from a server, and certificates for servers of one's own."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from modelfleet.registry.client import ApiClient
from modelfleet.registry.command import DEFAULT_URL, end_with
from modelfleet.registry.errors import ClientError, FleetCaError, RegistryError
from modelfleet.registry.fleet_ca import load_ca
from modelfleet.registry.service_certificates import keep_server
from modelfleet.signer.command import json_option
from modelfleet.signer.files import write_durably

server_option = click.option(
    "--url", envvar="MODELFLEET_URL", default=DEFAULT_URL, show_default=True, help="The server; no token is needed."
)
out_option = click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="File to replace in one step; default: print it."
)


@click.group()
def ca() -> None:
    """The fleet's certificate authority: certificate, revocation list, certificates for servers.

    Example: modelfleet ca crl --out /etc/mosquitto/fleet/acme/crl.pem
    """


@ca.command()
@server_option
@out_option
@json_option
def certificate(url: str, out: Path | None, as_json: bool) -> None:
    """Write the fleet CA's certificate.

    Example: modelfleet ca certificate --out ca.pem
    """
    _give(_fetch(url, "/v1/ca/certificate", as_json), out, as_json)


@ca.command()
@server_option
@out_option
@json_option
@click.option(
    "--ca",
    "believed",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The CA certificate that must have signed it; a list by another is refused, and the file stays as it is.",
)
def crl(url: str, out: Path | None, as_json: bool, believed: Path | None) -> None:
    """Write the list of revoked certificates. Run it hourly on the broker's machine, and have the broker reload.

    Example: modelfleet ca crl --ca acme/ca.pem --out acme/crl.pem && systemctl reload mosquitto
    """
    data = _fetch(url, "/v1/ca/crl", as_json)
    try:
        _require_list(data, believed)
    except FleetCaError as error:
        end_with(error, as_json)
    _give(data, out, as_json)


@ca.command("server-certificate")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Data folder with the fleet's CA.")
@click.option("--name", "names", multiple=True, default=("localhost", "127.0.0.1"), show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write.")
@json_option
def server_certificate(data: Path, names: tuple[str, ...], out: Path, as_json: bool) -> None:
    """Make a server's key and certificate by the fleet CA, for 13 months: for brokers and HTTP in development.

    Example: modelfleet ca server-certificate --data ./fleet --name broker.example --out ./tls
    """
    try:
        kept = keep_server(load_ca(data / "ca"), out, names, datetime.now(UTC))
    except RegistryError as error:
        end_with(error, as_json)
    made = {"certificate": str(kept.certificate), "key": str(kept.key)}
    click.echo(json.dumps(made, indent=2) if as_json else "\n".join(made.values()))


def _fetch(url: str, path: str, as_json: bool) -> bytes:
    try:
        return ApiClient(url).text(path).encode()
    except ClientError as error:
        end_with(error, as_json)


def _require_list(data: bytes, believed: Path | None) -> None:
    """Refuse what is no revocation list that is good now, and one that another CA signed (FleetCaError)."""
    try:
        issuer = x509.load_pem_x509_certificate(believed.read_bytes()).public_key() if believed is not None else None
    except (OSError, ValueError) as error:
        raise FleetCaError(f"expected a certificate in PEM at {believed}: {error}") from error
    try:
        found = x509.load_pem_x509_crl(data)
    except ValueError as error:
        raise FleetCaError(f"expected a revocation list in PEM: {error}") from error
    if issuer is not None and not (isinstance(issuer, ec.EllipticCurvePublicKey) and found.is_signature_valid(issuer)):
        raise FleetCaError(f"expected a revocation list signed by {believed}, got one by another key")
    if found.next_update_utc is None or found.next_update_utc <= datetime.now(UTC):
        raise FleetCaError(f"expected a revocation list that is still good, got one until {found.next_update_utc}")


def _give(data: bytes, out: Path | None, as_json: bool) -> None:
    if out is not None:
        write_durably(out, data)
    if as_json:
        click.echo(json.dumps({"pem": data.decode(), "file": str(out) if out is not None else None}, indent=2))
    elif out is None:
        sys.stdout.write(data.decode())
