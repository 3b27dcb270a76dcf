"""`modelfleet-tuf-client`: the agent's TUF client with the command line of the public TUF conformance suite.

It runs `TufClient` over `HttpClient`, `Disk` and `FloorStore`, as the agent does, on any TUF repository. Exit codes: 0 ok,
1 refused or failed, 2 usage.
"""

import contextlib
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO
from urllib.parse import quote

import click

from modelfleet.agent_client.errors import AgentError, NotEnrolledError, TransferError
from modelfleet.agent_client.fetch import Received, receive
from modelfleet.agent_client.floors import FloorStore
from modelfleet.agent_client.http_client import HttpClient
from modelfleet.agent_client.storage import Disk
from modelfleet.agent_client.tuf_cache import MetadataCache, file_name
from modelfleet.agent_client.tuf_client import MAX_ROOT_BYTES, TufClient
from modelfleet.agent_client.version import agent_version
from modelfleet.signer.errors import DigestError, SignatureError, UntrustedError
from modelfleet.signer.metadata import Root, TargetFile, require_target
from modelfleet.signer.trust import trusted_root

URL_CHARACTERS = "/%:@!$&'()*+,;=-._~"  # a target path is a URL already (TUF 4.5): only what no URL may hold is quoted


@dataclass(frozen=True, kw_only=True)
class Options:
    """What stands before the command's name."""

    given_metadata_dir: Path | None
    metadata_url: str
    target_names: tuple[str, ...]
    target_dir: Path | None
    target_base_url: str
    clock_floor: bool

    @property
    def metadata_dir(self) -> Path:
        """The folder of what is trusted (UsageError: it was not given; `COMMAND --help` does without it)."""
        if self.given_metadata_dir is None:
            raise click.UsageError("expected --metadata-dir before the command")
        return self.given_metadata_dir


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(agent_version(), prog_name="modelfleet-tuf-client")
@click.option("--metadata-dir", type=click.Path(file_okay=False, path_type=Path), help="What is trusted.  [required]")
@click.option("--metadata-url", default="", help="Where the repository's metadata lies.")
@click.option("--target-name", "target_names", multiple=True, help="A target's path; may be given again.")
@click.option("--target-dir", type=click.Path(file_okay=False, path_type=Path), help="Where targets are put.")
@click.option("--target-base-url", default="", help="Where the repository's targets lie.")
@click.option(
    "--no-clock-floor",
    is_flag=True,
    envvar="MODELFLEET_TUF_NO_CLOCK_FLOOR",
    show_envvar=True,
    help="Judge expiry by this machine's clock alone, even where it stands before the latest time known.",
)
@click.pass_context
def cli(
    context: click.Context,
    metadata_dir: Path | None,
    metadata_url: str,
    target_names: tuple[str, ...],
    target_dir: Path | None,
    target_base_url: str,
    no_clock_floor: bool,
) -> None:
    """Follow a TUF repository and fetch targets from it, as the agent of this fleet does.

    \b
    Examples:
      modelfleet-tuf-client --metadata-dir ./tuf init root.json
      modelfleet-tuf-client --metadata-dir ./tuf --metadata-url https://fleet.example/tuf/acme/metadata refresh
      modelfleet-tuf-client --metadata-dir ./tuf --metadata-url https://fleet.example/tuf/acme/metadata \\
        --target-name trust/policy.json --target-dir . --target-base-url https://fleet.example/tuf/acme/targets download
    """  # noqa: D301 - click's own mark for "do not reflow"
    context.obj = Options(
        given_metadata_dir=metadata_dir,
        metadata_url=metadata_url,
        target_names=target_names,
        target_dir=target_dir,
        target_base_url=target_base_url.rstrip("/"),
        clock_floor=not no_clock_floor,
    )


@cli.command("init")
@click.argument("root", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.pass_obj
def init_command(options: Options, root: Path) -> None:
    """Trust the root metadata in the file ROOT; nothing is fetched.

    \b
    Example:
      modelfleet-tuf-client --metadata-dir ./tuf init root.json
    """  # noqa: D301
    data = root.read_bytes()[: MAX_ROOT_BYTES + 1]
    trusted_root(data)
    disk = Disk()
    disk.make_folder(_bootstrap(options).parent)
    MetadataCache(options.metadata_dir, disk).keep(Root.type, data)
    disk.write(_bootstrap(options), data)  # last: now the folder is ready


@cli.command("refresh")
@click.pass_obj
def refresh_command(options: Options) -> None:
    """Bring root, timestamp, snapshot and targets up to date.

    \b
    Example:
      modelfleet-tuf-client --metadata-dir ./tuf --metadata-url https://fleet.example/tuf/acme/metadata refresh
    """  # noqa: D301
    with _client(options) as (client, _):
        client.refresh()


@cli.command("download")
@click.pass_obj
def download_command(options: Options) -> None:
    """Bring the metadata up to date, then fetch every --target-name that is not there yet.

    \b
    Example:
      modelfleet-tuf-client --metadata-dir ./tuf --metadata-url http://127.0.0.1:8000/metadata \\
        --target-name a/file.txt --target-dir ./files --target-base-url http://127.0.0.1:8000/targets download
    """  # noqa: D301
    if not options.target_names or options.target_dir is None or not options.target_base_url:
        raise click.UsageError("expected --target-name, --target-dir and --target-base-url before `download`")
    with _client(options) as (client, http):
        client.refresh()
        for name in options.target_names:
            target = client.target(name)
            if target is None:
                raise SignatureError(f"expected a target {name[:200]} that the repository names, got none")
            path = options.target_dir / file_name(name)
            if not _holds(path, target):
                url = _target_url(options.target_base_url, target, prefixed=bool(client.root.consistent_snapshot))
                _download(http, url, target, path)


@contextlib.contextmanager
def _client(options: Options) -> Generator[tuple[TufClient, HttpClient]]:
    if not options.metadata_url:
        raise click.UsageError("expected --metadata-url before the command")
    try:
        bootstrap = _bootstrap(options).read_bytes()
    except FileNotFoundError as error:
        raise NotEnrolledError(
            f"{options.metadata_dir}: expected a trusted root, got none; run `init` first"
        ) from error
    disk = Disk()
    disk.make_folder(options.metadata_dir / "floors")
    floors = FloorStore(options.metadata_dir / "floors" / "floors.json", disk)
    http = HttpClient()
    try:
        yield (
            TufClient(
                MetadataCache(options.metadata_dir, disk),
                bootstrap=bootstrap,
                metadata_url=options.metadata_url,
                transport=http,
                floors=floors,
                clock=_clock(options, floors),
            ),
            http,
        )
    finally:
        http.close()


def _clock(options: Options, floors: FloorStore) -> Callable[[], datetime]:
    if options.clock_floor:
        return lambda: floors.now(datetime.now(UTC))
    return lambda: datetime.now(UTC)


def _bootstrap(options: Options) -> Path:
    return options.metadata_dir / "bootstrap" / "root.json"


def _target_url(base: str, target: TargetFile, *, prefixed: bool) -> str:
    path = target.get_prefixed_paths()[0] if prefixed else target.path
    return f"{base}/{quote(path, safe=URL_CHARACTERS)}"


def _holds(path: Path, target: TargetFile) -> bool:
    try:
        require_target(target, path.read_bytes())
    except (OSError, DigestError):
        return False
    return True


def _download(http: HttpClient, url: str, target: TargetFile, path: Path) -> None:
    """Put the target at `path`; nothing else ever gets that name.

    Raises:
        DigestError: longer, or other bytes, than were signed. TransferError: it did not arrive.
    """
    disk = Disk()
    disk.make_folder(path.parent)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w+b") as file:
            _receive(http, url, target, file)
            file.seek(0)
            require_target(target, file)
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
    disk.sync_folder(path.parent)


def _receive(http: HttpClient, url: str, target: TargetFile, file: IO[bytes]) -> None:
    name, received = target.path[:200], Received()
    arriving = http.stream(url, seconds=http.deadlines.for_length(target.length))
    receive(arriving, file, received, name=name, length=target.length)
    if received.length < target.length:
        raise TransferError(f"{name}: expected {target.length} bytes, got {received.length}")


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    try:
        cli(arguments, prog_name="modelfleet-tuf-client", standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (AgentError, UntrustedError, OSError) as error:
        click.echo(f"modelfleet-tuf-client: {type(error).__name__}: {error}", err=True)
        return 1
    return 0


def main() -> None:
    """Run the command line and exit with its status."""
    sys.exit(run())


if __name__ == "__main__":
    main()
