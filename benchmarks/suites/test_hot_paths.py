"""Functions that run often, each beside the least that its work needs: cases of pytest-benchmark.

`make bench SUITE=hot_paths` runs them and judges the medians; they lie outside `testpaths`, so `make test` does not. Cases of one
group do the same work, `bare` being the peer.
"""
# pytest-benchmark ships no types: its fixture is known here by the Protocol below.

import hashlib
import json
import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from modelfleet.agent_client.protocol import parse_report
from modelfleet.policies.plan import parse_plan
from modelfleet.rollout.decisions.decide import AccuracySample, Advance, DeviceTally, ProfileHealth, decide
from modelfleet.rollout.decisions.statistics import Counts, Interval, log_alarm
from modelfleet.signer.desired import (
    BUCKETS,
    Candidate,
    GroupDocument,
    Release,
    Slot,
    bucket_of,
    group_scope,
)
from modelfleet.signer.keys import generate_key, key_id, load_signer, public_key
from modelfleet.signer.manifest import (
    Manifest,
    ManifestFile,
    ManifestLimits,
    Tensor,
    Tolerance,
    encode_manifest,
)
from modelfleet.signer.names import sha256_of
from modelfleet.signer.sign import sign_approval, sign_group
from modelfleet.signer.statements import Approval, Approver, TrustPolicy
from modelfleet.signer.verify import Floors, accept_document, verify_release

REPORT = Path(__file__).resolve().parents[2] / "tests" / "contracts" / "protocol" / "report.json"
TENANT, GROUP, PROFILE = "acme", "lab", "linux-cpu-float"
START = datetime(2026, 1, 1, tzinfo=UTC)
FLEET = [str(uuid.UUID(int=number)) for number in range(100_000)]


class Benchmark(Protocol):
    """The fixture of pytest-benchmark: calls a function many times, keeps the durations, returns its last answer."""

    def __call__(self, function: Callable[..., object], /, *args: object, **kwargs: object) -> object:
        """Call `function` as often as the round needs."""
        ...


@dataclass(frozen=True, kw_only=True)
class Signed:
    """A release that a device believes, and the group document that names it, both signed."""

    policy: TrustPolicy
    release: Release
    manifest: bytes
    approval: bytes
    envelope: bytes

    def verify_release(self) -> Manifest:
        """Verify the release as `agent_client.install.verify` does, once everything is fetched."""
        return verify_release(
            self.release,
            self.manifest,
            [self.approval],
            tenant=TENANT,
            group=GROUP,
            profile=PROFILE,
            policy=self.policy,
            target=(self.release.sha256, self.release.length),
            now=START,
        )

    def accept_document(self) -> GroupDocument:
        """Believe the group document as `agent_client.documents` does."""
        scope = group_scope(GROUP, PROFILE)
        return accept_document(
            self.envelope, GroupDocument, tenant=TENANT, scope=scope, policy=self.policy, floors=Floors()
        ).document


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Signed:
    folder = tmp_path_factory.mktemp("keys")
    director, approver = generate_key(folder / "director.pem"), generate_key(folder / "approver.pem")
    manifest = encode_manifest(_manifest())
    releases = {PROFILE: sha256_of(manifest)}
    approval = sign_approval(_approval(releases), load_signer(approver))
    release = Release(
        model="digits",
        version="1.0.0",
        counter=1,
        path=_manifest().path,
        sha256=sha256_of(manifest),
        length=len(manifest),
        approvals=(sha256_of(approval),),
    )
    policy = TrustPolicy(
        tenant=TENANT,
        epoch=1,
        directors={key_id(public_key(director)): public_key(director)},
        approvers={key_id(public_key(approver)): Approver(person="bob", key=public_key(approver))},
        publishers={},
        gates={},
    )
    envelope = sign_group(_group_document(release), load_signer(director))
    return Signed(policy=policy, release=release, manifest=manifest, approval=approval, envelope=envelope)


@pytest.fixture(scope="module")
def bare_signature_check(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], None]:
    """One ECDSA P-256 signature over as many bytes as a document has, checked with a key that is loaded already."""
    path = tmp_path_factory.mktemp("keys") / "bare.pem"
    generate_key(path)
    private = load_pem_private_key(path.read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    data, algorithm = b"x" * 1500, ec.ECDSA(hashes.SHA256())
    signature, public = private.sign(data, algorithm), private.public_key()
    return lambda: public.verify(signature, data, algorithm)


@pytest.mark.benchmark(group="verify_release")
def test_verify_release(benchmark: Benchmark, signed: Signed) -> None:
    benchmark(signed.verify_release)


@pytest.mark.benchmark(group="verify_release")
def test_verify_release_bare(benchmark: Benchmark, bare_signature_check: Callable[[], None]) -> None:
    benchmark(bare_signature_check)


@pytest.mark.benchmark(group="accept_document")
def test_accept_document(benchmark: Benchmark, signed: Signed) -> None:
    benchmark(signed.accept_document)


@pytest.mark.benchmark(group="accept_document")
def test_accept_document_bare(benchmark: Benchmark, bare_signature_check: Callable[[], None]) -> None:
    benchmark(bare_signature_check)


@pytest.mark.benchmark(group="decide")
def test_decide(benchmark: Benchmark) -> None:
    """Four stages and sixty stretches of counts: as much as a rollout can have gathered."""
    plan, health = parse_plan(), _health()
    assert isinstance(benchmark(decide, plan, 3, health, START + timedelta(days=1)), Advance)


@pytest.mark.benchmark(group="e-value at 1e6")
def test_e_value_at_a_million_inferences(benchmark: Benchmark) -> None:
    found = benchmark(log_alarm, Counts(n=1_000_000, errors=5_000), 0.01)
    assert isinstance(found, float) and math.isfinite(found)


@pytest.mark.benchmark(group="e-value at 1e6")
def test_e_value_at_a_thousand_inferences_bare(benchmark: Benchmark) -> None:
    """The peer: what it costs with few inferences, which must not differ."""
    benchmark(log_alarm, Counts(n=1_000, errors=5), 0.01)


@pytest.mark.benchmark(group="parse_report")
def test_parse_report(benchmark: Benchmark) -> None:
    benchmark(parse_report, REPORT.read_bytes())


@pytest.mark.benchmark(group="parse_report")
def test_parse_report_bare(benchmark: Benchmark) -> None:
    """The peer: the standard library's JSON, which checks nothing."""
    benchmark(json.loads, REPORT.read_bytes())


@pytest.mark.benchmark(group="bucket_of, 100k devices")
def test_bucket_of_100k_devices(benchmark: Benchmark) -> None:
    benchmark(lambda: [bucket_of("salt", device) for device in FLEET])


@pytest.mark.benchmark(group="bucket_of, 100k devices")
def test_bucket_of_100k_devices_bare(benchmark: Benchmark) -> None:
    """The peer: only the digests."""
    messages = [f"salt\0{device}".encode() for device in FLEET]
    benchmark(lambda: [hashlib.sha256(message).digest() for message in messages])


def _manifest() -> Manifest:
    names = ("model.onnx", "golden.npz")
    return Manifest(
        tenant=TENANT,
        model="digits",
        version="1.0.0",
        channel="stable",
        profile=PROFILE,
        runtime="onnxruntime",
        precision="float",
        counter=1,
        source_sha256=sha256_of(b"source"),
        files=tuple(
            ManifestFile(name=name, sha256=sha256_of(name.encode()), length=1, role=role)
            for name, role in zip(names, ("model", "golden"), strict=True)
        ),
        entry=names[0],
        golden=names[1],
        inputs=(Tensor(name="image", dtype="float32", shape=(None, 1, 8, 8)),),
        outputs=(Tensor(name="scores", dtype="float32", shape=(None, 10)),),
        limits=ManifestLimits(latency_ms=100.0, memory_bytes=2**29, accuracy=0.85),
        tolerance=Tolerance(rtol=1e-4, atol=1e-5),
    )


def _approval(releases: dict[str, str]) -> Approval:
    return Approval(
        tenant=TENANT,
        model="digits",
        version="1.0.0",
        releases=releases,
        groups=(GROUP,),
        plan_sha256=sha256_of(b"plan"),
        author="alice",
        issued=START,
        not_after=START + timedelta(days=180),
    )


def _group_document(release: Release) -> GroupDocument:
    candidate = Candidate(
        rollout="r-1",
        release=release,
        salt="salt",
        from_bucket=0,
        below=BUCKETS // 20,
        accept=True,
        not_before=START,
        deadline=START + timedelta(days=7),
    )
    return GroupDocument(
        tenant=TENANT,
        scope=group_scope(GROUP, PROFILE),
        epoch=1,
        seq=1,
        issued=START,
        expires=START + timedelta(days=7),
        slots={"classifier": Slot(stable=release, candidates=(candidate,))},
    )


def _health() -> ProfileHealth:
    stretch = Interval(candidate=Counts(n=2_000, errors=4), stable=Counts(n=20_000, errors=40))
    counts = Counts(n=120_000, errors=240)
    return ProfileHealth(
        trial_started_at=START,
        stage_started_at=START,
        hold_started_at=START,
        devices=DeviceTally(cohort=500, started=500, ended=500, committed=500, stable=500),
        errors_since=(counts,) * 4,
        slow_since=(counts,) * 4,
        intervals_since=((stretch,) * 60,) * 4,
        window=counts,
        accuracy=AccuracySample(accuracy=0.95, samples=500),
    )
