"""A controller as a process of its own: `python -m tests.faults.controller_process NAME URL MQTT_URL CEREMONY FOLDER`."""

import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from modelfleet.registry.no_builds import registry_without_builds
from modelfleet.rollout.controller import Controller
from modelfleet.rollout.leadership import PostgresLeadership
from modelfleet.rollout.mqtt.paho_broker import PahoBroker
from modelfleet.service.database import open_database, session_factory
from modelfleet.signer.ceremony import locate
from modelfleet.signer.keys import load_signer
from tests.unit.rollout.conftest import TENANT

TICK_SECONDS = 0.1
LEASE_SECONDS = 1.0


def main(name: str, url: str, mqtt_url: str, ceremony: str, folder: str) -> None:
    place = Path(folder)
    place.mkdir()
    found = locate(Path(ceremony), TENANT)
    registry = registry_without_builds(place, found, session_factory(open_database(url)))
    controller = Controller(
        registry,
        PahoBroker(mqtt_url, f"controller-{name}"),
        load_signer(found.director_key),
        lambda: datetime.now(UTC),
        PostgresLeadership(url, TENANT, name, lease_seconds=LEASE_SECONDS),
    )
    controller.start()
    while True:
        try:
            controller.tick(datetime.now(UTC))
        except Exception as error:  # as the service's own clock: the next tick tries again
            print(f"{datetime.now(UTC)} tick failed: {error!r:.300}", flush=True)
        time.sleep(TICK_SECONDS)


if __name__ == "__main__":
    main(*sys.argv[1:])
