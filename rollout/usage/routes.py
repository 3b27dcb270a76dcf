"""`GET /v1/usage`: how much models were used, by day."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from modelfleet.policies.roles import Permission
from modelfleet.registry.auth import UserIdentity, registry_of, require
from modelfleet.registry.small_body import SmallBodyRoute
from modelfleet.rollout.usage.by_day import Usage, usage

DEFAULT_DAYS, MOST_DAYS = 30, 10_000

router = APIRouter(prefix="/v1", tags=["usage"], route_class=SmallBodyRoute)

Reader = Annotated[UserIdentity, Depends(require(Permission.ROLLOUTS_READ))]
Asked = Annotated[str | None, Query(max_length=256)]


@router.get("/usage")
def read_usage(
    request: Request,
    user: Reader,  # noqa: ARG001
    model: Asked = None,
    version: Asked = None,
    profile: Asked = None,
    days: Annotated[int, Query(ge=1, le=MOST_DAYS)] = DEFAULT_DAYS,
) -> Usage:
    """Return inferences, errors and latency percentiles per day, version and profile, the newest first."""
    registry = registry_of(request)
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    with registry.sessions() as session:
        return usage(
            session,
            registry.tenant,
            model=model,
            version=version,
            profile=profile,
            since=midnight - timedelta(days=days - 1),
        )
