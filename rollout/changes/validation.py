"""What VALIDATING checks: that a rollout can be what it says. It is checked when drafted, when changed, and again at its start.

Between a draft and its start may lie weeks: a version can be withdrawn, its manifest revoked, a group renamed. Devices refuse
what the trust policy revokes, so documents never name it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy.orm import Session

from modelfleet.registry import catalog
from modelfleet.registry.errors import ConflictError, NotFoundError
from modelfleet.rollout.errors import RolloutInputError
from modelfleet.rollout.tables import Rollout, RolloutProfile, SlotStable
from modelfleet.signer.errors import UntrustedError
from modelfleet.signer.names import NAME_PATTERN, require
from modelfleet.signer.statements import TrustPolicy


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What would be rolled out: profile -> release as documents name it, and profile -> why it is left out."""

    releases: Mapping[str, dict[str, Any]]
    skipped: Mapping[str, str]


def require_groups(session: Session, tenant: str, slot: str, groups: Sequence[str]) -> list[str]:
    """Return the groups by name, each once.

    Raises:
        RolloutInputError: there are none, or the slot is no name. NotFoundError: one of them does not exist.
    """
    found = sorted(set(groups))
    if not found:
        raise RolloutInputError("expected one group at least, got none: name groups with --group")
    try:
        require(slot, NAME_PATTERN, "slot")
    except UntrustedError as error:
        raise RolloutInputError(str(error)) from error
    for name in found:
        catalog.require_group(session, tenant, name)
    return found


def offer(
    session: Session, tenant: str, policy: TrustPolicy, model: str, version: str, slot: str, groups: Sequence[str]
) -> Offer:
    """Return what the groups' devices could be offered.

    Raises:
        NotFoundError: no such version. RolloutInputError: it is not READY, or there is nothing to roll out.
    """
    _require_ready(session, tenant, model, version)
    profiles = catalog.profiles_in(session, tenant, groups)
    if not profiles:
        raise RolloutInputError(f"no device is enrolled in {', '.join(groups)}: enrol devices first")
    releases: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    for profile in profiles:
        try:
            release = catalog.release_of(session, tenant, model, version, profile)
        except (NotFoundError, ConflictError) as error:
            skipped[profile] = str(error)
            continue
        named = msgspec.to_builtins(release)
        obstacle = revoked(named, policy) or _stable_already(session, tenant, slot, groups, profile, named)
        if obstacle is None:
            releases[profile] = named
        else:
            skipped[profile] = obstacle
    if not releases:
        why = "; ".join(f"{profile}: {reason}" for profile, reason in skipped.items())
        raise RolloutInputError(f"nothing to roll out: {why}")
    return Offer(releases=releases, skipped=skipped)


def require_still_valid(
    session: Session, policy: TrustPolicy, rollout: Rollout, rows: Sequence[RolloutProfile]
) -> None:
    """Refuse to start what could not be drafted any more.

    Raises:
        NotFoundError: the version or a group is gone. RolloutInputError: the version is no longer READY, a release is another
            one by now, is revoked or below the policy's minimum counter, or is stable everywhere already.
    """
    require_groups(session, rollout.tenant, rollout.slot, rollout.groups)
    _require_ready(session, rollout.tenant, rollout.model, rollout.version)
    for row in rows:
        obstacle = (
            _another_by_now(session, rollout, row)
            or revoked(row.release, policy)
            or _stable_already(session, rollout.tenant, rollout.slot, rollout.groups, row.profile, row.release)
        )
        if obstacle is not None:
            raise RolloutInputError(f"profile {row.profile}: {obstacle}: change the rollout, or cancel it")


def revoked(release: Mapping[str, Any], policy: TrustPolicy) -> str | None:
    """Return why devices refuse the release by the trust policy as it is now, or None."""
    if release["sha256"] in policy.revoked:
        return f"the trust policy revokes {release['sha256'][:12]}"
    least = policy.minimum_counter.get(release["model"], 0)
    if release["counter"] < least:
        return f"the trust policy asks for a release counter >= {least}, got {release['counter']}"
    return None


def _require_ready(session: Session, tenant: str, model: str, version: str) -> None:
    found = catalog.version_of(session, tenant, model, version)
    if found.state != catalog.READY:
        raise RolloutInputError(f"expected {model}@{version} READY, it is {found.state}")


def _another_by_now(session: Session, rollout: Rollout, row: RolloutProfile) -> str | None:
    try:
        found = catalog.release_of(session, rollout.tenant, rollout.model, rollout.version, row.profile)
    except (NotFoundError, ConflictError) as error:
        return str(error)
    if found.sha256 != row.release["sha256"]:
        return (
            f"expected the manifest {row.release['sha256'][:12]} that was approved, the version has {found.sha256[:12]}"
        )
    return None


def _stable_already(
    session: Session, tenant: str, slot: str, groups: Sequence[str], profile: str, release: Mapping[str, Any]
) -> str | None:
    stables = [session.get(SlotStable, (tenant, group, profile, slot)) for group in groups]
    if all(
        row is not None and row.release is not None and row.release["sha256"] == release["sha256"] for row in stables
    ):
        return f"{release['model']}@{release['version']} is stable there already"
    return None
