"""A rollout's life on PostgreSQL: what SQL says there is what it says on SQLite."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelfleet.rollout.changes import lifecycle
from modelfleet.rollout.desired.retries import retry
from modelfleet.rollout.devices.listing import count_standings, device_page
from modelfleet.rollout.devices.standing import Standing
from modelfleet.rollout.errors import RolloutConflictError
from modelfleet.rollout.forecast.traffic import inferences_per_minute
from modelfleet.signer.ceremony import CeremonyResult
from tests.unit.rollout.conftest import Fleet, digest_of, make_fleet

FLOAT = "linux-cpu-float"


@pytest.fixture
def fleet(tmp_path: Path, ceremony: CeremonyResult, migrated_postgresql: str) -> Iterator[Fleet]:
    made = make_fleet(tmp_path, ceremony, migrated_postgresql)
    yield made
    made.controller.stop()
    made.engine.dispose()


def test_a_running_rollout_is_listed_retried_superseded_and_cancelled(fleet: Fleet) -> None:
    fleet.enrol(FLOAT, 3)
    fleet.publish("1.0.0", 1)
    first = fleet.launch("1.0.0", plan={"stages": [1.0], "bake_seconds": 600, "alpha": 0.00001})
    fleet.devices[0].rejects = {digest_of("1.0.0", FLOAT)}
    fleet.steps(3)
    with fleet.registry.sessions() as session:
        assert count_standings(session, fleet.row(first)) == {"failed": 1, "committed": 2}
        (failed,) = device_page(session, fleet.row(first), standings=[Standing.FAILED]).devices
        assert inferences_per_minute(session, "acme", "detector", FLOAT) is None
    assert (failed.device, failed.error) == (fleet.devices[0].id, {"kind": "ParityError", "message": "outputs differ"})
    assert retry(fleet.controller.direction, first, actor="ada", now=fleet.now).asked == (failed.device,)
    fleet.publish("1.1.0", 2)
    second = fleet.create("1.1.0", supersede=True, plan={"bake_seconds": 600})
    fleet.approve(second)
    lifecycle.start(fleet.controller.direction, second, actor="ada", now=fleet.now)
    fleet.controller.dispatch()
    fleet.run_until(first, "SUPERSEDED")
    lifecycle.cancel(fleet.controller.direction, second, actor="ada", now=fleet.now)
    assert fleet.run_until(second, "CANCELLED") == "CANCELLED"
    with fleet.registry.sessions() as session:
        assert Standing.NOT_PROVED not in count_standings(session, fleet.row(second))


def test_of_many_that_draft_at_once_for_one_slot_one_does(fleet: Fleet) -> None:
    fleet.enrol(FLOAT, 1)
    fleet.publish("1.0.0", 1)
    made, refused = list[str](), list[Exception]()

    def draft() -> None:
        try:
            made.append(fleet.create("1.0.0"))
        except RolloutConflictError as error:
            refused.append(error)

    threads = [threading.Thread(target=draft) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(refused)) == (1, 5)
