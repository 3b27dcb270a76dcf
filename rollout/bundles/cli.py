"""The command `modelfleet bundle`: everything that devices without a network need, on a medium; and their reports back."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from modelfleet.policies.errors import OfflineRefusedError
from modelfleet.policies.offline import parse_duration
from modelfleet.registry.client import ApiClient
from modelfleet.registry.command import USAGE, api_options, show
from modelfleet.rollout.bundles.archive import BundleFileError, receive
from modelfleet.signer.names import sha256_of
from modelfleet.signer.offline import Index, encode_index
from modelfleet.signer.parse import parse_json

MAX_REPORTS_BYTES = 256 * 1024 * 1024
REPORTS_A_REQUEST = 25  # of the longest ones, what the service takes in one request


class _BundleGroup(click.Group):
    """`bundle OUT ...` is `bundle make OUT ...`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {*self.commands, *ctx.help_option_names}
        return super().parse_args(ctx, args if not args or args[0] in known else ["make", *args])


@click.group(cls=_BundleGroup)
def bundle() -> None:
    """Bring devices without a network up to date with a folder or a file on a medium.

    \b
    Example:
      modelfleet bundle /media/usb/line-a.mfbundle --valid-for 30d --group line-a
    """  # noqa: D301


@bundle.command("make")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--valid-for", default="30d", show_default=True, help="How long it may be applied: 30d, 12h; 90d at most."
)
@click.option("--device", "devices", multiple=True, help="A device's id; may be given again.")
@click.option("--group", help="All devices of a group, in place of --device.")
@api_options
def make_bundle(
    client: ApiClient, as_json: bool, out: Path, valid_for: str, devices: Sequence[str], group: str | None
) -> None:
    """Make the bundle OUT (also: modelfleet bundle OUT): one file if it ends in .mfbundle, else a folder.

    Until it expires, whoever has it can hold its devices at this state; who made it, and for whom, is in the audit trail.

    \b
    Example:
      modelfleet bundle /media/usb/line-a.mfbundle --valid-for 30d --device 3f0c... --device 77ab...
    """  # noqa: D301
    try:
        seconds = int(parse_duration(valid_for).total_seconds())
    except OfflineRefusedError as error:
        raise click.UsageError(str(error)) from error
    if (group is None) == (not devices):
        raise click.UsageError("give --device, or --group")
    if out.exists():
        raise BundleFileError(f"{out} is there already: remove it, or choose another name")
    body = {"devices": list(devices), "group": group, "valid_for_seconds": seconds}
    with client.stream("/v1/bundles", body) as (length, pieces), _bar(length) as bar:
        index = receive(pieces, out, bar.update)
    _tell(out, index, length, as_json)


@bundle.command("import-reports")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@api_options
def import_reports(client: ApiClient, as_json: bool, file: Path) -> None:
    """Take in the reports that `modelfleet-agent apply --reports-to FILE` wrote; only what a device signed counts.

    \b
    Example:
      modelfleet bundle import-reports /media/usb/reports.json
    """  # noqa: D301
    found = parse_json(file.read_bytes(), max_bytes=MAX_REPORTS_BYTES)
    try:
        messages = msgspec.convert(found, _Carried).messages
    except msgspec.ValidationError as error:
        click.echo(f"Error: {file} holds no reports: {error}", err=True)
        raise SystemExit(USAGE) from error
    taken = {"accepted": 0, "unsigned": 0, "refused": 0}
    for start in range(0, len(messages), REPORTS_A_REQUEST):
        part = [{"topic": each.topic, "payload": each.payload} for each in messages[start : start + REPORTS_A_REQUEST]]
        answer = client.post("/v1/bundles/reports", {"messages": part})
        taken = {name: count + answer[name] for name, count in taken.items()}
    show(taken, as_json, ("accepted", "unsigned", "refused"))


class _Message(msgspec.Struct, frozen=True, kw_only=True):
    topic: str
    payload: str


class _Carried(msgspec.Struct, frozen=True, kw_only=True):
    messages: list[_Message]


def _bar(length: int) -> Any:
    steps = max(1, length // 100)
    hidden = not sys.stderr.isatty()
    return click.progressbar(length=length, label="bundle", file=sys.stderr, update_min_steps=steps, hidden=hidden)


def _tell(out: Path, index: Index, length: int, as_json: bool) -> None:
    digest = sha256_of(encode_index(index))
    if as_json:
        value = {
            "bundle": str(out),
            "sha256": digest,
            "bytes": length,
            "devices": list(index.devices),
            "expires": index.expires.isoformat(),
            "notes": list(index.notes),
        }
        click.echo(json.dumps(value, indent=2))
        return
    for note in index.notes:
        click.echo(f"Note: {note}", err=True)
    click.echo(
        f"{out}: {len(index.files)} files, {length / 1e6:.1f} MB, for {len(index.devices)} devices,"
        f" until {index.expires:%F %T} UTC; audit subject bundle/{digest}"
    )
