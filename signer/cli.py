"""`modelfleet-signer`: the process that holds the releases key."""

import json
import logging
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import click

from modelfleet.signer.errors import SignerError, UntrustedError
from modelfleet.signer.files import folder_lock
from modelfleet.signer.keys import load_signer
from modelfleet.signer.rekey import remove_targets
from modelfleet.signer.releases import ReleaseSigner
from modelfleet.signer.serve import SignerServer
from modelfleet.signer.state import SignerState
from modelfleet.signer.swu import DEFAULT_ROOT, require_root
from modelfleet.signer.swu_release import SwuKey
from modelfleet.signer.trust import trusted_root

EXIT_FAILED = 1
EXIT_UNTRUSTED = 3


@click.group()
def main() -> None:
    """Hold the releases key and sign what publisher and gates vouch for.

    \b
    Example:
      modelfleet-signer serve --socket /run/modelfleet/signer.sock --tenant acme
          --state /var/lib/modelfleet/signer --key file:/etc/modelfleet/releases.pem --root /etc/modelfleet/root.json
    """  # noqa: D301 - click's own mark for "do not reflow"


@main.command()
@click.option("--socket", "socket_path", type=click.Path(path_type=Path), required=True, help="Unix socket to make.")
@click.option("--tenant", required=True, help="Whose variants to sign.")
@click.option("--state", type=click.Path(path_type=Path, file_okay=False), required=True, help="The signer's own bins.")
@click.option("--key", required=True, help="URI of the releases key, such as file:/etc/modelfleet/releases.pem.")
@click.option("--root", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The trusted root.json.")
@click.option("--swu-key", help="URI of the key that signs .swu containers for swupdate; none: it signs none.")
@click.option("--swu-certificate", type=click.Path(path_type=Path, dir_okay=False), help="That key's certificate.")
@click.option("--swu-root", default=DEFAULT_ROOT, show_default=True, help="Where such devices have their slots.")
def serve(
    socket_path: Path,
    tenant: str,
    state: Path,
    key: str,
    root: Path,
    swu_key: str | None,
    swu_certificate: Path | None,
    swu_root: str,
) -> None:
    """Answer on SOCKET until SIGTERM, SIGINT, or the end of a pipe on standard input.

    \b
    Example:
      modelfleet-signer serve --socket /run/modelfleet/signer.sock --tenant acme
          --state /var/lib/modelfleet/signer --key file:/etc/modelfleet/releases.pem --root /etc/modelfleet/root.json
    """  # noqa: D301 - click's own mark for "do not reflow"
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("tuf").setLevel(logging.WARNING)  # it reports every offline key that did not sign
    try:
        with folder_lock(state, wait=False):
            _serve(socket_path, tenant, state, key, root, _swu_key(swu_key, swu_certificate, swu_root))
    except BlockingIOError:
        _fail(f"another signer holds {state}: stop it first", EXIT_FAILED)
    except UntrustedError as error:
        _fail(str(error), EXIT_UNTRUSTED)
    except (SignerError, OSError) as error:
        _fail(str(error), EXIT_FAILED)


@main.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--state", type=click.Path(path_type=Path, file_okay=False), required=True, help="The signer's own bins.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def remove(paths: tuple[str, ...], state: Path, as_json: bool) -> None:
    """Drop targets from the bins of a signer that is stopped, after a theft of the releases key.

    \b
    Example:
      modelfleet-signer remove models/digits/9.9.9/linux-cpu-float/manifest.json --state /var/lib/modelfleet/signer
    """  # noqa: D301 - click's own mark for "do not reflow"
    try:
        remove_targets(state, paths)
    except UntrustedError as error:
        _fail(str(error), EXIT_UNTRUSTED)
    except (SignerError, OSError) as error:
        _fail(str(error), EXIT_FAILED)
    click.echo(
        json.dumps({"removed": list(paths)}) if as_json else f"removed {len(paths)}: rotate the releases key next"
    )


def _swu_key(uri: str | None, certificate: Path | None, root: str) -> SwuKey | None:
    if uri is None or certificate is None:
        return None
    return SwuKey(uri=uri, certificate=certificate, root=require_root(root))


def _serve(socket_path: Path, tenant: str, state: Path, key: str, root: Path, swu: SwuKey | None) -> None:
    signer = ReleaseSigner(
        tenant=tenant,
        root=trusted_root(root.read_bytes()),
        releases=load_signer(key),
        state=SignerState(state),
        swu=swu,
    )
    with SignerServer(socket_path, signer) as server:
        _stop_on_signal_or_end_of_pipe(lambda: threading.Thread(target=server.shutdown).start())
        click.echo(f"modelfleet-signer: {signer.status().targets} manifests of {tenant}, listening on {socket_path}")
        server.serve_forever(poll_interval=0.1)
    socket_path.unlink(missing_ok=True)


def _stop_on_signal_or_end_of_pipe(stop: Callable[[], None]) -> None:
    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop()

    def on_end_of_pipe() -> None:
        while os.read(0, 4096):  # not sys.stdin: its lock, held by a thread, aborts the interpreter's exit
            pass
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    if stat.S_ISFIFO(os.fstat(0).st_mode):  # a parent that holds the other end: the signer ends with it
        threading.Thread(target=on_end_of_pipe, daemon=True).start()


def _fail(message: str, code: int) -> None:
    click.echo(f"modelfleet-signer: {message}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
