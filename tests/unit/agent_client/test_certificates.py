"""The device's certificate against the real registry: renewed by itself, and cut off at every step."""

import errno
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from sqlalchemy import select, update

from modelfleet.agent_client.certificates import Credentials
from modelfleet.agent_client.enroll import enroll
from modelfleet.agent_client.errors import EnrolmentError, StorageError, TransferError
from modelfleet.agent_client.http_client import HttpClient
from modelfleet.agent_client.identity import certificate_path, identity_path, key_path, load_identity, load_key
from modelfleet.agent_client.link import MqttLink
from modelfleet.agent_client.outbox import Outbox
from modelfleet.agent_client.storage import Disk
from modelfleet.registry.claims import make_claim_token
from modelfleet.registry.people import make_group
from modelfleet.registry.tables import Device, DeviceCertificate
from tests.unit.registry.conftest import Fleet, serve
from tests.unit.registry.conftest import template as template

PROFILE = "linux-cpu-float"


class Server:
    """A registry over HTTP whose public URL is where it listens."""

    def __init__(self, fleet: Fleet, url: str) -> None:
        self.fleet, self.url = fleet, url
        object.__setattr__(fleet.registry, "public_url", url)
        with fleet.sessions.begin() as session:
            make_group(session, "acme", name="line", actor="test", now=datetime.now(UTC))

    def claim(self) -> str:
        with self.fleet.sessions.begin() as session:
            return make_claim_token(session, "acme", group="line", hours=1, actor="test", now=datetime.now(UTC))[0]

    def a_minute_passes(self) -> None:
        with self.fleet.sessions.begin() as session:
            for row in session.scalars(select(DeviceCertificate)):
                row.issued_at -= timedelta(minutes=2)

    def knows(self, root: Path) -> bool:
        """Whether the server believes the key in the folder."""
        identity, key = load_identity(root), Credentials(root, load_identity(root), Disk())
        client = HttpClient(token=key.token, server=identity.server)
        try:
            client.get(f"{self.url}/v1/device/certificate", max_bytes=10_000)
        except TransferError:
            return False
        finally:
            client.close()
        return True


class DyingDisk(Disk):
    """Fails at the `fatal`-th change of the folder, and at every one after it."""

    def __init__(self, fatal: int) -> None:
        self.fatal, self.changes = fatal, 0

    def write(self, path: Path, data: bytes, *, mode: int = 0o644) -> None:
        self._count()
        super().write(path, data, mode=mode)

    def remove(self, path: Path) -> None:
        self._count()
        super().remove(path)

    def _count(self) -> None:
        self.changes += 1
        if self.changes >= self.fatal:
            raise OSError(errno.EIO, "the disk died")


@pytest.fixture
def server(tmp_path: Path, template: Path) -> Iterator[Server]:
    fleet = Fleet(tmp_path / "fleet", template)
    with serve(fleet.app) as url:
        yield Server(fleet, url)
    fleet.engine.dispose()


@pytest.fixture
def root(server: Server, tmp_path: Path) -> Path:
    enroll(tmp_path / "device", server.url, server.claim(), PROFILE)
    return tmp_path / "device"


def credentials(root: Path, disk: Disk | None = None, **more: Any) -> Credentials:
    return Credentials(root, load_identity(root), disk or Disk(), **more)


def shown(root: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificate_path(root).read_bytes())


def test_enrolment_gives_a_certificate_of_the_devices_key_and_id(root: Path) -> None:
    found = shown(root)
    assert found.public_key() == load_key(root).public_key()
    assert found.subject.rfc4514_string() == f"CN={load_identity(root).device},O=acme"
    assert timedelta(days=89) < found.not_valid_after_utc - datetime.now(UTC) < timedelta(days=91)


def test_a_certificate_is_renewed_after_two_thirds_of_its_life(root: Path) -> None:
    now, made = datetime.now(UTC), credentials(root)
    assert not made.due(now + timedelta(days=59))
    assert made.due(now + timedelta(days=65))


def test_renewal_brings_a_new_key_and_whoever_needs_it_is_told(server: Server, root: Path) -> None:
    told: list[int] = []
    server.a_minute_passes()
    before, made = shown(root), credentials(root, on_renewed=lambda: told.append(1))
    made.renew(datetime.now(UTC))
    assert told == [1]
    assert shown(root).public_key() == load_key(root).public_key() != before.public_key()
    assert key_path(root).stat().st_mode & 0o777 == 0o600
    assert server.knows(root)
    assert not list(root.glob("next-*"))


@pytest.mark.parametrize("fatal", range(1, 8))
def test_a_renewal_that_is_cut_off_leaves_a_pair_that_works(server: Server, root: Path, fatal: int) -> None:
    server.a_minute_passes()
    made = credentials(root, DyingDisk(fatal))
    with pytest.raises(OSError, match="the disk died"):
        made.renew(datetime.now(UTC))
    again = credentials(root)
    assert shown(root).public_key() == load_key(root).public_key()
    assert server.knows(root)
    server.a_minute_passes()
    again.renew(datetime.now(UTC))
    assert server.knows(root)
    assert not list(root.glob("next-*"))


def test_the_last_step_is_the_seventh(server: Server, root: Path) -> None:
    server.a_minute_passes()
    disk = DyingDisk(1000)
    credentials(root, disk).renew(datetime.now(UTC))
    assert disk.changes == 7


def test_a_refused_renewal_says_what_to_do_and_waits_before_the_next(server: Server, root: Path) -> None:
    made, now = credentials(root), datetime.now(UTC) + timedelta(days=70)
    with server.fleet.sessions.begin() as session:
        session.execute(update(DeviceCertificate).values(expires_at=datetime.now(UTC)))
    assert made.due(now)
    with pytest.raises(EnrolmentError, match="enrol it again with a new claim token"):
        made.renew(now)
    assert not made.due(now + timedelta(seconds=50))
    assert made.due(now + timedelta(seconds=70))


def test_an_expired_device_enrols_again_and_is_the_same(server: Server, root: Path) -> None:
    with server.fleet.sessions.begin() as session:
        session.execute(update(DeviceCertificate).values(expires_at=datetime.now(UTC)))
    before, metadata = load_identity(root), (root / "root.json").read_bytes()
    (root / "root.json").write_bytes(metadata + b" ")
    assert not server.knows(root)
    assert enroll(root, server.url, server.claim(), PROFILE, again=True) == before
    assert server.knows(root)
    assert (root / "root.json").read_bytes() == metadata + b" "  # what it trusts is not replaced


def test_the_serial_number_is_told(server: Server, tmp_path: Path) -> None:
    enroll(tmp_path / "device", server.url, server.claim(), PROFILE, serial="SN-1")
    with server.fleet.sessions() as session:
        assert session.scalars(select(Device.serial)).one() == "SN-1"


def test_tls_follows_a_renewal(server: Server, root: Path) -> None:
    made = credentials(root)
    context = made.tls()
    assert context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname
    server.a_minute_passes()
    made.renew(datetime.now(UTC))
    assert made.tls() is context


def test_a_device_without_a_certificate_says_so(root: Path) -> None:
    certificate_path(root).unlink()
    made = credentials(root)
    assert made.expires_at is None and not made.due(datetime.now(UTC))
    with pytest.raises(StorageError, match=r"enroll --again"):
        made.tls()
    (root / "ca.pem").unlink()
    with pytest.raises(StorageError, match="fleet CA"):
        credentials(root).tls()


def test_a_token_is_not_sent_over_a_plain_line_to_another_machine(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starts(mqtt: str) -> bool:
        identity = msgspec.structs.replace(load_identity(root), mqtt=mqtt)
        link = MqttLink(
            identity,
            credentials=credentials(root),
            deliver=lambda _topic, _payload: None,
            wake=lambda: None,
            outbox=Outbox(tmp_path / "outbox", Disk()),
            agent="1",
        )
        caplog.clear()
        link.start()
        link.stop()
        return "only polling" not in caplog.text

    monkeypatch.delenv("MODELFLEET_ALLOW_HTTP", raising=False)
    assert not starts("mqtt://192.0.2.1:1883")
    assert starts("mqtt://127.0.0.1:1")
    assert starts("mqtts://127.0.0.1:1")


def test_a_damaged_certificate_is_named(root: Path) -> None:
    certificate_path(root).write_text("hello")
    with pytest.raises(StorageError, match=r"certificate\.pem"):
        credentials(root)
    assert identity_path(root).exists()
