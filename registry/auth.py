"""Who is asking: people and CI by API token, devices by a short JWT under their certificate's key. Default deny.

Every route that is not in `PUBLIC_PATHS` declares one of the dependencies below; `undeclared_routes` finds those that
do not, and the composition root refuses to start with one. Of an API token only the SHA-256 is stored.
"""

import hashlib
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, cast

import jwt
from fastapi import Depends, FastAPI, Request
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker
from starlette.routing import BaseRoute

from modelfleet.policies.roles import Permission, allowed
from modelfleet.registry.certificates import confirm, valid
from modelfleet.registry.context import Registry
from modelfleet.registry.errors import ForbiddenError, TooManyTokensError, UnauthenticatedError
from modelfleet.registry.replay import ReplayCache
from modelfleet.registry.tables import Device, DeviceCertificate, User

TOKEN_PREFIX = "mf_"  # noqa: S105
AUDIENCE = "modelfleet"
MAX_TOKEN_SECONDS = 300
LEEWAY_SECONDS = 30
REMEMBER_SECONDS = MAX_TOKEN_SECONDS + 2 * LEEWAY_SECONDS
PUBLIC_PATHS = frozenset(
    {
        "/v1/healthz",
        "/v1/enroll",
        "/v1/ca/certificate",
        "/v1/ca/crl",
        "/tuf/{tenant}/metadata/{file}",
        "/tuf/{tenant}/targets/{path:path}",
    }
)
"""Routes without a credential: enrolment has its claim token in the body; TUF files, CA certificate and CRL are signed."""

_DEVICE_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_CLAIMS = ("iss", "sub", "aud", "iat", "exp", "jti")
_bearer = HTTPBearer(auto_error=False, description="An API token (`mf_...`), or a device's ES256 JWT of at most 300 s.")
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


@dataclass(frozen=True, kw_only=True)
class UserIdentity:
    """A person or CI job whose token was valid."""

    name: str
    role: str
    tenant: str


@dataclass(frozen=True, kw_only=True)
class DeviceIdentity:
    """A device whose JWT was valid; `device` is its id, `serial` the certificate whose key signed it, `claims` what it says."""

    device: str
    tenant: str
    serial: str
    claims: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)


@dataclass(frozen=True)
class Requires:
    """A dependency: the user whose token came with the request, if that user's role has `permission`."""

    permission: Permission

    def __call__(self, request: Request, bearer: Bearer) -> UserIdentity:
        """Return the user (UnauthenticatedError, ForbiddenError)."""
        user = current_user(request, bearer)
        if not allowed(user.role, self.permission):
            raise ForbiddenError(f"role {user.role} of {user.name} does not have {self.permission}")
        return user


def require(permission: Permission) -> Requires:
    """Return the dependency that asks for `permission`."""
    return Requires(permission)


def current_user(request: Request, bearer: Bearer) -> UserIdentity:
    """Return the user whose API token came with the request; says nothing about permissions (see `require`).

    Raises:
        UnauthenticatedError: no token, an unknown one, another tenant's, or a disabled user's.
    """
    registry = registry_of(request)
    with registry.sessions() as session:
        return user_of_token(session, registry.tenant, _credentials(bearer))


def current_device(request: Request, bearer: Bearer) -> DeviceIdentity:
    """Return the device whose JWT came with the request (UnauthenticatedError: see `device_of_token`, or used before)."""
    registry = registry_of(request)
    return device_once(registry.sessions, registry.tenant, registry.replays, _credentials(bearer), datetime.now(UTC))


def user_or_device(request: Request, bearer: Bearer) -> UserIdentity | DeviceIdentity:
    """Return a device, or a user who may read versions: who may read blobs."""
    if _credentials(bearer).startswith(TOKEN_PREFIX):
        return Requires(Permission.VERSIONS_READ)(request, bearer)
    return current_device(request, bearer)


def registry_of(request: Request) -> Registry:
    """Return the registry that the composition root put on the app."""
    return cast("Registry", request.app.state.registry)


def make_token() -> tuple[str, str]:
    """Return a new API token, and the SHA-256 of it that is stored."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    return token, token_sha256(token)


def token_sha256(token: str) -> str:
    """Return what is stored of a token. It has 256 random bits, so a plain hash cannot be searched."""
    return hashlib.sha256(token.encode()).hexdigest()


def user_of_token(session: Session, tenant: str, token: str) -> UserIdentity:
    """Return the enabled user of `tenant` with this token (UnauthenticatedError: there is none)."""
    query = select(User).where(
        User.token_sha256 == token_sha256(token), User.tenant == tenant, User.disabled_at.is_(None)
    )
    user = session.scalars(query).one_or_none()
    if user is None:
        raise UnauthenticatedError("the API token is unknown or disabled")
    return UserIdentity(name=user.name, role=user.role, tenant=user.tenant)


def device_once(
    sessions: sessionmaker[Session], tenant: str, replays: ReplayCache, token: str, now: datetime
) -> DeviceIdentity:
    """Return the device that signed this JWT, which is used up by it; a new key's first token ends the old key.

    Raises:
        UnauthenticatedError: see `device_of_token`; or the token was used before.
        TooManyTokensError: the device signs more tokens than are remembered.
    """
    with sessions() as session:
        found = device_of_token(session, tenant, token, now)
        waiting = session.get_one(DeviceCertificate, found.serial).key_sha256
        confirmed = session.get_one(Device, found.device).key_sha256 == waiting
    replays.use(found.device, found.claims["jti"], now=now.timestamp(), remember_seconds=REMEMBER_SECONDS)
    if not confirmed:
        confirm(sessions, found.serial, now)
    return found


def device_of_token(session: Session, tenant: str, token: str, now: datetime) -> DeviceIdentity:
    """Return the device that signed this JWT (RFC 7523) with the key of one of its certificates; changes nothing.

    Raises:
        UnauthenticatedError: not ES256, a claim is missing, iss and sub are not one enrolled device of `tenant`,
            another audience, valid for over 300 s, expired or from the future (30 s of leeway), a wrong signature;
            or the device is revoked, or its certificate has expired.
    """
    device = session.get(Device, _claimed_device(token))
    if device is None or device.tenant != tenant:
        raise UnauthenticatedError("the device is unknown: enrol it with a claim token")
    if device.revoked_at is not None:
        raise UnauthenticatedError(
            "the device was revoked: to use it again, delete the agent's folder and enrol it anew"
        )
    certificates = valid(session, device.id, now)
    if not certificates:
        raise UnauthenticatedError(
            "the device's certificate has expired: enrol it again with a new claim token; it stays the same device"
        )
    claims, serial = _verified_claims(token, certificates)
    _require_fresh(claims, now.timestamp())
    return DeviceIdentity(device=device.id, tenant=device.tenant, serial=serial, claims=claims)


def require_csr_claim(identity: DeviceIdentity, csr: str) -> None:
    """Require that the token names the very certificate request that it came with: the device's key has asked for it.

    Raises:
        ForbiddenError: it names none or another: an overheard token gets nobody a certificate.
    """
    if identity.claims.get("csr") != hashlib.sha256(csr.encode()).hexdigest():
        raise ForbiddenError("expected a device token whose claim `csr` is the SHA-256 of the request, got another")


def authenticates_device(
    sessions: sessionmaker[Session], tenant: str, replays: ReplayCache, device: str, token: str, now: datetime
) -> bool:
    """Whether `token` is a valid, unused JWT of the tenant's device `device`: the broker's question at every connection."""
    try:
        identity = device_once(sessions, tenant, replays, token, now)
    except (UnauthenticatedError, TooManyTokensError):
        return False
    return identity.device == device


def undeclared_routes(app: FastAPI, others: Sequence[object] = ()) -> list[str]:
    """Return the paths of API routes that neither declare who may call them nor stand in `PUBLIC_PATHS`.

    Args:
        others: credential dependencies of other transports, which count as well.
    """
    routes = (route for route in api_routes(app.routes) if route.path not in PUBLIC_PATHS)
    return [route.path for route in routes if not declared(route, others)]


def declared(route: APIRoute, others: Sequence[object] = ()) -> list[object]:
    """Return the credential dependencies that the route itself declares."""
    calls = [dependency.call for dependency in route.dependant.dependencies]
    return [call for call in calls if isinstance(call, Requires) or call in (*_CREDENTIALS, *others)]


def api_routes(routes: Iterable[BaseRoute]) -> Iterator[APIRoute]:
    """Yield every API route, also those of included routers."""
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        else:
            yield from api_routes(getattr(getattr(route, "original_router", None), "routes", ()))


_CREDENTIALS: Sequence[object] = (current_user, current_device, user_or_device)


def _credentials(bearer: HTTPAuthorizationCredentials | None) -> str:
    if bearer is None:
        raise UnauthenticatedError("expected a bearer token (MODELFLEET_TOKEN, --token), got no Authorization header")
    return bearer.credentials


def _claimed_device(token: str) -> str:
    try:
        claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    except jwt.PyJWTError as error:
        raise UnauthenticatedError("the bearer token is neither an API token nor a JWT") from error
    device = claims.get("sub")
    if not isinstance(device, str) or _DEVICE_ID.fullmatch(device) is None or claims.get("iss") != device:
        raise UnauthenticatedError("expected iss and sub to be the same device id")
    return device


def _verified_claims(token: str, certificates: Sequence[DeviceCertificate]) -> tuple[dict[str, Any], str]:
    """Return the claims, and the serial of the certificate whose key signed them."""
    keys = {row.public_key: row.serial for row in reversed(certificates)}  # of one key's certificates the newest
    refusal: jwt.PyJWTError = jwt.InvalidSignatureError("no key")
    for key, serial in keys.items():
        try:
            return _claims_by(token, key), serial
        except jwt.InvalidSignatureError as error:
            refusal = error
        except jwt.PyJWTError as error:
            raise _unacceptable(error) from error
    raise _unacceptable(refusal) from refusal


def _unacceptable(error: jwt.PyJWTError) -> UnauthenticatedError:
    return UnauthenticatedError(f"the device token is not acceptable: {error}")


def _claims_by(token: str, key: str) -> dict[str, Any]:
    return jwt.decode(
        token,
        key,
        algorithms=["ES256"],
        audience=AUDIENCE,
        # exp and iat are judged by `_require_fresh`, with the caller's clock.
        options={"require": list(_CLAIMS), "verify_exp": False, "verify_iat": False, "verify_nbf": False},
    )


def _require_fresh(claims: dict[str, Any], now: float) -> None:
    issued, expires = claims["iat"], claims["exp"]
    if type(issued) is not int or type(expires) is not int or not isinstance(claims["jti"], str):
        raise UnauthenticatedError("expected integers in iat and exp, and text in jti")
    if not 0 < expires - issued <= MAX_TOKEN_SECONDS:
        raise UnauthenticatedError(f"expected a token valid for at most {MAX_TOKEN_SECONDS} s, got {expires - issued}")
    if expires < now - LEEWAY_SECONDS:
        raise UnauthenticatedError("the device token has expired: check the device's clock")
    if issued > now + LEEWAY_SECONDS:
        raise UnauthenticatedError("the device token comes from the future: check the device's clock")
