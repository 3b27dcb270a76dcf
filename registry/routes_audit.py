"""Routes of the audit trail: its records, its signed checkpoints, and what proves the one by the other."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel, Field

from modelfleet.policies.roles import Permission
from modelfleet.registry import audit
from modelfleet.registry.audit_export import export, span
from modelfleet.registry.auth import UserIdentity, registry_of, require
from modelfleet.registry.views import AuditView
from modelfleet.signer.checkpoint import encode_proof

router = APIRouter(prefix="/v1/audit", tags=["audit"])

AuditReader = Annotated[UserIdentity, Depends(require(Permission.AUDIT_READ))]
Place = Annotated[int, Query(ge=0, le=2**53 - 1)]


class AuditPage(BaseModel):
    """Records in order; ask again with `after` = `next` for those that follow (null: there are none yet)."""

    records: list[AuditView]
    next: int | None


class ConsistencyProof(BaseModel):
    """RFC 9162's consistency proof between two sizes of the log; the hashes are hexadecimal."""

    start: int = Field(serialization_alias="from")
    end: int = Field(serialization_alias="to")
    hashes: list[str]


@router.get("")
def list_audit(
    request: Request,
    user: AuditReader,
    subject: str | None = None,
    action: str | None = None,
    after: Place = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 500,
) -> AuditPage:
    """List the audit trail in order."""
    with registry_of(request).sessions() as session:
        found = audit.records(session, user.tenant, subject=subject, action=action, after=after, limit=limit)
        rows = [AuditView.model_validate(row) for row in found]
    return AuditPage(records=rows, next=rows[-1].id if rows else None)


@router.get("/checkpoint", response_class=PlainTextResponse)
def show_checkpoint(request: Request, user: AuditReader) -> PlainTextResponse:  # noqa: ARG001
    """Answer a checkpoint over every record there is, signed now where some are new: C2SP tlog-checkpoint."""
    return PlainTextResponse(registry_of(request).audit_log.checkpoint(datetime.now(UTC)))


@router.get("/records", response_class=StreamingResponse)
def export_records(
    request: Request,
    user: AuditReader,
    start: Annotated[Place, Query(alias="from")] = 0,
    end: Annotated[Place | None, Query(alias="to")] = None,
) -> StreamingResponse:
    """Answer the log as JSON lines, from place `from` up to the first checkpoint at or after `to` (by default, all)."""
    registry = registry_of(request)
    registry.audit_log.checkpoint(datetime.now(UTC))
    with registry.sessions() as session:
        asked = span(session, user.tenant, start, end)
    return StreamingResponse(export(registry.sessions, user.tenant, asked), media_type="application/x-ndjson")


@router.get("/proof/inclusion", response_class=PlainTextResponse)
def prove_inclusion(
    request: Request,
    user: AuditReader,  # noqa: ARG001
    record: Annotated[Place, Query(alias="id")],
) -> PlainTextResponse:
    """Answer the record with this id, and the proof that a checkpoint covers it: C2SP tlog-proof."""
    inclusion = registry_of(request).audit_log.inclusion(record, datetime.now(UTC))
    return PlainTextResponse(encode_proof(inclusion))


@router.get("/proof/consistency")
def prove_consistency(
    request: Request,
    user: AuditReader,  # noqa: ARG001
    start: Annotated[Place, Query(alias="from")],
    end: Annotated[Place | None, Query(alias="to")] = None,
) -> ConsistencyProof:
    """Answer the proof that the log of `to` records (by default, all) begins with that of `from` records."""
    proof = registry_of(request).audit_log.consistency(start, end, datetime.now(UTC))
    return ConsistencyProof(start=proof.old, end=proof.new, hashes=[each.hex() for each in proof.hashes])
