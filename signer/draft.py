"""A tenant's trust as it is to become: edit it role by role, then `finish` it into a change that waits for signatures."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

import msgspec

from modelfleet.signer.change import Change, check_change
from modelfleet.signer.errors import FormatError, PlanError
from modelfleet.signer.key_book import CeremonyResult, KeyBook, read_book
from modelfleet.signer.keys import key_id, to_sslib
from modelfleet.signer.metadata import Metadata, Root, TargetFile, Targets, next_version, parse_metadata
from modelfleet.signer.statements import POLICY_PATH, Approver, PublicKey, TrustPolicy
from modelfleet.signer.trust import ROOT_LIFE, TARGETS_LIFE, PolicyChain, parse_policy

POLICY_ROLES: Mapping[str, str] = {"director": "directors", "publisher": "publishers", "gate": "gates"}
"""Role -> the field of the trust policy that names its keys."""


class Draft:
    """The published state of a tenant, being changed.

    Attributes:
        root, targets, policy, book: as they are to become.
        remove: targets to drop from the bins when these are signed anew.
    """

    def __init__(self, paths: CeremonyResult, chain: PolicyChain) -> None:
        self._tenant, self._chain = paths.tenant, chain
        self.root: Root = parse_metadata(chain.roots[-1], Root).signed
        self.targets: Targets = parse_metadata(chain.targets, Targets).signed
        self.policy: TrustPolicy = parse_policy(chain.policy, tenant=paths.tenant)
        self.book: KeyBook = read_book(paths.data_dir)
        self.remove: tuple[str, ...] = ()
        self._renewed: set[str] = set()

    def replace_top_level(self, role: str, old: list[str], new: list[PublicKey], threshold: int) -> None:
        """Let `new` sign for a role of root.json in place of the key ids `old`.

        Raises:
            PlanError: fewer keys than `threshold`.
        """
        for keyid in old:
            self.root.revoke_key(keyid, role)
        for key in new:
            self.root.add_key(to_sslib(key), role)
        count = len(self.root.roles[role].keyids)
        if not 1 <= threshold <= count:
            raise PlanError(f"{role}: expected a threshold of 1 to {count}, the number of keys, got {threshold}")
        self.root.roles[role].threshold = threshold
        self._renewed.add(Root.type)
        if role == Targets.type:
            self._renewed.add(Targets.type)

    def replace_releases(self, new: PublicKey, remove: tuple[str, ...]) -> None:
        """Delegate every bin to `new` alone; `remove` are targets that the bins shall no longer name."""
        delegations = self.targets.delegations
        if delegations is None or delegations.succinct_roles is None:
            raise FormatError("expected targets.json to delegate hash bins, it does not")
        key = to_sslib(new)
        for keyid in list(delegations.succinct_roles.keyids):
            self.targets.revoke_key(keyid)
        self.targets.add_key(key)
        self.remove = remove
        self._renewed.add(Targets.type)

    def replace_policy_key(self, role: str, new: PublicKey, *, overlap: bool, person: str = "") -> None:
        """Let `new` act in a role of the policy, in place of the present keys, or beside them where they `overlap`."""
        added = {key_id(new): new}
        if role == "approver":
            kept = {keyid: found for keyid, found in self.policy.approvers.items() if overlap or found.person != person}
            self.set_policy(approvers=kept | {keyid: Approver(person=person, key=new) for keyid in added})
        else:
            field = POLICY_ROLES[role]
            present: dict[str, PublicKey] = getattr(self.policy, field) if overlap else {}
            self.set_policy(**{field: present | added})

    def set_policy(self, **changes: object) -> None:
        """Change fields of the policy."""
        self.policy = msgspec.structs.replace(self.policy, **changes)
        self._renewed.add(Targets.type)

    def renew(self, role: str) -> None:
        """Sign root or targets anew, with nothing changed but version and expiry."""
        self._renewed.add(role)

    def finish(self, now: datetime) -> Change:
        """Return the change, unsigned; what did not change stays the published bytes.

        Raises:
            FormatError: the policy would be none. PlanError: nobody could act under it.
        """
        policy = encode_policy(self.policy)
        require_workable(parse_policy(policy, tenant=self._tenant))
        change = Change(
            tenant=self._tenant,
            before_root=self._chain.roots[-1],
            before_targets=self._chain.targets,
            before_policy=self._chain.policy,
            root=self._chain.roots[-1],
            targets=self._chain.targets,
            policy=self._chain.policy,
            remove=self.remove,
            book=self.book,
        )
        if Root.type in self._renewed:
            self.root.version = next_version(self.root.version)
            self.root.expires = after(now, ROOT_LIFE)
            change = msgspec.structs.replace(change, root=Metadata(self.root).to_bytes())
        if Targets.type in self._renewed:
            self.targets.version = next_version(self.targets.version)
            self.targets.expires = after(now, TARGETS_LIFE)
            self.targets.targets = {POLICY_PATH: TargetFile.from_data(POLICY_PATH, policy, ["sha256"])}
            change = msgspec.structs.replace(change, targets=Metadata(self.targets).to_bytes(), policy=policy)
        check_change(change)
        return change


def policy_change(
    paths: CeremonyResult, chain: PolicyChain, change: Callable[[TrustPolicy], TrustPolicy], now: datetime
) -> Change:
    """Return the change, unsigned, that replaces the policy by what `change` makes of it."""
    draft = Draft(paths, chain)
    draft.policy = change(draft.policy)
    draft.renew(Targets.type)
    return draft.finish(now)


def require_workable(policy: TrustPolicy) -> None:
    """Refuse a policy that would lock every device out.

    Raises:
        PlanError: fewer approvers than approvals required, or nobody in a role.
    """
    persons = {approver.person for approver in policy.approvers.values()}
    if policy.approvals_required > len(persons):
        raise PlanError(
            f"the policy requires {policy.approvals_required} approvals and would name {len(persons)} approvers:"
            " rotate the key instead of revoking it, or name another approver first"
        )
    for role, field in POLICY_ROLES.items():
        if not getattr(policy, field):
            raise PlanError(f"the policy would name no {role}: rotate the key instead of revoking it")


def encode_policy(policy: TrustPolicy) -> bytes:
    """Return the bytes of `trust/policy.json`: JSON, fields as declared, keys of maps sorted."""
    return msgspec.json.encode(policy, order="deterministic")


def after(now: datetime, life: timedelta) -> datetime:
    """Return when something signed now expires, in whole seconds as TUF has it."""
    return (now + life).replace(microsecond=0)
