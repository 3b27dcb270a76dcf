"""The FastAPI application, assembled from the folders' routers."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import anyio.to_thread
from fastapi import FastAPI

from modelfleet.registry import problems
from modelfleet.registry.auth import undeclared_routes
from modelfleet.registry.routes import router as registry_router
from modelfleet.rollout.bundles.routes import router as bundle_router
from modelfleet.rollout.ddi.routes import router as ddi_router
from modelfleet.rollout.ddi.routes_fleet import router as ddi_fleet_router
from modelfleet.rollout.ddi.target import current_target
from modelfleet.rollout.desired.device_keys import router as keys_router
from modelfleet.rollout.devices.routes import router as rollout_devices_router
from modelfleet.rollout.forecast.routes import router as forecast_router
from modelfleet.rollout.routes import router as rollout_router
from modelfleet.rollout.usage.routes import router as usage_router
from modelfleet.rollout.webhooks.routes import router as webhook_router
from modelfleet.service.compose import Service
from modelfleet.service.errors import ServiceError
from modelfleet.service.fleet_metrics import FleetCollector
from modelfleet.service.job_routes import router as job_router
from modelfleet.service.metrics import Metrics, TimedRequests
from modelfleet.service.metrics import router as metrics_router


def create_app(
    service: Service,
    on_ready: Callable[[], None] = lambda: None,
    on_failure: Callable[[Exception], None] = lambda _error: None,
) -> FastAPI:
    """Return the application; its lifespan starts and stops the service.

    `on_ready` is called in between, `on_failure` with what kept it from starting.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        try:
            await anyio.to_thread.run_sync(service.start)
        except Exception as error:
            on_failure(error)
            raise
        app.state.registry, app.state.controller = service.registry, service.controller
        app.state.webhook_key, app.state.jobs = service.webhook_key, service.jobs
        metrics.watch(FleetCollector(service.registry, service.controller))
        on_ready()
        try:
            yield
        finally:
            await anyio.to_thread.run_sync(service.stop)

    metrics = Metrics()
    app = FastAPI(title="modelfleet", version="1", lifespan=lifespan)
    app.state.metrics = metrics
    app.add_middleware(TimedRequests, metrics=metrics)
    problems.install(app)
    app.include_router(registry_router)
    app.include_router(rollout_router)
    app.include_router(rollout_devices_router)
    app.include_router(forecast_router)
    app.include_router(usage_router)
    app.include_router(keys_router)
    app.include_router(bundle_router)
    app.include_router(webhook_router)
    app.include_router(job_router)
    app.include_router(metrics_router)
    app.include_router(ddi_fleet_router)
    app.include_router(ddi_router)
    open_routes = undeclared_routes(app, others=[current_target])
    if open_routes:  # default deny: a route says who may call it, or the service does not start
        raise ServiceError(f"routes without a permission: {', '.join(open_routes)}")
    return app
