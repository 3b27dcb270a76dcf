import json
import uuid
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from sqlalchemy import update

from modelfleet.policies.roles import ROLES, Permission, Role
from modelfleet.registry import routes
from modelfleet.registry.auth import (
    PUBLIC_PATHS,
    Requires,
    api_routes,
    authenticates_device,
    declared,
    device_of_token,
    undeclared_routes,
    user_of_token,
)
from modelfleet.registry.errors import UnauthenticatedError
from modelfleet.registry.replay import ReplayCache
from modelfleet.registry.tables import Device, DeviceCertificate, Tenant, User

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())
DEVICE = str(uuid.UUID(int=1))

ROUTES = list(api_routes(routes.router.routes))


def pem(key: ec.EllipticCurvePrivateKey) -> str:
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, spki).decode()


def add_device(fleet, device: str = DEVICE, **changed) -> None:
    row = Device(
        id=device,
        tenant="acme",
        group="line",
        profile="linux-cpu-float",
        public_key=pem(KEY),
        key_sha256=device,
        claim_sha256="-",
        facts={},
        agent_version="1",
        enrolled_at=NOW,
    )
    for name, value in changed.items():
        setattr(row, name, value)
    with fleet.sessions.begin() as session:
        session.add(row)
        session.flush()
        session.add(certificate_of(row))


def certificate_of(row: Device, **changed) -> DeviceCertificate:
    found = {
        "serial": uuid.uuid4().hex,
        "tenant": row.tenant,
        "device": row.id,
        "key_sha256": row.key_sha256,
        "public_key": row.public_key,
        "certificate": "",
        "issued_at": NOW,
        "expires_at": NOW + timedelta(days=3650),
    }
    return DeviceCertificate(**{**found, **changed})


def token(key=KEY, algorithm: str = "ES256", *, drop: tuple[str, ...] = (), **changed) -> str:
    at = int(NOW.timestamp())
    claims = {"iss": DEVICE, "sub": DEVICE, "aud": "modelfleet", "iat": at, "exp": at + 300, "jti": "1", **changed}
    payload = json.dumps({name: value for name, value in claims.items() if name not in drop})
    return jwt.PyJWS().encode(payload.encode(), key, algorithm)  # below PyJWT's own checks, as a hostile device would


def accepted(fleet, text: str, now: datetime = NOW) -> str:
    with fleet.sessions() as session:
        return device_of_token(session, "acme", text, now).device


def test_a_devices_own_token_is_accepted(fleet) -> None:
    add_device(fleet)
    assert accepted(fleet, token()) == DEVICE


@pytest.mark.parametrize("seconds", [-30, 0, 299, 330])
def test_a_token_is_accepted_within_its_time_and_thirty_seconds_of_leeway(fleet, seconds: int) -> None:
    add_device(fleet)
    assert accepted(fleet, token(), NOW + timedelta(seconds=seconds)) == DEVICE


@pytest.mark.parametrize("seconds", [-31, 331, 86400])
def test_a_token_is_refused_outside_its_time(fleet, seconds: int) -> None:
    add_device(fleet)
    with pytest.raises(UnauthenticatedError, match="check the device's clock"):
        accepted(fleet, token(), NOW + timedelta(seconds=seconds))


@pytest.mark.parametrize("claim", ["iss", "sub", "aud", "iat", "exp", "jti"])
def test_a_token_without_one_of_its_claims_is_refused(fleet, claim: str) -> None:
    add_device(fleet)
    with pytest.raises(UnauthenticatedError):
        accepted(fleet, token(drop=(claim,)))


AT = int(NOW.timestamp())


@pytest.mark.parametrize(
    "changed",
    [
        {"aud": "another-service"},
        {"aud": []},
        {"iss": str(uuid.UUID(int=2))},
        {"sub": str(uuid.UUID(int=2)), "iss": str(uuid.UUID(int=2))},
        {"sub": "admin", "iss": "admin"},
        {"sub": None, "iss": None},
        {"exp": AT + 301},
        {"exp": AT},
        {"exp": float(AT + 10)},
        {"exp": "soon"},
        {"iat": str(AT)},
        {"iat": float("inf")},
        {"iat": True},
        {"jti": 7},
        {"jti": None},
    ],
    ids=str,
)
def test_a_token_with_wrong_claims_is_refused(fleet, changed: dict) -> None:
    add_device(fleet)
    with pytest.raises(UnauthenticatedError):
        accepted(fleet, token(**changed))


def test_a_token_under_another_key_is_refused(fleet) -> None:
    add_device(fleet)
    with pytest.raises(UnauthenticatedError, match="not acceptable"):
        accepted(fleet, token(OTHER_KEY))


@pytest.mark.parametrize("algorithm", ["none", "HS256", "RS256", "ES384"])
def test_a_token_of_another_algorithm_is_refused(fleet, algorithm: str) -> None:
    add_device(fleet)
    keys = {
        "none": None,
        "HS256": "k" * 32,
        "RS256": rsa.generate_private_key(65537, 2048),
        "ES384": ec.generate_private_key(ec.SECP384R1()),
    }
    with pytest.raises(UnauthenticatedError):
        accepted(fleet, token(keys[algorithm], algorithm))


@pytest.mark.parametrize("text", ["", "a.b.c", "x" * 100_000, "eyJhbGciOiJFUzI1NiJ9.bnVsbA.", "é.é.é"])
def test_what_is_no_token_is_refused(fleet, text: str) -> None:
    add_device(fleet)
    with pytest.raises(UnauthenticatedError):
        accepted(fleet, text)


def test_a_revoked_device_is_refused(fleet) -> None:
    add_device(fleet, revoked_at=NOW)
    with pytest.raises(UnauthenticatedError, match="revoked"):
        accepted(fleet, token())


def test_another_tenants_device_is_refused(fleet) -> None:
    with fleet.sessions.begin() as session:
        session.add(Tenant(name="other", created_at=NOW))
    add_device(fleet, tenant="other")
    with pytest.raises(UnauthenticatedError):
        accepted(fleet, token())


def test_the_broker_accepts_a_device_only_under_its_own_name(fleet) -> None:
    other = str(uuid.UUID(int=2))
    add_device(fleet)
    add_device(fleet, other, public_key=pem(OTHER_KEY))

    def answers(device: str, text: str, tenant: str = "acme") -> bool:
        return authenticates_device(fleet.sessions, tenant, ReplayCache(), device, text, NOW)

    assert answers(DEVICE, token())
    assert not answers(other, token())
    assert not answers(DEVICE, token(OTHER_KEY))
    assert not answers(str(uuid.UUID(int=3)), token())
    assert not answers(DEVICE, "")
    assert not answers(DEVICE, token(), tenant="beta")  # tenants may share the database


def test_a_users_token_is_known_by_its_hash_only(fleet) -> None:
    with fleet.sessions() as session:
        assert user_of_token(session, "acme", fleet.tokens["viewer"]).role == "viewer"
        stored = {row.token_sha256 for row in session.query(User)}
        assert not stored & set(fleet.tokens.values())
        with pytest.raises(UnauthenticatedError):
            user_of_token(session, "other", fleet.tokens["viewer"])


def test_a_disabled_user_is_refused(fleet) -> None:
    with fleet.sessions.begin() as session:
        session.execute(update(User).where(User.name == "admin").values(disabled_at=NOW))
    assert fleet.as_("admin").get("/v1/groups").status_code == 401


def test_the_answer_to_no_credential_says_how_to_authenticate(fleet) -> None:
    answer = fleet.anonymous.get("/v1/versions")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["type"] == "urn:modelfleet:problem:unauthenticated"


def test_every_route_declares_who_may_call_it_or_is_public(fleet) -> None:
    assert len(ROUTES) > 12
    assert undeclared_routes(fleet.app) == []
    assert {route.path for route in ROUTES if not declared(route)} <= PUBLIC_PATHS


def test_a_route_that_declares_nothing_is_found(fleet) -> None:
    @fleet.app.get("/v1/forgotten")
    def forgotten() -> None: ...

    assert undeclared_routes(fleet.app) == ["/v1/forgotten"]


def url_of(path: str) -> str:
    values = {"{sha256}": "0" * 64, "{model:path}": "m", "{version}": "1.0.0"}
    for name, value in values.items():
        path = path.replace(name, value)
    return path


@pytest.mark.parametrize("role", [*Role])
def test_every_route_is_denied_to_every_role_without_its_permission(fleet, role: Role) -> None:
    client, seen = fleet.as_(role), 0
    for route in ROUTES:
        for needed in [call for call in declared(route) if isinstance(call, Requires)]:
            for method in route.methods:
                status = client.request(method, url_of(route.path)).status_code
                seen += 1
                if needed.permission in ROLES[role]:
                    assert status not in (401, 403), (role, method, route.path)
                else:
                    assert status == 403, (role, method, route.path)
    assert seen > 10


@pytest.mark.parametrize("credential", [None, "Bearer mf_unknown", "Basic YTpi", "Bearer", "Bearer a.b.c"])
def test_every_route_that_is_not_public_is_denied_without_a_credential(fleet, credential: str | None) -> None:
    headers = {} if credential is None else {"Authorization": credential}
    for route in ROUTES:
        if route.path not in PUBLIC_PATHS:
            for method in route.methods:
                answer = fleet.anonymous.request(method, url_of(route.path), headers=headers)
                assert answer.status_code == 401, (method, route.path)


def test_a_device_may_read_blobs_and_nothing_else(fleet) -> None:
    add_device(fleet)
    at = int(datetime.now(UTC).timestamp())
    headers = {"Authorization": f"Bearer {token(iat=at, exp=at + 60)}"}
    sha256 = fleet.registry.store.put(b"weights")
    assert fleet.anonymous.get(f"/v1/blobs/{sha256}", headers=headers).content == b"weights"
    for route in ROUTES:
        if any(isinstance(call, Requires) for call in declared(route)):
            for method in route.methods:
                assert fleet.anonymous.request(method, url_of(route.path), headers=headers).status_code == 401


def test_whoever_has_a_token_may_ask_who_it_is(fleet) -> None:
    assert fleet.as_("viewer").get("/v1/whoami").json() == {"name": "viewer", "role": "viewer", "tenant": "acme"}


def test_a_user_who_may_not_read_versions_may_not_read_blobs(fleet) -> None:
    sha256 = fleet.registry.store.put(b"weights")
    for role, permissions in ROLES.items():
        expected = 200 if Permission.VERSIONS_READ in permissions else 403
        assert fleet.as_(role).get(f"/v1/blobs/{sha256}").status_code == expected
