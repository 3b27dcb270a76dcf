"""The route of data images: whoever may write bundles asks, the signer decides."""

import base64
import json
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, status
from pydantic import BaseModel, Field

from modelfleet.policies.roles import Permission
from modelfleet.registry.auth import UserIdentity, registry_of, require
from modelfleet.registry.images import sign_image
from modelfleet.registry.problems import add_problem
from modelfleet.registry.small_body import Body, SmallBodyRoute
from modelfleet.signer.dsse import MAX_ENVELOPE_BYTES
from modelfleet.signer.errors import PlanError

MAX_APPROVALS = 16

add_problem(PlanError, 422, "There is no such data image")


class ImageBodyRoute(SmallBodyRoute):
    """A route whose body may hold the approvals of k persons."""

    max_body_bytes = MAX_APPROVALS * MAX_ENVELOPE_BYTES


router = APIRouter(prefix="/v1", tags=["images"], route_class=ImageBodyRoute)

Writer = Annotated[UserIdentity, Depends(require(Permission.BUNDLES_WRITE))]


class NewImage(Body):
    """A data image to sign: for which group, by whose approval (DSSE envelopes as objects), whether it may go back."""

    group: str = Field(max_length=64)
    approvals: list[dict[str, Any]] = Field(max_length=MAX_APPROVALS)
    downgrade: bool = False


class SignedImage(BaseModel):
    """The signed header in base64; after it comes the variant's file `weights.bin`."""

    header: str


@router.post("/variants/{model:path}/{version}/{profile}/image", status_code=status.HTTP_201_CREATED)
def create_image(
    request: Request, user: Writer, model: str, version: str, profile: str, asked: NewImage
) -> SignedImage:
    """Have the data image of a microcontroller's variant signed."""
    header = sign_image(
        registry_of(request),
        (model, version, profile),
        group=asked.group,
        approvals=[json.dumps(each).encode() for each in asked.approvals],
        downgrade=asked.downgrade,
        actor=user.name,
        now=datetime.now(UTC),
    )
    return SignedImage(header=base64.b64encode(header).decode())
