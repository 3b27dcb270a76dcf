"""Forecasts: what a rollout would cost, from plans and facts, from the database, and over HTTP and the command line."""

import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import pytest
from click.testing import CliRunner
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker

from modelfleet.policies.plan import Plan, parse_plan
from modelfleet.policies.roles import Role
from modelfleet.registry import people, problems
from modelfleet.registry.auth import undeclared_routes
from modelfleet.registry.tables import AuditRecord, Device, Variant
from modelfleet.rollout.cli import COMMANDS
from modelfleet.rollout.decisions.statistics import Counts, log_promotion
from modelfleet.rollout.forecast import cli as forecast_cli
from modelfleet.rollout.forecast.estimate import (
    Bandwidth,
    ProfileFacts,
    Reach,
    Traffic,
    forecast,
    in_a_hurry,
    inferences_needed,
    transfer_seconds,
)
from modelfleet.rollout.forecast.facts import Target, gather
from modelfleet.rollout.forecast.routes import router
from modelfleet.rollout.ingest.telemetry import make_partition
from modelfleet.rollout.routes import router as rollout_router
from modelfleet.rollout.tables import DeviceSlot, Rollout, SlotStable, TelemetryHour
from tests.unit.rollout.conftest import FLOAT, INT8, SLOT, START, TENANT, Fleet, add_version, digest_of

MB = 1_000_000
FACTS = ProfileFacts(
    profile=FLOAT,
    reach=Reach(devices=1000, online=900, within_1_day=950, within_7_days=990),
    groups={"lab": 1000},
    variant_bytes=10 * MB,
    bytes_to_transfer=8_000 * MB,
    largest_transfer_bytes=10 * MB,
    traffic=Traffic(per_device_minute=1.0, error_share=0.0, source="test"),
)
PLAN = parse_plan({"stages": [0.1, 1.0], "bake_seconds": 600, "soak_seconds": 300})


def of(plan: Plan = PLAN, facts: ProfileFacts = FACTS, bandwidth: Bandwidth | None = None) -> Any:
    return forecast(plan, [facts], START, bandwidth or Bandwidth())


def changed(**changes: Any) -> ProfileFacts:
    return replace(FACTS, **changes)


def test_stages_share_the_bytes_by_their_new_devices() -> None:
    first, second = of().profiles[0].stages
    assert (first.devices, first.new_devices, first.bytes) == (100, 100, 800 * MB)
    assert (second.devices, second.new_devices, second.bytes) == (1000, 900, 7200 * MB)
    assert of().bytes_to_transfer == 8000 * MB
    assert of().profiles[0].saved_bytes == 2000 * MB


def test_without_a_bandwidth_bytes_are_all_that_is_said() -> None:
    assert of().transfer_hours is None
    assert of().profiles[0].stages[0].transfer_hours is None


def test_the_servers_line_and_the_slowest_devices_bound_the_transfer() -> None:
    assert transfer_seconds(800 * MB, 10 * MB, Bandwidth(server=64e6)) == 100
    assert transfer_seconds(800 * MB, 10 * MB, Bandwidth(device=0.5e6)) == 160
    assert transfer_seconds(800 * MB, 10 * MB, Bandwidth(server=64e6, device=0.5e6)) == 160
    found = of(bandwidth=Bandwidth(server=8e9 / 3600))
    assert found.transfer_hours == pytest.approx(8.0)


def test_a_stage_ends_when_it_has_baked_and_its_devices_have_committed_and_enough_was_counted() -> None:
    first, second = of().profiles[0].stages
    needed = first.inferences_needed
    assert needed is not None and first.evidence_seconds == pytest.approx(needed / 100 * 60)
    assert first.ends_at == START + timedelta(seconds=max(600.0, first.evidence_seconds))
    assert second.begins_at == first.ends_at
    assert of().completes_at == second.ends_at + timedelta(seconds=300)
    slow = of(bandwidth=Bandwidth(server=6.4e6)).profiles[0].stages[0]  # 1000 s for the first stage
    assert slow.ends_at == START + timedelta(seconds=1000 + slow.evidence_seconds - 1000)
    assert slow.evidence_seconds == pytest.approx(1000 + needed / 100 * 60)


def test_devices_of_former_stages_count_while_new_ones_still_fetch() -> None:
    second = of(bandwidth=Bandwidth(server=6.4e6)).profiles[0].stages[1]  # 9000 s, in which 100 devices count 15,000
    assert second.evidence_seconds == pytest.approx(second.inferences_needed / 100 * 60)


def test_the_needed_inferences_are_those_at_which_the_promotion_test_passes() -> None:
    for share in (0.0, 0.001, 0.005):
        needed = inferences_needed(PLAN, share)
        assert needed is not None
        before = Counts(n=needed - 1, errors=round((needed - 1) * share))
        at = Counts(n=needed, errors=round(needed * share))
        limit = 2.995732
        assert log_promotion(at, 0.01) >= limit > log_promotion(before, 0.01)
    assert inferences_needed(PLAN, 0.02) is None


def test_a_fleet_that_errs_as_much_as_is_allowed_proves_nothing_and_is_told() -> None:
    stage = of(facts=changed(traffic=Traffic(per_device_minute=1.0, error_share=0.02, source=""))).profiles[0].stages[0]
    assert (stage.inferences_needed, stage.evidence_seconds, stage.too_slow) == (None, None, True)


def test_too_little_traffic_is_told_before_it_holds_a_stage_up() -> None:
    lazy = Traffic(per_device_minute=0.0001, error_share=0.0, source="")
    assert of(facts=changed(traffic=lazy)).profiles[0].stages[0].too_slow
    assert not of().profiles[0].stages[0].too_slow


def test_unknown_traffic_is_left_out_and_not_guessed() -> None:
    stage = of(facts=changed(traffic=None)).profiles[0].stages[0]
    assert (stage.inferences_needed, stage.evidence_seconds, stage.too_slow) == (None, None, False)
    assert stage.ends_at == START + timedelta(seconds=600)


def test_windows_and_hours_put_the_ends_off() -> None:
    night = {"start": "22:00", "minutes": 120, "zone": "UTC"}
    office = {"start": "09:00", "minutes": 480, "zone": "UTC"}
    plan = parse_plan({"stages": [0.1, 1.0], "bake_seconds": 600, "windows": [night], "advance_within": [office]})
    first, second = of(plan).profiles[0].stages
    assert first.first_start_at == START.replace(hour=22)
    assert first.ends_at == (START + timedelta(days=1)).replace(hour=9)
    assert second.first_start_at == (START + timedelta(days=1)).replace(hour=22)


def test_an_end_after_the_deadline_is_told() -> None:
    assert of(parse_plan({"deadline_seconds": 3600})).profiles[0].past_deadline
    assert not of().profiles[0].past_deadline


def test_an_emergency_waits_for_no_bake_and_no_soak() -> None:
    found = of(in_a_hurry(PLAN), changed(traffic=None))
    assert found.completes_at == START + timedelta(seconds=2 * PLAN.limits.probation_seconds)


def test_of_a_trial_that_runs_only_what_is_left_is_told() -> None:
    facts = changed(
        holding=400, bytes_to_transfer=6000 * MB, stage=1, stage_started_at=START - timedelta(hours=1), traffic=None
    )
    (stage,) = of(facts=facts).profiles[0].stages
    assert (stage.stage, stage.bytes, stage.ends_at) == (1, 6000 * MB, START)


def test_a_fleet_without_devices_costs_nothing() -> None:
    nobody = changed(reach=Reach(), bytes_to_transfer=0, largest_transfer_bytes=0)
    found = of(facts=nobody, bandwidth=Bandwidth(server=1e6, device=1e6))
    assert (found.bytes_to_transfer, found.transfer_hours) == (0, 0)


# From the database


def device(number: int, group: str = "lab", profile: str = FLOAT, **values: Any) -> Device:
    name = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{group}{profile}{number}"))
    base: dict[str, Any] = {"tenant": TENANT, "public_key": "", "claim_sha256": "", "facts": {}, "agent_version": ""}
    return Device(id=name, group=group, profile=profile, key_sha256=name, enrolled_at=START, **base, **values)


def runs(device: Device, digest: str | None) -> DeviceSlot:
    return DeviceSlot(
        device=device.id,
        slot=SLOT,
        boot=1,
        seq=1,
        state="COMMITTED",
        active=digest,
        received_at=START,
    )


def test_facts_are_counted_by_the_database(sessions: sessionmaker[Session]) -> None:
    old, new = digest_of("1.0.0", FLOAT), digest_of("1.1.0", FLOAT)
    devices = [
        device(0, online=True),
        device(1, online=False, last_seen_at=START - timedelta(hours=3)),
        device(2, online=False, last_seen_at=START - timedelta(days=3)),
        device(3, online=False, last_seen_at=START - timedelta(days=30)),
        device(4, group="shop", online=True),
        device(5, online=True, revoked_at=START),
        device(6, group="elsewhere", online=True),
        device(7, profile=INT8, online=True),
    ]
    with sessions.begin() as session:
        add_version(session, "1.0.0", 1, (FLOAT, INT8))
        add_version(session, "1.1.0", 2, (FLOAT, INT8))
        same, weights = ({"name": name, "sha256": name * 64, "length": 1000, "role": "model"} for name in ("a", "b"))
        for digest, files in ((old, [same]), (new, [same, weights | {"length": 5000}])):
            session.execute(update(Variant).where(Variant.manifest_sha256 == digest).values(files=files))
        session.add_all(devices)
        session.add_all(
            [runs(devices[0], old), runs(devices[1], new), runs(devices[4], old), runs(devices[2], "f" * 64)]
        )
        session.add(
            SlotStable(
                tenant=TENANT,
                group="lab",
                profile=FLOAT,
                slot=SLOT,
                rollout="r",
                release={"model": "digits", "version": "1.0.0"},
                updated_at=START,
            )
        )
        for hours_ago, n in ((0, 9), (1, 600), (2, 600), (30, 10**6)):
            make_partition(session, START - timedelta(hours=hours_ago))
            session.add(
                TelemetryHour(
                    tenant=TENANT,
                    model="digits",
                    version="1.0.0",
                    profile=FLOAT,
                    group="lab",
                    hour=START - timedelta(hours=hours_ago),
                    n=n,
                    errors=n // 100,
                    slow=0,
                    devices=2,
                    latency=[],
                    classes=[],
                )
            )
    target = Target(tenant=TENANT, slot=SLOT, groups=["lab", "shop"])
    with sessions() as session:
        found, other = gather(session, target, PLAN, {FLOAT: {"sha256": new}, INT8: {"sha256": "0" * 64}}, START)
    assert found.reach == Reach(devices=5, online=2, within_1_day=3, within_7_days=4)
    assert found.groups == {"lab": 4, "shop": 1}
    assert (found.variant_bytes, found.largest_transfer_bytes, found.holding) == (6000, 6000, 1)
    assert found.bytes_to_transfer == 2 * 5000 + 0 + 2 * 6000  # two hold a file of it, one all, two nothing
    assert found.traffic == Traffic(per_device_minute=5.0, error_share=0.01, source="counters of the last day")
    assert (other.profile, other.reach.devices, other.traffic) == (INT8, 1, None)


# Over HTTP and the command line


@pytest.fixture
def client(fleet: Fleet) -> Callable[[str], TestClient]:
    fleet.now = datetime.now(UTC)
    fleet.enrol(FLOAT, 4)
    fleet.publish("1.0.0", 1)
    app = FastAPI()
    problems.install(app)
    app.include_router(router)
    app.include_router(rollout_router)
    app.state.registry, app.state.controller = fleet.registry, fleet.controller
    assert undeclared_routes(app) == []
    with fleet.registry.sessions.begin() as session:
        tokens = {
            name: people.make_user(session, TENANT, name=name, role=role, actor="test", now=fleet.now)[1]
            for name, role in {"vic": Role.VIEWER, "pub": Role.PUBLISHER}.items()
        }
    return lambda name: TestClient(app, headers={"Authorization": f"Bearer {tokens[name]}"})


BODY = {"model": "digits", "version": "1.0.0", "slot": SLOT, "groups": ["lab"]}


def stored(fleet: Fleet) -> tuple[int, ...]:
    with fleet.registry.sessions() as session:
        return tuple(session.scalar(select(func.count()).select_from(kind)) or 0 for kind in (Rollout, AuditRecord))


def test_a_dry_run_says_what_it_would_cost_and_stores_nothing(
    fleet: Fleet, client: Callable[[str], TestClient]
) -> None:
    before = stored(fleet)
    answer = client("vic").post("/v1/rollouts/forecast", json=BODY | {"bandwidth_bits_per_second": 1e6})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert stored(fleet) == before
    assert (found["devices"], found["profiles"][0]["profile"], found["conflicts"]) == (4, FLOAT, [])
    assert [stage["devices"] for stage in found["profiles"][0]["stages"]] == [2, 2, 2, 4]
    assert any("devices 2 go first" in line for line in found["not_proved"])


@pytest.mark.parametrize(
    ("change", "status", "named"),
    [
        ({"version": "9.9.9"}, 404, "9.9.9"),
        ({"groups": ["nowhere"]}, 404, "nowhere"),
        ({"plan": {"windows": [{"start": "22:00", "minutes": 0}]}}, 422, "windows[0]"),
        ({"bandwidth_bits_per_second": 0}, 422, "bandwidth_bits_per_second"),
        ({"colour": 1}, 422, "colour"),
    ],
)
def test_a_dry_run_refuses_what_a_draft_would(
    fleet: Fleet, client: Callable[[str], TestClient], change: dict[str, Any], status: int, named: str
) -> None:
    answer = client("vic").post("/v1/rollouts/forecast", json=BODY | change)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert named in answer.text


def test_a_dry_run_names_rollouts_in_the_way(fleet: Fleet, client: Callable[[str], TestClient]) -> None:
    other = fleet.create("1.0.0")
    found = client("vic").post("/v1/rollouts/forecast", json=BODY).json()
    assert found["conflicts"] == [f"rollout {other} of digits@1.0.0 is AWAITING_APPROVAL on lab"]
    mine = client("vic").get(f"/v1/rollouts/{other}/forecast").json()
    assert mine["conflicts"] == []


def test_who_may_not_read_rollouts_gets_no_forecast(fleet: Fleet, client: Callable[[str], TestClient]) -> None:
    assert client("pub").post("/v1/rollouts/forecast", json=BODY).status_code == 403
    assert client("pub").get(f"/v1/rollouts/{fleet.create('1.0.0')}/forecast").status_code == 403


def test_a_rollout_that_has_ended_has_no_forecast(fleet: Fleet, client: Callable[[str], TestClient]) -> None:
    rollout = fleet.launch("1.0.0")
    found = client("vic").get(f"/v1/rollouts/{rollout}/forecast", params={"bandwidth_bits_per_second": 1e6}).json()
    assert [stage["stage"] for stage in found["profiles"][0]["stages"]] == [0, 1]
    fleet.run_until(rollout, "COMPLETED")
    answer = client("vic").get(f"/v1/rollouts/{rollout}/forecast")
    assert (answer.status_code, "no stage of it lies ahead" in answer.text) == (409, True)
    assert client("vic").get("/v1/rollouts/none/forecast").status_code == 404


def test_the_commands_show_a_table_or_json(
    fleet: Fleet, client: Callable[[str], TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = fleet.create("1.0.0")
    asked: list[tuple[str, Any]] = []

    class Over:
        """The API client, over the application in this process."""

        def __init__(self, *_: object) -> None:
            self.http = client("vic")

        def get(self, path: str) -> Any:
            asked.append((path, None))
            return self.http.get(path).json()

        def post(self, path: str, body: Any) -> Any:
            asked.append((path, body))
            return self.http.post(path, json=body).json()

    monkeypatch.setattr("modelfleet.registry.command.ApiClient", Over)
    main = click.Group("modelfleet", commands={found.name: found for found in COMMANDS if found.name})
    lines = ["--bandwidth", "200Mbit/s", "--device-bandwidth", "2Mbit/s"]
    shown = CliRunner().invoke(main, ["rollout", "forecast", rollout, *lines])
    assert shown.exit_code == 0, shown.output
    assert "4 devices" in shown.output and "no traffic is known" in shown.output and "100%" in shown.output
    assert asked[-1][0].endswith("bandwidth_bits_per_second=200000000.0&device_bandwidth_bits_per_second=2000000.0")
    create = ["rollout", "create", "digits", "1.0.0", "--slot", SLOT, "--group", "lab", "--dry-run", "--json", *lines]
    printed = CliRunner().invoke(main, create)
    assert json.loads(printed.stdout)["devices"] == 4
    assert asked[-1][1]["bandwidth_bits_per_second"] == 200e6


@pytest.mark.parametrize("speed", ["fast", "0Mbit/s", "200", "200MB/s", "-1Mbit/s"])
def test_a_speed_that_is_none_is_refused(speed: str) -> None:
    with pytest.raises(click.BadParameter, match="200Mbit/s"):
        forecast_cli.Speed().convert(speed, None, None)
    assert forecast_cli.Speed().convert("1.5 Gbit/s", None, None) == 1.5e9
