"""`modelfleet publish`: sign the statement with the publisher's own key, upload, and wait for the variants if asked.

The key never leaves this machine: what is sent is the signed statement that these bytes are this version.
"""

import hashlib
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from modelfleet.registry.card import Card, parse_card
from modelfleet.registry.client import ApiClient
from modelfleet.registry.command import REFUSED, api_options, show
from modelfleet.registry.errors import ServerUnreachableError
from modelfleet.signer.keys import load_signer
from modelfleet.signer.sign import sign_source
from modelfleet.signer.statements import Source

POLL_SECONDS = 0.3
VARIANT_COLUMNS = ("model", "version", "profile", "state", "precision", "size_bytes", "manifest_sha256", "error")
_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


@click.command()
@click.option("--model", type=_FILE, required=True, help="The model, ONNX.")
@click.option("--card", type=_FILE, required=True, help="Its model card, TOML.")
@click.option("--golden", type=_FILE, required=True, help="Its golden set, npz.")
@click.option("--key", "key_uri", required=True, help="The publisher's private key: file:/path.pem")
@click.option("--tenant", envvar="MODELFLEET_TENANT", help="Whose version it is; the token's tenant by default.")
@click.option("--wait", is_flag=True, help="Wait until every variant is READY or FAILED.")
@click.option("--timeout", "timeout_seconds", type=float, default=900.0, show_default=True, help="Of --wait, seconds.")
@api_options
def publish(
    client: ApiClient,
    as_json: bool,
    model: Path,
    card: Path,
    golden: Path,
    key_uri: str,
    tenant: str | None,
    wait: bool,
    timeout_seconds: float,
) -> None:
    """Publish a version: the same bytes again are the same version, other bytes need a new version number.

    Exit status 1: the server refused it, or with --wait a variant failed.

    Example: modelfleet publish --model digits.onnx --card card.toml --golden golden.npz --key file:/keys/ci.pem --wait
    """
    data = card.read_bytes()
    source = statement(parse_card(data), tenant or client.get("/v1/whoami")["tenant"], model, data, golden)
    envelope = sign_source(source, load_signer(key_uri))
    sent = {"model": model, "card": data, "golden": golden, "statement": envelope}
    published = client.upload("/v1/versions", sent)
    if not wait:
        show(published, as_json, ("model", "version", "channel", "counter", "state", "source_sha256"))
        return
    finished = wait_until_built(client, published, timeout_seconds, quiet=as_json)
    show(finished if as_json else finished["variants"], as_json, VARIANT_COLUMNS)
    if finished["state"] != "READY" or any(row["state"] != "READY" for row in finished["variants"]):
        sys.exit(REFUSED)


def statement(card: Card, tenant: str, model: Path, card_bytes: bytes, golden: Path) -> Source:
    """Return what the publisher says of these files."""
    return Source(
        tenant=tenant,
        model=card.name,
        version=card.version,
        channel=card.channel,
        source_sha256=_sha256(model),
        source_length=model.stat().st_size,
        card_sha256=hashlib.sha256(card_bytes).hexdigest(),
        golden_sha256=_sha256(golden),
        issued=datetime.now(UTC),
    )


def wait_until_built(
    client: ApiClient, published: Mapping[str, Any], timeout_seconds: float, *, quiet: bool
) -> Mapping[str, Any]:
    """Return the version with its variants once none is BUILDING, or as it is after `timeout_seconds`.

    A server that restarts meanwhile is waited for: the build goes on where it was.
    """
    path = f"/v1/versions/{published['model']}/{published['version']}"
    until = time.monotonic() + timeout_seconds
    with _progress(quiet) as tell:
        while True:
            found = _ask(client, path, is_last=time.monotonic() >= until)
            if found is not None:
                tell(found)
                if found["state"] != "BUILDING" or time.monotonic() >= until:
                    return found
            time.sleep(POLL_SECONDS)


def _ask(client: ApiClient, path: str, *, is_last: bool) -> Mapping[str, Any] | None:
    try:
        return client.get(path)
    except ServerUnreachableError:
        if is_last:
            raise
        return None


def _progress(quiet: bool) -> AbstractContextManager[Callable[[Mapping[str, Any]], None]]:
    if quiet:
        return nullcontext(lambda _found: None)
    from modelfleet.registry.progress import build_progress

    return build_progress()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
