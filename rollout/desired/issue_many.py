"""First assignments for very many devices at once: signed one by one, written together, told by one audit record."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from modelfleet.agent_client.protocol import device_topic
from modelfleet.registry import audit
from modelfleet.registry.copy_rows import copy_rows
from modelfleet.rollout.desired.dispatch import DEVICES
from modelfleet.rollout.desired.documents import LIFE, RENEW_AFTER
from modelfleet.rollout.tables import DesiredDocument
from modelfleet.signer.desired import BUCKETS, Assignment, bucket_of, device_scope
from modelfleet.signer.keys import Signer
from modelfleet.signer.names import sha256_of
from modelfleet.signer.sign import encode_payload, sign_assignment


def issue_many(
    session: Session,
    tenant: str,
    director: Signer,
    epoch: int,
    devices: Sequence[tuple[str, str, str]],
    now: datetime,
) -> None:
    """Write the first assignment of each device into the session's transaction; the controller publishes them.

    Args:
        director: the key that devices know from the trust policy.
        epoch: the trust policy's.
        devices: id, group and profile each; none of them has an assignment yet.
    """
    rows = [_row(tenant, director, epoch, device, now) for device in devices]
    copy_rows(session, DesiredDocument, rows)
    told = sha256_of(
        "\n".join(sorted(f"{row['scope']} {row['seq']} {sha256_of(row['payload'])}" for row in rows)).encode()
    )
    audit.append(
        session,
        tenant=tenant,
        actor="system:controller",
        action="desired.issue-many",
        subject="desired/all",
        detail={"documents": len(rows), "sha256": told},
        now=now,
    )


def _row(tenant: str, director: Signer, epoch: int, device: tuple[str, str, str], now: datetime) -> dict[str, Any]:
    name, group, profile = device
    document = Assignment(
        tenant=tenant,
        scope=device_scope(name),
        epoch=epoch,
        seq=int(now.timestamp() * 1000),
        issued=now,
        expires=now + LIFE,
        group=group,
        profile=profile,
    )
    return {
        "tenant": tenant,
        "scope": document.scope,
        "epoch": epoch,
        "seq": document.seq,
        "payload": encode_payload(document),
        "envelope": sign_assignment(document, director),
        "topic": device_topic(tenant, name, "desired"),
        "issued_at": now,
        "renew_at": now + RENEW_AFTER * (0.5 + 0.5 * bucket_of("renew", name) / BUCKETS),
        "rank": DEVICES,
        "published_seq": 0,
        "batch": 0,
    }
