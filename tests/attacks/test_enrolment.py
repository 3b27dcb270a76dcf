"""Attacks at enrolment and at a device's identity over HTTP: claim tokens, certificate requests, device tokens, revocation."""

import base64
import hashlib
import hmac
import json
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import select, update

from modelfleet.agent_client.certificates import signing_request
from modelfleet.agent_client.identity import device_token
from modelfleet.hardware_profiles.detect import detect
from modelfleet.registry.certificates import accepts
from modelfleet.registry.claims import make_claim_token
from modelfleet.registry.replay import ReplayCache
from modelfleet.registry.tables import Device, DeviceCertificate
from modelfleet.signer.confidential import enrolment_challenge
from tests.unit.registry.conftest import Fleet

FACTS = detect().to_dict()
WHO = "/v1/device/certificate"


@pytest.fixture
def fleet(tmp_path: Path, template: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path / "fleet", template)
    assert made.as_("admin").post("/v1/groups", json={"name": "line"}).status_code == 201
    yield made
    made.engine.dispose()


def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def public_pem(own: ec.EllipticCurvePrivateKey) -> str:
    return own.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def claim(fleet: Fleet, **asked: Any) -> str:
    made = fleet.as_("admin").post("/v1/claim-tokens", json={"group": "line", **asked})
    assert made.status_code == 201, made.text
    return made.json()["token"]


def enrols(fleet: Fleet, token: str, own: ec.EllipticCurvePrivateKey | None = None, **changed: Any) -> httpx.Response:
    body = {
        "token": token,
        "csr": signing_request(own or key()),
        "profile": "linux-cpu-float",
        "facts": FACTS,
        "agent": "1",
    }
    return fleet.anonymous.post("/v1/enroll", json={**body, **changed})


class Enrolled:
    """An enrolled device in the attacker's view: its id, its key, and what a request with a token is answered."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.key = fleet, key()
        self.answer = enrols(fleet, claim(fleet), self.key).json()
        self.id: str = self.answer["device"]

    def asks(self, token: str) -> httpx.Response:
        return self.fleet.anonymous.get(WHO, headers={"Authorization": f"Bearer {token}"})

    def renews(self, csr: str, token: str) -> httpx.Response:
        return self.fleet.anonymous.post(WHO, json={"csr": csr}, headers={"Authorization": f"Bearer {token}"})

    def token(self, csr: str | None = None) -> str:
        said = {"csr": hashlib.sha256(csr.encode()).hexdigest()} if csr is not None else {}
        return device_token(self.id, self.key, **said)

    def waits(self) -> None:
        """Let the minute pass that lies between two certificates."""
        with self.fleet.sessions.begin() as session:
            past = datetime.now(UTC) - timedelta(minutes=2)
            session.execute(update(DeviceCertificate).values(issued_at=past))


@pytest.fixture
def device(fleet: Fleet) -> Enrolled:
    return Enrolled(fleet)


def devices(fleet: Fleet) -> int:
    with fleet.sessions() as session:
        return len(session.scalars(select(Device.id)).all())


def test_a_claim_token_is_used_again(fleet: Fleet) -> None:
    token = claim(fleet)
    assert [enrols(fleet, token).status_code for _ in range(2)] == [200, 403]
    assert devices(fleet) == 1


def test_more_devices_race_for_a_claim_token_than_it_allows(fleet: Fleet) -> None:
    token, gate, statuses = claim(fleet, uses=3), threading.Barrier(8), list[int]()

    def one() -> None:
        gate.wait()
        statuses.append(enrols(fleet, token).status_code)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 3 + [403] * 5
    assert devices(fleet) == 3


def test_a_device_that_the_claim_token_does_not_list_enrols(fleet: Fleet) -> None:
    token = claim(fleet, serials=["A-1", "A-2"], uses=9)
    tried = [enrols(fleet, token, serial=serial).status_code for serial in ("B-9", None, "A-1", "a-2", "A-2")]
    assert tried == [403, 403, 200, 403, 200]


def test_a_listed_serial_number_enrols_twice(fleet: Fleet) -> None:
    token = claim(fleet, serials=["A-1", "A-2"], uses=9)
    assert enrols(fleet, token, serial="A-1").status_code == 200
    assert enrols(fleet, token, serial=" A-1 ").status_code == 409
    assert enrols(fleet, token, serial="A-2").status_code == 200


def test_an_expired_claim_token_is_used(fleet: Fleet) -> None:
    def token(made_at: datetime) -> str:
        with fleet.sessions.begin() as session:
            return make_claim_token(session, "acme", group="line", hours=1, actor="admin", now=made_at)[0]

    now = datetime.now(UTC)
    assert enrols(fleet, token(now - timedelta(hours=2))).status_code == 403
    assert enrols(fleet, token(now)).status_code == 200


def test_a_revoked_claim_token_is_used(fleet: Fleet) -> None:
    token, other = claim(fleet), claim(fleet)
    sha256 = hashlib.sha256(token.encode()).hexdigest()
    assert fleet.as_("admin").post(f"/v1/claim-tokens/{sha256[:16]}/revoke").status_code == 200
    assert [enrols(fleet, each).status_code for each in (token, other)] == [403, 200]


def test_a_viewer_revokes_a_device(fleet: Fleet, device: Enrolled) -> None:
    path = f"/v1/devices/{device.id}/revoke"
    assert [fleet.as_(role).post(path, json={}).status_code for role in ("viewer", "releaser", "admin")] == [
        403,
        403,
        200,
    ]


def test_a_request_for_a_key_that_one_does_not_hold(fleet: Fleet) -> None:
    victim, thief, token = key(), key(), claim(fleet)
    own = base64.b64decode("".join(signing_request(thief).splitlines()[1:-1]))
    points = [k.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint) for k in (thief, victim)]
    forged = base64.encodebytes(own.replace(points[0], points[1])).decode()
    csr = f"-----BEGIN CERTIFICATE REQUEST-----\n{forged}-----END CERTIFICATE REQUEST-----\n"
    assert x509.load_pem_x509_csr(csr.encode()).public_key() == victim.public_key()
    assert enrols(fleet, token, csr=csr).status_code == 422
    assert enrols(fleet, token, csr=signing_request(victim)).status_code == 200


def test_a_key_enrols_as_a_second_device(fleet: Fleet) -> None:
    own = key()
    first, second = (enrols(fleet, claim(fleet), own).json()["device"] for _ in range(2))
    assert first == second
    assert enrols(fleet, claim(fleet)).json()["device"] != first
    assert devices(fleet) == 2


def test_the_name_in_a_request_becomes_the_devices(fleet: Fleet, device: Enrolled) -> None:
    own = key()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, device.id)])
    wanted = x509.BasicConstraints(ca=True, path_length=None)
    request = x509.CertificateSigningRequestBuilder().subject_name(name).add_extension(wanted, critical=True)
    csr = request.sign(own, hashes.SHA256()).public_bytes(Encoding.PEM).decode()
    answer = enrols(fleet, claim(fleet), csr=csr).json()
    made = x509.load_pem_x509_certificate(answer["certificate"].encode())
    assert made.subject.rfc4514_string() == f"CN={answer['device']},O=acme"
    assert answer["device"] != device.id
    assert made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False


def test_a_device_token_is_replayed(device: Enrolled) -> None:
    token = device.token()
    assert [device.asks(each).status_code for each in (token, token, device.token())] == [200, 401, 200]


def test_a_device_floods_the_memory_of_used_tokens() -> None:
    """It fills its own share, and neither pushes out its own used tokens nor another device's."""
    cache, now = ReplayCache(per_device=3, in_all=100), time.time()

    def accepted(device: str, jti: str, at: float = now) -> bool:
        try:
            cache.use(device, jti, now=at, remember_seconds=360)
        except Exception:
            return False
        return True

    assert accepted("honest", "1")
    assert [accepted("flood", str(number)) for number in range(5)] == [True, True, True, False, False]
    assert (accepted("honest", "1"), accepted("honest", "2"), accepted("flood", "0")) == (False, True, False)
    assert accepted("flood", "9", now + 361)


@pytest.mark.parametrize(
    "attack", ["another audience", "no algorithm", "HMAC by the public key", "another device's key"]
)
def test_a_device_token_is_forged(device: Enrolled, attack: str) -> None:
    now = int(time.time())
    claims = {
        "iss": device.id,
        "sub": device.id,
        "aud": "modelfleet",
        "iat": now,
        "exp": now + 60,
        "jti": uuid.uuid4().hex,
    }
    public = device.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(claims: dict[str, Any], by: Any, algorithm: str) -> str:
        return jwt.PyJWS().encode(json.dumps(claims).encode(), by, algorithm)

    forged = {
        "another audience": lambda: sign({**claims, "aud": "another"}, device.key, "ES256"),
        "no algorithm": lambda: sign(claims, None, "none"),
        "HMAC by the public key": lambda: _hmac(claims, public),
        "another device's key": lambda: sign(claims, key(), "ES256"),
    }[attack]()
    assert device.asks(forged).status_code == 401
    assert device.asks(sign(claims, device.key, "ES256")).status_code == 200


def test_a_revoked_device_comes_back(fleet: Fleet, device: Enrolled) -> None:
    other = Enrolled(fleet)
    serial = _serial(device)
    assert accepts(fleet.sessions, "acme", device.id, serial, datetime.now(UTC))
    assert device.asks(device.token()).status_code == 200
    fleet.as_("admin").post(f"/v1/devices/{device.id}/revoke", json={"reason": "key_compromise"})
    refused = device.asks(device.token())
    assert refused.status_code == 401 and "revoked" in refused.json()["detail"]
    assert not accepts(fleet.sessions, "acme", device.id, serial, datetime.now(UTC))
    assert enrols(fleet, claim(fleet), device.key).status_code == 409
    listed = x509.load_pem_x509_crl(fleet.anonymous.get("/v1/ca/crl").content)
    assert listed.get_revoked_certificate_by_serial_number(int(serial, 16)) is not None
    assert listed.get_revoked_certificate_by_serial_number(int(_serial(other), 16)) is None
    assert other.asks(other.token()).status_code == 200


def test_an_expired_certificate_is_still_used(fleet: Fleet, device: Enrolled) -> None:
    assert device.asks(device.token()).status_code == 200
    with fleet.sessions.begin() as session:
        session.execute(update(DeviceCertificate).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    refused = device.asks(device.token())
    assert refused.status_code == 401 and "enrol it again" in refused.json()["detail"]
    csr = signing_request(key())
    assert device.renews(csr, device.token(csr)).status_code == 401
    again = enrols(fleet, claim(fleet), device.key)
    assert again.json()["device"] == device.id
    assert device.asks(device.token()).status_code == 200


def test_an_overheard_token_gets_somebody_a_certificate(device: Enrolled) -> None:
    device.waits()
    thief, csr = signing_request(key()), signing_request(key())
    assert device.renews(thief, device.token()).status_code == 403
    assert device.renews(thief, device.token(csr)).status_code == 403
    assert device.renews(csr, device.token(csr)).status_code == 200


def test_a_recorded_request_gives_a_device_somebody_elses_encryption_key(fleet: Fleet, device: Enrolled) -> None:
    """Whoever overheard it has a request that the device's key has signed, and may have a claim token too."""
    recorded, thief, token = signing_request(device.key), public_pem(key()), claim(fleet)
    assert enrols(fleet, token, csr=recorded, encryption_key=thief).status_code == 409
    own, before = public_pem(key()), claim(fleet)
    vouched = signing_request(device.key, challenge=enrolment_challenge(before, own))
    assert enrols(fleet, before, csr=vouched, encryption_key=own).json()["device"] == device.id
    assert enrols(fleet, token, csr=vouched, encryption_key=thief).status_code == 409
    with fleet.sessions() as session:
        assert session.get_one(Device, device.id).encryption_key == own


def test_a_device_that_comes_back_takes_a_listed_serial_number_again(fleet: Fleet, device: Enrolled) -> None:
    token = claim(fleet, serials=["A-1", "A-2"], uses=9)
    assert enrols(fleet, token, serial="A-1").status_code == 200
    assert enrols(fleet, token, device.key, serial="A-1").status_code == 409
    assert enrols(fleet, token, device.key, serial="A-2").json()["device"] == device.id


def test_a_device_asks_for_a_certificate_of_another_ones_key(fleet: Fleet, device: Enrolled) -> None:
    other = Enrolled(fleet)
    device.waits()
    csr = signing_request(other.key)
    assert device.renews(csr, device.token(csr)).status_code == 409
    csr = signing_request(key())
    assert device.renews(csr, device.token(csr)).status_code == 200


def test_the_old_key_is_used_after_the_new_one(device: Enrolled) -> None:
    device.waits()
    new = key()
    csr = signing_request(new)
    assert device.renews(csr, device.token(csr)).status_code == 200
    assert device.asks(device.token()).status_code == 200  # both, until the new one was used
    assert device.asks(device_token(device.id, new)).status_code == 200
    assert device.asks(device.token()).status_code == 401
    assert device.asks(device_token(device.id, new)).status_code == 200


def test_a_disabled_user_goes_on(fleet: Fleet) -> None:
    assert fleet.as_("viewer").get("/v1/groups").status_code == 200
    assert fleet.as_("admin").post("/v1/users/viewer/disable").status_code == 200
    assert fleet.as_("viewer").get("/v1/groups").status_code == 401
    assert fleet.as_("admin").post("/v1/users/viewer/enable").status_code == 200
    assert fleet.as_("viewer").get("/v1/groups").status_code == 200
    assert fleet.as_("admin").post("/v1/users/viewer/token").status_code == 200
    assert fleet.as_("viewer").get("/v1/groups").status_code == 401


def _serial(device: Enrolled) -> str:
    return f"{x509.load_pem_x509_certificate(device.answer['certificate'].encode()).serial_number:x}"


def _hmac(claims: dict[str, Any], secret: bytes) -> str:
    """By hand: PyJWT refuses to sign with a public key."""

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    text = f"{part(json.dumps({'alg': 'HS256', 'typ': 'JWT'}).encode())}.{part(json.dumps(claims).encode())}"
    return f"{text}.{part(hmac.new(secret, text.encode(), 'sha256').digest())}"
