from collections.abc import Iterator
from pathlib import Path

import pytest

from modelfleet.agent_client.http_client import HttpClient
from tests.unit.agent_client.fleet import Device, Fleet, make_device, make_fleet
from tests.unit.agent_client.site_server import QUICK, Site


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A server with keys, repository and blobs, on loopback."""
    made = make_fleet(tmp_path)
    yield made
    made.server.stop()


@pytest.fixture
def device(fleet: Fleet, tmp_path: Path) -> Iterator[Device]:
    """An enrolled device whose agent runs."""
    made = make_device(fleet, tmp_path / "device")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def site() -> Iterator[Site]:
    """A server that answers as the test says."""
    made = Site()
    yield made
    made.close()


@pytest.fixture
def client() -> Iterator[HttpClient]:
    """A client with short deadlines."""
    made = HttpClient(deadlines=QUICK)
    yield made
    made.close()
