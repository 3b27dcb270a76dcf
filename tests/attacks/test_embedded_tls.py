"""Attacks at the embedded broker's TLS: who a device is, is its certificate's word, and the registry's."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy.orm import Session, sessionmaker

from modelfleet.agent_client.certificates import signing_request
from modelfleet.registry.certificates import issue, parse_csr, revoke_device
from modelfleet.registry.service_certificates import controller_name
from modelfleet.registry.tables import Device
from modelfleet.registry.tables import Tenant as TenantRow
from modelfleet.rollout.mqtt.client_certificate import ClientCertificate
from modelfleet.service.broker_tls import EmbeddedTls
from modelfleet.service.database import open_database, session_factory
from modelfleet.service.embedded_broker import CONTROLLER, EmbeddedBroker
from modelfleet.service.settings import Settings
from tests.mosquitto import Client, Tenant, make_tenant

NOW = datetime.now(UTC)


class Embedded:
    """The embedded broker as `modelfleet serve` runs it, and the database that it asks."""

    def __init__(self, tenant: Tenant, sessions: sessionmaker[Session]) -> None:
        self.tenant, self.sessions = tenant, sessions
        tls = EmbeddedTls(Settings(data=tenant.data, tenant="acme"), tenant.ca, sessions, "http://127.0.0.1:1")
        self.broker = EmbeddedBroker("acme", lambda _device, _token: True, tls=tls.broker)

    @property
    def port(self) -> int:
        return int(self.broker.url.rpartition(":")[2])

    def enrols(self) -> tuple[str, ClientCertificate]:
        """Return a device of the fleet, and its certificate."""
        name, key = str(uuid.uuid4()), ec.generate_private_key(ec.SECP256R1())
        with self.sessions.begin() as session:
            found = parse_csr(signing_request(key))
            device = Device(
                id=name,
                tenant="acme",
                group="lab",
                profile="linux-cpu-float",
                public_key=found.pem,
                key_sha256=found.sha256,
                claim_sha256=name,
                facts={},
                agent_version="1",
                enrolled_at=NOW,
            )
            session.add(device)
            session.flush()
            pem = issue(session, self.tenant.ca, device, found, NOW).certificate
        issued = self.tenant.ca.client_certificate(name, key.public_key(), NOW)
        kept = self.tenant.keep(key, issued)
        kept.certificate.write_text(pem)
        return name, kept

    def connects(self, certificate: ClientCertificate | None, username: str, password: str = "") -> Client:
        believes = self.tenant.folder / "ca.pem"
        return Client(self.port, certificate, username, username=username, password=password, believes=believes)


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Embedded]:
    tenant = make_tenant(tmp_path, "acme")
    engine = open_database(Settings(data=tenant.data, tenant="acme").sqlalchemy_url)
    sessions = session_factory(engine)
    with sessions.begin() as session:
        session.add(TenantRow(name="acme", created_at=NOW))
    made = Embedded(tenant, sessions)
    made.broker.start()
    yield made
    made.broker.stop()
    engine.dispose()


def test_a_device_says_that_it_is_another_one(embedded: Embedded) -> None:
    victim, certificate = embedded.enrols()
    thief, other = embedded.enrols()
    with embedded.connects(other, victim) as forged, embedded.connects(certificate, victim) as honest:
        assert (forged.refused, honest.refused) == (True, False)
    assert thief != victim


def test_a_client_without_a_certificate_is_refused(embedded: Embedded) -> None:
    name, certificate = embedded.enrols()
    with embedded.connects(None, name) as nobody, embedded.connects(certificate, name) as honest:
        assert (nobody.refused, honest.refused) == (True, False)


def test_a_certificate_that_the_registry_does_not_know_is_refused(embedded: Embedded) -> None:
    name, certificate = embedded.enrols()
    unknown = embedded.tenant.certify(name)  # signed by the very CA: somebody used its key elsewhere
    with embedded.connects(unknown, name) as forged, embedded.connects(certificate, name) as honest:
        assert (forged.refused, honest.refused) == (True, False)


def test_a_device_poses_as_the_controller(embedded: Embedded) -> None:
    _, certificate = embedded.enrols()
    own = embedded.tenant.certify(controller_name("acme"))
    password = embedded.broker.controller_password
    with embedded.connects(certificate, CONTROLLER, password) as device, embedded.connects(own, CONTROLLER) as guess:
        assert (device.refused, guess.refused) == (True, True)
    with embedded.connects(own, CONTROLLER, password) as controller:
        assert not controller.refused


def test_a_revoked_device_stays_connected(embedded: Embedded) -> None:
    (name, certificate), (other, kept) = embedded.enrols(), embedded.enrols()
    with embedded.connects(certificate, name) as device, embedded.connects(kept, other) as honest:
        assert (device.refused, honest.refused) == (False, False)
        with embedded.sessions.begin() as session:
            revoke_device(session, "acme", name, reason="key_compromise", actor="admin", now=datetime.now(UTC))
        embedded.broker.disconnect(name)
        assert device.gone.wait(5)
        with embedded.connects(certificate, name) as again:
            assert again.refused
        assert not honest.gone.is_set()
