import pytest

from modelfleet.policies.roles import ROLES, Permission, Role, allowed


@pytest.mark.parametrize("permission", Permission)
@pytest.mark.parametrize("role", ["", "root", "ADMIN", "admin ", "owner"])
def test_an_unknown_role_has_no_permission(role: str, permission: Permission) -> None:
    assert not allowed(role, permission)


def test_every_role_is_listed() -> None:
    assert set(ROLES) == set(Role)


def test_every_permission_is_somebodys() -> None:
    assert set().union(*ROLES.values()) == set(Permission)


@pytest.mark.parametrize(
    ("role", "writes"),
    [
        (Role.VIEWER, set()),
        (Role.PUBLISHER, {Permission.VERSIONS_PUBLISH}),
        (Role.APPROVER, {Permission.ROLLOUTS_APPROVE}),
        (Role.RELEASER, {Permission.ROLLOUTS_WRITE, Permission.ROLLOUTS_CONTROL, Permission.BUNDLES_WRITE}),
    ],
)
def test_a_role_changes_only_what_it_is_for(role: Role, writes: set[Permission]) -> None:
    assert {permission for permission in ROLES[role] if not permission.endswith(".read")} == writes


def test_who_drafts_does_not_approve() -> None:
    assert not any(
        {Permission.ROLLOUTS_WRITE, Permission.ROLLOUTS_APPROVE} <= ROLES[role]
        for role in Role
        if role is not Role.ADMIN
    )


def test_only_the_administrator_makes_users_groups_and_claim_tokens() -> None:
    for permission in (Permission.USERS_WRITE, Permission.GROUPS_WRITE, Permission.CLAIM_TOKENS_WRITE):
        assert [role for role in Role if allowed(role, permission)] == [Role.ADMIN]


def test_a_publisher_sees_versions_and_nothing_of_the_fleet() -> None:
    assert allowed("publisher", Permission.VERSIONS_READ)
    assert not allowed("publisher", Permission.DEVICES_READ)
    assert not allowed("publisher", Permission.AUDIT_READ)
