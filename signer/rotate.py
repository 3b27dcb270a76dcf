"""What is done about keys in their life: rotate them, revoke them, renew what they signed. Each makes a change to sign.

The new key is there before the change is made; the old one is left where it lies, for its owner to destroy once devices have
followed.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import msgspec

from modelfleet.signer.change import Change
from modelfleet.signer.draft import POLICY_ROLES, Draft
from modelfleet.signer.errors import PlanError
from modelfleet.signer.key_book import CeremonyResult, KeyBook, file_uri, resolved
from modelfleet.signer.keys import key_id, make_key, public_key
from modelfleet.signer.metadata import Root, Targets
from modelfleet.signer.passphrase import Secrets, ask_passphrase
from modelfleet.signer.statements import PublicKey
from modelfleet.signer.trust import PolicyChain

OFFLINE_ROLES = (Root.type, Targets.type)
ROLES = ("root", "targets", "snapshot", "timestamp", "releases", *POLICY_ROLES)
"""What `rotate` takes, beside `approver:PERSON`."""

MIN_ID_DIGITS = 8

NewPassphrase = Callable[[str], str | None]
"""Takes the URI of a new key file and returns what encrypts it; None leaves it in the clear."""


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """What to rotate, and how.

    Attributes:
        roles: of `ROLES`, or `approver:PERSON` (a new person is added so, too).
        new_keys: URIs of the new keys, of one role only; none: made as files beside the old ones.
        old: of root and targets, the one key id to replace; empty: all.
        threshold: of root and targets, how many must sign from now on; 0: as before.
        overlap: of roles in the policy, the old keys stay valid beside the new one.
        epoch: a new epoch, which voids every document of the desired state signed so far.
        remove: with releases, paths of targets that the bins shall no longer name.
    """

    roles: tuple[str, ...]
    new_keys: tuple[str, ...] = ()
    old: str = ""
    threshold: int = 0
    overlap: bool = False
    epoch: bool = False
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Revocation:
    """Whom and what to disown: key ids in the policy, manifest digests, releases below a counter per model."""

    keys: tuple[str, ...] = ()
    manifests: tuple[str, ...] = ()
    minimum: Mapping[str, int] = field(default_factory=dict[str, int])
    epoch: bool = False


def rotation(
    paths: CeremonyResult,
    chain: PolicyChain,
    wanted: Rotation,
    now: datetime,
    *,
    secrets: Secrets = ask_passphrase,
    new_passphrase: NewPassphrase = lambda _uri: None,
) -> Change:
    """Return the change, unsigned, that gives each role its new key; keys that are not given are made first.

    Raises:
        PlanError: no such role, or options that do not fit it. KeyUriError: a key is not there, or cannot be made.
    """
    _require_plan(wanted)
    draft, maker = Draft(paths, chain), _Maker(paths, secrets, new_passphrase)
    for role in dict.fromkeys(wanted.roles):
        if role in OFFLINE_ROLES:
            _rotate_offline(draft, role, wanted, maker)
        else:
            _rotate_single(draft, role, wanted, maker)
    # Documents signed by a director who is gone are void; a new epoch has them signed again at once.
    if wanted.epoch or ("director" in wanted.roles and not wanted.overlap):
        draft.set_policy(epoch=draft.policy.epoch + 1)
    return draft.finish(now)


def revocation(paths: CeremonyResult, chain: PolicyChain, wanted: Revocation, now: datetime) -> Change:
    """Return the change, unsigned, of the policy that disowns what `wanted` names.

    Raises:
        PlanError: nothing to revoke, not in the policy, or nobody would be left to act.
    """
    draft = Draft(paths, chain)
    for keyid in wanted.keys:
        _revoke_key(draft, keyid)
    for manifest in wanted.manifests:
        if re.fullmatch(r"[0-9a-f]{64}", manifest) is None:
            raise PlanError(f"expected a SHA-256 of 64 digits of a manifest, got {manifest[:80]!r}")
    if wanted.manifests:
        revoked = dict.fromkeys((*draft.policy.revoked, *wanted.manifests))
        draft.set_policy(revoked=tuple(revoked))
    for model, counter in wanted.minimum.items():
        least = draft.policy.minimum_counter.get(model, 0)
        if counter <= least:
            raise PlanError(f"{model}: expected a minimum counter > {least}, got {counter}")
        draft.set_policy(minimum_counter={**draft.policy.minimum_counter, model: counter})
    if wanted.epoch:
        draft.set_policy(epoch=draft.policy.epoch + 1)
    if not (wanted.keys or wanted.manifests or wanted.minimum or wanted.epoch):
        raise PlanError("nothing to revoke: name a key, a manifest, a minimum counter, or a new epoch")
    return draft.finish(now)


def renewal(paths: CeremonyResult, chain: PolicyChain, roles: Sequence[str], now: datetime) -> Change:
    """Return the change, unsigned, that gives root or targets a new version and expiry and nothing else.

    Raises:
        PlanError: another role; those renew themselves.
    """
    draft = Draft(paths, chain)
    for role in roles:
        if role not in OFFLINE_ROLES:
            raise PlanError(f"expected root or targets, got {role[:40]!r}: the service renews the others by itself")
        draft.renew(role)
    return draft.finish(now)


def _require_plan(wanted: Rotation) -> None:
    for role in wanted.roles:
        kind, _, person = role.partition(":")
        if role not in ROLES and not (kind == "approver" and person):
            raise PlanError(f"expected a role of {', '.join(ROLES)} or approver:PERSON, got {role[:80]!r}")
    if wanted.new_keys and len(wanted.roles) != 1:
        raise PlanError(f"new keys are given for one role at a time, got {len(wanted.roles)} roles")
    if (wanted.old or wanted.threshold) and not set(wanted.roles) <= set(OFFLINE_ROLES):
        raise PlanError("only root and targets have several keys and a threshold: leave out the old key and threshold")
    if wanted.remove and "releases" not in wanted.roles:
        raise PlanError("targets are removed from the bins when these are signed anew: rotate releases")


def _rotate_offline(draft: Draft, role: str, wanted: Rotation, maker: "_Maker") -> None:
    present = draft.root.roles[role]
    old = [keyid for keyid in present.keyids if keyid.startswith(wanted.old)]
    if wanted.old and len(old) != 1:
        raise PlanError(f"{role}: expected the id of one of its keys, got {wanted.old[:64]!r}, which names {len(old)}")
    kept = [uri for uri in getattr(draft.book, role) if maker.key_id(draft.book, uri) not in old]
    new = maker.keys(role, wanted.new_keys, len(old))
    draft.replace_top_level(role, old, [key for _, key in new], wanted.threshold or present.threshold)
    _note(draft, {role: (*kept, *(uri for uri, _ in new))}, new)


def _rotate_single(draft: Draft, role: str, wanted: Rotation, maker: "_Maker") -> None:
    new = maker.keys(role, wanted.new_keys, 1)
    if len(new) != 1:
        raise PlanError(f"{role}: expected one new key, got {len(new)}")
    uri, key = new[0]
    kind, _, person = role.partition(":")
    if kind in ("snapshot", "timestamp"):
        draft.replace_top_level(kind, list(draft.root.roles[kind].keyids), [key], 1)
    elif kind == "releases":
        draft.replace_releases(key, wanted.remove)
    else:
        draft.replace_policy_key(kind, key, overlap=wanted.overlap, person=person)
    changed = {"approvers": {**draft.book.approvers, person: uri}} if person else {kind: uri}
    _note(draft, changed, new)


def _note(draft: Draft, changed: Mapping[str, object], new: Sequence[tuple[str, PublicKey]]) -> None:
    book = msgspec.structs.replace(draft.book, **changed)
    ids = {**book.ids, **{uri: key_id(key) for uri, key in new}}
    draft.book = msgspec.structs.replace(book, ids={uri: ids[uri] for uri in book.all_uris() if uri in ids})


def _revoke_key(draft: Draft, wanted: str) -> None:
    policy, found = draft.policy, 0
    for name in ("approvers", *POLICY_ROLES.values()):
        present: dict[str, object] = getattr(policy, name)
        kept = {keyid: value for keyid, value in present.items() if not keyid.startswith(wanted)}
        found += len(present) - len(kept)
        policy = msgspec.structs.replace(policy, **{name: kept})
    if found != 1 or len(wanted) < MIN_ID_DIGITS:
        raise PlanError(
            f"expected {MIN_ID_DIGITS} or more digits of one key id in the policy, got {wanted[:64]!r}, which names"
            f" {found}: keys of root.json are rotated, see `modelfleet keys status` for the ids"
        )
    draft.set_policy(approvers=policy.approvers, **{name: getattr(policy, name) for name in POLICY_ROLES.values()})


class _Maker:
    """Finds the new keys of a role, or makes them as files."""

    def __init__(self, paths: CeremonyResult, secrets: Secrets, new_passphrase: NewPassphrase) -> None:
        self._paths, self._secrets, self._new_passphrase = paths, secrets, new_passphrase

    def keys(self, role: str, given: Sequence[str], count: int) -> list[tuple[str, PublicKey]]:
        """Return URI and public half of the given keys, or of `count` new files."""
        if given:
            return [(uri, self._public(uri, self._secrets)) for uri in given]
        return [self._make(role) for _ in range(count)]

    def key_id(self, book: KeyBook, uri: str) -> str:
        """Return the id of a key of the book; only where the book does not know is the key opened."""
        return book.ids.get(uri) or key_id(self._public(uri, self._secrets))

    def _make(self, role: str) -> tuple[str, PublicKey]:
        first = 1 if role in OFFLINE_ROLES else 2  # the first key of the others bears no number
        uri = next(uri for n in itertools.count(first) if not self._path(uri := file_uri(role, n)).exists())
        secret = self._new_passphrase(resolved(uri, self._paths.data_dir)) if role in OFFLINE_ROLES else None
        make_key(resolved(uri, self._paths.data_dir), secret)
        return uri, self._public(uri, self._secrets if secret is None else lambda _uri: secret)

    def _public(self, uri: str, secrets: Secrets) -> PublicKey:
        return public_key(resolved(uri, self._paths.data_dir), secrets)

    def _path(self, uri: str) -> Path:
        return Path(resolved(uri, self._paths.data_dir).removeprefix("file:"))
