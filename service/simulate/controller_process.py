"""The rollout controller of a live simulation, as a process of its own: `python -m` this, with a request on standard input.

It ends when its standard input ends, so that no controller outlives the simulation that started it.
"""

import logging
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from modelfleet.rollout.controller import Controller
from modelfleet.rollout.mqtt.paho_broker import PahoBroker
from modelfleet.service.errors import ServiceError
from modelfleet.service.simulate.tenant import open_tenant


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to control: the tenant made in `folder`, its database, and the broker with the controller's account."""

    folder: str
    tenant: str
    database_url: str
    mqtt_url: str
    username: str
    password: str
    tick_seconds: float


@contextmanager
def controller_process(request: Request) -> Generator[None]:
    """Run a controller until the block ends (ServiceError: it did not start)."""
    command = [sys.executable, "-m", "modelfleet.service.simulate.controller_process"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(msgspec.json.encode(request) + b"\n")
            process.stdin.flush()
            if process.stdout.readline() != b"ready\n":
                raise ServiceError("the controller of the simulation did not start; the reason is above")
            yield
        finally:
            process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def main() -> None:
    """Control until standard input ends."""
    logging.basicConfig(level=logging.WARNING)
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=Request)
    tenant = open_tenant(Path(request.folder), request.database_url, request.tenant)
    broker = PahoBroker(
        request.mqtt_url,
        client_id=f"simulation-{request.tenant}",
        username=request.username,
        password=request.password,
    )
    controller = Controller(tenant.registry, broker, tenant.director, lambda: datetime.now(UTC))
    controller.start()
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.buffer.read(), ended.set()), daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not ended.wait(request.tick_seconds):
        try:
            controller.tick(datetime.now(UTC))
        except Exception:  # the database or the broker may be back with the next tick
            logging.getLogger(__name__).exception("a tick failed")
    controller.stop()
    tenant.close()


if __name__ == "__main__":
    main()
