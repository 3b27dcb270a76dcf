"""Valid examples of everything that is signed; a test changes one thing and sees the refusal."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import msgspec

from modelfleet.signer.desired import Assignment, Candidate, GroupDocument, Release, Slot, device_scope, group_scope
from modelfleet.signer.keys import CryptoSigner, Signer, from_sslib
from modelfleet.signer.manifest import Manifest, ManifestFile, ManifestLimits, Tensor, Tolerance, encode_manifest
from modelfleet.signer.names import sha256_of
from modelfleet.signer.sign import sign_approval
from modelfleet.signer.statements import (
    Approval,
    Approver,
    GatePredicate,
    GateStatement,
    GateSubject,
    PublicKey,
    Source,
    TrustPolicy,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
DEVICE = "0b6e1a2c-93a5-4c59-9d0e-5a3f0a3c7b11"
TENANT, GROUP, PROFILE = "acme", "shops", "linux-cpu-float"
SOURCE_SHA256, GOLDEN_SHA256 = "1" * 64, "3" * 64
FILES = {"model.onnx": b"m" * 100, "golden.npz": b"g" * 50}


def new_key() -> Signer:
    return CryptoSigner.generate_ecdsa()


def public(signer: Signer) -> PublicKey:
    return from_sslib(signer.public_key)


def keyed(*signers: Signer) -> dict[str, PublicKey]:
    return {signer.public_key.keyid: public(signer) for signer in signers}


@dataclass(frozen=True, kw_only=True)
class Keys:
    """A key of each role, all in memory."""

    director: Signer
    publisher: Signer
    gate: Signer
    anna: Signer
    ben: Signer
    stranger: Signer

    def policy(self, **changes: object) -> TrustPolicy:
        people = {"anna": self.anna, "ben": self.ben}
        policy = TrustPolicy(
            tenant=TENANT,
            epoch=1,
            directors=keyed(self.director),
            approvers={
                key.public_key.keyid: Approver(person=person, key=public(key)) for person, key in people.items()
            },
            publishers=keyed(self.publisher),
            gates=keyed(self.gate),
        )
        return msgspec.structs.replace(policy, **changes)


def manifest(**changes: object) -> Manifest:
    valid = Manifest(
        tenant=TENANT,
        model="digits",
        version="1.0.0",
        channel="stable",
        profile=PROFILE,
        runtime="onnxruntime",
        precision="float32",
        counter=1,
        source_sha256=SOURCE_SHA256,
        files=tuple(
            ManifestFile(
                name=name,
                sha256=sha256_of(data),
                length=len(data),
                role="golden" if name.startswith("golden") else "model",
            )
            for name, data in FILES.items()
        ),
        entry="model.onnx",
        golden="golden.npz",
        inputs=(Tensor(name="image", dtype="float32", shape=(None, 1, 8, 8)),),
        outputs=(Tensor(name="scores", dtype="float32", shape=(None, 10)),),
        limits=ManifestLimits(latency_ms=100.0, memory_bytes=10**8, accuracy=0.85),
        tolerance=Tolerance(rtol=1e-3, atol=1e-4),
        parameters={"threshold": 3, "unit": "digit"},
    )
    return msgspec.structs.replace(valid, **changes)


def release(of: Manifest | None = None, **changes: object) -> Release:
    described = of or manifest()
    data = encode_manifest(described)
    valid = Release(
        model=described.model,
        version=described.version,
        counter=described.counter,
        path=described.path,
        sha256=sha256_of(data),
        length=len(data),
        approvals=(),
    )
    return msgspec.structs.replace(valid, **changes)


def source(**changes: object) -> Source:
    valid = Source(
        tenant=TENANT,
        model="digits",
        version="1.0.0",
        channel="stable",
        source_sha256=SOURCE_SHA256,
        source_length=1234,
        card_sha256="2" * 64,
        golden_sha256=GOLDEN_SHA256,
        issued=NOW,
    )
    return msgspec.structs.replace(valid, **changes)


def gate(of: Manifest | None = None, *, subject: tuple[GateSubject, ...] | None = None, **changes: object):
    described = of or manifest()
    predicate = GatePredicate(
        tenant=TENANT,
        model=described.model,
        version=described.version,
        profile=described.profile,
        precision=described.precision,
        source_sha256=SOURCE_SHA256,
        golden_sha256=GOLDEN_SHA256,
        passed=True,
        results={"accuracy": 0.97, "parity": {"max_abs": 1e-6}},
    )
    subjects = tuple(GateSubject(name=file.name, digest={"sha256": file.sha256}) for file in described.files)
    return GateStatement(
        subject=subjects if subject is None else subject, predicate=msgspec.structs.replace(predicate, **changes)
    )


def approval(of: Release | None = None, **changes: object) -> Approval:
    described = of or release()
    valid = Approval(
        tenant=TENANT,
        model=described.model,
        version=described.version,
        releases={PROFILE: described.sha256},
        groups=(GROUP,),
        plan_sha256="4" * 64,
        author="carol",
        issued=NOW,
        not_after=NOW + 180 * DAY,
    )
    return msgspec.structs.replace(valid, **changes)


def approved(of: Release, *envelopes: bytes) -> Release:
    """Return the release, naming these approvals by digest."""
    return msgspec.structs.replace(of, approvals=tuple(sha256_of(envelope) for envelope in envelopes))


def approved_by(signer: Signer, of: Release | None = None, **changes: object) -> bytes:
    return sign_approval(approval(of, **changes), signer)


def candidate(of: Release, **changes: object) -> Candidate:
    valid = Candidate(
        rollout="r1",
        release=of,
        salt="salt",
        from_bucket=0,
        below=2**32,
        accept=True,
        not_before=NOW - DAY,
        deadline=NOW + DAY,
    )
    return msgspec.structs.replace(valid, **changes)


def group(stable: Release | None = None, *candidates: Candidate, **changes: object) -> GroupDocument:
    valid = GroupDocument(
        tenant=TENANT,
        scope=group_scope(GROUP, PROFILE),
        epoch=1,
        seq=10,
        issued=NOW,
        expires=NOW + 7 * DAY,
        slots={"classifier": Slot(stable=stable, candidates=candidates)},
    )
    return msgspec.structs.replace(valid, **changes)


def assignment(**changes: object) -> Assignment:
    valid = Assignment(
        tenant=TENANT,
        scope=device_scope(DEVICE),
        epoch=1,
        seq=5,
        issued=NOW,
        expires=NOW + 7 * DAY,
        group=GROUP,
        profile=PROFILE,
    )
    return msgspec.structs.replace(valid, **changes)
