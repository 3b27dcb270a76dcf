"""The offline half: making a tenant's keys and repository, and re-signing the trust policy.

`keys init` holds the ceremony as it is asked to: so many offline keys of which so many must sign, files under a passphrase
or URIs of tokens and KMS keys. `modelfleet init` makes everything in one folder, so that a whole fleet can be tried on one
computer. Where each key has to go before that matters is said in `signer/key_book.py`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import msgspec

from modelfleet.signer.change import lacking
from modelfleet.signer.draft import after, encode_policy, policy_change, require_workable
from modelfleet.signer.errors import FormatError, KeyUriError, SignerUnavailableError
from modelfleet.signer.files import write_durably
from modelfleet.signer.key_book import (
    OFFLINE_KEYS,
    ONLINE_ROLES,
    CeremonyResult,
    KeyBook,
    book_path,
    default_book,
    locate,
    located,
    resolved,
    write_book,
)
from modelfleet.signer.keys import Signer, key_id, load_signer, make_key, public_key, to_sslib
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
    sign_metadata,
)
from modelfleet.signer.names import NAME_PATTERN, require
from modelfleet.signer.passphrase import Secrets, ask_passphrase
from modelfleet.signer.repository import SNAPSHOT_LIFE, TIMESTAMP_LIFE
from modelfleet.signer.stage import publish, require_none_staged, sign_here
from modelfleet.signer.statements import POLICY_PATH, Approver, PublicKey, TrustPolicy
from modelfleet.signer.trust import BIN_LIFE, BIN_PREFIX, ROOT_LIFE, TARGETS_LIFE

__all__ = [
    "CeremonyPlan",
    "CeremonyResult",
    "OfflineKeys",
    "create_repository",
    "encode_policy",
    "hold_ceremony",
    "locate",
    "update_policy",
]

OFFLINE_THRESHOLD = 2
MAX_OFFLINE_KEYS = 16
PERSON_FILE_PATTERN = r"[A-Za-z0-9][A-Za-z0-9@._+-]{0,63}"


@dataclass(frozen=True, kw_only=True)
class OfflineKeys:
    """The keys of root or targets: `count` new files, or the keys at `uris`; `threshold` of them must sign."""

    count: int = OFFLINE_KEYS
    threshold: int = OFFLINE_THRESHOLD
    uris: tuple[str, ...] = ()

    def size(self) -> int:
        """Return how many keys there are."""
        return len(self.uris) or self.count


@dataclass(frozen=True, kw_only=True)
class CeremonyPlan:
    """What a ceremony makes.

    Attributes:
        bits: 2**bits hash bins, fixed from here on (7; 10 for 100k targets, 14 for 1M).
        online: role -> URI of a key that is there already; other roles get a file each.
        approvers: person -> URI of that person's key, its public half suffices; empty: a file is made.
    """

    tenant: str
    bits: int = 7
    root: OfflineKeys = OfflineKeys()
    targets: OfflineKeys = OfflineKeys()
    online: Mapping[str, str] = field(default_factory=dict[str, str])
    approvers: Mapping[str, str]
    approvals_required: int = 1


def create_repository(
    data_dir: Path,
    tenant: str,
    *,
    bits: int = 7,
    approvers: Sequence[str],
    approvals_required: int = 1,
    now: datetime,
) -> CeremonyResult:
    """Hold the ceremony of a try-out: every key a file in the clear, all in one folder.

    Args:
        bits: 2**bits hash bins, fixed from here on (7; 10 for 100k targets, 14 for 1M).
        approvers: names of the people who may approve; each gets a key.

    Raises:
        KeyUriError: there are keys already. FormatError: a name, `bits` or `approvals_required` that cannot be.
    """
    people = dict.fromkeys(approvers, "")
    plan = CeremonyPlan(tenant=tenant, bits=bits, approvers=people, approvals_required=approvals_required)
    return hold_ceremony(data_dir, plan, now)


def hold_ceremony(
    data_dir: Path,
    plan: CeremonyPlan,
    now: datetime,
    *,
    secrets: Secrets = ask_passphrase,
    new_passphrase: Callable[[str], str | None] = lambda _uri: None,
) -> CeremonyResult:
    """Make the keys of a tenant and a complete, signed repository that a TUF client can refresh from.

    Args:
        secrets: opens given key files that are encrypted.
        new_passphrase: asked for each new file of root and targets; None leaves it in the clear.

    Raises:
        KeyUriError: there are keys already, or a given one cannot be used. FormatError: a plan that cannot be.
    """
    _require_plan(plan)
    book = _planned_book(plan)
    paths = located(locate(data_dir, plan.tenant, approvers=()), book)
    if paths.root_json.exists() or book_path(data_dir).exists():
        raise KeyUriError(f"expected an empty folder at {data_dir}, found a fleet: choose another")
    given = {*plan.root.uris, *plan.targets.uris, *plan.online.values(), *plan.approvers.values()}
    keys = _Keys(paths.data_dir, secrets)
    for uri in book.all_uris():
        if uri in given:
            keys.public(uri)  # before anything is made
    for uri in book.all_uris():
        if uri not in given:
            keys.make(uri, new_passphrase if uri in (*book.root, *book.targets) else lambda _uri: None)
    book = msgspec.structs.replace(book, ids={uri: key_id(keys.public(uri)) for uri in book.all_uris()})
    _sign_everything(paths, plan, book, keys, now)
    return paths


def update_policy(
    data_dir: Path,
    tenant: str,
    change: Callable[[TrustPolicy], TrustPolicy],
    now: datetime,
    *,
    secrets: Secrets = ask_passphrase,
) -> TrustPolicy:
    """Change the trust policy: re-sign targets.json with the offline keys and publish both; return the new policy.

    Args:
        change: takes the present policy and returns the new one.

    Raises:
        KeyUriError: the offline keys are not here. FormatError: the new policy is none.
        PlanError: nobody could act under it, or another change waits for signatures.
    """
    require_none_staged(data_dir)
    paths = locate(data_dir, tenant)
    repository = paths.repository(secrets)
    wanted = policy_change(paths, repository.policy_chain(), change, now)
    signed, reasons = sign_here(paths, wanted, secrets)
    if lacking(signed):
        raise KeyUriError(f"the offline keys are not here: {'; '.join(reasons) or 'too few'}")
    publish(paths, signed, now, secrets=secrets)
    return repository.policy()


class _Keys:
    """The keys of one ceremony, each opened once."""

    def __init__(self, data_dir: Path, secrets: Secrets) -> None:
        self._data_dir, self._secrets = data_dir, secrets
        self._signers: dict[str, Signer] = {}
        self._made: dict[str, str] = {}

    def make(self, uri: str, new_passphrase: Callable[[str], str | None]) -> None:
        """Make a key file, encrypted where `new_passphrase` says so."""
        secret = new_passphrase(resolved(uri, self._data_dir))
        make_key(resolved(uri, self._data_dir), secret)
        if secret is not None:
            self._made[uri] = secret

    def signer(self, uri: str) -> Signer:
        """Return what signs (KeyUriError: it cannot be opened)."""
        if uri not in self._signers:
            self._signers[uri] = load_signer(resolved(uri, self._data_dir), self._secret_of(uri))
        return self._signers[uri]

    def public(self, uri: str) -> PublicKey:
        """Return the public half (KeyUriError: it cannot be read)."""
        return public_key(resolved(uri, self._data_dir), self._secret_of(uri))

    def some(self, uris: Sequence[str], threshold: int) -> list[Signer]:
        """Return `threshold` signers among `uris`; of the others, who may be elsewhere, the public half suffices."""
        found: list[Signer] = []
        reason: Exception | None = None
        for uri in uris:
            if len(found) == threshold:
                break
            try:
                found.append(self.signer(uri))
            except (KeyUriError, SignerUnavailableError) as error:
                reason = error
        if len(found) < threshold:
            raise KeyUriError(f"expected {threshold} keys that can sign here, got {len(found)}: {reason}")
        return found

    def _secret_of(self, uri: str) -> Secrets:
        return (lambda _uri: self._made[uri]) if uri in self._made else self._secrets


def _require_plan(plan: CeremonyPlan) -> None:
    require(plan.tenant, NAME_PATTERN, "tenant")
    if not 1 <= plan.bits <= 16:
        raise FormatError(f"expected 1 to 16 bits of hash bins, got {plan.bits}")
    for person in plan.approvers:
        if re.fullmatch(PERSON_FILE_PATTERN, person) is None:
            raise FormatError(f"expected an approver's name like `anna` or `anna@example.org`, got {person[:80]!r}")
    if not 1 <= plan.approvals_required <= len(plan.approvers):
        raise FormatError(f"expected 1 to {len(plan.approvers)} required approvals, got {plan.approvals_required}")
    for role, offline in ((Root.type, plan.root), (Targets.type, plan.targets)):
        if not 1 <= offline.threshold <= offline.size() <= MAX_OFFLINE_KEYS:
            raise FormatError(
                f"{role}: expected a threshold of 1 to the number of keys (at most {MAX_OFFLINE_KEYS}),"
                f" got {offline.threshold} of {offline.size()}"
            )
    unknown = sorted(set(plan.online) - set(ONLINE_ROLES))
    if unknown:
        raise FormatError(f"expected keys for {', '.join(ONLINE_ROLES)}, got one for {unknown[0]!r}")


def _planned_book(plan: CeremonyPlan) -> KeyBook:
    files = default_book(tuple(plan.approvers), root_keys=plan.root.size(), targets_keys=plan.targets.size())
    return msgspec.structs.replace(
        files,
        root=plan.root.uris or files.root,
        targets=plan.targets.uris or files.targets,
        approvers={person: uri or files.approvers[person] for person, uri in plan.approvers.items()},
        **plan.online,
    )


def _first_policy(plan: CeremonyPlan, book: KeyBook, keys: _Keys) -> TrustPolicy:
    approvers = {person: keys.public(uri) for person, uri in book.approvers.items()}
    policy = TrustPolicy(
        tenant=plan.tenant,
        epoch=1,
        directors=_by_id(keys.public(book.director)),
        approvers={key_id(key): Approver(person=person, key=key) for person, key in approvers.items()},
        approvals_required=plan.approvals_required,
        publishers=_by_id(keys.public(book.publisher)),
        gates=_by_id(keys.public(book.gate)),
    )
    require_workable(policy)
    return policy


def _sign_everything(paths: CeremonyResult, plan: CeremonyPlan, book: KeyBook, keys: _Keys, now: datetime) -> None:
    releases = keys.signer(book.releases)
    succinct = SuccinctRoles([releases.public_key.keyid], 1, plan.bits, BIN_PREFIX)
    roles = list(succinct.get_roles())
    for role in roles:
        data = sign_metadata(Metadata(Targets(version=1, expires=after(now, BIN_LIFE))), [releases])
        write_durably(paths.metadata_dir / f"1.{role}.json", data)
        write_durably(paths.signer_state / f"{role}.json", data)
    policy_data = encode_policy(_first_policy(plan, book, keys))
    target = TargetFile.from_data(POLICY_PATH, policy_data, ["sha256"])
    write_durably(paths.targets_dir / target.get_prefixed_paths()[0], policy_data)
    delegations = Delegations({releases.public_key.keyid: releases.public_key}, succinct_roles=succinct)
    targets = Targets(
        version=1, expires=after(now, TARGETS_LIFE), targets={POLICY_PATH: target}, delegations=delegations
    )
    signers = keys.some(book.targets, plan.targets.threshold)
    write_durably(paths.metadata_dir / "1.targets.json", sign_metadata(Metadata(targets), signers))
    _sign_online(paths, book, keys, roles, now)
    _sign_root(paths, plan, book, keys, now)


def _sign_online(paths: CeremonyResult, book: KeyBook, keys: _Keys, roles: Sequence[str], now: datetime) -> None:
    meta = {f"{role}.json": MetaFile(1) for role in (Targets.type, *roles)}
    snapshot = Metadata(Snapshot(version=1, expires=after(now, SNAPSHOT_LIFE), meta=meta))
    timestamp = Metadata(Timestamp(version=1, expires=after(now, TIMESTAMP_LIFE), snapshot_meta=MetaFile(1)))
    write_durably(paths.metadata_dir / "1.snapshot.json", sign_metadata(snapshot, [keys.signer(book.snapshot)]))
    write_durably(paths.metadata_dir / "timestamp.json", sign_metadata(timestamp, [keys.signer(book.timestamp)]))


def _sign_root(paths: CeremonyResult, plan: CeremonyPlan, book: KeyBook, keys: _Keys, now: datetime) -> None:
    root = Root(version=1, expires=after(now, ROOT_LIFE), consistent_snapshot=True)
    for role, uris, threshold in (
        (Root.type, book.root, plan.root.threshold),
        (Targets.type, book.targets, plan.targets.threshold),
        (Snapshot.type, (book.snapshot,), 1),
        (Timestamp.type, (book.timestamp,), 1),
    ):
        for uri in uris:
            root.add_key(to_sslib(keys.public(uri)), role)
        if len(root.roles[role].keyids) != len(uris):
            raise KeyUriError(f"{role}: expected keys that differ, got one twice")
        root.roles[role].threshold = threshold
    data = sign_metadata(Metadata(root), keys.some(book.root, plan.root.threshold))
    write_durably(paths.metadata_dir / "1.root.json", data)
    write_book(paths.data_dir, book)
    write_durably(paths.root_json, data)  # last: its presence says that the ceremony is complete


def _by_id(key: PublicKey) -> dict[str, PublicKey]:
    return {key_id(key): key}
