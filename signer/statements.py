"""What people, CI and workers say under their own keys: source statements, gate attestations, approvals, the policy.

Every one is a DSSE payload but the trust policy, which is the TUF target `trust/policy.json` under the offline targets
role.
"""

from typing import Annotated

import msgspec

from modelfleet.signer.desired import Moment
from modelfleet.signer.manifest import Channel
from modelfleet.signer.names import Count, ModelName, Name, SemVer, Sha256

SOURCE_PAYLOAD_TYPE = "application/vnd.modelfleet.source+json"
APPROVAL_PAYLOAD_TYPE = "application/vnd.modelfleet.approval+json"
REPORT_PAYLOAD_TYPE = "application/vnd.modelfleet.report+json"
IN_TOTO_PAYLOAD_TYPE = "application/vnd.in-toto+json"
IN_TOTO_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
GATE_PREDICATE_TYPE = "urn:modelfleet:attestation:gate:v1"
POLICY_PATH = "trust/policy.json"
EMERGENCY_PERSONS = 2
"""How many persons other than the author an emergency needs at least; servers and devices both count."""

Person = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
KeyId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The publisher's statement: these bytes are this version. The signer checks it before it signs any variant."""

    format: str = "1.0"
    tenant: Name
    model: ModelName
    version: SemVer
    channel: Channel
    source_sha256: Sha256
    source_length: Count
    card_sha256: Sha256
    golden_sha256: Sha256
    issued: Moment


class Approval(msgspec.Struct, frozen=True, kw_only=True):
    """One person's approval of one rollout's releases; `releases` maps profile to the manifest's sha256.

    `author` is who drafted the rollout as the approver saw it; the device refuses an approval by the author. `emergency` is why
    the rollout skips its waits, where it does: then `EMERGENCY_PERSONS` must approve, whatever k is.
    """

    format: str = "1.0"
    tenant: Name
    model: ModelName
    version: SemVer
    releases: Annotated[dict[Name, Sha256], msgspec.Meta(min_length=1, max_length=64)]
    groups: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=256)]
    plan_sha256: Sha256
    author: Person
    issued: Moment
    not_after: Moment
    emergency: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)] | msgspec.UnsetType = msgspec.UNSET
    """Left out of the bytes where there is none, so that they are what they were before there was such a field."""


def persons_required(approvals_required: int, *, emergency: bool) -> int:
    """Return how many persons other than the author must approve, k being what the trust policy says."""
    return max(approvals_required, EMERGENCY_PERSONS) if emergency else approvals_required


class GateSubject(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the variant, in-toto's resource descriptor: digest = {"sha256": ...}."""

    name: Annotated[str, msgspec.Meta(max_length=128)]
    digest: dict[str, str]


class GatePredicate(msgspec.Struct, frozen=True, kw_only=True):
    """What a converter worker measured of one variant, and that every gate passed.

    `results` holds the figures: parity, accuracy, benchmark, scan, sizes, library versions.
    """

    tenant: Name
    model: ModelName
    version: SemVer
    profile: Name
    precision: Name
    source_sha256: Sha256
    golden_sha256: Sha256
    passed: bool
    results: dict[str, object]


class GateStatement(msgspec.Struct, frozen=True, kw_only=True):
    """In-toto Statement v1 with our gate predicate; its subjects are all files of the variant."""

    type: str = msgspec.field(name="_type", default=IN_TOTO_STATEMENT_TYPE)
    subject: Annotated[tuple[GateSubject, ...], msgspec.Meta(min_length=1, max_length=256)]
    predicate_type: str = msgspec.field(name="predicateType", default=GATE_PREDICATE_TYPE)
    predicate: GatePredicate


class PublicKey(msgspec.Struct, frozen=True, kw_only=True):
    """A public key as TUF writes it; keyval.public is PEM."""

    keytype: str
    scheme: str
    keyval: dict[str, str]


class Approver(msgspec.Struct, frozen=True, kw_only=True):
    """A person who may approve, and that person's key."""

    person: Person
    key: PublicKey


class TrustPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """`trust/policy.json`: who directs, approves, publishes and gates, under the offline targets role.

    approvals_required is k of k-of-n; minimum_counter maps a model to the least release counter that may be installed;
    revoked lists manifest digests; epoch moves every (epoch, seq) floor at once.
    """

    format: str = "1.0"
    tenant: Name
    epoch: Count
    directors: dict[KeyId, PublicKey]
    approvers: dict[KeyId, Approver]
    approvals_required: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    publishers: dict[KeyId, PublicKey]
    gates: dict[KeyId, PublicKey]
    minimum_counter: dict[ModelName, Count] = {}
    revoked: tuple[Sha256, ...] = ()
