"""People, devices, time and crashes in any order, over the real controller: what must hold always, holds."""

import contextlib
import random
import shutil
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import select

from modelfleet.policies.errors import PolicyError
from modelfleet.registry.tables import AuditRecord
from modelfleet.rollout.changes import lifecycle
from modelfleet.rollout.changes.lifecycle import RolloutChange
from modelfleet.rollout.desired.retries import retry
from modelfleet.rollout.errors import RolloutError
from modelfleet.rollout.states import ON_TRIAL, TERMINAL, UNSTARTED, State, Verdict, summary
from modelfleet.rollout.tables import DesiredDocument, Rollout, RolloutProfile, SlotStable
from modelfleet.signer.ceremony import CeremonyResult
from modelfleet.signer.desired import GroupDocument, Slot
from tests.unit.rollout.conftest import PLAN, SLOT, Fleet, make_fleet

FLOAT, INT8 = "linux-cpu-float", "linux-cpu-int8"
STEERING = {
    "pause": lifecycle.pause,
    "resume": lifecycle.resume,
    "halt": lifecycle.halt,
    "rollback": lifecycle.rollback,
    "cancel": lifecycle.cancel,
    "reject": lifecycle.reject,
    "start": lifecycle.start,
}


NEWEST = st.integers(0, 2)
"""Which rollout, counted from the newest."""


class Rollouts(RuleBasedStateMachine):
    """Two profiles of two devices in one group, and whatever happens to them."""

    ceremony: CeremonyResult

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.fleet: Fleet = make_fleet(self.folder, self.ceremony)
        self.ended: dict[str, str] = {}
        self.below: dict[tuple[str, str], int] = {}
        self.version = 0

    def teardown(self) -> None:
        self.come_to_an_end()
        self.fleet.controller.stop()
        self.fleet.engine.dispose()
        shutil.rmtree(self.folder)

    @initialize()
    def a_fleet(self) -> None:
        self.fleet.enrol(FLOAT, 2)
        self.fleet.enrol(INT8, 2)

    @rule(supersede=st.booleans(), emergency=st.booleans(), bake=st.sampled_from([0, 30]))
    def create(self, supersede: bool, emergency: bool, bake: int) -> None:
        self.draft(supersede, emergency, bake)

    @rule(supersede=st.booleans(), emergency=st.booleans(), bake=st.sampled_from([0, 30]), count=st.integers(0, 3))
    def launch(self, supersede: bool, emergency: bool, bake: int, count: int) -> None:
        """What mostly happens: drafted, approved by both, started, and time passes."""
        rollout = self.draft(supersede, emergency, bake)
        with contextlib.suppress(RolloutError, PolicyError):
            for person in ("bob", "eve") if emergency else ("bob",):
                self.fleet.approve(rollout, person)
            lifecycle.start(self.direction, rollout, actor="ada", now=self.fleet.now)
            self.fleet.controller.dispatch()
        self.fleet.steps(count)

    @rule(number=NEWEST, person=st.sampled_from(["bob", "eve"]))
    def approve(self, number: int, person: str) -> None:
        self.dare(number, lambda rollout: self.fleet.approve(rollout, person))

    @rule(number=NEWEST, person=st.sampled_from(["bob", "eve"]))
    def withdraw(self, number: int, person: str) -> None:
        self.dare(number, lambda rollout: lifecycle.withdraw(self.direction, rollout, actor=person, now=self.fleet.now))

    @rule(number=NEWEST, share=st.sampled_from([0.5, 0.75]))
    def change(self, number: int, share: float) -> None:
        changes = RolloutChange(plan=PLAN | {"stages": [share, 1.0]})
        self.dare(
            number, lambda rollout: lifecycle.change(self.direction, rollout, changes, actor="ada", now=self.fleet.now)
        )

    @rule(number=NEWEST, name=st.sampled_from([*STEERING, "start", "start"]), alone=st.booleans())
    def steer(self, number: int, name: str, alone: bool) -> None:
        more = {"profile": INT8} if alone and name in ("pause", "resume", "halt", "rollback") else {}
        self.dare(
            number, lambda rollout: STEERING[name](self.direction, rollout, actor="ada", now=self.fleet.now, **more)
        )

    @rule(number=NEWEST)
    def retry(self, number: int) -> None:
        self.dare(number, lambda rollout: retry(self.direction, rollout, actor="ada", now=self.fleet.now))

    @rule(count=st.integers(1, 6))
    def time_passes(self, count: int) -> None:
        self.fleet.steps(count)

    @rule()
    def a_month_passes(self) -> None:
        self.fleet.now += timedelta(days=31)
        self.fleet.controller.tick(self.fleet.now)

    @rule(number=st.integers(0, 3), bad=st.booleans())
    def a_device_turns(self, number: int, bad: bool) -> None:
        """It errs on whatever it runs from now on, or no longer does."""
        device = self.fleet.devices[number]
        device.error_share = dict.fromkeys([device.active or ""], 0.5) if bad else {}

    @rule(number=st.integers(0, 3))
    def a_device_falls_silent_or_speaks_again(self, number: int) -> None:
        self.fleet.devices[number].quiet = not self.fleet.devices[number].quiet

    @rule(seed=st.integers(0, 9))
    def messages_come_again_in_another_order(self, seed: int) -> None:
        sent = [message for device in self.fleet.devices for message in device.sent[-8:]]
        random.Random(seed).shuffle(sent)
        for topic, payload in sent:
            self.fleet.devices[0].broker.publish(topic, payload)
        self.fleet.controller.tick(self.fleet.now)

    @rule()
    def the_controller_is_killed(self) -> None:
        self.fleet.crash()
        self.fleet.start_controller()

    @property
    def direction(self) -> Any:
        return self.fleet.controller.direction

    def draft(self, supersede: bool, emergency: bool, bake: int) -> str:
        """Draft a rollout of a new version; its id, or nothing where another one is in the way."""
        self.version += 1
        self.fleet.publish(f"1.{self.version}.0", self.version)
        more: dict[str, Any] = {"supersede": supersede, "emergency": emergency, "reason": "recall" if emergency else ""}
        with contextlib.suppress(RolloutError):
            return self.fleet.create(f"1.{self.version}.0", plan={"bake_seconds": bake}, **more)
        return ""

    def dare(self, number: int, act: Any) -> None:
        """Do something with the newest rollout, or the one before; what the table refuses changes nothing."""
        known = self.rollouts()
        if len(known) <= number:
            return
        rollout = known[-1 - number].id
        before = self.fleet.row(rollout).revision
        try:
            act(rollout)
        except (RolloutError, PolicyError):
            assert self.fleet.row(rollout).revision == before
        self.fleet.controller.dispatch()

    def written(self, profile: str) -> Slot:
        """What the database's document of the group says of the slot; `published` compares it with the broker's."""
        with self.fleet.registry.sessions() as session:
            row = session.get(DesiredDocument, ("acme", f"g/lab/{profile}"))
            assert row is not None
            return msgspec.json.decode(row.payload, type=GroupDocument).slots.get(SLOT, Slot())

    def published(self) -> bool:
        """Whether the broker holds every document that the database does."""
        with self.fleet.registry.sessions() as session:
            documents = session.scalars(select(DesiredDocument)).all()
        return all(self.fleet.hub.retained.get(row.topic) == row.envelope for row in documents)

    def rollouts(self) -> list[Rollout]:
        with self.fleet.registry.sessions() as session:
            return list(session.scalars(select(Rollout).order_by(Rollout.created_at, Rollout.id)))

    def rows(self) -> list[tuple[Rollout, RolloutProfile]]:
        query = select(Rollout, RolloutProfile).join(RolloutProfile, RolloutProfile.rollout == Rollout.id)
        with self.fleet.registry.sessions() as session:
            return [(rollout, row) for rollout, row in session.execute(query)]

    @invariant()
    def a_rollouts_state_is_what_its_profiles_amount_to(self) -> None:
        rows = self.rows()
        for rollout in self.rollouts():
            verdicts = [Verdict(row.verdict) for other, row in rows if other.id == rollout.id]
            state = State(rollout.state)
            if set(verdicts) == {Verdict.PENDING}:
                assert state in UNSTARTED
            elif set(verdicts) == {Verdict.CLOSED}:
                assert state in TERMINAL
            else:
                assert state is summary(verdicts, rollout.ending and State(rollout.ending))

    @invariant()
    def documents_say_what_the_verdicts_say(self) -> None:
        rows = self.rows()
        for profile in {device.profile for device in self.fleet.devices}:
            on_trial = {rollout.id: row for rollout, row in rows if row.profile == profile and row.verdict in ON_TRIAL}
            slot = self.written(profile)
            assert {each.rollout for each in slot.candidates} == set(on_trial)
            for each in slot.candidates:
                row = on_trial[each.rollout]
                assert (each.accept, each.below) == (row.verdict != Verdict.HALTED, row.below)
            with self.fleet.registry.sessions() as session:
                stable = session.get(SlotStable, ("acme", "lab", profile, SLOT))
            named = None if slot.stable is None else slot.stable.sha256
            assert named == (stable and stable.release and stable.release["sha256"])

    @invariant()
    def a_cohort_only_grows(self) -> None:
        for rollout, row in self.rows():
            assert row.below >= self.below.get((rollout.id, row.profile), 0)
            self.below[rollout.id, row.profile] = row.below

    @invariant()
    def one_rollout_at_most_holds_a_profiles_slot(self) -> None:
        held = [row.profile for rollout, row in self.rows() if _holds(rollout, row)]
        assert len(held) == len(set(held))

    @invariant()
    def an_end_is_never_lost(self) -> None:
        for rollout in self.rollouts():
            if rollout.id in self.ended:
                assert rollout.state == self.ended[rollout.id]
            elif State(rollout.state) in TERMINAL:
                self.ended[rollout.id] = rollout.state

    def come_to_an_end(self) -> None:
        """From wherever it is, a rollout comes to an end once devices answer and one person decides."""
        for device in self.fleet.devices:
            device.quiet, device.error_share = False, {}
            device.come_online()
        for rollout in self.rollouts():
            with contextlib.suppress(RolloutError):
                lifecycle.cancel(self.direction, rollout.id, actor="ada", now=self.fleet.now)
        for _ in range(40):
            left = {each.state for each in self.rollouts()} - {state.value for state in TERMINAL | {State.COMPLETED}}
            if not left:
                break
            self.fleet.steps(1)
        assert not left if self.rollouts() else True
        self.the_trail_tells_every_change()
        until = time.monotonic() + 30
        while not self.published() and time.monotonic() < until:
            time.sleep(0.01)  # another thread may be at it
        assert self.published()

    def the_trail_tells_every_change(self) -> None:
        """The last record of each rollout itself names the state that it is in."""
        with self.fleet.registry.sessions() as session:
            for rollout in self.rollouts():
                mine = (
                    select(AuditRecord).where(AuditRecord.subject == f"rollout/{rollout.id}").order_by(AuditRecord.id)
                )
                told = [
                    row.detail["after"]
                    for row in session.scalars(mine)
                    if "profile" not in row.detail and "after" in row.detail
                ]
                assert told[-1] == rollout.state


def _holds(rollout: Rollout, row: RolloutProfile) -> bool:
    leaving = row.verdict == Verdict.ROLLING_BACK and rollout.superseded_by is None
    return row.verdict in ON_TRIAL or leaving


def test_whatever_happens_what_must_hold_holds(ceremony: CeremonyResult) -> None:
    checks = list(HealthCheck)
    bounds = settings(
        max_examples=4,
        stateful_step_count=25,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],  # what fails is told as it is: making it smaller takes minutes
        suppress_health_check=checks,
    )
    machine = type("Machine", (Rollouts,), {"ceremony": ceremony})
    run_state_machine_as_test(machine, settings=bounds)
