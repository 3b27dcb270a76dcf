"""A controller that led until a moment ago changes nothing, whatever it decides; the next one does."""

from datetime import timedelta

from sqlalchemy import func, select

from modelfleet.rollout.errors import NotLeadingError
from modelfleet.rollout.leadership import Alone
from modelfleet.rollout.tables import DesiredDocument
from tests.unit.rollout.conftest import FLOAT


class Former(Alone):
    """Believes to lead; the database knows better."""

    def fence(self, session: object) -> None:
        raise NotLeadingError("expected to lead acme in term 1, term 2 has begun")


def test_a_former_leader_moves_no_rollout(fleet):
    fleet.enrol(FLOAT, 4)
    fleet.publish("1.0.0", 1)
    rollout = fleet.launch("1.0.0")
    fleet.controller.ticks._leadership = Former()
    before = fleet.trail(rollout)
    fleet.steps(12)
    assert fleet.state(rollout) == "CANARY"
    assert fleet.trail(rollout) == before
    fleet.controller.ticks._leadership = Alone()
    assert fleet.run_until(rollout, "COMPLETED") == "COMPLETED"


def test_a_former_leader_signs_nothing_again(fleet):
    fleet.enrol(FLOAT, 2)
    fleet.now += timedelta(days=2)
    newest = select(func.max(DesiredDocument.seq))
    with fleet.registry.sessions() as session:
        before = session.scalar(newest)
    fleet.controller.ticks._leadership = Former()
    fleet.controller.tick(fleet.now)
    with fleet.registry.sessions() as session:
        assert session.scalar(newest) == before


def test_documents_of_a_fleet_that_came_at_once_are_signed_again_over_half_a_day(fleet):
    fleet.enrol(FLOAT, 60)
    with fleet.registry.sessions() as session:
        due = sorted(session.scalars(select(DesiredDocument.renew_at)))
    assert fleet.now + timedelta(hours=12) <= due[0]
    assert due[-1] <= fleet.now + timedelta(hours=24)
    assert due[-1] - due[0] > timedelta(hours=6)
