"""The trust policy and the TUF chain above it: root -> targets -> `trust/policy.json`.

Everything that asks "who may sign this?" asks a `TrustPolicy` that came through here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from modelfleet.signer.errors import DigestError, ExpiredError, FormatError, ReplayError, ScopeError
from modelfleet.signer.keys import key_id
from modelfleet.signer.metadata import Root, Targets, parse_metadata, require_signed, require_target
from modelfleet.signer.parse import parse_struct
from modelfleet.signer.statements import POLICY_PATH, PublicKey, TrustPolicy

MAX_POLICY_BYTES = 256 * 1024
BIN_PREFIX = "releases"
ROOT_LIFE = timedelta(days=365)
TARGETS_LIFE = timedelta(days=180)
BIN_LIFE = timedelta(days=90)


@dataclass(frozen=True, kw_only=True)
class PolicyChain:
    """What proves a policy to someone who has a root: the bytes of targets.json and of trust/policy.json.

    `roots` lead from an older root to the newest, each signed by its predecessor.
    """

    targets: bytes
    policy: bytes
    roots: tuple[bytes, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrustedPolicy:
    """A policy that the root vouches for, and the targets metadata that delegates the bins."""

    targets: Targets
    policy: TrustPolicy


def trusted_root(data: bytes) -> Root:
    """Return a root that signs itself; whether it is *the* root is said by where `data` came from.

    Raises:
        FormatError, SignatureError.
    """
    metadata = parse_metadata(data, Root)
    require_signed(metadata.signed, Root.type, metadata)
    return metadata.signed


def follow_roots(root: Root, chain: Sequence[bytes]) -> tuple[Root, bytes | None]:
    """Return the newest root that `chain` leads to from `root`, and its bytes (None: `root` is the newest).

    Args:
        chain: root metadata in order of version; those that are not newer than `root` are passed over.

    Raises:
        FormatError: not root metadata. ReplayError: a version is left out.
        SignatureError: not signed by enough keys of its predecessor, and of its own.
    """
    newest: bytes | None = None
    for data in chain:
        metadata = parse_metadata(data, Root)
        found = metadata.signed
        if found.version <= root.version:
            continue
        if found.version != root.version + 1:
            raise ReplayError(f"root: expected version {root.version + 1} next, got {found.version}")
        require_signed(root, Root.type, metadata)
        require_signed(found, Root.type, metadata)
        root, newest = found, data
    return root, newest


def trusted_policy(
    root: Root, chain: PolicyChain, *, tenant: str, now: datetime, minimum_version: int = 0
) -> TrustedPolicy:
    """Return the policy that `root` vouches for.

    Args:
        minimum_version: the highest version of targets.json seen so far.

    Raises:
        UntrustedError: unsigned, expired, older than seen, or of another tenant.
    """
    metadata = parse_metadata(chain.targets, Targets)
    require_signed(root, Targets.type, metadata)
    targets = metadata.signed
    for signed in (root, targets):
        if signed.is_expired(now):
            raise ExpiredError(f"{signed.type} metadata expired at {signed.expires}: re-sign it in an offline ceremony")
    if targets.version < minimum_version:
        raise ReplayError(f"expected targets version >= {minimum_version}, got {targets.version}")
    return TrustedPolicy(targets=targets, policy=policy_of(targets, chain.policy, tenant=tenant))


def policy_of(targets: Targets, data: bytes, *, tenant: str | None = None) -> TrustPolicy:
    """Return the policy in `data`, which must be the one that `targets` names.

    Raises:
        DigestError: it is another file, or one that no SHA-256 names. FormatError, ScopeError: as `parse_policy`.
    """
    target = targets.targets.get(POLICY_PATH)
    if target is None:
        raise FormatError(f"expected targets.json to name {POLICY_PATH}, it does not")
    if "sha256" not in target.hashes:  # of a weaker digest alone there can be two files
        raise DigestError(f"{POLICY_PATH}: expected its sha256 in targets.json, got {sorted(target.hashes)}")
    require_target(target, data)
    return parse_policy(data, tenant=tenant)


def parse_policy(data: bytes, *, tenant: str | None = None) -> TrustPolicy:
    """Return the policy in `data`, every key under its own id.

    Args:
        tenant: whose policy it must be (None: any).

    Raises:
        FormatError: not a policy, or a key that stands under another key's id.
        ScopeError: another tenant's.
    """
    policy = parse_struct(data, TrustPolicy, max_bytes=MAX_POLICY_BYTES)
    approvers = {keyid: approver.key for keyid, approver in policy.approvers.items()}
    for keys in (policy.directors, approvers, policy.publishers, policy.gates):
        _require_own_ids(keys)
    if tenant is not None and policy.tenant != tenant:
        raise ScopeError(f"expected the policy of tenant {tenant}, got that of {policy.tenant}")
    return policy


def bin_of(targets: Targets, path: str) -> str:
    """Return the name of the hash bin that holds `path`.

    Raises:
        FormatError: targets.json delegates no hash bins.
    """
    if targets.delegations is None or targets.delegations.succinct_roles is None:
        raise FormatError("expected targets.json to delegate hash bins, it does not")
    return targets.delegations.succinct_roles.get_role_for_target(path)


def _require_own_ids(keys: dict[str, PublicKey]) -> None:
    for keyid, key in keys.items():
        if key_id(key) != keyid:
            raise FormatError(f"expected the key with the id {keyid[:12]}, got the key {key_id(key)[:12]}")
