"""The parts of the simulator: clock and turns, faults, the wire, memory, bulk registration, charts, the command."""

import json
import re
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from modelfleet.agent_client.slots import Pointer
from modelfleet.converters.charts import MOST_POINTS, Axes, Mark, areas, distribution, lines, thinned, ticks
from modelfleet.hardware_profiles.profile import load_profiles
from modelfleet.policies.compatibility import incompatibilities
from modelfleet.registry.errors import ConflictError
from modelfleet.registry.register_many import NewDevice, device_id, register_many
from modelfleet.registry.tables import AuditRecord, Device, Group, Tenant, User
from modelfleet.service.cli import main
from modelfleet.service.database import prepare_database, session_factory
from modelfleet.service.errors import ServiceError
from modelfleet.service.simulate import wire
from modelfleet.service.simulate.faults import Faults, parse_faults
from modelfleet.service.simulate.machine import Machine
from modelfleet.service.simulate.memory import MemoryStore
from modelfleet.service.simulate.scheduler import Scheduler
from modelfleet.service.simulate.setup import Setup, make_world
from modelfleet.service.simulate.tenant import make_tenant
from modelfleet.service.simulate.traffic import buckets, share_above
from modelfleet.service.simulate.world import facts_for, parse_mix

NOW = datetime(2026, 3, 1, tzinfo=UTC)
SHA256 = "a" * 64


def machine_of(**changes: Any) -> Machine:
    scheduler = Scheduler(NOW)
    world = make_world(Setup(**changes), scheduler)
    made = Machine(world, next(iter(world.kinds.values())))
    made.online = True
    return made


def test_virtual_time_jumps_to_what_is_due_and_keeps_the_order() -> None:
    scheduler, done = Scheduler(NOW), list[tuple[float, str]]()
    for when, name in ((5.0, "b"), (1.0, "a"), (5.0, "c")):
        scheduler.at(when, lambda name=name: done.append((scheduler.now(), name)))
    scheduler.run_due(60.0)
    assert done == [(1.0, "a"), (5.0, "b"), (5.0, "c")]
    assert (scheduler.clock() - NOW).total_seconds() == 60.0


def test_a_fleet_that_does_more_than_the_machine_can_falls_behind_its_clock_and_leaves_nothing_out() -> None:
    scheduler, seen = Scheduler(NOW, real=True), list[float]()

    def act() -> None:
        seen.append(scheduler.now())
        time.sleep(0.06)  # longer than what is done in one go

    for place in range(3):
        scheduler.at(place / 1000, act)
    time.sleep(0.01)
    assert scheduler.run_due(scheduler.elapsed()) == 0.0
    assert (seen, scheduler.now()) == ([0.0], 0.0)
    for _ in range(2):
        scheduler.run_due(scheduler.elapsed())
    assert seen == [0.0, 0.001, 0.002]
    assert scheduler.behind >= 0.06
    assert scheduler.run_due(scheduler.elapsed()) == 1.0, "nothing is due any more"
    assert scheduler.now() > 0.1, "it has caught up"


def test_a_turn_that_waits_goes_on_when_its_time_has_come_and_others_run_meanwhile() -> None:
    machine, done = machine_of(), list[str]()
    scheduler = machine.world.scheduler

    def turn() -> None:
        machine.spend(10.0)
        done.append(f"waited until {scheduler.now():g}")

    scheduler.turn(turn)
    scheduler.at(4.0, lambda: done.append("another"))
    scheduler.run_due(20.0)
    assert done == ["another", "waited until 10"]


def test_a_device_that_is_woken_looks_about_and_may_stop() -> None:
    machine, seen = machine_of(), list[float]()
    scheduler = machine.world.scheduler

    class StopError(Exception):
        pass

    def look() -> None:
        seen.append(scheduler.now())
        raise StopError

    def turn() -> None:
        with pytest.raises(StopError):
            machine.spend(100.0, look)

    scheduler.turn(turn)
    scheduler.at(30.0, machine.wake)
    scheduler.run_due(200.0)
    assert seen == [30.25]


def test_a_device_tells_in_a_long_act_that_it_is_alive_as_often_as_is_due() -> None:
    machine, told = machine_of(), list[float]()
    scheduler = machine.world.scheduler

    def tell() -> float:
        told.append(scheduler.now())
        return scheduler.now() + 30.0

    machine.tell = tell
    scheduler.turn(lambda: machine.spend(100.0))
    scheduler.run_due(200.0)
    assert told == [5.0, 35.0, 65.0, 95.0]


def test_waking_a_device_in_an_act_that_looks_at_nothing_changes_nothing() -> None:
    machine, done = machine_of(), list[float]()
    scheduler = machine.world.scheduler
    scheduler.turn(lambda: (machine.spend(100.0), done.append(scheduler.now())))
    scheduler.at(30.0, machine.wake)
    scheduler.run_due(200.0)
    assert done == [100.0]


def test_faults_are_read_by_name_and_rate() -> None:
    assert parse_faults(["offline=0.1", "wrong-answers=0.02"]) == Faults(offline=0.1, wrong_answers=0.02)


@pytest.mark.parametrize("text", ["ofline=0.1", "offline", "offline=1.5", "offline=-1", "slow=x"])
def test_what_is_no_fault_is_refused(text: str) -> None:
    with pytest.raises(ServiceError, match="--fault"):
        parse_faults([text])


def test_shares_of_profiles_are_scaled_to_one() -> None:
    assert parse_mix("a=3,b=1", {"a": 0, "b": 0}) == {"a": 0.75, "b": 0.25}
    for text in ("c=1", "a=0", "a=-1", "a=x"):
        with pytest.raises(ServiceError, match="--profile-mix"):
            parse_mix(text, {"a": 0, "b": 0})


def test_simulated_machines_fit_every_profile() -> None:
    assert {name: incompatibilities(profile, facts_for(profile)) for name, profile in load_profiles().items()} == {
        name: [] for name in load_profiles()
    }


@pytest.mark.parametrize("length", [0, 127, 128, 16_383, 16_384, 200_000])
def test_a_message_survives_the_wire_in_pieces(length: int) -> None:
    sent, buffer = wire.publish("mf/v1/acme/d/x/report", b"y" * length, 7, retain=True), bytearray()
    found: list[wire.Packet] = []
    for start in range(0, len(sent), 1000):
        buffer += sent[start : start + 1000]
        found += wire.packets(buffer)
    assert [wire.published(packet) for packet in found] == [("mf/v1/acme/d/x/report", b"y" * length, 7)]
    assert not buffer


def test_what_is_no_mqtt_is_refused() -> None:
    with pytest.raises(ServiceError, match="MQTT"):
        list(wire.packets(bytearray(b"\x30\xff\xff\xff\xff\xff")))
    with pytest.raises(ServiceError, match="at most"):
        list(wire.packets(bytearray(b"\x30\xff\xff\xff\x7f")))


def test_the_store_counts_a_variant_once_however_often_it_is_verified() -> None:
    seen: list[Pointer | None] = []
    store = MemoryStore(seen.append)
    store.receive(SHA256, 10)
    assert store.received(SHA256) == 10
    assert store.holds(SHA256) is None
    store.complete(SHA256)
    store.complete(SHA256)
    assert store.installs == {SHA256: 1}
    assert store.holds(SHA256) == "a"
    pointer = Pointer(directory="a", activation=1, sha256=SHA256, version="1.0.0", latency_ms=1.0)
    store.activate(pointer)
    assert store.holds(SHA256) is None, "it is the idle directory that is asked for"
    assert seen == [pointer]


def test_latencies_are_drawn_around_the_median() -> None:
    assert sum(buckets(20.0)) == pytest.approx(1.0)
    assert share_above(20.0, 20.0) == pytest.approx(0.5)
    assert share_above(20.0, 200.0) < 1e-6


@pytest.fixture(params=["sqlite", "postgresql"])
def sessions(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sessionmaker[Session]]:
    url = f"sqlite:///{tmp_path / 'x.sqlite'}" if request.param == "sqlite" else request.getfixturevalue("postgresql")
    engine = prepare_database(url)
    made = session_factory(engine)
    with made.begin() as session:
        session.add(Tenant(name="acme", created_at=NOW))
    yield made
    engine.dispose()


def new_devices(count: int) -> list[NewDevice]:
    keys = [ec.generate_private_key(ec.SECP256R1()).public_key() for _ in range(count)]
    return [NewDevice(id=str(uuid.uuid4()), group="lab", profile="linux-cpu-int8", key=key) for key in keys]


def test_many_devices_are_registered_as_one_act(sessions: sessionmaker[Session]) -> None:
    devices = new_devices(50)
    with sessions.begin() as session:
        register_many(session, "acme", devices, actor="ada", agent_version="1", now=NOW)
    with sessions() as session:
        assert sorted(session.scalars(select(Device.id))) == sorted(device.id for device in devices)
        assert session.scalars(select(Group.name)).all() == ["lab"]
        actions = session.scalars(select(AuditRecord.action)).all()
        assert actions == ["device.register-many"]


def test_no_simulated_device_joins_a_fleet_that_is_real(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        register_many(session, "acme", new_devices(1), actor="ada", agent_version="1", now=NOW)
        session.flush()
        for device in session.scalars(select(Device)):
            device.claim_sha256 = "0" * 64  # it enrolled with a claim token
    with sessions.begin() as session, pytest.raises(ConflictError, match="simulate in another tenant"):
        register_many(session, "acme", new_devices(1), actor="ada", agent_version="1", now=NOW)
    with sessions() as session:
        assert session.scalar(select(func.count()).select_from(Device)) == 1


def test_charts_load_nothing_escape_names_and_stay_short() -> None:
    points = [(float(x), float(x % 7)) for x in range(5000)]
    page = lines("<b>", {"<script>": points}, Axes(x="s", y="<y>"), [Mark(value=3.0, shown="<limit>")])
    assert "<script>" not in page
    assert "<b>" not in page
    assert "http" not in page
    assert page.count("L") <= MOST_POINTS
    assert len(thinned(points)) == MOST_POINTS
    assert thinned(points)[-1] == points[-1]


def test_a_distribution_reaches_one_and_areas_stack() -> None:
    page = distribution("t", {"a": [1.0, 2.0, 4.0]}, "s", [Mark(value=5.0, shown="5 min", across=False)])
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", re.search(r' d="([^"]+)"', page)[1])]  # type: ignore[index]
    assert heights[0] == max(heights)
    assert heights[-1] == min(heights) == 30.0
    stacked = areas("t", {"a": [(0.0, 1.0), (1.0, 1.0)], "b": [(0.0, 1.0), (1.0, 3.0)]}, Axes(x="s", y="n"))
    assert stacked.count('class="area"') == 2
    assert ticks(0.0, 4.0) == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_the_command_rehearses_a_release_and_tells_whether_it_ended_as_expected(tmp_path: Path) -> None:
    plan, report = tmp_path / "plan.toml", tmp_path / "report.html"
    plan.write_text(
        "stages = [1.0]\nbake_seconds = 30\nsoak_seconds = 20\n[limits]\nmetrics_seconds = 30\nprobation_seconds = 10\n"
    )
    arguments = ["simulate", "--devices", "12", "--profile-mix", "linux-cpu-int8", "--plan", str(plan), "--json"]
    arguments += ["--inferences", "3000", "--tick-seconds", "15", "--hours", "1", "--report", str(report)]
    found = CliRunner().invoke(main, [*arguments, "--expect", "rolled-back"])
    assert found.exit_code == 1, found.output
    outcome = json.loads(found.stdout.strip().splitlines()[-1])
    assert outcome["state"] == "COMPLETED"
    assert outcome["running"] == {"stable": 0, "candidate": 12}
    assert outcome["statuses"] == {"wrong": 0, "missing": 0}
    assert outcome["installed_twice"] == 0
    page = report.read_text()
    assert page.count("<svg") >= 4
    assert "default-src" in page


def test_the_same_seed_makes_the_same_fleet() -> None:
    def fleet(seed: int) -> list[tuple[Any, ...]]:
        world = make_world(Setup(seed=seed, faults=Faults(slow=0.5, full_disk=0.5)), Scheduler(NOW))
        machines = [Machine(world, next(iter(world.kinds.values()))) for _ in range(20)]
        ids = [device_id(place, seed, "acme") for place in range(20)]
        return [(name, each.bandwidth, each.ailments, each.space_at) for name, each in zip(ids, machines, strict=True)]

    assert fleet(1) == fleet(1)
    assert fleet(1) != fleet(2)


def test_no_simulation_begins_in_a_tenant_that_people_use(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.sqlite'}"
    engine = prepare_database(url)
    with session_factory(engine).begin() as session:
        session.add(Tenant(name="acme", created_at=NOW))
        session.flush()
        session.add(User(tenant="acme", name="ada", role="admin", token_sha256="0" * 64, created_at=NOW))
    engine.dispose()
    with pytest.raises(ServiceError, match="choose another --tenant"):
        make_tenant(tmp_path / "data", url, "acme", NOW)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--inferences", "-3"), "not in the range"),
        (("--hours", "-1"), "not in the range"),
        (("--tick-seconds", "0"), "not in the range"),
        (("--report", "/nonexistent/rehearsal.html"), "no folder that can be written"),
        (("--mqtt", "foo://"), "mqtt://host:port"),
    ],
)
def test_what_cannot_be_simulated_is_told_before_anything_is(arguments: tuple[str, str], said: str) -> None:
    done = CliRunner().invoke(main, ["simulate", *arguments])
    assert done.exit_code == 2
    assert said in done.output
