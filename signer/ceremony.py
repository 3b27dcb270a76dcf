"""The offline half: making a tenant's keys and repository, and re-signing the trust policy.

In a real deployment these keys never lie together: `offline/` lies on tokens in a safe, `signer/`, `worker/` and
`service/` on a machine each, and everything in `people/` with the people themselves (the publisher's key in CI, an
approver's on that person's own machine). `modelfleet init` makes them in one folder so that a whole fleet can be tried
on one computer.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from modelfleet.signer.errors import FormatError, KeyUriError
from modelfleet.signer.files import write_durably
from modelfleet.signer.keys import Key, Signer, generate_key, key_id, load_signer, public_key
from modelfleet.signer.metadata import (
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
    parse_metadata,
    sign_metadata,
)
from modelfleet.signer.names import NAME_PATTERN, require
from modelfleet.signer.repository import SNAPSHOT_LIFE, TIMESTAMP_LIFE, OnlineRepository
from modelfleet.signer.statements import POLICY_PATH, Approver, PublicKey, TrustPolicy
from modelfleet.signer.trust import BIN_LIFE, BIN_PREFIX, parse_policy

ROOT_LIFE = timedelta(days=365)
TARGETS_LIFE = timedelta(days=180)
OFFLINE_KEYS = 3
OFFLINE_THRESHOLD = 2
PERSON_FILE_PATTERN = r"[A-Za-z0-9][A-Za-z0-9@._+-]{0,63}"


@dataclass(frozen=True, kw_only=True)
class CeremonyResult:
    """Where everything of one tenant lies. Keys are URIs; `approver_keys` maps a person to that person's key."""

    data_dir: Path
    tenant: str
    root_json: Path
    metadata_dir: Path
    targets_dir: Path
    signer_state: Path
    root_keys: tuple[str, ...]
    targets_keys: tuple[str, ...]
    releases_key: str
    gate_key: str
    snapshot_key: str
    timestamp_key: str
    director_key: str
    publisher_key: str
    approver_keys: dict[str, str]

    def repository(self) -> OnlineRepository:
        """Return the online repository over these folders, with the service's two keys."""
        return OnlineRepository(
            self.metadata_dir, self.targets_dir, load_signer(self.snapshot_key), load_signer(self.timestamp_key)
        )


def create_repository(
    data_dir: Path,
    tenant: str,
    *,
    bits: int = 7,
    approvers: Sequence[str],
    approvals_required: int = 1,
    now: datetime,
) -> CeremonyResult:
    """Make all keys of a tenant and a complete, signed repository that a TUF client can refresh from.

    Args:
        bits: 2**bits hash bins, fixed from here on (7; 10 for 100k targets, 14 for 1M).
        approvers: names of the people who may approve; each gets a key.

    Raises:
        KeyUriError: there are keys already. FormatError: a name, `bits` or `approvals_required` that cannot be.
    """
    _require_plan(tenant, bits, approvers, approvals_required)
    paths = locate(data_dir, tenant, approvers=approvers)
    if paths.root_json.exists():
        raise KeyUriError(f"expected an empty folder at {data_dir}, found a fleet: choose another")
    _generate_keys(paths)
    policy = _first_policy(paths, approvals_required)
    _sign_everything(paths, policy, bits, now)
    return paths


def locate(data_dir: Path, tenant: str, *, approvers: Sequence[str] | None = None) -> CeremonyResult:
    """Return where the tenant's keys and folders lie; `approvers` are found in `people/` when not given."""
    base = data_dir.absolute()
    people = base / "people"
    if approvers is None:
        approvers = sorted(path.stem.removeprefix("approver-") for path in people.glob("approver-*.pem"))
    offline = {
        role: tuple(f"file:{base}/offline/{role}-{n}.pem" for n in range(1, OFFLINE_KEYS + 1)) for role in _OFFLINE
    }
    return CeremonyResult(
        data_dir=base,
        tenant=tenant,
        root_json=base / "root.json",
        metadata_dir=base / "trust" / tenant / "metadata",
        targets_dir=base / "trust" / tenant / "targets",
        signer_state=base / "signer" / "state",
        root_keys=offline[Root.type],
        targets_keys=offline[Targets.type],
        releases_key=f"file:{base}/signer/releases.pem",
        gate_key=f"file:{base}/worker/gate.pem",
        snapshot_key=f"file:{base}/service/snapshot.pem",
        timestamp_key=f"file:{base}/service/timestamp.pem",
        director_key=f"file:{base}/service/director.pem",
        publisher_key=f"file:{people}/publisher.pem",
        approver_keys={person: f"file:{people}/approver-{person}.pem" for person in approvers},
    )


def update_policy(
    data_dir: Path, tenant: str, change: Callable[[TrustPolicy], TrustPolicy], now: datetime
) -> TrustPolicy:
    """Change the trust policy: re-sign targets.json with the offline keys and publish both; return the new policy.

    Args:
        change: takes the present policy and returns the new one.

    Raises:
        KeyUriError: the offline keys are not here. FormatError: the new policy is none.
    """
    paths = locate(data_dir, tenant)
    repository = paths.repository()
    policy = change(repository.policy())
    data = encode_policy(policy)
    parse_policy(data, tenant=tenant)  # what devices will do with it
    metadata = parse_metadata(repository.policy_chain().targets, Targets)
    metadata.signed.targets = {POLICY_PATH: TargetFile.from_data(POLICY_PATH, data, ["sha256"])}
    metadata.signed.version += 1
    metadata.signed.expires = _after(now, TARGETS_LIFE)
    repository.publish_policy(sign_metadata(metadata, _offline(paths.targets_keys)), data, now)
    return policy


def encode_policy(policy: TrustPolicy) -> bytes:
    """Return the bytes of `trust/policy.json`: JSON, fields as declared, keys of maps sorted."""
    return msgspec.json.encode(policy, order="deterministic")


_OFFLINE = (Root.type, Targets.type)


def _require_plan(tenant: str, bits: int, approvers: Sequence[str], approvals_required: int) -> None:
    require(tenant, NAME_PATTERN, "tenant")
    if not 1 <= bits <= 16:
        raise FormatError(f"expected 1 to 16 bits of hash bins, got {bits}")
    for person in approvers:
        if re.fullmatch(PERSON_FILE_PATTERN, person) is None:
            raise FormatError(f"expected an approver's name like `anna` or `anna@example.org`, got {person[:80]!r}")
    if not 1 <= approvals_required <= len(set(approvers)):
        raise FormatError(f"expected 1 to {len(set(approvers))} required approvals, got {approvals_required}")


def _generate_keys(paths: CeremonyResult) -> None:
    single = (paths.releases_key, paths.gate_key, paths.snapshot_key, paths.timestamp_key, paths.director_key)
    people = (paths.publisher_key, *paths.approver_keys.values())
    for uri in (*paths.root_keys, *paths.targets_keys, *single, *people):
        generate_key(Path(uri.removeprefix("file:")))


def _first_policy(paths: CeremonyResult, approvals_required: int) -> TrustPolicy:
    approvers = {person: public_key(uri) for person, uri in paths.approver_keys.items()}
    return TrustPolicy(
        tenant=paths.tenant,
        epoch=1,
        directors=_by_id(paths.director_key),
        approvers={key_id(key): Approver(person=person, key=key) for person, key in approvers.items()},
        approvals_required=approvals_required,
        publishers=_by_id(paths.publisher_key),
        gates=_by_id(paths.gate_key),
    )


def _sign_everything(paths: CeremonyResult, policy: TrustPolicy, bits: int, now: datetime) -> None:
    releases = load_signer(paths.releases_key)
    succinct = SuccinctRoles([releases.public_key.keyid], 1, bits, BIN_PREFIX)
    roles = list(succinct.get_roles())
    for role in roles:
        data = sign_metadata(Metadata(Targets(version=1, expires=_after(now, BIN_LIFE))), [releases])
        write_durably(paths.metadata_dir / f"1.{role}.json", data)
        write_durably(paths.signer_state / f"{role}.json", data)
    policy_data = encode_policy(policy)
    target = TargetFile.from_data(POLICY_PATH, policy_data, ["sha256"])
    write_durably(paths.targets_dir / target.get_prefixed_paths()[0], policy_data)
    delegations = Delegations({releases.public_key.keyid: releases.public_key}, succinct_roles=succinct)
    targets = Targets(
        version=1, expires=_after(now, TARGETS_LIFE), targets={POLICY_PATH: target}, delegations=delegations
    )
    write_durably(paths.metadata_dir / "1.targets.json", sign_metadata(Metadata(targets), _offline(paths.targets_keys)))
    _sign_online(paths, roles, now)
    _sign_root(paths, now)


def _sign_online(paths: CeremonyResult, roles: Sequence[str], now: datetime) -> None:
    meta = {f"{role}.json": MetaFile(1) for role in (Targets.type, *roles)}
    snapshot = Metadata(Snapshot(version=1, expires=_after(now, SNAPSHOT_LIFE), meta=meta))
    timestamp = Metadata(Timestamp(version=1, expires=_after(now, TIMESTAMP_LIFE), snapshot_meta=MetaFile(1)))
    write_durably(paths.metadata_dir / "1.snapshot.json", sign_metadata(snapshot, [load_signer(paths.snapshot_key)]))
    write_durably(paths.metadata_dir / "timestamp.json", sign_metadata(timestamp, [load_signer(paths.timestamp_key)]))


def _sign_root(paths: CeremonyResult, now: datetime) -> None:
    root = Root(version=1, expires=_after(now, ROOT_LIFE), consistent_snapshot=True)
    for role, uris in (
        (Root.type, paths.root_keys),
        (Targets.type, paths.targets_keys),
        (Snapshot.type, (paths.snapshot_key,)),
        (Timestamp.type, (paths.timestamp_key,)),
    ):
        for uri in uris:
            root.add_key(_key(uri), role)
        root.roles[role].threshold = min(OFFLINE_THRESHOLD, len(uris))
    data = sign_metadata(Metadata(root), _offline(paths.root_keys))
    write_durably(paths.metadata_dir / "1.root.json", data)
    write_durably(paths.root_json, data)  # last: its presence says that the ceremony is complete


def _offline(uris: Sequence[str]) -> list[Signer]:
    return [load_signer(uri) for uri in uris[:OFFLINE_THRESHOLD]]


def _after(now: datetime, life: timedelta) -> datetime:
    return (now + life).replace(microsecond=0)


def _key(uri: str) -> Key:
    return load_signer(uri).public_key


def _by_id(uri: str) -> dict[str, PublicKey]:
    key = public_key(uri)
    return {key_id(key): key}
