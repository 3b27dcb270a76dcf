from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.agent_client.fleet import Device, Fleet, make_device, make_fleet


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
