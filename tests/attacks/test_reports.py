"""A terminal report counts only under the key of the device that it is about, whichever way it came."""

import json
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from modelfleet.agent_client.protocol import SIGNED_STATES, DeviceState, Metrics, encode
from modelfleet.signer.keys import load_signer
from modelfleet.signer.sign import sign_report
from tests.attacks.service import DIGEST, Service
from tests.unit.agent_client.fleet import SLOT, now


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


def test_fast_forward_of_a_device_s_numbers_ends_with_its_next_signed_report(service: Service) -> None:
    """A stolen broker says (boot, seq) as high as they go, in reports and in counters: the device's own word counts again."""
    device, _ = service.devices
    began = now()
    highest = replace(device.report(DeviceState.PROBATION), boot=2**53 - 1, seq=2**53 - 1)
    counted = Metrics(
        device=device.id, boot=2**53 - 1, seq=1, slot=SLOT, activation=1, sha256=DIGEST, n=2**53 - 1, errors=0
    )
    true = Metrics(device=device.id, boot=1, seq=3, slot=SLOT, activation=1, sha256=DIGEST, n=7, errors=0)

    def accept(kind: str, payload: bytes, seconds: float) -> None:
        service.controller.ingest.accept([(device.topic(kind), payload)], began + timedelta(seconds=seconds))

    accept("report", encode(highest), 0)
    accept("metrics", encode(counted), 0)
    accept("report", encode(device.report(DeviceState.IDLE, seq=1)), 3600)
    assert service.state_of(device) == "PROBATION"  # the attack holds until the device signs something
    accept("report", sign_report(encode(device.report(DeviceState.COMMITTED, seq=2)), device.signer), 3601)
    accept("metrics", encode(true), 3602)
    assert service.state_of(device) == "COMMITTED"
    assert service.inferences_of(device) == 7
    accept("report", encode(device.report(DeviceState.PREFLIGHT, seq=3)), 3603)
    assert service.state_of(device) == "PREFLIGHT"
