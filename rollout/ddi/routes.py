"""hawkBit's DDI v1, the operations that swupdate (suricatta) and rauc-hawkbit use; every route is of one device, by its token."""

from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from modelfleet.registry.auth import registry_of
from modelfleet.registry.routes_blobs import answer_blob
from modelfleet.registry.small_body import SmallBodyRoute
from modelfleet.rollout.ddi import actions, answers
from modelfleet.rollout.ddi.attributes import read_attributes, take_attributes
from modelfleet.rollout.ddi.errors import NoSuchActionError
from modelfleet.rollout.ddi.feedback import MAX_BODY_BYTES, read_feedback, take_cancel_feedback, take_feedback
from modelfleet.rollout.ddi.files import artifact_for, artifacts_for
from modelfleet.rollout.ddi.target import Target, current_target
from modelfleet.signer.metadata import etag_of

MAX_ID = 2**63 - 1
MD5_SUFFIX = ".MD5SUM"
PRIVATE = "private, no-cache"


class FeedbackBodyRoute(SmallBodyRoute):
    """A route whose body may hold what swupdate has logged."""

    max_body_bytes = MAX_BODY_BYTES


async def raw_body(request: Request) -> bytes:
    """Return the body as it came: clients send JSON that is not quite JSON."""
    return await request.body()


router = APIRouter(
    prefix="/{tenant}/controller/v1/{controller_id}", tags=["hawkbit-ddi"], route_class=FeedbackBodyRoute
)

CurrentTarget = Annotated[Target, Depends(current_target)]
RawBody = Annotated[bytes, Depends(raw_body)]


@router.get("")
def poll(request: Request, target: CurrentTarget) -> Response:
    """Answer when to poll next, and what there is to do."""
    found = actions.poll(registry_of(request), target.device, _now())
    body = msgspec.json.encode(answers.poll_answer(_base(request, target), found))
    etag = etag_of(body)
    headers = {"etag": etag, "cache-control": PRIVATE}
    if etag in [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


@router.get("/deploymentBase/{action_id}")
def deployment(request: Request, target: CurrentTarget, action_id: str) -> dict[str, Any]:
    """Answer what the action consists of; from here on the device has started."""
    found = actions.deployment(registry_of(request), target.device, _number(action_id), _now())
    return answers.deployment_answer(_base(request, target), found)


@router.post("/deploymentBase/{action_id}/feedback")
def deployment_feedback(request: Request, target: CurrentTarget, action_id: str, body: RawBody) -> Response:
    """Take how the device gets on with the action."""
    told = read_feedback(body)
    take_feedback(registry_of(request), target.device, _number(action_id), told, _now())
    return Response()


@router.get("/cancelAction/{action_id}")
def cancellation(request: Request, target: CurrentTarget, action_id: str) -> dict[str, Any]:
    """Answer which action to stop."""
    number = _number(action_id)
    actions.to_cancel(registry_of(request), target.device, number)
    return answers.cancel_answer(number)


@router.post("/cancelAction/{action_id}/feedback")
def cancellation_feedback(request: Request, target: CurrentTarget, action_id: str, body: RawBody) -> Response:
    """Take whether the device has stopped."""
    told = read_feedback(body)
    take_cancel_feedback(registry_of(request), target.device, _number(action_id), told, _now())
    return Response()


@router.put("/configData")
def config_data(request: Request, target: CurrentTarget, body: RawBody) -> Response:
    """Keep what the device says of itself."""
    take_attributes(registry_of(request), target.device, read_attributes(body), _now())
    return Response()


@router.get("/softwaremodules/{module_id}/artifacts")
def artifacts(request: Request, target: CurrentTarget, module_id: str) -> list[dict[str, Any]]:
    """List the artifacts of what the device is to install."""
    number = _number(module_id)
    found = artifacts_for(registry_of(request), target.device, number)
    return answers.artifacts_answer(_base(request, target), number, found)


@router.get("/softwaremodules/{module_id}/artifacts/{filename}")
def download(request: Request, target: CurrentTarget, module_id: str, filename: str) -> Response:
    """Answer the bytes, or the asked ranges of them; with `.MD5SUM` at the end, the digest as md5sum writes it."""
    registry, number, now = registry_of(request), _number(module_id), _now()
    if filename.endswith(MD5_SUFFIX):
        found = artifact_for(registry, target.device, number, filename.removesuffix(MD5_SUFFIX))
        return Response(f"{found['md5']}  {found['filename']}", media_type="text/plain")
    found = artifact_for(registry, target.device, number, filename, fetched_at=now)
    return answer_blob(request, found["sha256"])


def _number(text: str) -> int:
    """Return an id out of a path (NoSuchActionError: it cannot be one)."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 19 or int(text) > MAX_ID:
        raise NoSuchActionError(f"expected the number of an action or module, got {text[:40]!r}")
    return int(text)


def _base(request: Request, target: Target) -> str:
    public = registry_of(request).public_url.rstrip("/")
    return f"{public}/{quote(target.tenant)}/controller/v1/{quote(target.controller_id, safe='')}"


def _now() -> datetime:
    return datetime.now(UTC)
