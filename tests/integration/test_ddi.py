"""hawkBit's DDI with the clients that are out there, unmodified: Debian's swupdate and PyPI's rauc-hawkbit, on a real service."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.hawkbit import SECONDS, SLOT, Hawkbit, Swupdate
from tests.servers import program
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def hawkbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hawkbit]:
    program("swupdate")
    folder = tmp_path_factory.mktemp("hawkbit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELFLEET_DDI_ROOT", str(folder / "slots"))
        patch.setenv("MODELFLEET_DDI_POLL_SECONDS", "1")
        made = Hawkbit(folder)
        try:
            made.publish("1.0.0", "1.1.0", "1.2.0")
            yield made
        finally:
            made.server.stop()


def running(hawkbit: Hawkbit) -> str:
    """The version that the device's `current` link leads to."""
    import json

    return json.loads((hawkbit.folder / "slots" / SLOT / "current" / "manifest.json").read_text())["version"]


def test_swupdate_installs_confirms_goes_on_and_comes_back(hawkbit: Hawkbit, tmp_path: Path) -> None:
    device = Swupdate(tmp_path, hawkbit, "cam-1", hawkbit.add_device("cam-1"))
    first = hawkbit.launch("1.0.0")
    with device.running():
        until(lambda: device.said("pending testing") > 0, seconds=SECONDS, shown=device.log.read_text)
        assert hawkbit.actions("cam-1") == [("1.0.0", "OPEN")]  # "All Chunks Installed." is no success
    assert running(hawkbit) == "1.0.0"
    with device.running("-c 2"):
        hawkbit.action_comes_to("cam-1", ("1.0.0", "SUCCEEDED"))
        hawkbit.comes_to(first, "COMPLETED")
        second = hawkbit.launch("1.1.0", soak_seconds=3600)
        hawkbit.action_comes_to("cam-1", ("1.0.0", "SUCCEEDED"), ("1.1.0", "OPEN"))
        until(lambda: device.said("pending testing") > 1, seconds=SECONDS, shown=device.log.read_text)
    assert running(hawkbit) == "1.1.0"
    with device.running("-c 2"):
        hawkbit.action_comes_to("cam-1", ("1.1.0", "SUCCEEDED"))
        hawkbit.comes_to(second, "SOAK")
        installed = device.said("Installation in progress")
        hawkbit.act(second, "rollback")
        until(lambda: running(hawkbit) == "1.0.0", seconds=SECONDS, shown=device.log.read_text)
    with device.running("-c 2"):
        hawkbit.comes_to(second, "ROLLED_BACK")
    assert device.said("Installation in progress") == installed + 1
    with device.running():  # restarted: there is nothing to do
        polls = device.said("No pending action on server")
        until(lambda: device.said("No pending action on server") > polls, seconds=SECONDS, shown=device.log.read_text)
    assert device.said("Installation in progress") == installed + 1
