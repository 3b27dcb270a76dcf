from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from modelfleet.service.cli import main
from tests.attacks.forge import Forger
from tests.attacks.machine import Machine
from tests.attacks.service import Service, running_service
from tests.attacks.thief import Thief, steal
from tests.unit.agent_client.fleet import TENANT, Device, Fleet, make_device, make_fleet
from tests.unit.registry.conftest import template  # noqa: F401  # a fixture


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A server with keys, repository and blobs, on loopback."""
    made = make_fleet(tmp_path)
    yield made
    made.server.stop()


@pytest.fixture
def forger(fleet: Fleet) -> Forger:
    """Whoever holds the keys of the fleet's TUF roles."""
    return Forger(fleet.keys)


@pytest.fixture
def machine(fleet: Fleet, tmp_path: Path) -> Iterator[Machine]:
    """An enrolled device, its checks called by the test."""
    made = Machine(fleet, tmp_path / "machine")
    yield made
    made.close()


@pytest.fixture
def device(fleet: Fleet, tmp_path: Path) -> Iterator[Device]:
    """An enrolled device whose agent runs."""
    made = make_device(fleet, tmp_path / "device")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def service(tmp_path: Path, template: Path) -> Iterator[Service]:  # noqa: F811  # the fixture of that name
    """Registry and rollout controller over HTTP on loopback, with two enrolled devices."""
    with running_service(tmp_path, template) as made:
        yield made


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder as `modelfleet init` makes it."""
    folder = tmp_path_factory.mktemp("init") / "data"
    people = ("--approver", "anna", "--approver", "ben")
    done = CliRunner().invoke(main, ["init", "--data", str(folder), "--tenant", TENANT, "--bits", "2", *people])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def thief(data_folder: Path, tmp_path: Path) -> Iterator[Thief]:
    """Who has stolen the whole server."""
    made = steal(data_folder, tmp_path)
    yield made
    made.fleet.server.stop()


@pytest.fixture
def victim(thief: Thief, tmp_path: Path) -> Iterator[Machine]:
    """A device of the fleet, enrolled and in order before the theft."""
    made = Machine(thief.fleet, tmp_path / "victim")
    made.is_assigned()
    yield made
    made.close()
