"""`modelfleet audit`: read the audit trail, take it away, and verify it without the server that it came from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from modelfleet.registry.audit_verify import Verified, compare_checkpoints, verify_export
from modelfleet.registry.client import ApiClient
from modelfleet.registry.command import ListByDefault, api_options, end_with, show
from modelfleet.signer.checkpoint import PROOF_HEADER, Checkpoint, verify_checkpoint, verify_proof
from modelfleet.signer.errors import AuditTamperedError, FormatError, SignerError
from modelfleet.signer.keys import Key, public_key_of_pem
from modelfleet.signer.merkle import verify_consistency

AUDIT_COLUMNS = ("id", "log_index", "at", "actor", "action", "subject", "detail")
MAX_SMALL_FILE_BYTES = 32 * 1024 * 1024
_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
_NEW_FILE = click.Path(dir_okay=False, path_type=Path)
_KEY_HELP = "The audit key's public half, from the data folder (audit.pub), not from the server."


@click.group(cls=ListByDefault)
def audit() -> None:
    """The audit trail: an append-only log with signed checkpoints.

    Example: modelfleet audit export trail.jsonl && modelfleet audit verify trail.jsonl --key audit.pub
    """


@audit.command("list")
@click.option("--subject", help="Only of this subject, such as version/digits@1.0.0.")
@click.option("--action", help="Only of this action, such as version.publish.")
@click.option("--after", type=click.IntRange(0), default=0, show_default=True, help="Only records after this id.")
@api_options
def list_records(client: ApiClient, as_json: bool, subject: str | None, action: str | None, after: int) -> None:
    """Show the audit trail, in order.

    Example: modelfleet audit list --subject version/digits@1.0.0
    """
    rows: list[object] = []
    following: int | None = after
    while following is not None:
        page = client.get("/v1/audit", subject=subject, action=action, after=following)
        rows.extend(page["records"])
        following = page["next"]
    show(rows, as_json, AUDIT_COLUMNS)


@audit.command("checkpoint")
@click.option("--out", type=_NEW_FILE, help="Write it to this file; without, it is printed.")
@click.option("--since", type=_FILE, help="A checkpoint from before, which the log must go on from.")
@click.option("--key", "key_file", type=_FILE, help=_KEY_HELP)
@api_options
def show_checkpoint(
    client: ApiClient, as_json: bool, out: Path | None, since: Path | None, key_file: Path | None
) -> None:
    """Fetch a checkpoint over all records; with --key verify it, with --since that the log was not rewritten.

    Keep one elsewhere every day: it is what a thief of the server cannot take back.

    Example: modelfleet audit checkpoint --key audit.pub --since yesterday.checkpoint --out today.checkpoint
    """
    if since is not None and key_file is None:
        raise click.UsageError("--since needs --key")
    note = client.text("/v1/audit/checkpoint")
    if key_file is not None:
        key = _key(key_file)
        checkpoint = verify_checkpoint(note, key)
        if since is not None:
            _require_consistent(client, verify_checkpoint(_small(since), key), checkpoint)
    if out is None:
        click.echo(json.dumps({"checkpoint": note}) if as_json else note, nl=as_json)
    else:
        out.write_text(note, encoding="utf-8")


@audit.command("export")
@click.argument("file", type=_NEW_FILE)
@click.option("--from", "start", type=click.IntRange(0), default=0, show_default=True, help="First place in the log.")
@click.option("--to", "end", type=click.IntRange(0), help="Up to the first checkpoint at or after it; without, all.")
@api_options
def export(client: ApiClient, as_json: bool, file: Path, start: int, end: int | None) -> None:
    """Write the log with its checkpoints to FILE, JSON lines.

    Example: modelfleet audit export trail.jsonl
    """
    client.download("/v1/audit/records", file, **{"from": start, "to": end})
    show({"file": str(file), "bytes": file.stat().st_size}, as_json, ("file", "bytes"))


@audit.command("prove")
@click.argument("record_id", metavar="ID", type=click.IntRange(1))
@click.option("--out", type=_NEW_FILE, help="Write it to this file; without, it is printed.")
@api_options
def prove(client: ApiClient, as_json: bool, record_id: int, out: Path | None) -> None:
    """Fetch the record ID with the proof that it is in the signed log, as one file (C2SP tlog-proof).

    Example: modelfleet audit prove 17 --out record-17.tlog-proof
    """
    proof = client.text("/v1/audit/proof/inclusion", id=record_id)
    if out is None:
        click.echo(json.dumps({"proof": proof}) if as_json else proof, nl=as_json)
    else:
        out.write_text(proof, encoding="utf-8")


@audit.command("verify")
@click.argument("file", type=_FILE)
@click.option("--key", "key_file", type=_FILE, required=True, help=_KEY_HELP)
@click.option("--since", type=_FILE, help="A checkpoint from before, which the log must go on from.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(file: Path, key_file: Path, since: Path | None, as_json: bool) -> None:
    """Verify an export, a proof or a checkpoint; needs no server.

    Exit status 3: it is not what was signed; the message says which record, and how.

    Example: modelfleet audit verify trail.jsonl --key audit.pub --since yesterday.checkpoint
    """
    try:
        key = _key(key_file)
        older = None if since is None else verify_checkpoint(_small(since), key)
        found = _verify_file(file, key, older)
    except SignerError as error:
        end_with(error, as_json)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo(found["verified"])


def _verify_file(file: Path, key: Key, since: Checkpoint | None) -> dict[str, Any]:
    with file.open("rb") as lines:
        begins = lines.read(len(PROOF_HEADER))
        lines.seek(0)
        if begins.startswith(b"{"):
            return _told(verify_export(lines, key, since=since))
    text = _small(file)
    if begins == PROOF_HEADER.encode():
        inclusion, checkpoint = verify_proof(text, key)
        _compare(checkpoint, since)
        record: Any = json.loads(inclusion.entry)
        said = f"record {inclusion.index} of the {checkpoint.size} of {checkpoint.origin}: {json.dumps(record)}"
        return {"verified": said, "index": inclusion.index, "record": record, **_head(checkpoint)}
    checkpoint = verify_checkpoint(text, key)
    _compare(checkpoint, since)
    return {"verified": f"a checkpoint of {checkpoint.size} records of {checkpoint.origin}", **_head(checkpoint)}


def _told(found: Verified) -> dict[str, Any]:
    since = "" if found.since is None else f", which goes on from the checkpoint of {found.since}"
    last = found.checkpoint.size - 1
    records = f"records {found.start} to {last}" if last >= found.start else "no records"
    said = f"{records} of {found.origin}, under {found.checkpoints} checkpoints{since}"
    return {"verified": said, "from": found.start, "checkpoints": found.checkpoints, **_head(found.checkpoint)}


def _head(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex()}


def _compare(newer: Checkpoint, older: Checkpoint | None) -> None:
    """Compare with an older checkpoint what holds no other records; only equal sizes and shrinking say something."""
    if older is None:
        return
    compare_checkpoints(newer, older)
    if newer.size != older.size:
        raise AuditTamperedError(
            f"the file does not show whether the log of {newer.size} records goes on from that of {older.size}:"
            " verify an export, or use `modelfleet audit checkpoint --since`"
        )


def _require_consistent(client: ApiClient, older: Checkpoint, newer: Checkpoint) -> None:
    compare_checkpoints(newer, older)
    proof = client.get("/v1/audit/proof/consistency", **{"from": older.size, "to": newer.size})
    hashes = _parsed(lambda: [bytes.fromhex(each) for each in proof["hashes"]])
    verify_consistency(older.size, newer.size, older.root, newer.root, hashes)


def _parsed(parse: Callable[[], list[bytes]]) -> list[bytes]:
    try:
        return parse()
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"expected a consistency proof, got something else: {error}") from error


def _key(file: Path) -> Key:
    return public_key_of_pem(_small(file))


def _small(file: Path) -> str:
    if file.stat().st_size > MAX_SMALL_FILE_BYTES:
        raise FormatError(f"{file}: expected at most {MAX_SMALL_FILE_BYTES} bytes")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{file}: expected text: {error}") from error
