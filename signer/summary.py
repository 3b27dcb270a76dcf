"""What a change of trust changes, in words: computed from the bytes by whoever is about to sign, never taken from a file."""

from collections.abc import Iterable, Iterator, Mapping

from modelfleet.signer.change import Change, State, check_change
from modelfleet.signer.draft import POLICY_ROLES, encode_policy
from modelfleet.signer.keys import Key
from modelfleet.signer.metadata import Root, Targets
from modelfleet.signer.statements import POLICY_PATH, TrustPolicy

ID_DIGITS = 64
"""All of them: a key with the same first digits can be searched for."""

TOLD = ("version", "expires")
TOLD_OF_BINS = ("keyids", "bit_length", "name_prefix", "threshold")
FILE = ("length", "hashes")


def describe_change(change: Change, *, trusted: bytes | None = None) -> list[str]:
    """Return one line per difference between what is published and what is to be.

    Args:
        trusted: as `check_change` takes it.

    Raises:
        UntrustedError: the change does not fit together.
    """
    before, after = check_change(change, trusted=trusted)
    lines = [f"tenant {change.tenant}"]
    if change.root != change.before_root:
        lines += _root_lines(before.root, after.root)
    if change.targets != change.before_targets:
        lines += _targets_lines(before.targets, after.targets)
        lines += _policy_lines(before.policy, after.policy)
        lines += _hidden(change, after)
    lines += [f"bins: no longer name {path}" for path in change.remove]
    return [_shown(line) for line in (lines if len(lines) > 1 else [*lines, "nothing changes"])]


def _shown(line: str) -> str:
    """Return the line in ASCII: a name in it can neither move the cursor over other lines nor look like another name."""
    return "".join(each if each.isascii() and each.isprintable() else ascii(each)[1:-1] for each in line)


def _root_lines(before: Root, after: Root) -> Iterator[str]:
    yield f"root: version {before.version} -> {after.version}, expires {after.expires:%Y-%m-%d}"
    for role in sorted({*before.roles, *after.roles}):
        old, new = before.roles.get(role), after.roles.get(role)
        if old is None or new is None:
            yield f"root: role {role} {'appears' if old is None else 'is gone'}"
            continue
        yield from _keys(role, old.keyids, new.keyids)
        if old.threshold != new.threshold:
            yield f"{role}: {new.threshold} of {len(new.keyids)} must sign (was {old.threshold} of {len(old.keyids)})"
    if before.consistent_snapshot != after.consistent_snapshot:
        yield f"root: consistent_snapshot becomes {after.consistent_snapshot}"
    if _rest_of_root(before) != _rest_of_root(after) or _rest_of_keys(before.keys) != _rest_of_keys(after.keys):
        yield "root: fields that are not shown here differ"


def _targets_lines(before: Targets, after: Targets) -> Iterator[str]:
    yield f"targets: version {before.version} -> {after.version}, expires {after.expires:%Y-%m-%d}"
    for path in sorted({*before.targets, *after.targets} - {POLICY_PATH}):
        if before.targets.get(path) != after.targets.get(path):
            yield f"targets: {path} {'is gone' if path not in after.targets else 'is named directly'}"
    old, new = _bins(before), _bins(after)
    yield from _keys("releases", old[0], new[0])
    if old[1:] != new[1:]:
        yield f"targets: the delegation of the bins changes from {old[1:]} to {new[1:]}"
    if _rest_of_targets(before) != _rest_of_targets(after) or _rest_of_keys(_keys_of(before)) != _rest_of_keys(
        _keys_of(after)
    ):
        yield "targets: fields that are not shown here differ"


def _policy_lines(before: TrustPolicy, after: TrustPolicy) -> Iterator[str]:
    for role, field in POLICY_ROLES.items():
        yield from _keys(role, getattr(before, field), getattr(after, field))
    people = {keyid: found.person for keyid, found in (before.approvers | after.approvers).items()}
    yield from _keys("approver", before.approvers, after.approvers, people)
    for keyid in sorted(before.approvers.keys() & after.approvers.keys()):
        if before.approvers[keyid].person != after.approvers[keyid].person:
            yield f"approver: key {keyid[:ID_DIGITS]} becomes {after.approvers[keyid].person}'s"
    for name in ("epoch", "approvals_required"):
        if getattr(before, name) != getattr(after, name):
            yield f"policy: {name} {getattr(before, name)} -> {getattr(after, name)}"
    for model in sorted({*before.minimum_counter, *after.minimum_counter}):
        old, new = before.minimum_counter.get(model, 0), after.minimum_counter.get(model, 0)
        if old != new:
            yield f"policy: least release counter of {model} {old} -> {new}"
    yield from (f"policy: revokes manifest {found}" for found in after.revoked if found not in before.revoked)
    yield from (f"policy: no longer revokes {found}" for found in before.revoked if found not in after.revoked)


def _keys(
    role: str, before: Iterable[str], after: Iterable[str], people: Mapping[str, str] | None = None
) -> Iterator[str]:
    def named(keyid: str) -> str:
        person = (people or {}).get(keyid)
        return f"{keyid[:ID_DIGITS]} of {person}" if person else keyid[:ID_DIGITS]

    old, new = set(before), set(after)
    yield from (f"{role}: key {named(keyid)} is added" for keyid in sorted(new - old))
    yield from (f"{role}: key {named(keyid)} is removed" for keyid in sorted(old - new))


def _hidden(change: Change, after: State) -> list[str]:
    """A field that this program does not know may mean something to a newer one."""
    known = encode_policy(after.policy) == change.policy
    return [] if known else ["policy: it holds fields that this program does not know"]


def _rest_of_root(root: Root) -> object:
    """What of it no line tells."""
    found = root.to_dict()
    for role in found["roles"].values():
        del role["keyids"], role["threshold"]
    return {name: value for name, value in found.items() if name not in (*TOLD, "keys", "consistent_snapshot")}


def _rest_of_targets(targets: Targets) -> object:
    found = targets.to_dict()
    delegations = {name: value for name, value in found.pop("delegations", {}).items() if name != "keys"}
    bins = delegations.get("succinct_roles", {})
    delegations["succinct_roles"] = {name: value for name, value in bins.items() if name not in TOLD_OF_BINS}
    target = {name: value for name, value in found["targets"].get(POLICY_PATH, {}).items() if name not in FILE}
    rest = {name: value for name, value in found.items() if name not in (*TOLD, "targets")}
    return rest, delegations, target


def _rest_of_keys(keys: Mapping[str, Key]) -> object:
    """Whatever keys say beside what their ids are made of."""
    return [key.unrecognized_fields for _, key in sorted(keys.items()) if key.unrecognized_fields]


def _keys_of(targets: Targets) -> Mapping[str, Key]:
    return targets.delegations.keys if targets.delegations else {}


def _bins(targets: Targets) -> tuple[list[str], int, str, int]:
    found = targets.delegations.succinct_roles if targets.delegations else None
    return (found.keyids, found.bit_length, found.name_prefix, found.threshold) if found else ([], 0, "", 0)
