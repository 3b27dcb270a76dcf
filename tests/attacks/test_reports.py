"""A terminal report counts only under the key of the device that it is about, whichever way it came."""

import json
from typing import Any

import pytest

from modelfleet.agent_client.protocol import SIGNED_STATES, DeviceState, encode
from modelfleet.signer.keys import load_signer
from modelfleet.signer.sign import sign_report
from tests.attacks.service import Service


@pytest.mark.parametrize("state", sorted(SIGNED_STATES))
def test_stolen_broker_cannot_fake_a_terminal_report(state: DeviceState, service: Service) -> None:
    """Unsigned, by another device, by a key of the server: on the device's own topic none of it counts."""
    device, other = service.devices
    report = encode(device.report(state))
    director = load_signer(service.registry.paths.director_key)
    for forged in (report, sign_report(report, other.signer), sign_report(report, director)):
        service.broker.publish(device.topic("report"), forged)
    assert service.state_of(device) is None
    service.broker.publish(device.topic("report"), sign_report(report, device.signer))
    assert service.state_of(device) == state


def test_stolen_registry_route_cannot_fake_a_terminal_report(service: Service) -> None:
    """Over HTTP likewise: as another device, and as the device's own session without its key."""
    device, other = service.devices
    report = encode(device.report(DeviceState.COMMITTED))

    def post(by: Any, payload: bytes) -> int:
        body = {"messages": [{"topic": device.topic("report"), "payload": payload.decode()}]}
        answer = service.post("/v1/device/messages", json.dumps(body).encode(), by=by)
        assert answer.status_code == 200
        return answer.json()["accepted"]

    assert post(other, sign_report(report, device.signer)) == 0
    assert post(device, report) == 0
    assert post(device, sign_report(report, other.signer)) == 0
    assert service.state_of(device) is None
    assert post(device, sign_report(report, device.signer)) == 1
    assert service.state_of(device) == "COMMITTED"


def test_stolen_device_speaks_only_for_itself(service: Service) -> None:
    """Its key signs its own reports: about another device, or on another's topic, they are dropped."""
    device, other = service.devices
    about_other = encode(other.report(DeviceState.COMMITTED))
    service.broker.publish(device.topic("report"), sign_report(about_other, device.signer))
    service.broker.publish(other.topic("report"), sign_report(about_other, device.signer))
    assert service.state_of(other) is None
    assert service.state_of(device) is None
    service.broker.publish(
        device.topic("report"), sign_report(encode(device.report(DeviceState.COMMITTED)), device.signer)
    )
    assert service.state_of(device) == "COMMITTED"
