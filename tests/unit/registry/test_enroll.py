import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from sqlalchemy import select, update

from modelfleet.hardware_profiles.detect import detect
from modelfleet.registry import audit
from modelfleet.registry.claims import make_claim_token
from modelfleet.registry.tables import ClaimToken, Device

AtOnce = Callable[[int, Callable[[int], object]], list[object]]
FACTS = detect().to_dict()


def csr(key=None, algorithm=None) -> str:
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a device")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, algorithm or hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


@pytest.fixture
def token(fleet) -> Callable[..., str]:
    """Make a claim token for the group `line`."""
    assert fleet.as_("admin").post("/v1/groups", json={"name": "line"}).status_code == 201

    def make(uses: int = 1, hours: float = 1) -> str:
        made = fleet.as_("admin").post("/v1/claim-tokens", json={"group": "line", "uses": uses, "hours": hours})
        assert made.status_code == 201, made.text
        return made.json()["token"]

    return make


def ask(fleet, claim: str, **changed):
    body = {"token": claim, "csr": csr(), "profile": "linux-cpu-float", "facts": FACTS, "agent": "0.1.0", **changed}
    return fleet.anonymous.post("/v1/enroll", json=body)


def devices(fleet) -> list[Device]:
    with fleet.sessions() as session:
        return list(session.scalars(select(Device)))


def uses_left(fleet) -> int:
    with fleet.sessions() as session:
        return session.scalars(select(ClaimToken)).one().uses_left


def test_a_device_enrols_and_is_told_who_it_is_and_whom_to_trust(fleet, token) -> None:
    answer = ask(fleet, token())
    assert answer.status_code == 200, answer.text
    told = answer.json()
    (device,) = devices(fleet)
    assert told["device"] == device.id == str(uuid.UUID(device.id))
    assert (told["tenant"], told["group"], told["profile"]) == ("acme", "line", "linux-cpu-float")
    assert (told["server"], told["mqtt"]) == ("http://fleet.example", "mqtt://fleet.example:1883")
    assert told["root"] == fleet.paths.root_json.read_text()
    assert device.facts == FACTS
    assert uses_left(fleet) == 0
    with fleet.sessions() as session:
        (record,) = audit.records(session, "acme", action="device.enroll")
        assert record.subject == f"device/{device.id}"
    (shown,) = fleet.as_("viewer").get("/v1/devices?group=line").json()["devices"]
    assert shown["id"] == device.id
    assert not {"public_key", "key_sha256", "claim_sha256"} & set(shown)


def test_devices_come_in_pages_each_of_them_once(fleet, token) -> None:
    claim = token(uses=5)
    enrolled = {ask(fleet, claim, csr=csr()).json()["device"] for _ in range(5)}
    client, seen, pages, after = fleet.as_("viewer"), [], 0, ""
    while after is not None:
        page = client.get(f"/v1/devices?limit=2&after={after}").json()
        seen += [row["id"] for row in page["devices"]]
        pages, after = pages + 1, page["next"]
    assert seen == sorted(enrolled)
    assert pages == 3
    assert client.get("/v1/devices?limit=0").status_code == 422


def test_a_repeated_request_is_the_same_device_and_takes_no_second_use(fleet, token) -> None:
    claim, request = token(), csr()
    first, again = ask(fleet, claim, csr=request), ask(fleet, claim, csr=request)
    assert again.status_code == 200
    assert first.json() == again.json()
    assert len(devices(fleet)) == 1


def test_a_repeated_request_is_answered_also_after_the_token_expired(fleet, token) -> None:
    claim, request = token(), csr()
    first = ask(fleet, claim, csr=request)
    with fleet.sessions.begin() as session:
        session.execute(update(ClaimToken).values(expires_at=datetime.now(UTC) - timedelta(hours=1)))
    assert ask(fleet, claim, csr=request).json() == first.json()


def test_the_same_key_with_another_token_is_the_same_device_with_a_new_certificate(fleet, token) -> None:
    request = csr()
    first = ask(fleet, token(), csr=request).json()
    again = ask(fleet, token(), csr=request).json()
    assert (again["device"], again["group"]) == (first["device"], first["group"])
    assert again["certificate"] != first["certificate"]
    assert len(devices(fleet)) == 1


def test_a_key_that_came_back_needs_a_token_with_a_use_left(fleet, token) -> None:
    request, used = csr(), token()
    ask(fleet, used)
    ask(fleet, token(), csr=request)
    assert ask(fleet, used, csr=request).status_code == 403


def test_a_revoked_device_does_not_enrol_with_its_old_key(fleet, token) -> None:
    claim, request = token(uses=5), csr()
    ask(fleet, claim, csr=request)
    with fleet.sessions.begin() as session:
        session.execute(update(Device).values(revoked_at=datetime.now(UTC)))
    assert ask(fleet, claim, csr=request).status_code == 409


def test_a_token_enrols_as_many_devices_as_it_says(fleet, token) -> None:
    claim = token(uses=2)
    assert [ask(fleet, claim).status_code for _ in range(3)] == [200, 200, 403]
    assert len(devices(fleet)) == 2


def test_a_token_enrols_no_more_devices_when_many_ask_at_once(fleet, token, at_once: AtOnce) -> None:
    claim = token(uses=3)
    statuses = [answer.status_code for answer in at_once(6, lambda _: ask(fleet, claim))]
    assert sorted(statuses) == [200, 200, 200, 403, 403, 403]
    assert len(devices(fleet)) == 3
    assert uses_left(fleet) == 0


def test_the_same_request_many_times_at_once_is_one_device(fleet, token, at_once: AtOnce) -> None:
    claim, request = token(uses=6), csr()
    answers = at_once(6, lambda _: ask(fleet, claim, csr=request))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["device"] for answer in answers}) == 1
    assert uses_left(fleet) == 5


@pytest.mark.parametrize("claim", ["", "mfc_unknown", "x" * 256])
def test_an_unknown_token_is_refused(fleet, token, claim: str) -> None:
    token()
    answer = ask(fleet, claim)
    assert answer.status_code == 403
    assert answer.json()["type"] == "urn:modelfleet:problem:claim-token"
    assert devices(fleet) == []


def test_an_expired_token_is_refused(fleet, token) -> None:
    token()
    with fleet.sessions.begin() as session:
        past = datetime.now(UTC) - timedelta(hours=2)
        claim, _ = make_claim_token(session, "acme", group="line", uses=1, hours=1, actor="admin", now=past)
    assert ask(fleet, claim).status_code == 403
    assert devices(fleet) == []


def test_a_token_is_stored_hashed_only(fleet, token) -> None:
    claim = token()
    with fleet.sessions() as session:
        row = session.scalars(select(ClaimToken)).one()
        assert claim not in str(vars(row))
        assert all(claim not in str(record.detail) for record in audit.records(session, "acme"))


BAD_REQUESTS = {
    "text": "hello",
    "empty": "",
    "no ascii": "é",
    "a certificate": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
    "RSA": csr(rsa.generate_private_key(65537, 2048)),
    "P-384": csr(ec.generate_private_key(ec.SECP384R1())),
    "secp256k1": csr(ec.generate_private_key(ec.SECP256K1())),
}


@pytest.mark.parametrize("kind", BAD_REQUESTS)
def test_a_request_that_is_no_p256_csr_is_refused(fleet, token, kind: str) -> None:
    answer = ask(fleet, token(), csr=BAD_REQUESTS[kind])
    assert answer.status_code == 422, answer.text
    assert answer.json()["type"] == "urn:modelfleet:problem:csr"
    assert uses_left(fleet) == 1
    assert devices(fleet) == []


def test_a_csr_that_its_key_did_not_sign_is_refused(fleet, token) -> None:
    import base64

    lines = csr().splitlines()
    data = bytearray(base64.b64decode("".join(lines[1:-1])))
    data[-1] ^= 1
    body = base64.encodebytes(bytes(data)).decode()
    answer = ask(fleet, token(), csr=f"{lines[0]}\n{body}{lines[-1]}\n")
    assert answer.status_code == 422
    assert uses_left(fleet) == 1


def test_a_device_may_give_a_second_key_for_encryption(fleet, token) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    assert ask(fleet, token(), encryption_key=pem).status_code == 200
    assert devices(fleet)[0].encryption_key == pem


def test_a_second_key_that_is_none_is_refused(fleet, token) -> None:
    answer = ask(fleet, token(), encryption_key="-----BEGIN PUBLIC KEY-----")
    assert answer.status_code == 422
    assert "encryption_key" in answer.json()["detail"]
    assert uses_left(fleet) == 1


def test_an_unknown_profile_is_refused(fleet, token) -> None:
    answer = ask(fleet, token(), profile="toaster-9000")
    assert answer.status_code == 422
    assert "linux-cpu-float" in answer.json()["detail"]
    assert uses_left(fleet) == 1


def test_a_device_that_is_not_of_its_profile_is_refused(fleet, token) -> None:
    answer = ask(fleet, token(), facts={**FACTS, "arch": "z80"})
    assert answer.status_code == 422
    assert "z80" in answer.json()["detail"]
    assert uses_left(fleet) == 1


@pytest.mark.parametrize(
    "facts", [{}, {"arch": 1}, {**FACTS, "memory_bytes": -1}, {**FACTS, "cpu_model": "x" * 10_000}]
)
def test_facts_that_are_none_are_refused(fleet, token, facts: dict) -> None:
    assert ask(fleet, token(), facts=facts).status_code == 422
    assert devices(fleet) == []


def test_a_newer_agent_may_say_more(fleet, token) -> None:
    assert ask(fleet, token(), facts={**FACTS, "gpu": "none"}, hint="x").status_code == 200


def test_a_body_that_is_too_long_is_refused_as_a_problem(fleet, token) -> None:
    answer = ask(fleet, token(), facts={"x": "y" * 100_000})
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_body_that_does_not_announce_its_length_is_counted(fleet) -> None:
    answer = fleet.anonymous.post("/v1/enroll", content=(bytes(1024) for _ in range(100)))
    assert answer.status_code == 413


def test_whoever_listens_hears_of_every_enrolment(fleet, token) -> None:
    heard: list[str] = []
    fleet.registry.on_device_changed.append(heard.append)
    claim, request = token(), csr()
    device = ask(fleet, claim, csr=request).json()["device"]
    ask(fleet, claim, csr=request)
    ask(fleet, claim)  # refused: used up
    assert heard == [device, device]


@pytest.mark.parametrize(
    "body",
    [
        {"group": "line", "uses": 0},
        {"group": "line", "uses": 1_000_001},
        {"group": "line", "hours": 0},
        {"group": "line", "hours": -1},
        {"group": "line", "minutes": 5},
        {},
    ],
)
def test_a_claim_token_that_makes_no_sense_is_refused(fleet, token, body: dict) -> None:
    answer = fleet.as_("admin").post("/v1/claim-tokens", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"]


def test_a_claim_token_needs_a_group_that_is_there(fleet) -> None:
    assert fleet.as_("admin").post("/v1/claim-tokens", json={"group": "nobodys"}).status_code == 404


@pytest.mark.parametrize("name", ["", "A", "a/b", "../x", "a b", "x" * 65])
def test_a_group_needs_a_name(fleet, name: str) -> None:
    assert fleet.as_("admin").post("/v1/groups", json={"name": name}).status_code == 422
    assert fleet.as_("viewer").get("/v1/groups").json() == {"groups": []}


def test_a_group_is_made_once(fleet) -> None:
    assert [fleet.as_("admin").post("/v1/groups", json={"name": "a"}).status_code for _ in range(2)] == [201, 409]
    assert [row["name"] for row in fleet.as_("viewer").get("/v1/groups").json()["groups"]] == ["a"]


def test_a_user_is_made_once_and_the_token_works(fleet) -> None:
    admin = fleet.as_("admin")
    made = admin.post("/v1/users", json={"name": "eva", "role": "viewer"})
    assert made.status_code == 201
    fleet.tokens["eva"] = made.json()["token"]
    assert fleet.as_("eva").get("/v1/groups").status_code == 200
    assert admin.post("/v1/users", json={"name": "eva", "role": "admin"}).status_code == 409
    assert "token" not in admin.get("/v1/users").json()["users"][0]


@pytest.mark.parametrize(
    "body", [{"name": "", "role": "viewer"}, {"name": "a\nb", "role": "viewer"}, {"name": "a", "role": "root"}]
)
def test_a_user_needs_a_name_and_a_role(fleet, body: dict) -> None:
    assert fleet.as_("admin").post("/v1/users", json=body).status_code == 422
