"""`make bench SUITE=api`: how long reads of the API take from four clients at once, beside a bare FastAPI app.

The server is `modelfleet init` and `modelfleet serve` in a temporary folder, all defaults embedded (SQLite, amqtt, folder store),
with 200 devices enrolled over HTTP, three versions published and built, and a drafted rollout of each. Both servers answer the
same clients, in turn, in rounds.
"""

import contextlib
import http.client
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from examples.demo.server import Server
from modelfleet.agent_client.version import agent_version
from modelfleet.benchmarks.suites import _bare_app
from modelfleet.benchmarks.suites._report import Target, bar, console, percentile, seconds_of, show, verdict
from modelfleet.hardware_profiles.detect import detect
from modelfleet.registry.client import ApiClient

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits"
VERSIONS = ("1.0.0", "1.1.0", "1.2.0")
TENANT, PROFILE = "bench", "linux-cpu-float"
USERS = {"root": "admin", "ci": "publisher", "alice": "releaser"}
DEVICES = 200
CLIENTS = 4
ROUNDS, REQUESTS = 5, 12  # per client and round
BUILD_SECONDS = 60.0
STOP_SECONDS = 10.0

TARGET_P95_MS = 100.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """One GET, and the status that it must be answered with."""

    name: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    status: int = 200


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What came of one kind of request beside the bare app: seconds of every answer, and the body's length in bytes."""

    name: str
    length: int
    ours: list[float]
    peer: list[float]


def main() -> int:
    """Start both servers, measure, end both, and return the exit status."""
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as folder, bare_app() as peer:
        server = Server(Path(folder) / "fleet", tenant=TENANT, users=USERS, approvers=["bob"])
        try:
            server.start()
            timed = [measure(request, peer) for request in fill(server)]
        finally:
            server.stop()
    return report(timed)


@contextlib.contextmanager
def bare_app() -> Generator[Request]:
    """Run the bare app in a process of its own, and end it by its process id."""
    process = subprocess.Popen([sys.executable, str(_bare_app.__file__)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        yield Request(name="bare FastAPI", url=f"http://127.0.0.1:{port}/")
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)
        process.stdout.close()


def fill(server: Server) -> list[Request]:
    """Give the fleet devices, versions and rollouts; return the requests to measure."""
    admin = ApiClient(server.url, server.tokens["root"])
    for number in range(len(VERSIONS)):
        admin.post("/v1/groups", {"name": f"group-{number}"})
    console.print(f"enrolling {DEVICES} devices: {seconds_of(lambda: enrol(server.url, admin)):.1f} s")
    console.print(
        f"publishing and building {len(VERSIONS)} versions: {seconds_of(lambda: publish(server, admin)):.1f} s"
    )
    alice = ApiClient(server.url, server.tokens["alice"])
    for number, version in enumerate(VERSIONS):
        asked = {"model": "digits", "version": version, "slot": "classifier", "groups": [f"group-{number}"]}
        alice.post("/v1/rollouts", asked)
    blob = admin.get("/v1/versions")["versions"][0]["source_sha256"]
    bearer = {"Authorization": f"Bearer {server.tokens['root']}"}
    return [
        Request(name="GET /v1/versions", url=f"{server.url}/v1/versions", headers=bearer),
        Request(name="GET /v1/devices", url=f"{server.url}/v1/devices", headers=bearer),
        Request(name="GET /v1/rollouts", url=f"{server.url}/v1/rollouts", headers=bearer),
        Request(
            name="GET /v1/blobs, 16 KiB by Range",
            url=f"{server.url}/v1/blobs/{blob}",
            headers=bearer | {"Range": "bytes=0-16383"},
            status=206,
        ),
        Request(name="GET TUF timestamp", url=f"{server.url}/tuf/{TENANT}/metadata/timestamp.json"),
    ]


def enrol(url: str, admin: ApiClient) -> None:
    """Enrol the devices, each with a key of its own, as `modelfleet-agent enroll` asks for it."""
    tokens = [
        admin.post("/v1/claim-tokens", {"group": f"group-{number}", "uses": DEVICES, "hours": 1})["token"]
        for number in range(len(VERSIONS))
    ]
    facts = msgspec.to_builtins(detect())
    client = ApiClient(url)

    def one(number: int) -> None:
        asked = {"csr": signing_request(), "profile": PROFILE, "facts": facts, "agent": agent_version()}
        client.post("/v1/enroll", asked | {"token": tokens[number % len(tokens)]})

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(one, range(DEVICES)))


def signing_request() -> str:
    """Return a PKCS#10 request of a new P-256 key, in PEM."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "modelfleet device")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    return builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def publish(server: Server, admin: ApiClient) -> None:
    """Publish the versions and wait until every one of them is built."""
    key = f"file:{(server.data / 'people' / 'publisher.pem').absolute()}"
    for version in VERSIONS:
        server.run(
            *("publish", "--model", str(DIGITS / f"digits-{version}.onnx")),
            *("--card", str(DIGITS / f"card-{version}.toml"), "--golden", str(DIGITS / "golden.npz"), "--key", key),
            user="ci",
        )
    until = time.monotonic() + BUILD_SECONDS
    while {row["state"] for row in admin.get("/v1/versions")["versions"]} != {"READY"}:
        if time.monotonic() > until:
            raise TimeoutError(f"expected every version READY within {BUILD_SECONDS:g} s, they are not")
        time.sleep(0.2)


def measure(request: Request, peer: Request) -> Timed:
    """Ask both servers in turn, from all clients at once, after one round that is not counted."""
    ours: list[float] = []
    theirs: list[float] = []
    length = 0
    for number in range(-1, ROUNDS):
        sides = ((request, ours), (peer, theirs))
        for asked, kept in sides if number % 2 else reversed(sides):
            seconds, got = ask(asked)
            if number >= 0:
                kept.extend(seconds)
            length = got if asked is request else length
    return Timed(name=request.name, length=length, ours=ours, peer=theirs)


def ask(request: Request) -> tuple[list[float], int]:
    """Return the seconds of each answer to `CLIENTS` clients, and the length of an answer's body."""
    barrier = threading.Barrier(CLIENTS)
    with ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(ask_again_and_again, [request] * CLIENTS, [barrier] * CLIENTS))
    return [second for seconds, _ in found for second in seconds], found[0][1]


def ask_again_and_again(request: Request, barrier: threading.Barrier) -> tuple[list[float], int]:
    """Ask `REQUESTS` times over one connection, which is open before the clock runs."""
    address = urlsplit(request.url)
    connection = http.client.HTTPConnection(address.netloc, timeout=30)
    connection.connect()
    body = b""

    def once() -> None:
        nonlocal body
        connection.request("GET", address.path, headers=dict(request.headers))
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != request.status:
            raise AssertionError(f"{request.name}: expected {request.status}, got {answer.status}: {body[:200]!r}")

    barrier.wait()
    seconds = [seconds_of(once) for _ in range(REQUESTS)]
    connection.close()
    return seconds, len(body)


def report(timed: list[Timed]) -> int:
    """Show the percentiles of both sides, and judge ours."""
    longest = max(percentile(row.ours, 0.95) for row in timed)
    rows: list[tuple[object, ...]] = []
    for row in timed:
        ratio = percentile(row.ours, 0.5) / percentile(row.peer, 0.5)
        p95 = percentile(row.ours, 0.95)
        rows.append((row.name, f"{row.length:,}", *_ms(row.ours), f"{ratio:.1f}", bar(p95, longest)))
        rows.append(("  bare FastAPI, same rounds", "", *_ms(row.peer), "", bar(percentile(row.peer, 0.95), longest)))
    show(
        f"{CLIENTS} clients at once, {ROUNDS * REQUESTS * CLIENTS} answers each side, {DEVICES} devices enrolled",
        ("request", "bytes", "p50 ms", "p95 ms", "p99 ms", "× bare, p50", ""),
        rows,
    )
    return verdict(
        "api",
        [
            Target(what=f"p95 of {row.name}", got=percentile(row.ours, 0.95) * 1000, limit=TARGET_P95_MS, unit="ms")
            for row in timed
        ],
    )


def _ms(seconds: list[float]) -> list[str]:
    return [f"{percentile(seconds, share) * 1000:.1f}" for share in (0.5, 0.95, 0.99)]


if __name__ == "__main__":
    sys.exit(main())
