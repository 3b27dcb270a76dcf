"""The signer as a real process on a real socket, and a real TUF client on what it signed."""

import contextlib
import itertools
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater

from modelfleet.signer.ceremony import CeremonyResult, create_repository
from modelfleet.signer.client import SignedRelease, SignerClient, renew_bins
from modelfleet.signer.errors import (
    DigestError,
    FormatError,
    GateFailedError,
    ReplayError,
    ScopeError,
    SignatureError,
    SignerError,
    SignerUnavailableError,
    UnknownKeyError,
)
from modelfleet.signer.key_book import locate
from modelfleet.signer.keys import load_signer
from modelfleet.signer.manifest import Manifest, encode_manifest
from modelfleet.signer.metadata import Targets, parse_metadata
from modelfleet.signer.rotate import Rotation, rotation
from modelfleet.signer.sign import sign_gate, sign_source
from modelfleet.signer.stage import publish, sign_here
from modelfleet.signer.trust import PolicyChain
from modelfleet.signer.wire import MAX_MESSAGE_BYTES, ErrorReply, error_of, parse_reply, receive_message
from tests.unit.signer.samples import TENANT, gate, manifest, source


@dataclass
class RunningSigner:
    """A `modelfleet-signer serve` child, which can be killed and started again."""

    fleet: CeremonyResult
    socket_path: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.client = SignerClient(self.socket_path, timeout_seconds=10)

    def command(self, **changes: str) -> list[str]:
        options = {
            "socket": str(self.socket_path),
            "tenant": TENANT,
            "state": str(self.fleet.signer_state),
            "key": self.fleet.releases_key,
            "root": str(self.fleet.root_json),
        } | changes
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        return [sys.executable, "-m", "modelfleet.signer.cli", "serve", *arguments]

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self.process.stdout is not None
        assert b"listening" in self.process.stdout.readline()

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.closed()

    def closed(self) -> int:
        code = self.process.wait(10)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        return code

    def release(
        self, of: Manifest | None = None, *, passed: bool = True, chain: PolicyChain | None = None
    ) -> SignedRelease:
        described = of or manifest()
        said = source(version=described.version, channel=described.channel)
        return self.client.release(
            manifest=encode_manifest(described),
            source_envelope=sign_source(said, load_signer(self.fleet.publisher_key)),
            gate_envelopes=[sign_gate(gate(described, passed=passed), load_signer(self.fleet.gate_key))],
            policy_chain=chain or self.fleet.repository().policy_chain(),
        )


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Generator[RunningSigner]:
    """One process for the tests that need no fresh one: each signs a version of its own (`next_version`)."""
    data = tmp_path_factory.mktemp("shared") / "data"
    fleet = create_repository(data, TENANT, bits=2, approvers=["anna"], now=datetime.now(UTC))
    with running_signer(fleet) as running:
        yield running


@pytest.fixture
def signer(fleet: CeremonyResult) -> Generator[RunningSigner]:
    with running_signer(fleet) as running:
        yield running


@contextlib.contextmanager
def running_signer(fleet: CeremonyResult) -> Generator[RunningSigner]:
    with tempfile.TemporaryDirectory(prefix="mf-") as folder:  # a socket's path holds 107 bytes at most
        running = RunningSigner(fleet, Path(folder) / "signer.sock")
        running.start()
        yield running
        if running.process.poll() is None:
            running.stop()


COUNTERS = itertools.count(1)


def next_version(**changes: object) -> Manifest:
    counter = next(COUNTERS)
    return manifest(version=f"1.{counter}.0", counter=counter, **changes)


class FileFetcher(FetcherInterface):
    """Serves `file://` URLs to python-tuf."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = Path(url.removeprefix("file://"))
        if not path.exists():
            raise DownloadHTTPError(f"no {path.name}", 404)
        yield path.read_bytes()


def updater(fleet: CeremonyResult, cache: Path) -> Updater:
    cache.mkdir(exist_ok=True)
    return Updater(
        str(cache),
        f"file://{fleet.metadata_dir}",
        str(cache),
        f"file://{fleet.targets_dir}",
        fetcher=FileFetcher(),
        bootstrap=fleet.root_json.read_bytes(),
    )


def test_a_manifest_goes_from_the_signer_process_to_a_real_tuf_client(
    shared: RunningSigner, tmp_path: Path, now: datetime
) -> None:
    fleet, released = shared.fleet, next_version()
    assert updater(fleet, tmp_path / "before").get_targetinfo(released.path) is None
    signed = shared.release(released)
    fleet.repository().publish(signed.bins, {released.path: encode_manifest(released)}, now)
    client = updater(fleet, tmp_path / "client")
    target = client.get_targetinfo(released.path)
    assert target is not None
    assert Path(client.download_target(target)).read_bytes() == encode_manifest(released)
    policy = client.get_targetinfo("trust/policy.json")
    assert policy is not None
    assert Path(client.download_target(policy)).read_bytes() == fleet.repository().policy_chain().policy


def test_the_socket_is_for_its_user_only(shared: RunningSigner) -> None:
    assert stat.S_IMODE(shared.socket_path.stat().st_mode) == 0o600


def test_status_says_who_signs_and_how_much(shared: RunningSigner) -> None:
    keyid = load_signer(shared.fleet.releases_key).public_key.keyid
    before = int(shared.client.status()["targets"])
    shared.release(next_version())
    assert shared.client.status() == {"keyid": keyid, "tenant": TENANT, "bins": 4, "targets": before + 1}


def test_the_same_manifest_again_returns_the_same_bin(shared: RunningSigner) -> None:
    released = next_version()
    assert shared.release(released).bins == shared.release(released).bins


def test_refusals_arrive_as_the_class_that_the_signer_raised(shared: RunningSigner) -> None:
    released = next_version()
    with pytest.raises(GateFailedError, match="did not pass"):
        shared.release(released, passed=False)
    with pytest.raises(ScopeError):
        shared.release(next_version(tenant="umbrella"))
    shared.release(released)
    with pytest.raises(DigestError, match="immutable"):
        shared.release(msgspec.structs.replace(released, parameters={"threshold": 4}))
    with pytest.raises(ReplayError, match=f"counter > {released.counter}, got 0"):
        shared.release(manifest(version="9.9.9", counter=0))


def test_a_signer_believes_only_the_policy_under_its_own_root(shared: RunningSigner) -> None:
    chain = shared.fleet.repository().policy_chain()
    metadata = parse_metadata(chain.targets, Targets)
    metadata.signatures.clear()
    forged = type(chain)(targets=metadata.to_bytes(), policy=chain.policy)
    released = next_version()
    with pytest.raises(SignatureError) as caught:
        shared.release(released, chain=forged)
    assert not isinstance(caught.value, UnknownKeyError)
    assert shared.release(released, chain=chain).bins


def test_a_killed_signer_has_lost_nothing_when_it_is_back(signer: RunningSigner) -> None:
    first = signer.release()
    assert signer.stop(signal.SIGKILL) == -signal.SIGKILL
    with pytest.raises(SignerUnavailableError, match="did not answer"):
        signer.client.status()
    signer.start()  # over the socket that the killed one left behind
    assert signer.release().bins == first.bins
    assert signer.client.status()["targets"] == 1
    with pytest.raises(ReplayError):
        signer.release(manifest(version="1.1.0", counter=1))
    assert signer.stop(signal.SIGTERM) == 0


def test_bins_near_expiry_are_signed_anew_and_published(shared: RunningSigner, now: datetime) -> None:
    repository = shared.fleet.repository()
    renew_bins(shared.client, repository, now)
    before = repository.versions()
    assert renew_bins(shared.client, repository, now) == 0
    lost = shared.client.resign(now + timedelta(days=91))  # signed, and the caller stops before it publishes
    assert len(lost) == 4
    assert renew_bins(shared.client, repository, now) == 4
    assert {role: repository.versions()[role] for role in lost} == {role: before[role] + 1 for role in lost}


HALF_A_LENGTH = b"\x00\x00"
MALFORMED = {
    "a length beyond the cap": struct.pack(">I", MAX_MESSAGE_BYTES + 1),
    "no JSON": struct.pack(">I", 4) + b"\xff\xfe\x00\x01",
    "an unknown op": struct.pack(">I", 13) + b'{"op":"steal"}'[:13],
    "a missing field": struct.pack(">I", 16) + b'{"op":"release"}',
    "a nested bomb": struct.pack(">I", 400) + b"[" * 400,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_gets_an_error_and_disturbs_nobody(name: str, shared: RunningSigner) -> None:
    with socket.socket(socket.AF_UNIX) as idle, socket.socket(socket.AF_UNIX) as connection:
        idle.connect(str(shared.socket_path))
        idle.sendall(HALF_A_LENGTH)
        connection.connect(str(shared.socket_path))
        connection.sendall(MALFORMED[name])
        reply = parse_reply(receive_message(connection, time.monotonic() + 5))
        assert isinstance(reply, ErrorReply)
        assert isinstance(error_of(reply), FormatError)
        assert connection.recv(1) == b""  # closed
        assert shared.client.status()["tenant"] == TENANT


def test_an_error_of_an_unknown_class_is_still_a_signer_error() -> None:
    for kind in ("SomethingNewError", "SystemExit", "Popen"):
        assert type(error_of(ErrorReply(kind=kind, message="m"))) is SignerError


def test_the_signer_ends_with_its_parents_pipe_and_removes_its_socket(signer: RunningSigner) -> None:
    assert signer.process.stdin is not None
    signer.process.stdin.close()
    assert signer.process.wait(10) == 0
    assert not signer.socket_path.exists()
    assert signer.process.stdout is not None
    signer.process.stdout.close()


def run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False)


def test_two_signers_never_share_a_state_folder(shared: RunningSigner) -> None:
    second = run(shared.command(socket=str(shared.socket_path.with_name("second.sock"))))
    assert second.returncode == 1
    assert "another signer holds" in second.stderr


def test_a_signer_does_not_start_on_a_forged_root_or_without_its_key(fleet: CeremonyResult, tmp_path: Path) -> None:
    idle = RunningSigner(fleet, tmp_path / "signer.sock")
    forged = tmp_path / "root.json"
    forged.write_bytes(fleet.root_json.read_bytes().replace(b'"threshold":2', b'"threshold":1', 1))
    assert forged.read_bytes() != fleet.root_json.read_bytes()
    assert run(idle.command(root=str(forged))).returncode == 3
    wrong_key = run(idle.command(key=f"file:{os.devnull}"))
    assert wrong_key.returncode == 1
    assert "PKCS#8" in wrong_key.stderr


def test_help_shows_an_example() -> None:
    shown = run([sys.executable, "-m", "modelfleet.signer.cli", "--help"])
    assert shown.returncode == 0
    assert "modelfleet-signer serve --socket" in shown.stdout


def test_a_running_signer_follows_newer_roots_and_keeps_them(signer: RunningSigner, now: datetime) -> None:
    """Two rotations behind its back: the next request brings both roots; a restart with the first one forgets nothing."""
    first = signer.fleet.root_json.read_bytes()
    for roles in (("root", "targets"), ("root",)):
        paths = locate(signer.fleet.data_dir, TENANT)
        wanted = rotation(paths, paths.repository().policy_chain(), Rotation(roles=roles), now)
        publish(paths, sign_here(paths, wanted)[0], now)
    chain = signer.fleet.repository().policy_chain()
    assert len(chain.roots) == 3
    with pytest.raises(SignatureError):
        signer.release(chain=replace(chain, roots=()))
    with pytest.raises(ReplayError, match="version 2 next, got 3"):
        signer.release(chain=replace(chain, roots=chain.roots[2:]))
    assert signer.release(chain=chain).bins
    assert (signer.fleet.signer_state / "root.json").read_bytes() == chain.roots[-1]
    assert signer.stop() == 0
    signer.fleet.root_json.write_bytes(first)
    signer.start()
    assert signer.release(manifest(version="1.1.0", counter=2), chain=replace(chain, roots=())).bins


def test_a_signer_does_not_start_between_two_roots_of_one_version(fleet: CeremonyResult, tmp_path: Path) -> None:
    other = create_repository(tmp_path / "other", TENANT, bits=1, approvers=["eve"], now=datetime.now(UTC))
    (fleet.signer_state / "root.json").write_bytes(other.root_json.read_bytes())
    idle = RunningSigner(fleet, tmp_path / "signer.sock")
    done = run(idle.command())
    assert (done.returncode, "find out which is right" in done.stderr) == (3, True)


def test_targets_are_removed_from_a_signer_that_is_stopped(signer: RunningSigner) -> None:
    signer.release()
    remove = [sys.executable, "-m", "modelfleet.signer.cli", "remove", manifest().path]
    remove += ["--state", str(signer.fleet.signer_state), "--json"]
    assert run(remove).returncode == 1  # it runs
    signer.stop()
    assert run(remove).returncode == 0
    assert run(remove).returncode == 1  # no bin names it any more
    signer.start()
    assert signer.client.status()["targets"] == 0
    (data,) = signer.client.resign(datetime.now(UTC)).values()
    assert list(parse_metadata(data, Targets).signatures) == [signer.client.status()["keyid"]]
