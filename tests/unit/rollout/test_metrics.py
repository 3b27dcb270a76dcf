"""What Prometheus is told: the fleet as the database has it, this process' work; and every name that deploy/ relies on."""

import json
import math
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from modelfleet.agent_client.protocol import device_topic
from modelfleet.policies.plan import parse_plan
from modelfleet.policies.roles import Role
from modelfleet.registry import people, problems
from modelfleet.rollout.changes import lifecycle
from modelfleet.rollout.routes import router as rollout_router
from modelfleet.service.fleet_metrics import FleetCollector
from modelfleet.service.metrics import Metrics, TimedRequests, router

DEPLOY = Path(__file__).parents[3] / "deploy"
FLOAT = "linux-cpu-float"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def app(fleet) -> FastAPI:
    made = FastAPI()
    problems.install(made)
    made.include_router(rollout_router)
    made.include_router(router)
    metrics = Metrics()
    metrics.watch(FleetCollector(fleet.registry, fleet.controller))
    made.state.registry, made.state.controller, made.state.metrics = fleet.registry, fleet.controller, metrics
    made.add_middleware(TimedRequests, metrics=metrics)
    return made


@pytest.fixture
def client(fleet, app: FastAPI) -> Iterator[TestClient]:
    with fleet.registry.sessions.begin() as session:
        _, token = people.make_user(session, "acme", name="vic", role=Role.VIEWER, actor="test", now=fleet.now)
    with TestClient(app, headers={"Authorization": f"Bearer {token}"}) as made:
        yield made


def scrape(client: TestClient) -> Samples:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float | None:
    found = [
        number
        for (metric, given), number in samples.items()
        if metric == name and labels.items() <= dict(given).items()
    ]
    assert len(found) <= 1, found
    return found[0] if found else None


def test_a_rollout_is_told_with_its_evidence(fleet, client) -> None:
    fleet.enrol(FLOAT, 4)
    fleet.publish("1.0.0", 1)
    rollout = fleet.launch("1.0.0", plan={"stages": [0.05, 1.0], "bake_seconds": 3600})
    fleet.steps(2)
    found = scrape(client)
    about = {"rollout": rollout, "profile": FLOAT}
    assert value(found, "modelfleet_rollouts", state="CANARY") == 1
    assert value(found, "modelfleet_rollout_verdict", **about, verdict="CANARY") == 1
    assert value(found, "modelfleet_rollout_stage_share", **about) == 0.05
    assert value(found, "modelfleet_rollout_devices", **about, where="cohort") == 2
    assert value(found, "modelfleet_rollout_devices", **about, where="committed") == 2
    assert value(found, "modelfleet_rollout_inferences", **about) > 0
    assert value(found, "modelfleet_rollout_evidence", **about, guardrail="errors") < 0
    assert value(found, "modelfleet_rollout_alarm_limit", **about) == pytest.approx(
        math.log(1 / parse_plan({}).guardrail_alpha), abs=1e-3
    )
    assert value(found, "modelfleet_controller_leads") == 1
    assert value(found, "modelfleet_broker_connected") == 1


def test_what_was_dropped_is_counted_by_its_reason(fleet, client) -> None:
    (device,) = fleet.enrol(FLOAT, 1)
    fleet.controller.ingest.accept([(device_topic("acme", device.id, "report"), b"{")], fleet.now)
    found = scrape(client)
    assert value(found, "modelfleet_ingest_dropped_total", reason="FormatError") == 1
    assert value(found, "modelfleet_ingest_waiting") == 0


def test_requests_are_timed_by_their_routes_not_by_what_was_asked_for(fleet, client) -> None:
    for _ in range(3):
        client.get("/v1/rollouts/no-such-rollout")
    client.get("/nowhere/at/all")
    found = scrape(client)
    timed = "modelfleet_http_request_seconds_count"
    assert value(found, timed, route="/v1/rollouts/{rollout_id}", status="404", method="GET") == 3
    assert value(found, timed, route="unknown", status="404") == 1
    assert not any("no-such-rollout" in str(labels) for _, labels in found)


def test_metrics_need_a_token(app: FastAPI) -> None:
    assert TestClient(app).get("/metrics").status_code == 401


def test_every_metric_of_the_dashboard_and_the_alerts_is_there_and_documented(fleet, client) -> None:
    fleet.enrol(FLOAT, 1)
    text = client.get("/metrics").text
    declared = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
    names = declared | {f"{name}_{suffix}" for name in declared for suffix in ("bucket", "count", "sum")}
    used = set(re.findall(r"\bmodelfleet_\w+", (DEPLOY / "prometheus" / "alerts.yml").read_text()))
    dashboard = json.loads((DEPLOY / "grafana" / "modelfleet.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            used |= set(re.findall(r"\bmodelfleet_\w+", target["expr"]))
    assert used <= names, used - names
    documented = set(re.findall(r"`(modelfleet_\w+)`", (DEPLOY.parent / "docs" / "operations.md").read_text()))
    assert {name for name in declared if not name.endswith("_created")} == documented


def test_an_ended_rollout_is_forgotten_after_a_day(fleet, client, app) -> None:
    fleet.enrol(FLOAT, 4)
    fleet.publish("1.0.0", 1)
    rollout = fleet.create("1.0.0")
    lifecycle.cancel(fleet.controller.direction, rollout, actor="ada", now=fleet.now)
    collector = FleetCollector(fleet.registry, fleet.controller)
    with fleet.registry.sessions() as session:
        assert len(collector._shown(session, fleet.now + timedelta(hours=23))) == 1
        assert collector._shown(session, fleet.now + timedelta(hours=25)) == []
