"""`modelfleet keys`: make keys, change who signs, carry a change to offline keys and back. `service` adds the command.

None of these speaks to a server; `keys sign` and `keys make` need no data folder, and run on a machine without a network.
Exit status as for every command: 0 done, 1 refused or failed, 2 wrong usage or no such key, 3 not trusted.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from modelfleet.signer.change import Change, encode_change, lacking, merge_signatures, parse_change, sign_change
from modelfleet.signer.client import SignerClient
from modelfleet.signer.command import (
    absolute,
    data_options,
    guarded,
    json_option,
    known,
    no_passphrase,
    opened,
    passphrase_option,
    secrets_of,
    socket_option,
)
from modelfleet.signer.errors import PlanError
from modelfleet.signer.files import write_durably
from modelfleet.signer.key_book import CeremonyResult, locate
from modelfleet.signer.key_file import is_encrypted
from modelfleet.signer.keys import key_id, load_signer, make_key, public_key
from modelfleet.signer.passphrase import (
    Secrets,
    ask_new_passphrase,
)
from modelfleet.signer.rekey import Rekey, rekey_there
from modelfleet.signer.rotate import Revocation, Rotation, renewal, revocation, rotation
from modelfleet.signer.stage import (
    discard_staged,
    for_signing,
    keep_staged,
    publish,
    require_none_staged,
    sign_here,
    staged,
)
from modelfleet.signer.summary import describe_change
from modelfleet.signer.trust import PolicyChain


@click.group()
def keys() -> None:
    """The keys of a tenant: make, rotate, revoke, renew, and carry what is to be signed to offline keys and back.

    Example: modelfleet keys status --data ./fleet --tenant acme
    """


@keys.command()
@click.argument("uri")
@click.option("--encrypt", is_flag=True, help="Encrypt the file under a passphrase.")
@passphrase_option
@json_option
@guarded
def make(uri: str, encrypt: bool, passphrase_file: Path | None, as_json: bool) -> None:
    """Make a P-256 key at URI: file:/path.pem, pkcs11:token=T;object=LABEL?module-path=/lib.so, or awskms:alias/NAME.

    Example: modelfleet keys make file:/media/stick/anna.pem --encrypt
    """
    secret: str | None = None
    if encrypt or passphrase_file is not None:
        secret = secrets_of(passphrase_file, ask_new_passphrase)(uri)
    make_key(uri, secret)
    show_public(uri, secrets_of(passphrase_file) if secret is None else known(secret), as_json)


@keys.command()
@click.argument("uri")
@passphrase_option
@json_option
@guarded
def public(uri: str, passphrase_file: Path | None, as_json: bool) -> None:
    """Print the public half of the key at URI, which may be handed to anybody, and its id.

    Example: modelfleet keys public file:/media/stick/anna.pem > anna.pub.pem
    """
    show_public(uri, secrets_of(passphrase_file), as_json)


@keys.command()
@click.argument("roles", nargs=-1, required=True, metavar="ROLE...")
@click.option("--new-key", "new_keys", multiple=True, metavar="URI", help="The new key; repeat for root and targets.")
@click.option("--old", default="", metavar="KEYID", help="Of root and targets, replace only this key.")
@click.option("--threshold", type=click.IntRange(1, 16), help="Of root and targets, how many must sign from now on.")
@click.option("--overlap", is_flag=True, help="Of a role in the policy: the old key stays valid, revoke it later.")
@click.option("--epoch", is_flag=True, help="Void every document of the desired state signed so far.")
@click.option("--remove", multiple=True, metavar="PATH", help="With releases: a target that the bins shall not name.")
@click.option("--encrypt", is_flag=True, help="Encrypt new files of root and targets, also where the old were not.")
@socket_option
@data_options
@passphrase_option
@json_option
@guarded
def rotate(
    roles: tuple[str, ...],
    new_keys: tuple[str, ...],
    old: str,
    threshold: int | None,
    overlap: bool,
    epoch: bool,
    remove: tuple[str, ...],
    encrypt: bool,
    socket_path: Path | None,
    data: Path,
    tenant: str,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Give each ROLE a new key, at --new-key or made as a file.

    ROLE is root, targets, snapshot, timestamp, releases, director, gate, publisher, or approver:PERSON. It is published
    at once where enough offline keys can be opened here; else it waits for `keys export`, `keys sign`, `keys import`.

    Example: modelfleet keys rotate snapshot timestamp --data ./fleet --tenant acme
    """
    paths, secrets = opened(data, tenant), secrets_of(passphrase_file)
    wanted = Rotation(
        roles=roles,
        new_keys=absolute(new_keys),
        old=old,
        threshold=threshold or 0,
        overlap=overlap,
        epoch=epoch,
        remove=remove,
    )
    encrypt = encrypt or passphrase_file is not None or _has_encrypted(paths)
    made = secrets_of(passphrase_file, ask_new_passphrase) if encrypt else no_passphrase
    now = datetime.now(UTC)
    change = rotation(paths, chain_of(paths, secrets), wanted, now, secrets=secrets, new_passphrase=made)
    finish(paths, change, secrets, as_json, rekey=_rekey(socket_path))


@keys.command()
@click.option("--key", "key_ids", multiple=True, metavar="KEYID", help="A key of the policy (8 digits or more).")
@click.option("--manifest", "manifests", multiple=True, metavar="SHA256", help="A manifest that nobody may install.")
@click.option(
    "--minimum", "minimums", multiple=True, metavar="MODEL=COUNTER", help="The least release counter allowed."
)
@click.option("--epoch", is_flag=True, help="Void every document of the desired state signed so far.")
@data_options
@passphrase_option
@json_option
@guarded
def revoke(
    key_ids: tuple[str, ...],
    manifests: tuple[str, ...],
    minimums: tuple[str, ...],
    epoch: bool,
    data: Path,
    tenant: str,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Take a key out of the policy, forbid a manifest, or forbid releases of a model below a counter.

    Example: modelfleet keys revoke --minimum digits=7 --data ./fleet --tenant acme
    """
    paths, secrets = opened(data, tenant), secrets_of(passphrase_file)
    wanted = Revocation(keys=key_ids, manifests=manifests, minimum=parse_minimums(minimums), epoch=epoch)
    finish(paths, revocation(paths, chain_of(paths, secrets), wanted, datetime.now(UTC)), secrets, as_json)


@keys.command()
@click.argument("roles", nargs=-1, required=True, type=click.Choice(["root", "targets"]))
@data_options
@passphrase_option
@json_option
@guarded
def renew(roles: tuple[str, ...], data: Path, tenant: str, passphrase_file: Path | None, as_json: bool) -> None:
    """Sign root.json or targets.json again before it expires, with nothing else changed.

    Example: modelfleet keys renew root targets --data ./fleet --tenant acme
    """
    paths, secrets = opened(data, tenant), secrets_of(passphrase_file)
    finish(paths, renewal(paths, chain_of(paths, secrets), roles, datetime.now(UTC)), secrets, as_json)


@keys.command()
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write.")
@data_options
@json_option
@guarded
def export(output: Path, data: Path, tenant: str, as_json: bool) -> None:
    """Write the change that waits for signatures into one file, to carry to an offline key.

    Example: modelfleet keys export -o /media/stick/change.json --data ./fleet --tenant acme
    """
    change = _waiting(locate(data, tenant))
    write_durably(output, encode_change(for_signing(change)))
    say(change, as_json, state="exported", then=f"next: modelfleet keys sign {output} --key URI --root root.json")


@keys.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--key", required=True, metavar="URI", help="Your key; it stays on this machine.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Your own copy of root.json, so that you need not believe the file's.",
)
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Write here, not over FILE.")
@click.option("--yes", is_flag=True, help="Do not ask before signing; needs --root.")
@passphrase_option
@json_option
@guarded
def sign(
    file: Path,
    key: str,
    root: Path | None,
    output: Path | None,
    yes: bool,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Show what an exported change changes, computed from its bytes, and add your signature. Needs no network.

    Example: modelfleet keys sign /media/stick/change.json --key file:/media/safe/root-2.pem --root root.json
    """
    if yes and root is None:
        raise click.UsageError("--yes needs --root: nobody else would hold the change against what is published")
    change = parse_change(file.read_bytes())
    for line in describe_change(change, trusted=root.read_bytes() if root else None):
        click.echo(line, err=True)
    if root is None:
        click.echo("warning: without --root, what is published now is what the file says", err=True)
    if not yes and not click.confirm("Sign this?", err=True):
        raise click.Abort
    signed = sign_change(change, load_signer(key, secrets_of(passphrase_file)))
    write_durably(output or file, encode_change(signed))
    say(signed, as_json, state="signed", then=f"next: modelfleet keys import {output or file}", told=True)


@keys.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@socket_option
@data_options
@passphrase_option
@json_option
@guarded
def import_(
    files: tuple[Path, ...],
    socket_path: Path | None,
    data: Path,
    tenant: str,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Take over signatures from FILES; with the last one that is needed, the change is published.

    Example: modelfleet keys import /media/stick/change.json --data ./fleet --tenant acme
    """
    paths = opened(data, tenant)
    change = _waiting(paths)
    for file in files:
        change = merge_signatures(change, parse_change(file.read_bytes()))
        keep_staged(data, change)
    _publish_or_wait(paths, change, secrets_of(passphrase_file), as_json, _rekey(socket_path), [])


@keys.command("publish")
@socket_option
@data_options
@passphrase_option
@json_option
@guarded
def publish_(socket_path: Path | None, data: Path, tenant: str, passphrase_file: Path | None, as_json: bool) -> None:
    """Publish the change that waits, once it bears enough signatures: after a crash, or when the signer was in the way.

    Example: modelfleet keys publish --data ./fleet --tenant acme
    """
    paths = opened(data, tenant)
    _publish_or_wait(paths, _waiting(paths), secrets_of(passphrase_file), as_json, _rekey(socket_path), [])


@keys.command()
@data_options
@json_option
@guarded
def discard(data: Path, tenant: str, as_json: bool) -> None:
    """Drop the change that waits for signatures; what is published stays as it is.

    Example: modelfleet keys discard --data ./fleet --tenant acme
    """
    change = _waiting(locate(data, tenant))
    discard_staged(data)
    say(change, as_json, state="discarded")


def chain_of(paths: CeremonyResult, secrets: Secrets) -> PolicyChain:
    """Return what is published (PlanError: another change waits for signatures)."""
    require_none_staged(paths.data_dir)
    return paths.repository(secrets).policy_chain()


def finish(
    paths: CeremonyResult, change: Change, secrets: Secrets, as_json: bool, *, rekey: Rekey | None = None
) -> None:
    """Sign with the keys that are here; publish, or keep the change until the other signatures come."""
    keep_staged(paths.data_dir, change)
    signed, reasons = sign_here(paths, change, secrets)
    keep_staged(paths.data_dir, signed)
    _publish_or_wait(paths, signed, secrets, as_json, rekey, reasons)


def say(
    change: Change, as_json: bool, *, state: str, reasons: Sequence[str] = (), then: str = "", told: bool = False
) -> None:
    """Tell what the change is, unless that was `told` already, and what it waits for."""
    missing = [str(lack) for lack in lacking(change)]
    changes = describe_change(change)
    if as_json:
        click.echo(
            json.dumps({"state": state, "changes": changes, "missing": missing, "reasons": list(reasons)}, indent=2)
        )
        return
    for line in changes if not told else ():
        click.echo(line)
    for reason in reasons:
        click.echo(f"a key was not used: {reason}")
    for line in missing if state != "discarded" else ():
        click.echo(f"missing: {line}")
    click.echo(state)
    if then:
        click.echo(then)


def show_public(uri: str, secrets: Secrets, as_json: bool) -> None:
    """Print a key's public half and id."""
    key = public_key(uri, secrets)
    if as_json:
        click.echo(json.dumps({"uri": uri, "keyid": key_id(key), "public": key.keyval["public"]}, indent=2))
        return
    click.echo(f"key {key_id(key)} at {uri}", err=True)
    click.echo(key.keyval["public"], nl=False)


def parse_minimums(given: Sequence[str]) -> Mapping[str, int]:
    """Return model -> counter of `MODEL=COUNTER` texts (PlanError: no such text)."""
    found: dict[str, int] = {}
    for text in given:
        model, _, counter = text.rpartition("=")
        if not model or not counter.isdecimal():
            raise PlanError(f"expected MODEL=COUNTER, such as digits=7, got {text[:80]!r}")
        found[model] = int(counter)
    return found


def _publish_or_wait(
    paths: CeremonyResult,
    change: Change,
    secrets: Secrets,
    as_json: bool,
    rekey: Rekey | None,
    reasons: Sequence[str],
) -> None:
    if lacking(change):
        then = f"next: modelfleet keys export -o change.json --data {paths.data_dir} --tenant {paths.tenant}"
        say(change, as_json, state="staged", reasons=reasons, then=then)
        return
    publish(paths, change, datetime.now(UTC), secrets=secrets, rekey=rekey)
    say(change, as_json, state="published")


def _waiting(paths: CeremonyResult) -> Change:
    change = staged(paths.data_dir)
    if change is None:
        raise PlanError(f"no change waits for signatures in {paths.data_dir}: make one with `modelfleet keys rotate`")
    return change


def _rekey(socket_path: Path | None) -> Rekey | None:
    return rekey_there(SignerClient(socket_path)) if socket_path is not None else None


def _has_encrypted(paths: CeremonyResult) -> bool:
    uris = (*paths.root_keys, *paths.targets_keys)
    return any(uri.startswith("file:") and is_encrypted(uri.removeprefix("file:")) for uri in uris)
