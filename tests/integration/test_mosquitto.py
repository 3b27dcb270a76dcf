"""The fleet over a real mosquitto, by certificates: an agent that installs and reports; the whole service and a device of it."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import uvicorn
from cryptography import x509
from sqlalchemy import select

from modelfleet.agent_client.agent import Agent
from modelfleet.agent_client.enroll import enroll
from modelfleet.agent_client.identity import certificate_path, key_path, load_key
from modelfleet.agent_client.protocol import device_topic, group_desired_topic, parse_report
from modelfleet.policies.roles import Role
from modelfleet.registry.certificates import SOONEST_RENEWAL
from modelfleet.registry.claims import make_claim_token
from modelfleet.registry.people import make_group
from modelfleet.registry.service_certificates import controller_name
from modelfleet.registry.tables import Device as DeviceRow
from modelfleet.registry.tables import DeviceCertificate as CertificateRow
from modelfleet.rollout.mqtt.broker import Message
from modelfleet.rollout.mqtt.paho_broker import PahoBroker
from modelfleet.service.app import create_app
from modelfleet.service.compose import Service
from modelfleet.service.initialise import initialise
from modelfleet.service.mosquitto import TenantListener, write_configuration
from modelfleet.service.settings import Settings
from modelfleet.signer.ceremony import CeremonyPlan
from modelfleet.signer.sign import sign_assignment, sign_group
from tests.mosquitto import SharedBroker, shared_broker, start
from tests.servers import free_port
from tests.unit.agent_client.fleet import GROUP, PROFILE, TENANT, Device, make_fleet, unsigned
from tests.waiting import until


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[SharedBroker]:
    with shared_broker(tmp_path / "shared") as made:
        yield made


def test_an_agent_installs_a_model_and_its_reports_reach_the_controller(broker: SharedBroker, tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "fleet")
    fleet.server.ca, fleet.server.mqtt = broker.acme.ca, f"mqtts://localhost:{broker.acme.port}"
    enroll(tmp_path / "device", fleet.server.url, "claim", PROFILE)
    device = Device(fleet, tmp_path / "device")
    came: list[Message] = []

    def take(message: Message) -> None:
        came.append(message)
        message.acknowledge()

    name = controller_name(TENANT)
    controller = PahoBroker(
        f"mqtts://127.0.0.1:{broker.acme.port}", client_id=name, certificate=broker.acme.certify(name)
    )
    controller.subscribe(f"mf/v1/{TENANT}/d/+/report", take)
    controller.connect()
    device.start()
    try:
        until(lambda: device.agent.status()["online"])
        fleet.candidates = (fleet.candidate(fleet.release("1.0.0")),)
        controller.publish(
            device_topic(TENANT, device.id, "desired"),
            sign_assignment(fleet.assignment(device.id), fleet.director),
            retain=True,
        )
        group = sign_group(fleet.group_document(), fleet.director)
        controller.publish(group_desired_topic(TENANT, GROUP, PROFILE), group, retain=True)
        device.waits_for("COMMITTED", "1.0.0")
        until(lambda: "COMMITTED" in {parse_report(unsigned(message.payload)).state.value for message in came})
        assert {message.topic for message in came} == {device_topic(TENANT, device.id, "report")}
    finally:
        device.stop()
        controller.close()
        fleet.server.stop()


def test_a_device_enrols_connects_and_renews_its_certificate(tmp_path: Path) -> None:
    """The whole service: its own controller certificate, the device's from enrolment, a renewal with a new key."""
    now, port = datetime.now(UTC), free_port()
    settings = Settings(data=tmp_path / "acme", tenant="acme", mqtt_url=f"mqtts://localhost:{port}", port=free_port())
    plan = CeremonyPlan(tenant="acme", bits=1, approvers={"bob": ""})
    initialise(settings, plan, users={"root": Role.ADMIN}, now=now)
    out, state = tmp_path / "mosquitto", tmp_path / "state"
    state.mkdir()
    listener = TenantListener(tenant="acme", data=settings.data, port=port)
    write_configuration([listener], names=["localhost"], out=out, place=out, state=state, now=now)
    url = f"http://127.0.0.1:{settings.port}"
    service = Service(settings, url)
    server = uvicorn.Server(
        uvicorn.Config(create_app(service, lambda: None), port=settings.port, log_config=None, lifespan="on")
    )
    serving = threading.Thread(target=server.run, daemon=True)
    agent_stop = threading.Event()
    with start(out / "mosquitto.conf", tmp_path / "mosquitto.log", [port]):
        serving.start()
        try:
            until(lambda: server.started, 30)
            with service.registry.sessions.begin() as session:
                make_group(session, "acme", name="lab", actor="test", now=now)
                token, _ = make_claim_token(session, "acme", group="lab", hours=1, actor="test", now=now)
            identity = enroll(tmp_path / "device", url, token, "linux-cpu-float")
            assert identity.mqtt == settings.mqtt_url
            clock = [datetime.now(UTC)]
            agent = Agent(tmp_path / "device", clock=lambda: clock[0])
            running = threading.Thread(target=agent.run, args=(agent_stop,), daemon=True)
            running.start()

            def row() -> DeviceRow:
                with service.registry.sessions() as session:
                    return session.scalars(select(DeviceRow)).one()

            until(lambda: row().online)
            with service.registry.sessions.begin() as session:  # as if it had enrolled a while ago
                for certificate in session.scalars(select(CertificateRow)):
                    certificate.issued_at -= SOONEST_RENEWAL
            before, first = load_key(tmp_path / "device").public_key(), serial_of(tmp_path / "device")
            clock[0] += timedelta(days=70)
            until(lambda: serial_of(tmp_path / "device") != first)
            until(lambda: agent.status()["online"])
            assert load_key(tmp_path / "device").public_key() != before
            assert key_path(tmp_path / "device").stat().st_mode & 0o777 == 0o600
            with service.registry.sessions() as session:
                former = session.get_one(CertificateRow, f"{first:x}")
                assert (former.reason, row().public_key) != (None, former.public_key)
                assert former.reason == "superseded"
        finally:
            agent_stop.set()
            server.should_exit = True
            serving.join(20)


def serial_of(root: Path) -> int:
    return x509.load_pem_x509_certificate(certificate_path(root).read_bytes()).serial_number
