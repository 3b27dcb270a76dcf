"""The embedded broker lets a device speak for itself only. Real amqtt, real paho clients."""

import logging
import socket
import threading
import time
from collections.abc import Iterator

import paho.mqtt.client as paho
import pytest

from modelfleet.agent_client.protocol import device_topic, group_desired_topic, host_topic
from modelfleet.service.embedded_broker import CONTROLLER, EmbeddedBroker
from modelfleet.service.errors import BrokerStartError

DEVICE = "11111111-1111-4111-8111-111111111111"
OTHER = "22222222-2222-4222-8222-222222222222"
TOKEN = "the-token-of-device-1"
WAIT_SECONDS = 10


class Client:
    """A paho client that keeps what it is handed."""

    def __init__(
        self, broker: EmbeddedBroker, client_id: str, username: str, password: str, will: str | None = None
    ) -> None:
        self.received: list[tuple[str, bytes]] = []
        self.refused: bool | None = None
        self._connected, self._subscribed = threading.Event(), threading.Event()
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=client_id, reconnect_on_failure=False)
        self._client.username_pw_set(username, password)
        if will is not None:
            self._client.will_set(will, b"gone", qos=1, retain=True)
        self._client.on_connect = self._on_connect
        self._client.on_message = lambda _c, _u, message: self.received.append((message.topic, message.payload))
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        host, port = broker.url.removeprefix("mqtt://").split(":")
        self._client.connect(host, int(port))
        self._client.loop_start()
        assert self._connected.wait(WAIT_SECONDS)

    def _on_connect(
        self, _client: object, _user: object, _flags: object, reason: paho.ReasonCode, _props: object
    ) -> None:
        self.refused = reason.is_failure
        self._connected.set()

    def subscribe(self, topic: str) -> None:
        self._subscribed.clear()
        self._client.subscribe(topic, 1)
        assert self._subscribed.wait(WAIT_SECONDS)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self._client.publish(topic, payload, 1, retain).wait_for_publish(WAIT_SECONDS)

    def wait_for(self, topic: str) -> bool:
        until = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < until:
            if any(found == topic for found, _ in self.received):
                return True
            time.sleep(0.02)
        return False

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    broker = EmbeddedBroker("acme", lambda device, token: device == DEVICE and token == TOKEN)
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def controller(broker: EmbeddedBroker) -> Iterator[Client]:
    client = Client(broker, CONTROLLER, CONTROLLER, broker.controller_password)
    yield client
    client.close()


@pytest.fixture
def device(broker: EmbeddedBroker) -> Iterator[Client]:
    client = Client(broker, DEVICE, DEVICE, TOKEN)
    yield client
    client.close()


def test_device_reports_reach_the_controller(controller: Client, device: Client) -> None:
    topic = device_topic("acme", DEVICE, "report")
    controller.subscribe("mf/v1/acme/d/+/report")
    device.publish(topic, b"report")
    assert controller.wait_for(topic)


@pytest.mark.parametrize(
    ("client_id", "username", "password"),
    [
        pytest.param(DEVICE, DEVICE, "wrong", id="wrong token"),
        pytest.param(OTHER, DEVICE, TOKEN, id="client id of another device"),
        pytest.param(CONTROLLER, CONTROLLER, "guess", id="controller without its password"),
        pytest.param("x", "", "", id="nobody"),
    ],
)
def test_refuses_a_connection_that_is_not_who_it_says(
    broker: EmbeddedBroker, client_id: str, username: str, password: str
) -> None:
    client = Client(broker, client_id, username, password)
    client.close()
    assert client.refused


def test_refuses_a_will_on_another_devices_topic(broker: EmbeddedBroker) -> None:
    own = Client(broker, DEVICE, DEVICE, TOKEN, will=device_topic("acme", DEVICE, "status"))
    own.close()
    foreign = Client(broker, DEVICE, DEVICE, TOKEN, will=device_topic("acme", OTHER, "status"))
    foreign.close()
    assert (own.refused, foreign.refused) == (False, True)


def test_a_device_cannot_publish_a_desired_state(controller: Client, device: Client) -> None:
    group = group_desired_topic("acme", "line-a", "linux-cpu-int8")
    own = device_topic("acme", DEVICE, "report")
    controller.subscribe(group)
    controller.subscribe("mf/v1/acme/d/+/report")
    device.publish(group, b"forged", retain=True)
    device.publish(own, b"after it")  # the same connection keeps order, so the forged one would have come first
    assert controller.wait_for(own)
    assert all(topic != group for topic, _ in controller.received)


def test_a_device_reads_its_own_and_its_tenants_documents_and_no_others(controller: Client, device: Client) -> None:
    permitted = [
        device_topic("acme", DEVICE, "desired"),
        group_desired_topic("acme", "line-a", "linux-cpu-int8"),
        host_topic("acme"),
    ]
    forbidden = [
        device_topic("acme", OTHER, "desired"),
        device_topic("acme", OTHER, "report"),
        group_desired_topic("rival", "line-a", "linux-cpu-int8"),
    ]
    for topic in (*forbidden, "mf/v1/acme/#", *permitted):
        device.subscribe(topic)
    for topic in (*forbidden, *permitted):
        controller.publish(topic, b"document")
    assert all(device.wait_for(topic) for topic in permitted)
    assert {topic for topic, _ in device.received} == set(permitted)


def test_a_taken_port_is_an_error_that_names_it_and_nothing_else_is_logged(
    broker: EmbeddedBroker, caplog: pytest.LogCaptureFixture
) -> None:
    port = int(broker.url.rpartition(":")[2])
    second = EmbeddedBroker("acme", lambda _device, _token: True, port=port)
    with pytest.raises(BrokerStartError, match=f"{port}.*--mqtt-port"):
        second.start()
    second.stop()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_device_that_is_revoked_while_it_is_let_in_gets_no_connection() -> None:
    """Its certificate was still good when it was looked at; the revocation finds a connection that bears no name yet."""
    told: list[EmbeddedBroker] = []

    def revoked_meanwhile(device: str, _token: str) -> bool:
        for broker in told:
            broker.disconnect(device)
        time.sleep(0.3)
        return True

    broker = EmbeddedBroker("acme", revoked_meanwhile)
    broker.start()
    try:
        assert b"\x20\x02\x00\x00" in answer_to_connect(broker)
        told.append(broker)
        assert answer_to_connect(broker) == b""
    finally:
        broker.stop()


def answer_to_connect(broker: EmbeddedBroker) -> bytes:
    """Connect as the device, and return what comes until the other side closes or says nothing more."""

    def text(value: str) -> bytes:
        return len(value).to_bytes(2, "big") + value.encode()

    body = text("MQTT") + b"\x04\xc2\x00\x3c" + text(DEVICE) + text(DEVICE) + text(TOKEN)
    host, port = broker.url.removeprefix("mqtt://").split(":")
    with socket.create_connection((host, int(port)), timeout=2) as line:
        line.sendall(b"\x10" + bytes([len(body)]) + body)
        try:
            return line.recv(4)
        except ConnectionResetError:
            return b""
