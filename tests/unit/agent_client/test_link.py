"""The agent on a real broker (amqtt, as `modelfleet serve` embeds it)."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec import UNSET

from modelfleet.agent_client.identity import identity_path
from modelfleet.agent_client.link import full_jitter
from modelfleet.agent_client.protocol import (
    HostStatus,
    Waiting,
    device_topic,
    encode,
    group_desired_topic,
    host_topic,
    parse_status,
)
from modelfleet.rollout.mqtt.broker import Message
from modelfleet.rollout.mqtt.paho_broker import PahoBroker
from modelfleet.service.embedded_broker import CONTROLLER, EmbeddedBroker
from modelfleet.signer.sign import sign_assignment, sign_group
from modelfleet.signer.windows import DAYS, Window
from tests.unit.agent_client.fleet import GROUP, PROFILE, SLOT, TENANT, Device, Fleet, make_device
from tests.waiting import until


class Line:
    """A broker, the controller's connection to it, and what came over it."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.passwords: list[str] = []
        self.came: list[Message] = []
        self.gone = False
        self.broker = EmbeddedBroker(TENANT, self._let_in)
        self.broker.start()
        self.controller = PahoBroker(
            self.broker.url, client_id=CONTROLLER, username=CONTROLLER, password=self.broker.controller_password
        )
        self.controller.connect()
        for kind in ("report", "metrics", "status"):
            self.controller.subscribe(f"mf/v1/{TENANT}/d/+/{kind}", self._take)

    def _let_in(self, _device: str, token: str) -> bool:
        self.passwords.append(token)
        return True

    def _take(self, message: Message) -> None:
        self.came.append(message)
        message.acknowledge()

    def payloads(self, kind: str) -> list[bytes]:
        return [message.payload for message in self.came if message.topic.endswith(f"/{kind}")]

    def tell(self, device: Device) -> None:
        topic = device_topic(TENANT, device.id, "desired")
        assignment = sign_assignment(self.fleet.assignment(device.id), self.fleet.director)
        self.controller.publish(topic, assignment, qos=1, retain=True)
        group = sign_group(self.fleet.group_document(), self.fleet.director)
        self.controller.publish(group_desired_topic(TENANT, GROUP, PROFILE), group, qos=1, retain=True)

    def close(self) -> None:
        self.controller.close()
        if not self.gone:
            self.broker.stop()

    def vanish(self) -> None:
        """The broker goes away."""
        self.gone = True
        self.broker.stop()


@pytest.fixture
def line(fleet: Fleet) -> Iterator[Line]:
    made = Line(fleet)
    yield made
    made.close()


@pytest.fixture
def connected(fleet: Fleet, line: Line, tmp_path: Path) -> Iterator[Device]:
    made = make_device(fleet, tmp_path / "device")
    identity = json.loads(identity_path(made.root).read_bytes()) | {"mqtt": line.broker.url}
    identity_path(made.root).write_bytes(json.dumps(identity).encode())
    made.start()
    yield made
    made.stop()


def test_takes_desired_state_and_sends_reports_counters_and_presence(
    fleet: Fleet, line: Line, connected: Device
) -> None:
    fleet.candidates = (fleet.candidate(fleet.release("1.0.0")),)
    line.tell(connected)
    connected.waits_for("COMMITTED", "1.0.0")
    until(lambda: any(b"payloadType" in payload for payload in line.payloads("report")))
    until(lambda: line.payloads("metrics") != [])
    assert connected.agent.status()["online"]
    assert b'"online"' in line.payloads("status")[0]
    until(lambda: list((connected.root / "outbox").glob("*.json")) == [])
    assert len(line.passwords) == 1 and line.passwords[0].count(".") == 2
    connected.stop()
    until(lambda: b'"offline"' in line.payloads("status")[-1])
    connected.start()


def test_holds_its_reports_while_the_host_is_away(fleet: Fleet, line: Line, connected: Device) -> None:
    until(lambda: connected.agent.status()["online"])
    line.controller.publish(host_topic(TENANT), encode(HostStatus(state="offline")), qos=1, retain=True)
    time.sleep(0.5)
    fleet.candidates = (fleet.candidate(fleet.release("1.0.0")),)
    line.tell(connected)
    connected.waits_for("COMMITTED", "1.0.0")
    assert line.payloads("report") == []
    line.controller.publish(host_topic(TENANT), encode(HostStatus(state="online")), qos=1, retain=True)
    until(lambda: any(b"payloadType" in payload for payload in line.payloads("report")))
    states = [json.loads(payload).get("seq", 10**9) for payload in line.payloads("report")]
    assert states == sorted(states), "reports came out of order"


def test_polls_while_the_broker_is_away(fleet: Fleet, line: Line, connected: Device) -> None:
    until(lambda: connected.agent.status()["online"])
    line.vanish()
    until(lambda: not connected.agent.status()["online"])
    fleet.candidates = (fleet.candidate(fleet.release("1.0.0")),)
    fleet.server.desired = {
        "assignment": json.loads(sign_assignment(fleet.assignment(connected.id), fleet.director)),
        "group": json.loads(sign_group(fleet.group_document(), fleet.director)),
    }
    connected.waits_for("COMMITTED", "1.0.0")
    assert connected.waits_for_report("COMMITTED").version == "1.0.0"


def test_says_with_its_presence_what_an_update_waits_for(fleet: Fleet, line: Line, connected: Device) -> None:
    opens = datetime.now(UTC) + timedelta(days=2)
    night = Window(days=(DAYS[opens.weekday()],), start=f"{opens:%H:%M}", minutes=60, zone="UTC")
    fleet.candidates = (fleet.candidate(fleet.release("1.0.0"), rollout="r-1", windows=(night,)),)
    until(lambda: len(line.payloads("status")) == 1)
    line.tell(connected)
    said = Waiting(slot=SLOT, rollout="r-1", reasons=("window",))
    until(lambda: parse_status(line.payloads("status")[-1]).waiting == (said,))
    assert line.payloads("report") == []
    fleet.candidates = ()
    line.tell(connected)
    until(lambda: parse_status(line.payloads("status")[-1]).waiting is UNSET)
    assert parse_status(line.payloads("status")[-1]).state == "online"
    assert len(line.payloads("status")) == 3  # here, waits, waits no more


def test_waits_between_tries_are_random_and_bounded() -> None:
    waits = [full_jitter(attempt, first_seconds=0.5, longest_seconds=30.0) for attempt in range(40) for _ in range(20)]
    assert max(waits) <= 30.0 and min(waits) >= 0.0
    assert len(set(waits)) == len(waits)
    assert max(full_jitter(0, first_seconds=0.5, longest_seconds=30.0) for _ in range(50)) <= 0.5
