"""Routes of certificates: a device renews its own, an administrator revokes a device, everybody reads CA certificate and CRL."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from modelfleet.policies.roles import Permission
from modelfleet.registry import certificates
from modelfleet.registry.auth import (
    DeviceIdentity,
    UserIdentity,
    current_device,
    registry_of,
    require,
    require_csr_claim,
)
from modelfleet.registry.revocation import Reason
from modelfleet.registry.small_body import Body, SmallBodyRoute
from modelfleet.registry.tables import DeviceCertificate
from modelfleet.registry.views import DeviceView

router = APIRouter(prefix="/v1", tags=["certificates"], route_class=SmallBodyRoute)

CurrentDevice = Annotated[DeviceIdentity, Depends(current_device)]
DeviceRevoker = Annotated[UserIdentity, Depends(require(Permission.DEVICES_REVOKE))]


class RenewalRequest(Body):
    """What a device asks with; the token that comes with it carries `csr`, the SHA-256 of this text."""

    csr: str = Field(max_length=certificates.MAX_CSR_BYTES)


class Revocation(Body):
    """Why a device is revoked, by RFC 5280's names."""

    reason: Reason = "unspecified"


class Certificate(BaseModel):
    """A device's certificate (PEM), and the fleet CA's."""

    serial: str
    expires_at: datetime
    certificate: str
    ca: str


@router.get("/device/certificate")
def show_certificate(request: Request, device: CurrentDevice) -> Certificate:
    """Answer with the certificate whose key signed the token; asking with a new one puts it in force."""
    registry = registry_of(request)
    with registry.sessions() as session:
        return _answer(session.get_one(DeviceCertificate, device.serial), registry.ca.pem)


@router.post("/device/certificate")
def renew_certificate(request: Request, device: CurrentDevice, asked: RenewalRequest) -> Certificate:
    """Issue a certificate for the device's present key or a new one."""
    require_csr_claim(device, asked.csr)
    registry = registry_of(request)
    with registry.sessions.begin() as session:
        row = certificates.renew(session, registry.ca, device.device, asked.csr, datetime.now(UTC))
        return _answer(row, registry.ca.pem)


@router.post("/devices/{device_id}/revoke")
def revoke_device(request: Request, user: DeviceRevoker, device_id: str, asked: Revocation) -> DeviceView:
    """Refuse the device from now on, for good."""
    registry = registry_of(request)
    with registry.sessions.begin() as session:
        row = certificates.revoke_device(
            session, user.tenant, device_id, reason=asked.reason, actor=user.name, now=datetime.now(UTC)
        )
        view = DeviceView.model_validate(row)
    for revoked in registry.on_device_revoked:
        revoked(device_id)
    return view


@router.get("/ca/certificate")
def ca_certificate(request: Request) -> Response:
    """Answer with the fleet CA's certificate, PEM."""
    return Response(registry_of(request).ca.pem, media_type="application/x-pem-file")


@router.get("/ca/crl")
def ca_revocation_list(request: Request) -> Response:
    """Answer with the list of revoked certificates (RFC 5280, PEM), signed by the fleet CA and valid for a week."""
    registry = registry_of(request)
    return Response(registry.revocations.pem(datetime.now(UTC)), media_type="application/x-pem-file")


def _answer(row: DeviceCertificate, ca: str) -> Certificate:
    return Certificate(serial=row.serial, expires_at=row.expires_at, certificate=row.certificate, ca=ca)
