"""HTTP routes of bundles: one is signed, recorded and streamed; reports that came back on a medium are taken in."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, cast

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from modelfleet.agent_client.protocol import parse_device_topic
from modelfleet.policies.errors import OfflineRefusedError
from modelfleet.policies.offline import MAX_DEVICES, MAX_VALIDITY
from modelfleet.policies.roles import Permission
from modelfleet.registry import audit
from modelfleet.registry.auth import UserIdentity, registry_of, require
from modelfleet.registry.problems import add_problem
from modelfleet.registry.small_body import Body
from modelfleet.rollout.bundles.archive import write_archive
from modelfleet.rollout.bundles.making import BundleRequest, prepare
from modelfleet.rollout.controller import Controller
from modelfleet.rollout.routes import BoundedBodyRoute
from modelfleet.signer.dsse import MAX_ENVELOPE_BYTES

MAX_REPORTS = 200

add_problem(OfflineRefusedError, 422, "Not allowed in a bundle")

router = APIRouter(prefix="/v1/bundles", tags=["bundles"], route_class=BoundedBodyRoute)

Maker = Annotated[UserIdentity, Depends(require(Permission.BUNDLES_WRITE))]


class NewBundle(Body):
    """A bundle to make: for some devices, or for all of a group."""

    devices: list[Annotated[str, Field(max_length=64)]] = Field(default=[], max_length=MAX_DEVICES)
    group: str | None = Field(default=None, max_length=64)
    valid_for_seconds: int = Field(ge=1, le=int(timedelta(days=3650).total_seconds()))


class CarriedReport(Body):
    """A report as the device would have published it."""

    topic: str = Field(max_length=256)
    payload: str = Field(max_length=2 * MAX_ENVELOPE_BYTES)


class CarriedReports(Body):
    """Reports that came on a medium, oldest first."""

    messages: list[CarriedReport] = Field(max_length=MAX_REPORTS)


class ReportsTaken(BaseModel):
    """How many reports were taken; `unsigned` says nobody's name, `refused` broke another rule."""

    accepted: int
    unsigned: int
    refused: int


@router.post("", response_class=StreamingResponse)
def make_bundle(request: Request, user: Maker, asked: NewBundle) -> StreamingResponse:
    """Make a bundle for devices without a network, and answer its archive; the longer freeze window is recorded."""
    controller = _controller(request)
    valid_for = timedelta(seconds=min(asked.valid_for_seconds, MAX_VALIDITY.total_seconds() + 1))
    wanted = BundleRequest(devices=tuple(dict.fromkeys(asked.devices)), group=asked.group, valid_for=valid_for)
    made = prepare(controller.direction, wanted, actor=user.name, now=datetime.now(UTC))
    controller.dispatch()
    headers = {"Content-Length": str(made.archive_length), "Cache-Control": "no-store"}
    archive = write_archive(made, registry_of(request).store)
    return StreamingResponse(archive, media_type="application/x-tar", headers=headers)


@router.post("/reports")
def take_reports(request: Request, user: Maker, sent: CarriedReports) -> ReportsTaken:
    """Take in reports that devices have signed; whoever carries the medium can add none of their own."""
    controller, now = _controller(request), datetime.now(UTC)
    signed = [(each.topic, each.payload.encode()) for each in sent.messages if _is_signed_report(each)]
    accepted = controller.ingest.accept(signed, now)
    unsigned = len(sent.messages) - len(signed)
    registry = registry_of(request)
    with registry.sessions.begin() as session:
        audit.append(
            session,
            tenant=registry.tenant,
            actor=user.name,
            action="bundle.import-reports",
            subject="bundle/reports",
            detail={"accepted": accepted, "unsigned": unsigned, "refused": len(signed) - accepted},
            now=now,
        )
    return ReportsTaken(accepted=accepted, unsigned=unsigned, refused=len(signed) - accepted)


def _is_signed_report(message: CarriedReport) -> bool:
    topic = parse_device_topic(message.topic)
    return topic is not None and topic.kind == "report" and '"payloadType"' in message.payload


def _controller(request: Request) -> Controller:
    return cast("Controller", request.app.state.controller)
