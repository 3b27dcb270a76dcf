"""What the service signs again by itself, and what it says about the rest."""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from modelfleet.service.upkeep import ca_expiry, refresh_at_start, refresh_metadata
from modelfleet.signer.errors import SignerUnavailableError
from modelfleet.signer.rotate import renewal
from modelfleet.signer.stage import publish, sign_here
from tests.unit.registry.conftest import Fleet, fleet, make_fleet, template  # noqa: F401  # fixtures
from tests.unit.signer.test_serve import running_signer


def expire_soon(fleet: Fleet) -> None:  # noqa: F811
    """Let timestamp, snapshot and targets be as old as after ten days without a service, or 170 without renewal."""
    now = datetime.now(UTC)
    paths = fleet.paths
    change, _ = sign_here(
        paths, renewal(paths, paths.repository().policy_chain(), ["targets"], now - timedelta(days=170))
    )
    publish(paths, change, now - timedelta(days=10))


def test_a_signer_that_is_down_does_not_let_the_timestamp_expire(fleet: Fleet) -> None:  # noqa: F811
    expire_soon(fleet)
    before = fleet.registry.repository.versions()
    with pytest.raises(SignerUnavailableError):
        refresh_metadata(fleet.registry)
    after = fleet.registry.repository.versions()
    assert (after["timestamp"], after["snapshot"]) == (before["timestamp"] + 1, before["snapshot"] + 1)
    kinds = {row.kind: row.level for row in fleet.registry.trust.status(datetime.now(UTC)).expiries}
    assert kinds["timestamp"] == kinds["snapshot"] == "ok"


def test_what_people_must_renew_is_logged_at_start_and_once_a_day(
    fleet: Fleet,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    expire_soon(fleet)
    with running_signer(fleet.paths) as running, caplog.at_level(logging.WARNING):
        fleet.use_signer(running.socket_path)
        refresh_metadata(fleet.registry)
        refresh_metadata(fleet.registry)
    said = [record for record in caplog.records if record.name == "modelfleet.signer.status"]
    assert [(record.levelname, record.getMessage().partition(" expires")[0]) for record in said] == [
        ("WARNING", "targets.json")
    ]
    assert "modelfleet keys renew targets" in said[0].getMessage()


def test_a_service_starts_though_the_bins_cannot_be_signed(
    fleet: Fleet,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    expire_soon(fleet)
    refresh_at_start(fleet.registry)
    assert "modelfleet keys publish" in caplog.text
    assert fleet.registry.trust.status(datetime.now(UTC)).roles


def test_the_end_of_the_fleet_ca_is_known(fleet: Fleet) -> None:  # noqa: F811
    now = datetime.now(UTC)
    fleet.registry.trust.more.append(lambda: [ca_expiry(fleet.registry.ca)])
    (row,) = [row for row in fleet.registry.trust.status(now).expiries if row.kind == "ca"]
    assert row.level == "ok"
    assert row.days_left > 3600
