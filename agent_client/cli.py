"""`modelfleet-agent`: enrol a device, run its agent, apply a bundle in its place, show how it stands.

Exit codes: 0 ok, 1 refused or failed, 2 usage, 3 trust refused, 4 server unreachable.
"""

import json
import logging
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import click
import msgspec

from modelfleet.agent_client.agent import Agent
from modelfleet.agent_client.apply_cli import apply_bundle
from modelfleet.agent_client.enroll import enroll
from modelfleet.agent_client.errors import AgentError, HttpStatusError, NotEnrolledError, TransferError
from modelfleet.agent_client.identity import load_identity
from modelfleet.agent_client.logs import log_to_stderr
from modelfleet.agent_client.model import DEFAULT_ROOT, ROOT_VARIABLE
from modelfleet.agent_client.surroundings import Metered, Surroundings
from modelfleet.agent_client.version import agent_version
from modelfleet.signer.errors import UntrustedError
from modelfleet.signer.parse import parse_json

MAX_STATUS_BYTES = 4 * 1024 * 1024

root_option = click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_ROOT,
    envvar=ROOT_VARIABLE,
    show_default=True,
    show_envvar=True,
    help="The agent's folder.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(agent_version(), prog_name="modelfleet-agent")
def cli() -> None:
    """Keep this device's models up to date, verified and watched.

    \b
    Examples:
      modelfleet-agent enroll --url https://fleet.example --token mfc_...
      modelfleet-agent run
      modelfleet-agent status --json
    """  # noqa: D301 - click's own mark for "do not reflow"


@cli.command("enroll")
@root_option
@json_option
@click.option("--url", required=True, envvar="MODELFLEET_URL", show_envvar=True, help="The fleet's server.")
@click.option("--token", required=True, envvar="MODELFLEET_CLAIM_TOKEN", show_envvar=True, help="A claim token.")
@click.option("--profile", help="Hardware profile; by default the first that this machine matches.")
@click.option("--serial", help="Serial number; by default what the machine says of itself.")
@click.option("--again", is_flag=True, help="Ask for a new certificate although this device is enrolled.")
def enroll_command(
    root: Path, as_json: bool, url: str, token: str, profile: str | None, serial: str | None, again: bool
) -> None:
    """Enrol this device with a one-time claim token. Safe to repeat after a crash.

    A device whose certificate has expired enrols again in the same folder, with a new claim token, and stays the same device.

    \b
    Example:
      modelfleet-agent enroll --root ./device --url http://127.0.0.1:8080 --token mfc_... --profile linux-cpu-int8
    """  # noqa: D301
    identity = enroll(root, url, token, profile, serial=serial, again=again)
    text = f"device {identity.device} of {identity.tenant}: group {identity.group}, profile {identity.profile}"
    _show(msgspec.to_builtins(identity), as_json, text)


@cli.command("run")
@root_option
@click.option("--json", "as_json", is_flag=True, help="Log as JSON, one object a line.")
@click.option("--poll-seconds", type=click.FloatRange(min=0.2), default=30.0, show_default=True)
@click.option("--verbose", is_flag=True, help="Log everything.")
@click.option(
    "--metered",
    type=click.Choice(["auto", "yes", "no"]),
    default="auto",
    show_default=True,
    help="Whether the network costs by volume; auto: as NetworkManager says, else no.",
)
def run_command(root: Path, as_json: bool, poll_seconds: float, verbose: bool, metered: Metered) -> None:
    """Run the agent until SIGINT or SIGTERM.

    \b
    Examples:
      modelfleet-agent run --root ./device
      modelfleet-agent run --root ./device --metered yes
    """  # noqa: D301
    log_to_stderr(as_json=as_json, level=logging.DEBUG if verbose else logging.INFO)
    surroundings = Surroundings(root, metered=metered)
    Agent(root, poll_seconds=poll_seconds, surroundings=surroundings).run(_until_signal())


@cli.command("apply")
@click.argument("bundle", type=click.Path(path_type=Path))
@root_option
@json_option
@click.option("--no-wait", is_flag=True, help="Do not stay for a new model's probation; the next apply or run ends it.")
@click.option(
    "--reports-to",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the waiting reports there, to be taken back to the server.",
)
def apply_command(bundle: Path, root: Path, as_json: bool, no_wait: bool, reports_to: Path | None) -> None:
    """Bring this device, which has no network, to what BUNDLE holds (a folder, or a .mfbundle file).

    Every check holds as online. The device's agent must not be running. Exit status 4: the bundle cannot be read to its end.

    \b
    Example:
      modelfleet-agent apply /media/usb/line-a.mfbundle --reports-to /media/usb/reports.json
    """  # noqa: D301
    stop = _until_signal()
    sys.exit(apply_bundle(root, bundle, stop, as_json=as_json, wait=not no_wait, reports_to=reports_to))


@cli.command("status")
@root_option
@json_option
def status_command(root: Path, as_json: bool) -> None:
    """Show how the device stands, as its agent wrote it last.

    \b
    Example:
      modelfleet-agent status --root ./device --json
    """  # noqa: D301
    load_identity(root)
    try:
        data = (root / "status.json").read_bytes()
    except FileNotFoundError as error:
        raise NotEnrolledError(f"{root}: the agent has not run yet; start it with `modelfleet-agent run`") from error
    found = parse_json(data, max_bytes=MAX_STATUS_BYTES)
    status = msgspec.convert(found, dict[str, Any])
    _show(status, as_json, _as_text(status))


def _until_signal() -> threading.Event:
    """Return what SIGINT and SIGTERM set from now on."""
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    return stop


def _as_text(status: dict[str, Any]) -> str:
    lines = [f"device {status['device']}  group {status['group']}  profile {status['profile']}"]
    lines.append(f"agent {status['agent']}  boot {status['boot']}  {'online' if status['online'] else 'offline'}")
    for slot, found in status["slots"].items():
        waits = f"  waits for {', '.join(found['waiting'])}" if found.get("waiting") else ""
        lines.append(f"{slot}: {found['model'] or '-'} {found['version'] or 'no model'}  {found['state']}{waits}")
    for refusal in status["refusals"][-5:]:
        lines.append(f"refused {refusal['at']}: {refusal['kind']}: {refusal['message']}")
    return "\n".join(lines)


def _show(value: object, as_json: bool, text: str) -> None:
    click.echo(json.dumps(value, indent=2) if as_json else text)


def exit_code(error: Exception) -> int:
    """Return the exit status that says what kind of failure this is."""
    if isinstance(error, UntrustedError):
        return 3
    if isinstance(error, TransferError) and not isinstance(error, HttpStatusError):
        return 4
    return 1


def _guarded(run: Callable[[], object]) -> int:
    try:
        run()
    except (AgentError, UntrustedError) as error:
        click.echo(f"modelfleet-agent: {error}", err=True)
        return exit_code(error)
    return 0


def main() -> None:
    """Run the command line and exit with its status."""
    sys.exit(_guarded(cli))


if __name__ == "__main__":
    main()
