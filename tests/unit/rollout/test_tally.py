"""What the database counts is what plain Python counts, over random fleets, on SQLite and on PostgreSQL."""

import random
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker

from modelfleet.agent_client.protocol import DeviceState
from modelfleet.policies.plan import Plan, parse_plan
from modelfleet.registry import catalog
from modelfleet.registry.tables import Device
from modelfleet.rollout.decisions.decide import DeviceTally
from modelfleet.rollout.desired import recall
from modelfleet.rollout.evidence import population, started, tally, totals
from modelfleet.rollout.tables import DeviceCounters, DeviceSlot, DeviceTrial, Rollout, RolloutProfile
from modelfleet.signer.desired import bucket_of
from tests.unit.rollout.conftest import FLOAT, INT8, PLAN, SLOT, START, TENANT

NOW = START + timedelta(hours=1)
CANDIDATE, BEFORE, OTHER = "c" * 64, "b" * 64, "0" * 64
STATES = list(DeviceState)
OUTCOMES = [None, None, "COMMITTED", "COMMITTED", "REJECTED", "ROLLED_BACK"]


@dataclass
class Fleet:
    """A random fleet as plain rows, and the rollout that it is in the middle of."""

    rollout: Rollout
    row: RolloutProfile
    plan: Plan
    devices: list[Device]
    slots: list[DeviceSlot]
    trials: list[DeviceTrial]
    counters: list[DeviceCounters]


def random_fleet(seed: int) -> Fleet:
    chance = random.Random(seed)
    plan = parse_plan(PLAN)
    rollout = a_rollout(f"rollout-{seed}", f"salt-{seed}")
    row = a_profile(rollout, chance.choice([0, 2**31, 2**32]))
    fleet = Fleet(rollout, row, plan, [], [], [], [])
    for _ in range(chance.randrange(1, 30)):
        device = a_device(chance)
        fleet.devices.append(device)
        moment = lambda: NOW - timedelta(seconds=chance.choice([0, 5, 29, 30, 31, 45, 199, 200, 201, 3600, 3640]))  # noqa: E731
        for slot in (SLOT, "other"):
            if chance.random() < 0.8:
                fleet.slots.append(a_slot(chance, device, slot, moment()))
            if chance.random() < 0.7:
                fleet.counters += [
                    a_count(chance, device, slot, number, moment()) for number in range(chance.randrange(1, 3))
                ]
        for name in (rollout.id, "another"):
            if chance.random() < 0.6:
                fleet.trials.append(a_trial(chance, device, name, moment(), moment()))
    return fleet


def a_rollout(name: str, salt: str) -> Rollout:
    return Rollout(
        id=name,
        tenant=TENANT,
        model="digits",
        version="1.0.0",
        slot=SLOT,
        groups=["lab", "shop"],
        plan=PLAN,
        plan_sha256="",
        author="ada",
        salt=salt,
        state="CANARY",
        skipped_profiles={},
        created_at=START,
        approve_by=NOW,
        revision=0,
    )


def a_profile(rollout: Rollout, below: int) -> RolloutProfile:
    return RolloutProfile(
        rollout=rollout.id,
        profile=FLOAT,
        verdict="STAGE",
        release={"sha256": CANDIDATE},
        previous={"lab": {"sha256": BEFORE}, "shop": None},
        below=below,
        stage=0,
        baselines=[],
        unproven=[],
        evidence={},
        trial_started_at=START,
        stage_started_at=START,
        hold_started_at=START,
    )


def a_device(chance: random.Random) -> Device:
    return Device(
        id=str(uuid.UUID(int=chance.getrandbits(128))),
        tenant=TENANT,
        group=chance.choice(["lab", "lab", "shop", "elsewhere"]),
        profile=chance.choice([FLOAT, FLOAT, FLOAT, INT8]),
        public_key="",
        key_sha256=str(chance.getrandbits(200)),
        claim_sha256="",
        facts={},
        agent_version="",
        enrolled_at=NOW - timedelta(seconds=chance.choice([1, 1000])),
        online=chance.random() < 0.5,
        revoked_at=NOW if chance.random() < 0.1 else None,
    )


def a_slot(chance: random.Random, device: Device, slot: str, at: datetime) -> DeviceSlot:
    digests = [None, CANDIDATE, BEFORE]
    return DeviceSlot(
        device=device.id,
        slot=slot,
        boot=1,
        seq=1,
        state=chance.choice(STATES).value,
        digest=chance.choice(digests),
        active=chance.choice(digests),
        proven=chance.choice(digests),
        received_at=at,
    )


def a_count(chance: random.Random, device: Device, slot: str, number: int, at: datetime) -> DeviceCounters:
    return DeviceCounters(
        device=device.id,
        slot=slot,
        activation=number,
        sha256=chance.choice([CANDIDATE, BEFORE, OTHER]),
        boot=1,
        seq=1,
        n=chance.randrange(100),
        errors=chance.randrange(10),
        slow=chance.randrange(10),
        latency=[],
        classes=[],
        received_at=at,
    )


def a_trial(chance: random.Random, device: Device, rollout: str, started: datetime, at: datetime) -> DeviceTrial:
    return DeviceTrial(
        rollout=rollout,
        device=device.id,
        boot=chance.randrange(3),
        seq=chance.randrange(3),
        state=chance.choice(STATES).value,
        seconds=0.0,
        started_at=started,
        received_at=at,
        outcome=chance.choice(OUTCOMES),
        outcome_boot=chance.randrange(3),
        outcome_seq=chance.randrange(3),
    )


def stored(session: Session, fleet: Fleet) -> None:
    session.add(fleet.rollout)
    session.add_all(fleet.devices)
    session.flush()
    session.add_all([fleet.row, *fleet.slots, *fleet.trials, *fleet.counters])
    session.flush()


class Model:
    """The same questions, answered one device at a time."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.plan = fleet, fleet.plan
        mine = [d for d in fleet.devices if d.group in fleet.rollout.groups and d.profile == FLOAT and not d.revoked_at]
        self.devices = {each.id: each for each in sorted(mine, key=lambda each: each.id)}
        self.trials = {
            each.device: each
            for each in fleet.trials
            if each.rollout == fleet.rollout.id and each.device in self.devices
        }
        self.heard: dict[str, datetime] = {}
        for each in [*fleet.slots, *fleet.counters]:
            if each.slot == SLOT:
                self.heard[each.device] = max(each.received_at, self.heard.get(each.device, each.received_at))
        until = fleet.row.control_until
        self.control = [name for name in self.devices if until is None or name <= until]

    def tally(self) -> tuple[DeviceTally, int]:
        silent_after = timedelta(seconds=self.plan.silent_seconds)
        silent = {
            name for name, each in self.devices.items() if NOW - self.heard.get(name, each.enrolled_at) > silent_after
        }
        done = {name for name, trial in self.trials.items() if self.ended(trial)}
        stall = timedelta(seconds=self.plan.stall_seconds)
        stalled = {n for n, trial in self.trials.items() if n not in done and NOW - trial.started_at > stall}
        failed = {n for n, trial in self.trials.items() if trial.outcome in started.FAILURES} | (stalled - silent)
        alive_since = START - silent_after
        stable = [n for n in self.control if n not in self.trials and self.heard.get(n, alive_since) > alive_since]
        return DeviceTally(
            cohort=sum(bucket_of(self.fleet.rollout.salt, name) < self.fleet.row.below for name in self.devices),
            started=len(self.trials),
            ended=len(done | stalled),
            committed=sum(trial.outcome == DeviceState.COMMITTED for trial in self.trials.values()),
            failed=len(failed),
            silent=len(silent & set(self.trials)),
            stable=len(stable),
            stable_silent=sum(name in silent for name in stable),
        ), len(set(self.trials) - done - stalled - silent)

    def ended(self, trial: DeviceTrial) -> bool:
        again = (trial.boot, trial.seq) > (trial.outcome_boot, trial.outcome_seq) and trial.state in started.INSTALLING
        if trial.outcome is not None and not again:
            return True
        if trial.state == DeviceState.PROBATION:
            return NOW - trial.received_at > timedelta(seconds=self.plan.limits.probation_seconds)
        return trial.state in started.GAVE_UP

    def unproven(self) -> list[str]:
        silent = timedelta(seconds=self.plan.silent_seconds)
        slots = {each.device: each for each in self.fleet.slots if each.slot == SLOT}
        return [
            name
            for name, device in self.devices.items()
            if name in slots
            and (
                CANDIDATE in (slots[name].proven, slots[name].active)
                or (slots[name].digest == CANDIDATE and slots[name].state in started.INSTALLING)
            )
            and (device.online or NOW - self.heard[name] < silent)
        ]

    def unheard(self, patience: timedelta, *, leaving: bool) -> list[str]:
        running = {
            each.device: each.sha256
            for each in sorted(self.fleet.counters, key=lambda each: each.activation)
            if each.slot == SLOT
        }
        old = {n for n, t in self.trials.items() if t.outcome is None and t.received_at < NOW - patience}
        if leaving:
            wanted = {name for name in self.unproven() if running.get(name) not in (None, CANDIDATE)}
        else:
            on_it = {name for name in self.devices if running.get(name) == CANDIDATE}
            stuck = {name for name, trial in self.trials.items() if trial.state in recall.PASSING}
            wanted = {name for name in on_it | stuck if name not in self.trials or name in old}
        silent = timedelta(seconds=self.plan.silent_seconds)
        return sorted(name for name in wanted if name in self.heard and NOW - self.heard[name] <= silent)

    def totals(self) -> dict[str, int]:
        def of(names: Any, digest: str) -> list[DeviceCounters]:
            return [c for c in self.fleet.counters if c.slot == SLOT and c.device in names and c.sha256 == digest]

        mine, others = of(self.devices, CANDIDATE), of(self.control, BEFORE)
        return {
            "n": sum(each.n for each in mine),
            "errors": sum(each.errors for each in mine),
            "slow": sum(each.slow for each in mine),
            "stable_n": sum(each.n for each in others),
            "stable_errors": sum(each.errors for each in others),
        }


def test_the_database_counts_what_python_counts(
    sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(30):
        fleet = random_fleet(seed)
        monkeypatch.setattr(population, "CONTROL_DEVICES", 5 if seed % 2 else 20_000)
        with sessions() as session:
            stored(session, fleet)
            fleet.row.control_until = population.control_until(session, fleet.rollout, FLOAT)
            model, patience = Model(fleet), timedelta(seconds=40)
            about = (session, fleet.rollout, fleet.row, fleet.plan, NOW)
            arms = tally.count_arms(session, fleet.rollout, [fleet.row], fleet.plan, NOW)[FLOAT]
            counted = tally.tally(session, fleet.rollout, fleet.row, fleet.plan, arms)
            assert (counted, arms.started.blocking) == model.tally(), seed
            assert arms.totals == totals.Totals(**model.totals()), seed
            assert tally.unproven(*about) == model.unproven(), seed
            assert totals.count(session, fleet.rollout, fleet.row) == totals.Totals(**model.totals()), seed
            assert [d.id for d in recall._unheard(*about, patience)] == model.unheard(patience, leaving=False), seed
            fleet.row.verdict = "ROLLING_BACK"
            assert [d.id for d in recall._unheard(*about, patience)] == model.unheard(patience, leaving=True), seed
            assert sorted(population.device_ids(session, fleet.rollout, FLOAT)) == list(model.devices)
            assert population.size(session, fleet.rollout, FLOAT) == len(model.devices)
            wanted = {d.profile for d in fleet.devices if d.group in fleet.rollout.groups and not d.revoked_at}
            assert catalog.profiles_in(session, TENANT, fleet.rollout.groups) == sorted(wanted)
            session.rollback()


def test_the_control_arm_of_a_large_fleet_is_its_first_devices_by_id(
    sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(population, "CONTROL_DEVICES", 3)
    fleet = next(found for seed in range(100) if len(Model(found := random_fleet(seed)).devices) > 6)
    with sessions() as session:
        stored(session, fleet)
        until = population.control_until(session, fleet.rollout, FLOAT)
        assert until == list(Model(fleet).devices)[2]
        monkeypatch.setattr(population, "CONTROL_DEVICES", len(Model(fleet).devices))
        assert population.control_until(session, fleet.rollout, FLOAT) is None


def test_a_large_cohort_is_the_one_that_its_stage_began_with(
    sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = next(found for seed in range(100) if len(Model(found := random_fleet(seed)).devices) > 6)
    fleet.row.cohort = 12345
    with sessions() as session:
        stored(session, fleet)
        assert tally.count_cohort(session, fleet.rollout, fleet.row) == Model(fleet).tally()[0].cohort
        monkeypatch.setattr(tally, "COUNTED_ANEW", 3)
        assert tally.count_cohort(session, fleet.rollout, fleet.row) == 12345
        fleet.row.cohort = None  # of a rollout that an older version began
        assert tally.count_cohort(session, fleet.rollout, fleet.row) == Model(fleet).tally()[0].cohort


def test_profiles_counted_together_are_counted_as_each_alone(sessions: sessionmaker[Session]) -> None:
    for seed in range(8):
        fleet = random_fleet(seed)
        other = a_profile(fleet.rollout, 0)
        other.profile, other.release = INT8, {"sha256": OTHER}
        with sessions() as session:
            stored(session, fleet)
            about, rows = (session, fleet.rollout), [fleet.row, other]
            alone = {row.profile: tally.count_arms(*about, [row], fleet.plan, NOW)[row.profile] for row in rows}
            assert tally.count_arms(*about, rows, fleet.plan, NOW) == alone, seed
            session.rollback()
