"""Every change that a rollout makes is in the audit trail."""

from datetime import timedelta

from sqlalchemy import select

from modelfleet.registry.tables import AuditRecord
from modelfleet.rollout.changes import lifecycle
from tests.audited import watch
from tests.unit.rollout.conftest import FLOAT, Fleet


def actions(fleet: Fleet) -> set[str]:
    with fleet.registry.sessions() as session:
        return set(session.scalars(select(AuditRecord.action)))


def test_a_rollout_from_draft_to_completed_and_back_changes_nothing_without_a_record(fleet: Fleet) -> None:
    fleet.enrol(FLOAT, 4)
    fleet.publish("1.0.0", 1)
    with watch(fleet.engine) as unaudited:
        rollout = fleet.launch("1.0.0")
        fleet.run_until(rollout, "COMPLETED")
        lifecycle.rollback(fleet.controller.direction, rollout, actor="ada", now=fleet.now)
        fleet.run_until(rollout, "ROLLED_BACK")
        fleet.now += timedelta(days=2)
        fleet.controller.tick(fleet.now)
    assert unaudited == []
    found = actions(fleet)
    assert {"rollout.start", "rollout.complete", "rollout.roll-back", "rollout.prove"} <= found
    assert {"variant.release", "variant.withdraw", "desired.issue", "desired.renew", "device.report"} <= found


def test_a_change_without_a_record_would_be_found(fleet: Fleet) -> None:
    fleet.publish("1.0.0", 1)
    with watch(fleet.engine) as unaudited, fleet.registry.sessions.begin() as session:
        session.connection().exec_driver_sql("UPDATE versions SET state = 'READY'")
    assert unaudited == [["UPDATE versions SET state = 'READY'"]]
