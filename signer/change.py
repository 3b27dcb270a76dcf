"""A change of root, targets or policy on its way to enough signatures: what travels to the offline keys and back.

Upholds: a change carries what it replaces, so that whoever signs sees the difference computed on the spot and need not
believe the sender's words; signatures are taken over only onto the same bytes, and only where they hold; nothing in it
is secret.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
from securesystemslib.exceptions import Error as SecureSystemsError

from modelfleet.signer.errors import DigestError, FormatError, KeyUriError, ReplayError, SignatureError
from modelfleet.signer.key_book import KeyBook
from modelfleet.signer.keys import Key, Signature, Signer, key_id
from modelfleet.signer.metadata import Metadata, RoleT, Root, Targets, next_version, parse_metadata, require_signed
from modelfleet.signer.names import Name
from modelfleet.signer.parse import parse_struct
from modelfleet.signer.statements import PublicKey, TrustPolicy
from modelfleet.signer.trust import policy_of, trusted_root

MAX_CHANGE_BYTES: Final = 4 * 1024 * 1024


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """The `before_*` are published now; `root` and `targets` are to follow, with the signatures so far.

    What does not change is the same bytes in both. `remove` names targets to drop from the bins; `book` is the new
    `keys.json` and stays at home.
    """

    format: str = "1.0"
    tenant: Name
    before_root: bytes
    before_targets: bytes
    before_policy: bytes
    root: bytes
    targets: bytes
    policy: bytes
    remove: tuple[str, ...] = ()
    book: KeyBook | None = None


@dataclass(frozen=True, kw_only=True)
class State:
    """Root, targets and policy as they are published together."""

    root: Root
    targets: Targets
    policy: TrustPolicy


@dataclass(frozen=True, kw_only=True)
class Lack:
    """Signatures that a change still needs: `count` more by any of `keyids`."""

    role: str
    count: int
    keyids: tuple[str, ...]

    def __str__(self) -> str:
        keys = ", ".join(keyid[:12] for keyid in self.keyids)
        return f"{self.role} needs {self.count} more signature{'s' if self.count > 1 else ''}, by any of {keys}"


def parse_change(data: bytes) -> Change:
    """Return the change in `data`, sound in itself.

    Raises:
        FormatError: it is none. Others as `check_change`.
    """
    change = parse_struct(data, Change, max_bytes=MAX_CHANGE_BYTES)
    check_change(change)
    return change


def encode_change(change: Change) -> bytes:
    """Return the change as a file holds it."""
    return msgspec.json.format(msgspec.json.encode(change), indent=1) + b"\n"


def check_change(change: Change, *, trusted: bytes | None = None) -> tuple[State, State]:
    """Return what is published and what is to be, after checking that the one is signed and the other follows it.

    Args:
        trusted: the root.json that whoever signs has kept; `before_root` must be these bytes.

    Raises:
        UntrustedError: they do not fit together; ReplayError where the versions do not follow each other.
        FormatError: a key stands under another key's id: whoever signs is shown the ids.
    """
    if trusted is not None and trusted != change.before_root:
        raise SignatureError("expected a change of the root.json that you gave, got a change of another root")
    before_root = trusted_root(change.before_root)
    before_targets = parse_metadata(change.before_targets, Targets)
    require_signed(before_root, Targets.type, before_targets)
    root, targets = _next(change.before_root, change.root, Root), _next(change.before_targets, change.targets, Targets)
    _require_own_ids(root.keys)
    _require_own_ids(targets.delegations.keys if targets.delegations else {})
    before = State(
        root=before_root,
        targets=before_targets.signed,
        policy=policy_of(before_targets.signed, change.before_policy, tenant=change.tenant),
    )
    after = State(root=root, targets=targets, policy=policy_of(targets, change.policy, tenant=change.tenant))
    return before, after


def sign_change(change: Change, signer: Signer) -> Change:
    """Return the change with one more signature, on each part that the key may sign.

    Raises:
        KeyUriError: the key may sign no part of it, or has done so.
    """
    keyid = signer.public_key.keyid
    signed = change
    for lack in lacking(change):
        if keyid in lack.keyids:
            signed = _with_signature(signed, lack.role, signer)
    if signed == change:
        missing = "; ".join(map(str, lacking(change))) or "nothing"
        raise KeyUriError(f"key {keyid[:12]} has nothing to sign here: the change needs {missing}")
    return signed


def merge_signatures(change: Change, signed: Change) -> Change:
    """Return `change` with those signatures of `signed` that hold and count.

    Raises:
        DigestError: `signed` is another change.
    """
    root = _merged(change, Root.type, change.root, signed.root, Root)
    return msgspec.structs.replace(
        change, root=root, targets=_merged(change, Targets.type, change.targets, signed.targets, Targets)
    )


def lacking(change: Change) -> list[Lack]:
    """Return the signatures that are still to come; none: the change may be published."""
    before, root = trusted_root(change.before_root), parse_metadata(change.root, Root)
    needs: list[Lack] = []
    if change.root != change.before_root:
        needs += [_lack(by, Root.type, root) for by in (before, root.signed)]
    needs.append(_lack(root.signed, Targets.type, parse_metadata(change.targets, Targets)))
    return list(dict.fromkeys(need for need in needs if need.count))


def _next(before: bytes, after: bytes, kind: type[RoleT]) -> RoleT:
    found = parse_metadata(after, kind).signed
    version = parse_metadata(before, kind).signed.version
    if before != after and found.version != next_version(version):
        raise ReplayError(f"{kind.type}: expected version {next_version(version)} next, got {found.version}")
    return found


def _require_own_ids(keys: Mapping[str, Key]) -> None:
    for keyid, key in keys.items():
        found = key_id(PublicKey(keytype=key.keytype, scheme=key.scheme, keyval=key.keyval))
        if found != keyid:
            raise FormatError(f"expected the key with the id {keyid[:12]!r}, got the key {found[:12]}")


def _lack(delegator: Root, role: str, metadata: Metadata[RoleT]) -> Lack:
    found = delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    count = max(0, found.threshold - len(found.signed))
    return Lack(role=role, count=count, keyids=tuple(sorted(found.unsigned)))


def _with_signature(change: Change, role: str, signer: Signer) -> Change:
    if role == Root.type:
        return msgspec.structs.replace(change, root=_signed(change.root, signer, Root))
    return msgspec.structs.replace(change, targets=_signed(change.targets, signer, Targets))


def _signed(data: bytes, signer: Signer, kind: type[RoleT]) -> bytes:
    metadata = parse_metadata(data, kind)
    if signer.public_key.keyid not in metadata.signatures:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def _merged(change: Change, role: str, ours: bytes, theirs: bytes, kind: type[RoleT]) -> bytes:
    metadata, other = parse_metadata(ours, kind), parse_metadata(theirs, kind)
    if metadata.signed_bytes != other.signed_bytes:
        raise DigestError(f"{role}: expected signatures on the staged change, got a file of another change")
    for keyid, signature in other.signatures.items():
        key = _signing_keys(change, role).get(keyid)
        if key is not None and keyid not in metadata.signatures and _holds(key, signature, metadata.signed_bytes):
            metadata.signatures[keyid] = signature
    return metadata.to_bytes() if metadata.signatures else ours


def _signing_keys(change: Change, role: str) -> dict[str, Key]:
    roots = [parse_metadata(data, Root).signed for data in (change.before_root, change.root)]
    return {keyid: root.keys[keyid] for root in roots for keyid in root.roles[role].keyids}


def _holds(key: Key, signature: Signature, payload: bytes) -> bool:
    try:
        key.verify_signature(signature, payload)
    except SecureSystemsError:
        return False
    return True


def require_complete(change: Change) -> None:
    """Refuse a change that lacks signatures.

    Raises:
        SignatureError: it does, by these keys.
    """
    if missing := lacking(change):
        raise SignatureError("; ".join(map(str, missing)))
