"""Who may do what: five roles, each a set of permissions. What is not written here is denied.

The role says what the *server* lets a credential ask for. It never replaces a signature: publishing also needs a
publisher's key, approving an approver's key, and an author's own approval does not count whatever the role.
"""

import enum
from collections.abc import Mapping


class Permission(enum.StrEnum):
    """One thing that a request can ask for; every HTTP route that is not public names one."""

    VERSIONS_READ = "versions.read"
    VERSIONS_PUBLISH = "versions.publish"
    DEVICES_READ = "devices.read"
    DEVICES_REVOKE = "devices.revoke"
    GROUPS_READ = "groups.read"
    GROUPS_WRITE = "groups.write"
    CLAIM_TOKENS_WRITE = "claim-tokens.write"
    JOBS_READ = "jobs.read"
    JOBS_WRITE = "jobs.write"
    USERS_READ = "users.read"
    USERS_WRITE = "users.write"
    AUDIT_READ = "audit.read"
    TRUST_READ = "trust.read"
    ROLLOUTS_READ = "rollouts.read"
    ROLLOUTS_WRITE = "rollouts.write"
    ROLLOUTS_APPROVE = "rollouts.approve"
    ROLLOUTS_CONTROL = "rollouts.control"
    BUNDLES_WRITE = "bundles.write"
    METRICS_READ = "metrics.read"
    WEBHOOKS_READ = "webhooks.read"
    WEBHOOKS_WRITE = "webhooks.write"


class Role(enum.StrEnum):
    """What a user is; exactly one per user."""

    ADMIN = "admin"
    RELEASER = "releaser"
    APPROVER = "approver"
    PUBLISHER = "publisher"
    VIEWER = "viewer"


_READ = frozenset(
    {
        Permission.VERSIONS_READ,
        Permission.DEVICES_READ,
        Permission.GROUPS_READ,
        Permission.AUDIT_READ,
        Permission.TRUST_READ,
        Permission.ROLLOUTS_READ,
        Permission.METRICS_READ,
    }
)

ROLES: Mapping[Role, frozenset[Permission]] = {
    Role.ADMIN: frozenset(Permission),
    Role.RELEASER: _READ | {Permission.ROLLOUTS_WRITE, Permission.ROLLOUTS_CONTROL, Permission.BUNDLES_WRITE},
    Role.APPROVER: _READ | {Permission.ROLLOUTS_APPROVE},
    Role.PUBLISHER: frozenset({Permission.VERSIONS_READ, Permission.VERSIONS_PUBLISH}),
    Role.VIEWER: _READ,
}


def allowed(role: str, permission: Permission) -> bool:
    """Whether `role` has `permission`; an unknown role has none."""
    try:
        return permission in ROLES[Role(role)]
    except (KeyError, ValueError):
        return False
