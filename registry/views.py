"""What the registry's API answers: one view per thing, JSON with the names that DESIGN uses."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from modelfleet.registry.claims import ID_CHARACTERS
from modelfleet.registry.tables import ClaimToken


class View(BaseModel):
    """A read-only picture of a row, valid after its session is closed."""

    model_config = ConfigDict(from_attributes=True, frozen=True, extra="ignore")


class VersionView(View):
    """A version; `state` is BUILDING, READY or FAILED."""

    model: str
    version: str
    channel: str
    counter: int
    state: str
    card: dict[str, Any]
    source_sha256: str
    source_length: int
    card_sha256: str
    golden_sha256: str
    statement_sha256: str
    published_by: str
    published_at: datetime


class VariantView(View):
    """A variant; the fields that only a READY one has are null before."""

    model: str
    version: str
    profile: str
    state: str
    precision: str | None
    counter: int
    path: str | None
    manifest_sha256: str | None
    manifest_length: int | None
    attestation_sha256: str | None
    bundle_sha256: str | None
    entry_bundle_sha256: str | None
    attestations: list[dict[str, Any]] | None
    files: list[dict[str, Any]] | None
    size_bytes: int | None
    evidence: dict[str, Any] | None
    error: str | None
    stage: str | None
    created_at: datetime
    ready_at: datetime | None
    released_at: datetime | None


class WaitingView(View):
    """A variant that nobody works on, and why; `kind` is that of the worker that it needs, `offered` whether one lives."""

    profile: str
    kind: str
    offered: bool
    reason: str


class VersionDetail(VersionView):
    """A version with its variants, and with what is not begun."""

    variants: list[VariantView]
    waiting: list[WaitingView]


class GroupView(View):
    """A group."""

    name: str
    created_at: datetime


class DeviceView(View):
    """A device; its key is not shown."""

    id: str
    group: str
    profile: str
    facts: dict[str, Any]
    agent_version: str
    serial: str | None
    online: bool
    enrolled_at: datetime
    last_seen_at: datetime | None
    revoked_at: datetime | None


class UserView(View):
    """A user; of the token nothing is shown."""

    name: str
    role: str
    created_at: datetime
    disabled_at: datetime | None


class UserCreated(UserView):
    """A new user and the token, shown this once."""

    token: str


class ClaimTokenCreated(View):
    """A new claim token, shown this once."""

    token: str
    group: str
    uses: int
    expires_at: datetime


class ClaimTokenView(View):
    """A claim token as it is listed: `id` is the start of its hash; `serials` null: any device may enrol."""

    id: str
    group: str
    uses_left: int
    serials: list[str] | None
    expires_at: datetime
    created_by: str
    created_at: datetime | None
    revoked_at: datetime | None


def claim_token_view(row: ClaimToken) -> ClaimTokenView:
    """Return the view of a row, in which the token's hash stands whole."""
    return ClaimTokenView(
        id=row.sha256[:ID_CHARACTERS],
        group=row.group,
        uses_left=row.uses_left,
        serials=row.serials,
        expires_at=row.expires_at,
        created_by=row.created_by,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
    )


class AuditView(View):
    """One record of the audit trail."""

    id: int
    at: datetime
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]
    leaf_sha256: str
    log_index: int | None
