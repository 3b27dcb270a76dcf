"""How errors leave over HTTP: application/problem+json (RFC 9457), from one table error class -> status.

A message in the table's classes is written for the caller and goes out; anything else becomes a bare 500 whose cause is
only in the server's log. `rollout` adds its own rows before the app is assembled.
"""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from modelfleet.benchmarks.errors import GoldenSetError
from modelfleet.converters.errors import ConvertersError, ScanError
from modelfleet.policies.errors import PolicyError
from modelfleet.registry import errors
from modelfleet.signer.errors import SignatureError, SignerUnavailableError, UntrustedError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """How one class of error is told; `detail` replaces the error's own message where that is not for the caller."""

    status: int
    title: str
    detail: str | None = None


_PROBLEMS: dict[type[Exception], Problem] = {
    errors.BadInputError: Problem(status=422, title="Not acceptable as sent"),
    errors.PublishError: Problem(status=422, title="Not publishable"),
    errors.CardError: Problem(status=422, title="The model card is not complete"),
    errors.ConflictError: Problem(status=409, title="Exists already"),
    errors.VersionConflictError: Problem(status=409, title="The version exists with other bytes"),
    errors.CancelledError: Problem(status=409, title="Given up meanwhile"),
    errors.NotFoundError: Problem(status=404, title="Not found"),
    errors.UploadTooLargeError: Problem(status=413, title="Too large"),
    errors.UnauthenticatedError: Problem(status=401, title="No valid credential"),
    errors.ForbiddenError: Problem(status=403, title="Not allowed"),
    errors.ClaimTokenError: Problem(status=403, title="The claim token is not valid"),
    errors.TooManyTokensError: Problem(status=429, title="Too many device tokens"),
    errors.FleetCaError: Problem(
        status=503, title="The fleet CA is not there", detail="the cause is in the server's log"
    ),
    errors.AuditError: Problem(status=500, title="The audit log is not what was signed"),
    errors.StoreError: Problem(status=503, title="The blob store did not answer"),
    errors.KekError: Problem(
        status=503,
        title="The key-encryption key did not open",
        detail="the operator finds the cause in the server's log",
    ),
    errors.StoreFullError: Problem(status=507, title="No space left"),
    ConvertersError: Problem(status=422, title="Not convertible"),
    ScanError: Problem(status=422, title="The model is not acceptable"),
    GoldenSetError: Problem(status=422, title="The golden set is not acceptable"),
    PolicyError: Problem(status=422, title="Not allowed by policy"),
    UntrustedError: Problem(status=422, title="Not trusted"),
    SignatureError: Problem(status=403, title="Not signed by a key that may sign this"),
    SignerUnavailableError: Problem(status=503, title="The signer did not answer"),
    OperationalError: Problem(status=503, title="The database did not answer", detail="retry in a moment"),
}


def add_problem(kind: type[Exception], status: int, title: str, *, detail: str | None = None) -> None:
    """Add the row of one error class (its subclasses share it, unless they have their own); before `install`."""
    _PROBLEMS[kind] = Problem(status=status, title=title, detail=detail)


def install(app: FastAPI) -> None:
    """Have `app` answer every error as problem+json, and never with a traceback."""
    for kind in _PROBLEMS:
        app.add_exception_handler(kind, _answer_known)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_unknown)


def problem_of(error: Exception) -> Problem:
    """Return the row of the error's nearest class (500 where there is none)."""
    for kind in type(error).__mro__:
        if kind in _PROBLEMS:
            return _PROBLEMS[kind]
    return Problem(status=500, title="Internal error", detail="the cause is in the server's log")


def _answer_known(_request: Request, error: Exception) -> JSONResponse:
    problem = problem_of(error)
    if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("answered %d", problem.status, exc_info=error)
    found = _faults(error)
    kind = _kind(error)
    if isinstance(error, UntrustedError):
        kind = f"untrusted:{kind}"  # a client ends with its own exit status on these
    return _response(kind, problem.status, problem.title, problem.detail or str(error), found)


def _faults(error: Exception) -> Sequence[str]:
    """Return every single fault that the error lists: the policies' errors call them problems or reasons."""
    for name in ("errors", "problems", "reasons"):
        found: object = getattr(error, name, None)
        if isinstance(found, tuple):
            return [str(fault) for fault in cast("tuple[object, ...]", found)]
    return ()


def _answer_invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = [f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()]
    return _response("invalid-request", 422, "The request is not valid", "; ".join(found), found)


def _answer_http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    title = HTTPStatus(error.status_code).phrase
    return _response("http", error.status_code, title, str(error.detail), headers=dict(error.headers or {}))


def _answer_unknown(_request: Request, error: Exception) -> JSONResponse:
    problem = problem_of(error)
    return _response("internal", problem.status, problem.title, problem.detail or "")


class _ProblemResponse(JSONResponse):
    media_type = "application/problem+json"

    def render(self, content: object) -> bytes:
        """Return ASCII: a message may quote half of a surrogate pair out of a body, which UTF-8 has no bytes for."""
        return json.dumps(content).encode("ascii")


def _response(
    kind: str,
    status: int,
    title: str,
    detail: str,
    found: Sequence[str] = (),
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    content: dict[str, object] = {"type": f"urn:modelfleet:problem:{kind}", "title": title, "status": status}
    content["detail"] = detail
    if found:
        content["errors"] = list(found)
    headers = {"WWW-Authenticate": "Bearer"} if status == HTTPStatus.UNAUTHORIZED else headers
    return _ProblemResponse(content, status, headers=headers)


def _kind(error: Exception) -> str:
    name = type(error).__name__.removesuffix("Error")
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()
