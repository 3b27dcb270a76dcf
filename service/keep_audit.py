"""The service's part in the audit log: its key, what happened outside of the database, and a checkpoint in good time.

Metadata and the trust policy change in files, some of them under offline keys: what is found changed is recorded when it is seen.
"""

import logging
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from modelfleet.registry import audit
from modelfleet.registry.audit_log import AuditLog
from modelfleet.registry.context import Registry
from modelfleet.registry.tables import AuditRecord
from modelfleet.service.settings import Settings
from modelfleet.signer.keys import generate_key, load_signer, public_key_of_pem, write_public
from modelfleet.signer.metadata import root_files
from modelfleet.signer.names import sha256_of

log = logging.getLogger(__name__)


def open_audit_log(settings: Settings, sessions: sessionmaker[Session]) -> AuditLog:
    """Return the tenant's audit log with its key; a data folder from before there was one gets the key now."""
    service = settings.data.absolute() / "service"
    uri = settings.audit_key or make_audit_key(settings.data)
    kept = service / f"audit-{settings.tenant}.checkpoint"
    former = [public_key_of_pem(path.read_text()) for path in sorted(service.glob("audit-former*.pub"))]
    return AuditLog(
        sessions, settings.tenant, load_signer(uri), kept, every_seconds=settings.audit_seconds, former=former
    )


def make_audit_key(data: Path) -> str:
    """Return the URI of the audit key in a data folder, made if it is not there; `audit.pub` beside is for verifiers."""
    private = data.absolute() / "service" / "audit.pem"
    if not private.exists():
        write_public(data / "audit.pub", generate_key(private))
    return f"file:{private}"


def keep_audit(registry: Registry, now: datetime) -> None:
    """Do `sign_audit` where it is due."""
    if registry.audit_log.due(now):
        sign_audit(registry, now)


def sign_audit(registry: Registry, now: datetime) -> None:
    """Record what changed outside, and sign what is new; a failure is logged, and tried again when the next is due."""
    try:
        note_metadata(registry, now)
        registry.audit_log.checkpoint(now)
    except Exception:
        log.exception("the audit log could not be signed")


def note_metadata(registry: Registry, now: datetime) -> None:
    """Record the published metadata versions and the trust policy, each where it is not as last recorded."""
    versions = registry.repository.versions()
    chain = registry.repository.policy_chain()
    versions["root"] = max(root_files(registry.trust_dir / "metadata"))
    policy = {"sha256": sha256_of(chain.policy), "targets_version": versions["targets"]}
    _note(registry, "metadata.publish", "metadata/tuf", {"versions": versions}, now)
    _note(registry, "policy.publish", "policy/trust", policy, now)


def _note(registry: Registry, action: str, subject: str, detail: Mapping[str, object], now: datetime) -> None:
    last = (
        select(AuditRecord.detail)
        .where(AuditRecord.tenant == registry.tenant, AuditRecord.action == action)
        .order_by(AuditRecord.id.desc())
        .limit(1)
    )
    with registry.sessions() as session:
        if session.scalars(last).one_or_none() == detail:
            return
    with registry.sessions.begin() as session:
        audit.append(
            session, tenant=registry.tenant, actor="system", action=action, subject=subject, detail=detail, now=now
        )
