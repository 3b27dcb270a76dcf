"""The same on both databases: an action's whole life, and polls that come at once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modelfleet.rollout.changes import lifecycle
from modelfleet.signer.ceremony import CeremonyResult
from tests.unit.rollout.conftest import make_fleet
from tests.unit.rollout.ddi.conftest import Ddi, polling


@pytest.fixture(params=["sqlite", "postgresql"])
def on_database(request: pytest.FixtureRequest, tmp_path: Path, ceremony: CeremonyResult) -> Iterator[Ddi]:
    url = "" if request.param == "sqlite" else request.getfixturevalue("migrated_postgresql")
    fleet = make_fleet(tmp_path, ceremony, url)
    with polling(fleet, tmp_path) as made:
        yield made
    fleet.controller.stop()
    fleet.engine.dispose()


def test_polls_at_once_make_one_action_and_it_lives_to_its_end(on_database: Ddi) -> None:
    ddi = on_database
    ddi.publish("1.0.0", 1)
    device = ddi.device(artifacts="swu")
    rollout = ddi.launch("1.0.0")
    with ThreadPoolExecutor(8) as pool:
        answers = [answer.result() for answer in [pool.submit(device.get) for _ in range(24)]]
    assert {answer.status_code for answer in answers} == {200}
    assert ddi.actions(device) == [("1.0.0", "OPEN")]
    action = device.offered() or 0
    assert device.http.put(
        f"{device.path}/configData", json={"data": {"board": "a"}}, headers=device.headers
    ).is_success
    device.fetch(action)
    with ThreadPoolExecutor(8) as pool:
        ends = [pool.submit(device.feedback, action, "closed", "success") for _ in range(8)]
        assert {end.result() for end in ends} == {200}
    ddi.complete(rollout)
    ddi.publish("1.1.0", 2)
    second = ddi.launch("1.1.0")
    later = device.offered() or 0
    assert later > action
    device.get(f"/deploymentBase/{later}")
    lifecycle.rollback(ddi.fleet.controller.direction, second, actor="ada", now=ddi.fleet.now, reason="no")
    assert "cancelAction" in device.links()
    assert device.feedback(later, "closed", "success", kind="cancelAction") == 200
    ddi.fleet.run_until(second, "ROLLED_BACK")
    assert ddi.actions(device) == [("1.0.0", "SUCCEEDED"), ("1.1.0", "CANCELLED")]
