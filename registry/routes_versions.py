"""Routes of versions and variants: publish, list, show."""

import base64
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response, status
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from modelfleet.converters.report import POLICY, render
from modelfleet.policies.roles import Permission
from modelfleet.registry import catalog
from modelfleet.registry.auth import UserIdentity, registry_of, require
from modelfleet.registry.publish import publish
from modelfleet.registry.upload import Upload, receive_upload
from modelfleet.registry.version_report import report_of
from modelfleet.registry.views import VariantView, VersionDetail, VersionView, WaitingView
from modelfleet.registry.waiting import waiting_of

router = APIRouter(prefix="/v1", tags=["versions"])

Publisher = Annotated[UserIdentity, Depends(require(Permission.VERSIONS_PUBLISH))]
Reader = Annotated[UserIdentity, Depends(require(Permission.VERSIONS_READ))]

_PARTS = ("model", "card", "golden", "statement")
_MULTIPART = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": list(_PARTS),
                    "properties": {part: {"type": "string", "format": "binary"} for part in _PARTS},
                }
            }
        },
    }
}


class Versions(BaseModel):
    """Versions, the newest first."""

    versions: list[VersionView]


class Variants(BaseModel):
    """Variants, the newest version first."""

    variants: list[VariantView]


class AttestationView(BaseModel):
    """One attestation of a variant: an in-toto statement in DSSE, the blob `sha256`."""

    name: str
    predicate_type: str
    sha256: str
    length: int


class Attestations(BaseModel):
    """A variant's attestations, and what proves to somebody who has a root whose gate keys count; bytes are base64."""

    attestations: list[AttestationView]
    targets: str
    policy: str
    roots: list[str]


@router.post(
    "/versions",
    status_code=status.HTTP_201_CREATED,
    responses={200: {"model": VersionView, "description": "These bytes are this version already."}},
    openapi_extra=_MULTIPART,
)
def publish_version(
    request: Request,
    response: Response,
    user: Publisher,  # before `upload`: nothing is read from somebody who may not publish
    upload: Annotated[Upload, Depends(receive_upload)],
) -> VersionView:
    """Publish a version: an ONNX model, its card, its golden set and the publisher's signed statement."""
    published = publish(registry_of(request), upload, actor=user.name, now=datetime.now(UTC))
    if not published.created:
        response.status_code = status.HTTP_200_OK
    return published.version


@router.get("/versions")
def list_versions(request: Request, user: Reader, model: str | None = None) -> Versions:
    """List versions."""
    with registry_of(request).sessions() as session:
        found = catalog.versions(session, user.tenant, model=model)
        return Versions(versions=[VersionView.model_validate(row) for row in found])


@router.get("/versions/{model:path}/{version}")
def show_version(request: Request, user: Reader, model: str, version: str) -> VersionDetail:
    """Show one version with its variants."""
    registry = registry_of(request)
    with registry.sessions() as session:
        row = catalog.version_of(session, user.tenant, model, version)
        rows = catalog.variants(session, user.tenant, model=model, version=version)
    return VersionDetail(
        **VersionView.model_validate(row).model_dump(),
        variants=[VariantView.model_validate(item) for item in rows],
        waiting=[WaitingView.model_validate(each) for each in waiting_of(registry, row.id, datetime.now(UTC))],
    )


@router.get("/models/{model:path}/versions/{version}/report", response_class=HTMLResponse)
def show_report(request: Request, user: Reader, model: str, version: str) -> HTMLResponse:
    """Show one version's report: size, latency, error and accuracy per profile and precision, as one HTML page."""
    registry = registry_of(request)
    with registry.sessions() as session:
        row = VersionView.model_validate(catalog.version_of(session, user.tenant, model, version))
        found = catalog.variants(session, user.tenant, model=model, version=version)
        variants = [VariantView.model_validate(item) for item in found]
    page = render(report_of(row, variants, registry.profiles))
    return HTMLResponse(page, headers={"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"})


@router.get("/variants")
def list_variants(
    request: Request,
    user: Reader,
    model: str | None = None,
    version: str | None = None,
    profile: str | None = None,
) -> Variants:
    """List variants with their evidence."""
    with registry_of(request).sessions() as session:
        found = catalog.variants(session, user.tenant, model=model, version=version, profile=profile)
        return Variants(variants=[VariantView.model_validate(row) for row in found])


@router.get("/variants/{model:path}/{version}/{profile}/attestations")
def list_attestations(request: Request, user: Reader, model: str, version: str, profile: str) -> Attestations:
    """List what the converter worker attests of a variant."""
    registry = registry_of(request)
    with registry.sessions() as session:
        variant = catalog.variant_of(session, user.tenant, model, version, profile)
        found = variant.attestations or []
    chain = registry.repository.policy_chain()
    return Attestations(
        attestations=[AttestationView.model_validate(each) for each in found],
        targets=_base64(chain.targets),
        policy=_base64(chain.policy),
        roots=[_base64(each) for each in chain.roots],
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
