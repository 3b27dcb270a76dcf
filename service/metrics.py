"""What Prometheus scrapes from `GET /metrics`: the fleet as the database knows it, and this process' own work.

Names follow Prometheus' conventions (base units, `_total`, `_seconds`); labels are bounded: profiles, states, kinds, routes, and
rollouts that have not ended or ended within a day. Nothing here decides anything.
"""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, cast

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Histogram, generate_latest

from modelfleet.policies.roles import Permission
from modelfleet.registry.auth import require
from modelfleet.service.fleet_metrics import FleetCollector

REQUEST_BUCKETS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

router = APIRouter(tags=["operations"])


class Metrics:
    """The metrics of one service process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.request_seconds = Histogram(
            "modelfleet_http_request_seconds",
            "Time from a request's head to the end of its answer.",
            ("method", "route", "status"),
            buckets=REQUEST_BUCKETS_SECONDS,
            registry=self.registry,
        )

    def watch(self, fleet: FleetCollector) -> None:
        """Have the fleet's figures among the metrics."""
        self.registry.register(fleet)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)


class TimedRequests:
    """ASGI middleware that times every HTTP request by its route's template, never by the path that was asked for."""

    def __init__(self, app: Asgi, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and time it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), "500"

        async def note_status(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            seconds = time.perf_counter() - started
            self._metrics.request_seconds.labels(scope["method"], route, status).observe(seconds)


@router.get("/metrics", dependencies=[Depends(require(Permission.METRICS_READ))])
def read_metrics(request: Request) -> Response:
    """Return the metrics of this process and of its tenant's fleet, for Prometheus."""
    return Response(cast("Metrics", request.app.state.metrics).text(), media_type=CONTENT_TYPE_LATEST)
