import contextlib
import socket
import threading
import time

import pytest

from modelfleet.rollout.errors import BrokerError
from modelfleet.rollout.mqtt.broker import Message, Will, matches
from modelfleet.rollout.mqtt.memory_broker import MemoryBroker
from modelfleet.rollout.mqtt.paho_broker import PahoBroker
from modelfleet.service.embedded_broker import CONTROLLER, EmbeddedBroker
from tests.waiting import until


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/+", "a/b", True),
        ("a/+", "a/b/c", False),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("#", "a/b", True),
        ("#", "$SYS/x", False),
        ("+/b", "$SYS/b", False),
        ("a/b", "a", False),
        ("a", "a/b", False),
    ],
)
def test_filters_match_as_mqtt_says(topic_filter, topic, expected):
    assert matches(topic_filter, topic) is expected


def test_a_late_subscriber_receives_retained_messages_only():
    hub = MemoryBroker()
    sender, receiver = hub.client(), hub.client()
    sender.connect()
    receiver.connect()
    sender.publish("a/1", b"kept", retain=True)
    sender.publish("a/2", b"gone")
    sender.publish("a/3", b"deleted", retain=True)
    sender.publish("a/3", b"", retain=True)
    found: list[Message] = []
    receiver.subscribe("a/+", found.append)
    assert [(message.topic, message.payload, message.retained) for message in found] == [("a/1", b"kept", True)]


def test_nothing_is_published_without_a_connection():
    assert MemoryBroker().publish("a", b"x") is False


def test_a_lost_connection_leaves_the_will_and_comes_back():
    hub = MemoryBroker()
    client, connections = hub.client(), []
    client.connect(Will(topic="s", payload=b"offline"), lambda: connections.append(1))
    client.drop()
    assert hub.retained["s"] == b"offline"
    client.reconnect()
    assert len(connections) == 2


@pytest.mark.parametrize("url", ["http://x", "mqtt://", "nonsense", ""])
def test_a_url_that_is_no_brokers_is_refused(url):
    with pytest.raises(BrokerError, match="expected mqtt"):
        PahoBroker(url, "c")


@pytest.fixture
def embedded():
    brokers: list[EmbeddedBroker] = []

    def start(port: int = 0) -> EmbeddedBroker:
        broker = EmbeddedBroker("acme", lambda _device, _token: False, port=port)
        broker.start()
        brokers.append(broker)
        return broker

    yield start
    for broker in brokers:
        broker.stop()


def test_over_a_real_broker_messages_arrive_and_retained_ones_stay(embedded):
    running = embedded()
    broker = PahoBroker(running.url, CONTROLLER, CONTROLLER, running.controller_password)
    found: list[tuple[str, bytes]] = []
    connected = threading.Event()

    def take(message: Message) -> None:
        found.append((message.topic, message.payload))
        message.acknowledge()

    broker.subscribe("mf/v1/acme/d/+/report", take)
    broker.connect(Will(topic="mf/v1/sys/host", payload=b"offline"), connected.set)
    try:
        assert connected.wait(10)
        assert broker.publish("mf/v1/acme/d/1/report", b"hello", retain=True)
        until(lambda: found == [("mf/v1/acme/d/1/report", b"hello")])
    finally:
        broker.close()


def test_a_wrong_password_is_no_connection_and_closing_still_ends(embedded):
    running = embedded()
    broker = PahoBroker(running.url, CONTROLLER, CONTROLLER, "wrong")
    connected = threading.Event()
    broker.connect(on_connected=connected.set)
    try:
        assert not connected.wait(1)
        assert broker.publish("a", b"x") is False
    finally:
        broker.close()


class Cable:
    """A TCP connection to the broker that can be pulled out."""

    def __init__(self, port: int) -> None:
        self._target, self._pairs = port, []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"mqtt://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._pairs += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                sink.sendall(data)

    def pull(self) -> None:
        for end in self._pairs:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._pairs = []

    def close(self) -> None:
        self.pull()
        self._server.close()


def test_a_pulled_cable_is_plugged_in_again_with_all_subscriptions(embedded):
    running = embedded()
    cable = Cable(int(running.url.rpartition(":")[2]))
    broker = PahoBroker(cable.url, CONTROLLER, CONTROLLER, running.controller_password)
    found: list[bytes] = []
    connections: list[float] = []

    def take(message: Message) -> None:
        found.append(message.payload)
        message.acknowledge()

    broker.subscribe("mf/v1/acme/d/+/report", take)
    broker.connect(on_connected=lambda: connections.append(time.monotonic()))
    try:
        until(lambda: len(connections) == 1)
        cable.pull()
        until(lambda: len(connections) == 2)
        until(lambda: broker.publish("mf/v1/acme/d/1/report", b"again") and found)
    finally:
        broker.close()
        cable.close()
