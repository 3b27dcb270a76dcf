"""A mirror without any key: endless, slow, bent and wrong bytes, over real HTTP to the agent's own downloads."""

import gzip
import shutil
import time
import tracemalloc
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from modelfleet.agent_client.errors import BytesRefusedError, TransferError
from modelfleet.agent_client.http_client import Deadlines
from modelfleet.signer.desired import Release
from modelfleet.signer.errors import (
    DigestError,
    UntrustedError,
)
from tests.attacks.forge import Forger
from tests.attacks.machine import Machine
from tests.unit.agent_client.fleet import TENANT, Fleet, send


@pytest.fixture
def release(fleet: Fleet) -> Release:
    """A release that is signed, served and approved."""
    return fleet.release("1.0.0")


# Endless data


class Endless:
    """Answers the requests whose path ends so with data that never ends; counts what was taken."""

    def __init__(self, tail: str) -> None:
        self.tail, self.sent = tail, 0

    def __call__(self, request: BaseHTTPRequestHandler) -> bool:
        if not request.path.endswith(self.tail):
            return False
        request.close_connection = True
        try:
            request.send_response(200)
            request.end_headers()
            for _ in range(4096):
                self.sent += 65536  # before: the device may hang up within the first piece
                request.wfile.write(b" " * 65536)
        except OSError:
            pass  # the device has hung up
        return True


MOST_BYTES = 24 * 1024 * 1024
"""The largest cap, and what the kernel's buffers hold on top; 256 MiB were on offer."""


@pytest.mark.parametrize("file", ["2.root.json", "timestamp.json", "2.snapshot.json", "2.targets.json"])
def test_endless_metadata(file: str, machine: Machine, fleet: Fleet, forger: Forger) -> None:
    machine.trust.refresh()
    forger.renew("targets")
    fleet.server.fault = endless = Endless(file)
    with pytest.raises((UntrustedError, TransferError)):
        machine.trust.refresh(seconds=20)
    assert 0 < endless.sent < MOST_BYTES
    fleet.server.fault = lambda _: False
    machine.trust.refresh()


def test_endless_target(machine: Machine, fleet: Fleet, release: Release) -> None:
    machine.trust.refresh()
    fleet.server.fault = endless = Endless("manifest.json")
    with pytest.raises(TransferError, match="at most"):
        machine.trust.manifest(release.path)
    assert 0 < endless.sent < MOST_BYTES
    fleet.server.fault = lambda _: False
    assert len(machine.trust.manifest(release.path)[0]) == release.length


def test_endless_blob(machine: Machine, fleet: Fleet, release: Release) -> None:
    fleet.server.fault = endless = Endless(release.approvals[0])
    with pytest.raises(TransferError, match="at most"):
        machine.trust.blob(release.approvals[0])
    assert 0 < endless.sent < MOST_BYTES
    fleet.server.fault = lambda _: False
    assert machine.trust.blob(release.approvals[0]) == fleet.server.blobs[release.approvals[0]]


def test_endless_model_file(machine: Machine, fleet: Fleet, release: Release, tmp_path: Path) -> None:
    manifest = machine.verify(release)
    entry = manifest.file("model.onnx")
    fleet.server.fault = endless = Endless(entry.sha256)
    with pytest.raises(BytesRefusedError, match="got more"):
        machine.fetch(manifest, tmp_path / "slot")
    assert 0 < endless.sent < MOST_BYTES
    assert (tmp_path / "slot" / "model.onnx.part").stat().st_size <= entry.length
    fleet.server.fault = lambda _: False
    machine.fetch(manifest, tmp_path / "slot")
    assert (tmp_path / "slot" / "model.onnx").stat().st_size == entry.length


def test_endless_data_packed_small(machine: Machine, fleet: Fleet) -> None:
    """Ten kilobytes of gzip that unpack to ten megabytes: no more is ever unpacked than was asked for."""
    machine.trust.refresh()
    bomb = gzip.compress(b" " * 10 * 1024 * 1024)

    def packed(request: BaseHTTPRequestHandler) -> bool:
        if not request.path.endswith("timestamp.json"):
            return False
        request.send_response(200)
        request.send_header("Content-Encoding", "gzip")
        request.send_header("Content-Length", str(len(bomb)))
        request.end_headers()
        request.wfile.write(bomb)
        return True

    fleet.server.fault = packed
    tracemalloc.start()
    try:
        with pytest.raises(DigestError, match="unpacked"):
            machine.trust.refresh()
        assert tracemalloc.get_traced_memory()[1] < 2 * 1024 * 1024
    finally:
        tracemalloc.stop()
    fleet.server.fault = lambda _: False
    machine.trust.refresh()


# Malicious mirror


@pytest.mark.parametrize("tail", ["timestamp.json", "snapshot.json", "targets.json", "policy.json", "manifest.json"])
def test_malicious_mirror_that_flips_one_bit(tail: str, machine: Machine, fleet: Fleet, release: Release) -> None:
    """Wherever it bends a file, nothing is installed; once it is honest again, the device goes on."""
    shares = [number / 9 for number in range(1, 9)]
    flipped = 0

    def mirror(share: float) -> Callable[[BaseHTTPRequestHandler], bool]:
        def fault(request: BaseHTTPRequestHandler) -> bool:
            nonlocal flipped
            if not request.path.endswith(tail):
                return False
            data = bytearray(served(fleet, request.path))
            data[int(len(data) * share)] ^= 1
            flipped += 1
            send(request, bytes(data))
            return True

        return fault

    for share in shares:
        fleet.server.fault = mirror(share)
        shutil.rmtree(machine.root / "trust")
        machine.restart()
        with pytest.raises(UntrustedError):
            machine.trust.refresh()
            machine.trust.manifest(release.path)
    assert flipped >= len(shares)
    fleet.server.fault = lambda _: False
    assert machine.verify(release).version == "1.0.0"


def served(fleet: Fleet, path: str) -> bytes:
    """What an honest server answers."""
    kind, _, name = path.partition(f"/tuf/{TENANT}/")[2].partition("/")
    return ({"metadata": fleet.keys.metadata_dir, "targets": fleet.keys.targets_dir}[kind] / name).read_bytes()


def test_malicious_mirror_that_redirects_without_end(machine: Machine, fleet: Fleet, release: Release) -> None:
    assert machine.verify(release).version == "1.0.0"

    asked = 0

    def redirect(request: BaseHTTPRequestHandler) -> bool:
        nonlocal asked
        asked += 1
        request.send_response(302 if asked < 50 else 404)
        request.send_header("Location", request.path)
        request.send_header("Content-Length", "0")
        request.end_headers()
        return True

    fleet.server.fault = redirect
    with pytest.raises(TransferError, match="redirects"):
        machine.trust.refresh(seconds=20)


# Slow retrieval


def one_byte_a_second(tail: str) -> Callable[[BaseHTTPRequestHandler], bool]:
    def fault(request: BaseHTTPRequestHandler) -> bool:
        if not request.path.endswith(tail):
            return False
        request.close_connection = True
        request.send_response(200)
        request.send_header("Content-Length", "100")
        request.end_headers()
        try:
            for _ in range(5):
                request.wfile.write(b"{")
                time.sleep(1)
        except OSError:
            pass  # the device has hung up
        return True

    return fault


def within(seconds: float, act: Callable[[], object]) -> None:
    """The act ends as a failed transfer, no later than its deadline and a little."""
    started = time.monotonic()
    with pytest.raises(TransferError):
        act()
    assert time.monotonic() - started < seconds + 2.0


def test_slow_retrieval_of_metadata(machine: Machine, fleet: Fleet) -> None:
    machine.trust.refresh()
    fleet.server.fault = one_byte_a_second("timestamp.json")
    within(1.3, lambda: machine.trust.refresh(seconds=1.3))
    fleet.server.fault = lambda _: False
    machine.trust.refresh()


def test_slow_retrieval_of_a_target(machine: Machine, fleet: Fleet, release: Release) -> None:
    machine.trust.refresh()
    machine.http.deadlines = Deadlines(stall_seconds=4.0, total_seconds=1.3)
    fleet.server.fault = one_byte_a_second("manifest.json")
    within(1.3, lambda: machine.trust.manifest(release.path))
    fleet.server.fault = lambda _: False
    assert machine.verify(release).version == "1.0.0"


def test_slow_retrieval_of_a_model_file(machine: Machine, fleet: Fleet, release: Release, tmp_path: Path) -> None:
    manifest = machine.verify(release)
    machine.http.deadlines = Deadlines(stall_seconds=4.0, total_seconds=1.3, bytes_per_second=1e9)
    fleet.server.fault = one_byte_a_second(manifest.file("model.onnx").sha256)
    within(1.3, lambda: machine.fetch(manifest, tmp_path / "slot"))
    fleet.server.fault = lambda _: False
    shutil.rmtree(tmp_path / "slot")
    machine.fetch(manifest, tmp_path / "slot")


# Wrong target's bytes


def test_wrong_targets_bytes_for_a_manifest(machine: Machine, fleet: Fleet, release: Release) -> None:
    """Another signed manifest of this tenant in its place."""
    other = fleet.release("1.1.0", seed=2)
    assert machine.verify(release).version == "1.0.0"
    theirs = next(fleet.keys.targets_dir.rglob(f"{other.sha256}.*")).read_bytes()
    next(fleet.keys.targets_dir.rglob(f"{release.sha256}.*")).write_bytes(theirs)
    with pytest.raises(DigestError):
        machine.trust.manifest(release.path)


def test_wrong_targets_bytes_for_an_approval(machine: Machine, fleet: Fleet, release: Release) -> None:
    other = fleet.release("1.1.0", seed=2)
    assert machine.verify(release).version == "1.0.0"
    fleet.server.blobs[release.approvals[0]] = fleet.server.blobs[other.approvals[0]]
    with pytest.raises(DigestError):
        machine.trust.blob(release.approvals[0])


def test_wrong_targets_bytes_for_a_model_file(machine: Machine, fleet: Fleet, release: Release, tmp_path: Path) -> None:
    """The model of another signed version, of the very same length."""
    other = machine.verify(fleet.release("1.1.0", seed=2))
    manifest = machine.verify(release)
    machine.fetch(manifest, tmp_path / "honest")
    fleet.server.blobs[manifest.file("model.onnx").sha256] = fleet.server.blobs[other.file("model.onnx").sha256]
    with pytest.raises(BytesRefusedError, match="expected sha256"):
        machine.fetch(manifest, tmp_path / "slot")
    assert not (tmp_path / "slot" / "model.onnx").exists()
