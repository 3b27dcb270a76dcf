"""Every change that hawkBit's transport makes is in the audit trail, but for where a device is on its way."""

from sqlalchemy import select

from modelfleet.registry.tables import AuditRecord
from tests.audited import watch
from tests.unit.rollout.ddi.conftest import Ddi


def test_a_device_and_its_updates_change_nothing_without_a_record(ddi: Ddi) -> None:
    ddi.publish("1.0.0", 1)
    with watch(ddi.fleet.engine) as unaudited:
        device = ddi.device(artifacts="swu")
        device.http.put(f"{device.path}/configData", json={"data": {"board": "a"}}, headers=device.headers)
        ddi.launch("1.0.0")
        action = device.offered() or 0
        device.fetch(action)
        assert device.feedback(action, "proceeding") == 200
        assert device.feedback(action, "proceeding", "none", ["All Chunks Installed."]) == 200
        assert device.feedback(action, "closed", "failure") == 200
        ddi.http.post("/v1/ddi/devices/cam-1/retry", headers=ddi.admin)
        device.install()
        (row,) = ddi.http.get("/v1/ddi/tokens", headers=ddi.admin).json()["tokens"]
        ddi.http.post(f"/v1/ddi/tokens/{row['id']}/rotate", json={}, headers=ddi.admin)
        ddi.http.post(f"/v1/ddi/tokens/{row['id']}/revoke", headers=ddi.admin)
    assert unaudited == []
    with ddi.fleet.registry.sessions() as session:
        found = set(session.scalars(select(AuditRecord.action)))
    assert {"ddi-device.create", "ddi-device.configure", "ddi-action.move", "ddi-action.retry"} <= found
    assert {"ddi-token.create", "ddi-token.rotate", "ddi-token.revoke", "ddi-module.make", "device.report"} <= found
