"""Attacks at a broker that two tenants share: a real mosquitto with the configuration that is shipped, real certificates.

What counts is delivery: mosquitto answers every subscription and every publication with success, whatever its rules are.
"""

import contextlib
import ssl
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from modelfleet.registry.fleet_ca import Issued, RevokedSerial, create_ca
from modelfleet.registry.service_certificates import controller_name
from tests.mosquitto import Client, SharedBroker, Tenant, Together, shared_broker


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedBroker]:
    with shared_broker(tmp_path_factory.mktemp("shared")) as made:
        yield made


@pytest.fixture
def with_(broker: SharedBroker) -> Iterator[Together]:
    together = Together()
    yield together
    for client in together.clients:
        client.close()


def test_a_device_subscribes_to_everything(broker: SharedBroker, with_: Together) -> None:
    spy, neighbour = with_(broker.acme.device()), with_(broker.acme.device())
    acme, beta, stranger = (
        with_(broker.acme.controller()),
        with_(broker.beta.controller()),
        with_(broker.beta.device()),
    )
    everything = ("#", "mf/v1/+/d/+/report", "mf/v1/+/d/+/+", "mf/v1/beta/#", "$SYS/#", "$share/x/mf/v1/#")
    acme.publish(broker.acme.topic(neighbour.id, "desired"), b"retained before", retain=True)
    spy.subscribe(*everything)
    neighbour.publish(broker.acme.topic(neighbour.id, "report"), b"a neighbour's report")
    acme.publish(broker.acme.topic(neighbour.id, "desired"), b"a neighbour's document")
    beta.publish("mf/v1/beta/g/lab/linux/desired", b"another tenant's document", retain=True)
    stranger.publish(broker.beta.topic(stranger.id, "report"), b"another tenant's report")
    acme.publish("mf/v1/acme/g/lab/linux/desired", b"the group's document")
    acme.publish(broker.acme.topic(spy.id, "desired"), b"its own document")
    delivered = {payload for _, payload in spy.wait_for(b"its own document")}
    assert delivered == {b"the group's document", b"its own document"}


def test_a_device_publishes_on_other_topics_than_its_own(broker: SharedBroker, with_: Together) -> None:
    forger, victim = str(uuid.uuid4()), with_(broker.acme.device())
    acme, beta = with_(broker.acme.controller()), with_(broker.beta.controller())
    for client in (acme, beta, victim):
        client.subscribe("#")
    for topic in (
        broker.acme.topic(victim.id, "report"),
        broker.acme.topic(victim.id, "status"),
        broker.acme.topic(victim.id, "desired"),
        broker.acme.topic(forger, "desired"),
        broker.beta.topic(forger, "report"),
        "mf/v1/acme/g/lab/linux/desired",
        "mf/v1/acme/sys/host",
        "mf/v1/beta/g/lab/linux/desired",
    ):
        with broker.acme.device(forger) as attempt:  # one each: mosquitto ends a connection that goes on with it
            attempt.publish(topic, b"forged", retain=True)
    with_(broker.acme.device(forger)).publish(broker.acme.topic(forger, "report"), b"its own report")
    acme.publish(broker.acme.topic(victim.id, "desired"), b"to the victim")
    beta.publish("mf/v1/beta/sys/host", b"to beta")
    seen = acme.wait_for(b"to the victim") + victim.wait_for(b"to the victim") + beta.wait_for(b"to beta")
    assert b"forged" not in {payload for _, payload in seen}
    assert b"its own report" in {payload for _, payload in seen}


def test_a_forged_retained_document_waits_for_nobody(broker: SharedBroker, with_: Together) -> None:
    forger, victim = with_(broker.acme.device()), str(uuid.uuid4())
    topic = broker.acme.topic(victim, "desired")
    forger.publish(topic, b"forged", retain=True)
    with_(broker.acme.controller()).publish("mf/v1/acme/sys/host", b"the host", retain=True)
    late = with_(broker.acme.device(victim))
    late.subscribe(topic, "mf/v1/acme/sys/host")
    assert b"forged" not in {payload for _, payload in late.wait_for(b"the host")}


def test_a_device_empties_another_ones_retained_document(broker: SharedBroker, with_: Together) -> None:
    forger, victim = with_(broker.acme.device()), str(uuid.uuid4())
    topic = broker.acme.topic(victim, "desired")
    with_(broker.acme.controller()).publish(topic, b"the document", retain=True)
    forger.publish(topic, b"", retain=True)
    late = with_(broker.acme.device(victim))
    late.subscribe(topic)
    late.wait_for(b"the document")


def test_a_will_on_another_devices_topic_reaches_nobody(broker: SharedBroker, with_: Together) -> None:
    acme, victim = with_(broker.acme.controller()), str(uuid.uuid4())
    acme.subscribe("mf/v1/acme/d/+/status")
    forger = broker.acme.device(will=broker.acme.topic(victim, "status"))
    if not forger.refused:
        forger.drop()
    name = str(uuid.uuid4())
    honest = broker.acme.device(name, will=broker.acme.topic(name, "status"))
    honest.drop()
    assert [topic for topic, _ in acme.wait_for(b"will")] == [broker.acme.topic(honest.id, "status")]


def test_one_tenants_controller_speaks_for_the_other(broker: SharedBroker, with_: Together) -> None:
    device, acme = with_(broker.acme.device()), with_(broker.acme.controller())
    device.subscribe("mf/v1/acme/sys/host", "mf/v1/acme/g/lab/linux/desired")
    for topic in ("mf/v1/acme/sys/host", "mf/v1/acme/g/lab/linux/desired", broker.acme.topic(device.id, "desired")):
        with broker.beta.controller() as beta:
            beta.publish(topic, b"forged", retain=True)
    acme.publish("mf/v1/acme/sys/host", b"the host")
    assert b"forged" not in {payload for _, payload in device.wait_for(b"the host")}


def test_a_certificate_of_another_tenant_is_refused(broker: SharedBroker) -> None:
    name = str(uuid.uuid4())
    certificate = broker.acme.certify(name)
    both = Path(certificate.ca).with_name("both.pem")
    both.write_text(broker.acme.ca.pem + broker.beta.ca.pem)
    certificate = type(certificate)(ca=both, certificate=certificate.certificate, key=certificate.key)
    with Client(broker.acme.port, certificate, name) as at_home, Client(broker.beta.port, certificate, name) as abroad:
        assert (at_home.refused, abroad.refused) == (False, True)


def test_nobody_connects_without_a_certificate(broker: SharedBroker, with_: Together) -> None:
    device = with_(broker.acme.device())
    believes = broker.acme.folder / "ca.pem"
    for name in (device.id, controller_name("acme"), ""):
        with Client(broker.acme.port, None, name, believes=believes, username=name) as nobody:
            assert nobody.refused
    assert not device.refused and not device.gone.is_set()


def test_a_certificate_that_one_made_oneself_is_refused(broker: SharedBroker, tmp_path: Path) -> None:
    device = broker.acme.device()
    device.close()
    own = create_ca(tmp_path / "own-ca", "acme", datetime.now(UTC))
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = broker.acme.keep(key, own.client_certificate(device.id, key.public_key(), datetime.now(UTC)))
    with Client(broker.acme.port, certificate, device.id) as forger, broker.acme.device(device.id) as honest:
        assert (forger.refused, honest.refused) == (True, False)


def test_a_certificate_without_a_name_is_refused(broker: SharedBroker) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    nameless = broker.acme.keep(key, _nameless(broker.acme, key))
    with Client(broker.acme.port, nameless, "x") as nobody, broker.acme.device() as honest:
        assert (nobody.refused, honest.refused) == (True, False)


def test_an_expired_certificate_is_refused(broker: SharedBroker) -> None:
    name = str(uuid.uuid4())
    expired = broker.acme.certify(name, now=datetime.now(UTC) - timedelta(days=91))
    with Client(broker.acme.port, expired, name) as late, broker.acme.device(name) as honest:
        assert (late.refused, honest.refused) == (True, False)


def test_a_servers_certificate_is_no_clients(broker: SharedBroker) -> None:
    name, key = str(uuid.uuid4()), ec.generate_private_key(ec.SECP256R1())
    issued = broker.acme.ca.server_certificate([name], key.public_key(), datetime.now(UTC))
    with Client(broker.acme.port, broker.acme.keep(key, issued), name) as server, broker.acme.device() as honest:
        assert (server.refused, honest.refused) == (True, False)


def test_a_device_poses_as_the_broker(broker: SharedBroker) -> None:
    device, key = broker.acme.certify("localhost"), ec.generate_private_key(ec.SECP256R1())
    honest = broker.acme.keep(
        key, broker.acme.ca.server_certificate(["localhost"], key.public_key(), datetime.now(UTC))
    )

    def handshake(shown: object) -> None:
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(shown.certificate, shown.key)  # type: ignore[attr-defined]
        ends = [(ssl.MemoryBIO(), ssl.MemoryBIO()) for _ in range(2)]
        client = device.context().wrap_bio(*ends[0], server_hostname="localhost")
        answering = server.wrap_bio(*ends[1], server_side=True)
        for _ in range(4):
            for side in (client, answering):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
                ends[1][0].write(ends[0][1].read())
                ends[0][0].write(ends[1][1].read())

    handshake(honest)
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        handshake(device)


def test_a_device_takes_over_another_ones_client_id(broker: SharedBroker, with_: Together) -> None:
    victim, acme = with_(broker.acme.device()), with_(broker.acme.controller())
    topic = broker.acme.topic(victim.id, "desired")
    victim.subscribe(topic)
    thief = with_(Client(broker.acme.port, broker.acme.certify(str(uuid.uuid4())), victim.id, clean=False))
    thief.subscribe(topic)
    acme.publish(topic, b"for the victim")
    victim.wait_for(b"for the victim")
    assert not victim.gone.is_set()
    assert thief.received.empty()


def test_another_tenants_ca_names_our_device(broker: SharedBroker, with_: Together) -> None:
    """It can disturb (client ids are the broker's, not a tenant's), and gets nothing: neither session nor topics."""
    victim = str(uuid.uuid4())
    topic = broker.acme.topic(victim, "desired")
    acme, beta = with_(broker.acme.controller()), with_(broker.beta.controller())
    away = Client(broker.acme.port, broker.acme.certify(victim), victim, clean=False)
    away.subscribe(topic)
    away.close()
    acme.publish(topic, b"while it was away")
    thief = with_(Client(broker.beta.port, broker.beta.certify(victim), victim, clean=False))
    own = broker.beta.topic(victim, "desired")
    thief.subscribe(topic, own)
    acme.publish(topic, b"later")
    beta.publish(own, b"its own tenant's")
    assert {payload for _, payload in thief.wait_for(b"its own tenant's")} == {b"its own tenant's"}


def test_a_revoked_certificate_is_refused(tmp_path: Path) -> None:
    with shared_broker(tmp_path) as broker:
        acme, key, name = broker.acme, ec.generate_private_key(ec.SECP256R1()), str(uuid.uuid4())
        issued = acme.ca.client_certificate(name, key.public_key(), datetime.now(UTC))
        certificate = acme.keep(key, issued)
        with Client(acme.port, certificate, name) as before:
            assert not before.refused
        revoked = RevokedSerial(serial=issued.serial, revoked_at=datetime.now(UTC), reason="key_compromise")
        broker.reload(acme, [revoked])
        with Client(acme.port, certificate, name) as after, acme.device() as other, broker.beta.device() as elsewhere:
            assert (after.refused, other.refused, elsewhere.refused) == (True, False, False)


def _nameless(tenant: Tenant, key: ec.EllipticCurvePrivateKey) -> Issued:
    """A certificate by the tenant's own CA that has an organisation and no common name."""
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, tenant.name)]))
        .issuer_name(x509.load_pem_x509_certificate(tenant.ca.pem.encode()).subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .sign(tenant.ca._key, hashes.SHA256())
    )
    pem = made.public_bytes(Encoding.PEM).decode()
    return Issued(serial=f"{made.serial_number:x}", pem=pem, issued_at=now, expires_at=now)
