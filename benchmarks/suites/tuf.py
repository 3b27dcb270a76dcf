"""`make bench SUITE=tuf`: a tenant of 1024 hash bins and 100,000 targets, published to and followed, beside plain python-tuf.

Publishing is what happens when a variant was built: the signer process checks and signs, the repository checks and serves
bin, snapshot and timestamp, every file fsynced. Its peer is the least that python-tuf can do for the same result: load, sign
and write the three files, without a check and without fsync. Following is a device's `Trust`, and `tuf.ngclient.Updater`,
against the registry's own routes under uvicorn. Bytes are counted by a relay, below HTTP; CPU is of the client's process alone.
"""

import contextlib
import hashlib
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from tuf.ngclient import Updater, Urllib3Fetcher

from modelfleet.agent_client.floors import FloorStore
from modelfleet.agent_client.http_client import HttpClient
from modelfleet.agent_client.storage import Disk
from modelfleet.agent_client.trust import Trust
from modelfleet.benchmarks.suites._report import Target, bar, console, percentile, seconds_of, show, verdict
from modelfleet.benchmarks.suites._wire import Counted, relay
from modelfleet.signer.ceremony import CeremonyResult, create_repository
from modelfleet.signer.client import SignerClient
from modelfleet.signer.keys import load_signer
from modelfleet.signer.manifest import Manifest, ManifestFile, ManifestLimits, Tensor, Tolerance, encode_manifest
from modelfleet.signer.metadata import (
    Metadata,
    MetaFile,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
    parse_metadata,
    sign_metadata,
)
from modelfleet.signer.names import manifest_path, sha256_of
from modelfleet.signer.sign import sign_gate, sign_source
from modelfleet.signer.state import StateRecord
from modelfleet.signer.statements import POLICY_PATH, GatePredicate, GateStatement, GateSubject, Source
from modelfleet.signer.trust import bin_of

TENANT, PROFILE, BITS = "bench", "linux-cpu-float", 10
MODELS, VERSIONS, PROFILES = 100, 100, 10
PUBLISHED = 30
SYNCS = 20
STOP_SECONDS = 10.0

TARGET_PUBLISH_MS = 50.0
TARGET_FIRST_BYTES = 100_000.0
TARGET_FIRST_CPU_MS = 50.0
TARGET_UNCHANGED_BYTES = 1_000.0


@dataclass(frozen=True, kw_only=True)
class Sync:
    """What one kind of sync cost a client: bytes of requests and answers of one, CPU seconds of each."""

    sent: int
    received: int
    cpu: list[float]


def main() -> int:
    """Fill a tenant, publish to it and follow it, and return the exit status."""
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as name:
        folder, now = Path(name), datetime.now(UTC)
        fleet = create_repository(folder / "data", TENANT, bits=BITS, approvers=["anna"], now=now)
        seconds = seconds_of(lambda: fill(fleet, now))
        console.print(
            f"{2**BITS} bins with {MODELS * VERSIONS * PROFILES:,} targets signed and published: {seconds:.1f} s"
        )
        shutil.copytree(fleet.data_dir, folder / "plain")
        ours, peer, path = publish(fleet, folder / "plain")
        with serve(fleet) as port:
            rows = follow(fleet, port, path, folder)
    return report(ours, peer, rows)


def fill(fleet: CeremonyResult, now: datetime) -> None:
    """Sign every bin with its share of the targets, and publish all of them."""
    repository, releases = fleet.repository(), load_signer(fleet.releases_key)
    top = parse_metadata(repository.policy_chain().targets, Targets).signed
    bins: dict[str, dict[str, TargetFile]] = {}
    for model, version, profile in itertools.product(range(MODELS), range(VERSIONS), range(PROFILES)):
        path = manifest_path(f"vision/model-{model}", f"1.{version}.0", f"profile-{profile}")
        digest = hashlib.sha256(path.encode()).hexdigest()
        bins.setdefault(bin_of(top, path), {})[path] = TargetFile(1500 + version, {"sha256": digest}, path)
    signed: dict[str, bytes] = {}
    for role, targets in bins.items():
        expires = (now + timedelta(days=90)).replace(microsecond=0)
        signed[role] = sign_metadata(Metadata(Targets(version=2, expires=expires, targets=targets)), [releases])
        (fleet.signer_state / f"{role}.json").write_bytes(signed[role])
    counters = {
        f"vision/model-{model}": {f"1.{version}.0": version + 1 for version in range(VERSIONS)}
        for model in range(MODELS)
    }
    (fleet.signer_state / "counters.json").write_bytes(msgspec.json.encode(StateRecord(counters=counters)))
    repository.publish(signed, {}, now)


def publish(fleet: CeremonyResult, plain: Path) -> tuple[list[float], list[float], str]:
    """Return the seconds that each publication took, ours and the peer's in turn, and the last path published."""
    ours: list[float] = []
    theirs: list[float] = []
    repository = fleet.repository()
    with signer(fleet) as client:
        for number in range(-1, PUBLISHED):
            manifest = described(number + 1)
            data = encode_manifest(manifest)
            source, gate = statements(fleet, manifest)
            started = time.perf_counter()
            signed = client.release(
                manifest=data,
                source_envelope=source,
                gate_envelopes=[gate],
                policy_chain=repository.policy_chain(),
            )
            repository.publish(signed.bins, {manifest.path: data}, datetime.now(UTC))
            middle = time.perf_counter()
            publish_plainly(plain, fleet, manifest.path, data)
            ended = time.perf_counter()
            os.sync()  # what the peer left to the kernel must not wait for our next fsync
            if number >= 0:
                ours.append(middle - started)
                theirs.append(ended - middle)
    return ours, theirs, described(PUBLISHED).path


@contextlib.contextmanager
def signer(fleet: CeremonyResult) -> Generator[SignerClient]:
    """Run the signer as the service does, in a process of its own, and end it by its process id."""
    with tempfile.TemporaryDirectory(prefix="mf-") as folder:  # a socket's path holds 107 bytes at most
        socket = Path(folder) / "signer.sock"
        command = [sys.executable, "-m", "modelfleet.signer.cli", "serve", "--socket", str(socket), "--tenant", TENANT]
        command += ["--state", str(fleet.signer_state), "--key", fleet.releases_key, "--root", str(fleet.root_json)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdout.readline()  # it listens
            yield SignerClient(socket)
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)
            process.stdin.close()
            process.stdout.close()


def described(number: int) -> Manifest:
    """Return a manifest like those of a vision model."""
    return Manifest(
        tenant=TENANT,
        model="vision/new",
        version=f"1.{number}.0",
        channel="stable",
        profile=PROFILE,
        runtime="onnxruntime",
        precision="float32",
        counter=number + 1,
        source_sha256="1" * 64,
        files=(
            ManifestFile(name="model.onnx", sha256=sha256_of(b"model.onnx"), length=12_000_000, role="model"),
            ManifestFile(name="golden.npz", sha256=sha256_of(b"golden.npz"), length=400_000, role="golden"),
        ),
        entry="model.onnx",
        golden="golden.npz",
        inputs=(Tensor(name="image", dtype="float32", shape=(None, 3, 224, 224)),),
        outputs=(Tensor(name="scores", dtype="float32", shape=(None, 1000)),),
        limits=ManifestLimits(latency_ms=100.0, memory_bytes=10**8, accuracy=0.85),
        tolerance=Tolerance(rtol=1e-3, atol=1e-4),
        parameters={"threshold": "0.5"},
    )


def statements(fleet: CeremonyResult, manifest: Manifest) -> tuple[bytes, bytes]:
    """Return what the publisher and a converter worker say about the variant, signed."""
    source = Source(
        tenant=TENANT,
        model=manifest.model,
        version=manifest.version,
        channel=manifest.channel,
        source_sha256=manifest.source_sha256,
        source_length=12_000_000,
        card_sha256="2" * 64,
        golden_sha256="3" * 64,
        issued=datetime.now(UTC),
    )
    predicate = GatePredicate(
        tenant=TENANT,
        model=manifest.model,
        version=manifest.version,
        profile=manifest.profile,
        precision=manifest.precision,
        source_sha256=manifest.source_sha256,
        golden_sha256="3" * 64,
        passed=True,
        results={"accuracy": 0.97},
    )
    subjects = tuple(GateSubject(name=file.name, digest={"sha256": file.sha256}) for file in manifest.files)
    gate = GateStatement(subject=subjects, predicate=predicate)
    return sign_source(source, load_signer(fleet.publisher_key)), sign_gate(gate, load_signer(fleet.gate_key))


def publish_plainly(data: Path, fleet: CeremonyResult, path: str, content: bytes) -> None:
    """Do it with python-tuf alone: three files loaded, changed, signed and written."""
    metadata = data / "trust" / TENANT / "metadata"
    timestamp = Metadata[Timestamp].from_file(str(metadata / "timestamp.json"))
    snapshot_path = metadata / f"{timestamp.signed.snapshot_meta.version}.snapshot.json"
    snapshot = Metadata[Snapshot].from_file(str(snapshot_path))
    top = Metadata[Targets].from_file(str(metadata / f"{snapshot.signed.meta['targets.json'].version}.targets.json"))
    role = bin_of(top.signed, path)
    found = Metadata[Targets].from_file(str(metadata / f"{snapshot.signed.meta[f'{role}.json'].version}.{role}.json"))
    found.signed.targets[path] = TargetFile.from_data(path, content, ["sha256"])
    for signed, name, key in (
        (found, role, fleet.releases_key),
        (snapshot, "snapshot", fleet.snapshot_key),
        (timestamp, "timestamp", fleet.timestamp_key),
    ):
        signed.signed.version += 1
        signed.sign(load_signer(key))
        version = signed.signed.version
        signed.to_file(str(metadata / (f"{version}.{name}.json" if name != "timestamp" else "timestamp.json")))
        if name == role:
            snapshot.signed.meta[f"{role}.json"] = MetaFile(version)
        elif name == "snapshot":
            timestamp.signed.snapshot_meta = MetaFile(version)


@contextlib.contextmanager
def serve(fleet: CeremonyResult) -> Generator[int]:
    """Serve the tenant's files from a process of its own, and yield its port."""
    # as a module: beside this file `tuf` would be this file
    command = [sys.executable, "-m", "modelfleet.benchmarks.suites._tuf_app", str(fleet.metadata_dir.parent), TENANT]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)
        process.stdout.close()


def follow(fleet: CeremonyResult, port: int, path: str, folder: Path) -> dict[str, Sync]:
    """Return what a first sync and an unchanged one cost, ours and the peer's."""
    root = fleet.root_json.read_bytes()
    firsts: dict[str, Callable[[str, Path], object]] = {
        "first, agent": lambda url, cache: first_by_agent(url, cache, root, path),
        "first, tuf.ngclient": lambda url, cache: first_by_updater(url, cache, root, path),
    }
    found = {name: measure(port, sync, folder / name, fresh=True) for name, sync in firsts.items()}
    again: dict[str, Callable[[str, Path], object]] = {
        "unchanged, agent": lambda url, cache: trust(url, cache, root).refresh(),
        "unchanged, tuf.ngclient": lambda url, cache: updater(url, cache, root).refresh(),
    }
    for name, sync in again.items():
        cache = folder / name
        firsts[name.replace("unchanged", "first")](f"http://127.0.0.1:{port}", cache)
        found[name] = measure(port, sync, cache, fresh=False)
    return found


def measure(port: int, sync: Callable[[str, Path], object], folder: Path, *, fresh: bool) -> Sync:
    """Count the bytes of one sync through the relay, then take the CPU time of many without it."""
    with relay(port) as (through, counted):
        sync(f"http://127.0.0.1:{through}", folder / "counted" if fresh else folder)
        sent, received = settled(counted)
    cpu: list[float] = []
    for number in range(SYNCS):
        started = time.process_time()
        sync(f"http://127.0.0.1:{port}", folder / str(number) if fresh else folder)
        cpu.append(time.process_time() - started)
    return Sync(sent=sent, received=received, cpu=cpu)


def settled(counted: Counted) -> tuple[int, int]:
    """Return the counts once nothing has been added for a while."""
    before = (-1, -1)
    while before != (counted.sent, counted.received):
        before = (counted.sent, counted.received)
        time.sleep(0.1)
    return before


def trust(url: str, folder: Path, root: bytes) -> Trust:
    """Return the trust of a device whose folder is `folder`, as its agent makes it."""
    disk = Disk()
    disk.make_folder(folder)
    floors = FloorStore(folder / "floors.json", disk)
    client = HttpClient()
    return Trust(folder, bootstrap=root, tenant=TENANT, server=url, client=client, floors=floors, disk=disk)


def first_by_agent(url: str, folder: Path, root: bytes, path: str) -> None:
    fetched = HttpClient().get(f"{url}/tuf/{TENANT}/metadata/1.root.json", max_bytes=2**20).body
    assert fetched == root
    device = trust(url, folder, root)
    device.refresh()
    device.manifest(path)


def updater(url: str, folder: Path, root: bytes) -> Updater:
    folder.mkdir(parents=True, exist_ok=True)
    base = f"{url}/tuf/{TENANT}"
    return Updater(str(folder), f"{base}/metadata", str(folder), f"{base}/targets", bootstrap=root)


def first_by_updater(url: str, folder: Path, root: bytes, path: str) -> None:
    client = updater(url, folder, root)
    assert Urllib3Fetcher().download_bytes(f"{url}/tuf/{TENANT}/metadata/1.root.json", 2**20) == root
    client.refresh()
    for name in (POLICY_PATH, path):
        target = client.get_targetinfo(name)
        assert target is not None
        client.download_target(target)


def report(ours: list[float], peer: list[float], rows: dict[str, Sync]) -> int:
    """Show all figures, and judge ours."""
    longest = max(percentile(seconds, 0.95) for seconds in (ours, peer))
    show(
        f"publish one target, {PUBLISHED} times each in turn",
        ("how", "p50 ms", "p95 ms", ""),
        [
            ("signer process + repository", *_ms(ours), bar(percentile(ours, 0.95), longest)),
            ("python-tuf, no checks, no fsync", *_ms(peer), bar(percentile(peer, 0.95), longest)),
        ],
    )
    most = max(row.received for row in rows.values())
    show(
        f"sync, CPU over {SYNCS} each; first: root, timestamp, snapshot, targets, policy, one bin, one manifest",
        ("sync", "answers, bytes", "requests, bytes", "CPU p50 ms", "CPU p95 ms", ""),
        [
            (name, f"{row.received:,}", f"{row.sent:,}", *_ms(row.cpu), bar(row.received, most))
            for name, row in rows.items()
        ],
    )
    first, unchanged = rows["first, agent"], rows["unchanged, agent"]
    return verdict(
        "tuf",
        [
            Target(what="publish, p50", got=statistics.median(ours) * 1000, limit=TARGET_PUBLISH_MS, unit="ms"),
            Target(
                what="first sync, requests and answers",
                got=first.sent + first.received,
                limit=TARGET_FIRST_BYTES,
                unit="bytes",
            ),
            Target(
                what="first sync, CPU p50",
                got=statistics.median(first.cpu) * 1000,
                limit=TARGET_FIRST_CPU_MS,
                unit="ms",
            ),
            Target(
                what="unchanged sync, answers with headers",
                got=unchanged.received,
                limit=TARGET_UNCHANGED_BYTES,
                unit="bytes",
            ),
        ],
    )


def _ms(seconds: list[float]) -> list[str]:
    return [f"{percentile(seconds, share) * 1000:.1f}" for share in (0.5, 0.95)]


if __name__ == "__main__":
    sys.exit(main())
