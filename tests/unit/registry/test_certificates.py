from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import update

from modelfleet.hardware_profiles.detect import detect_serial
from modelfleet.registry.certificates import CRL_FRESH, revoke_device
from modelfleet.registry.errors import FleetCaError
from modelfleet.registry.fleet_ca import CERTIFICATE_LIFE, CRL_LIFE, create_ca, load_ca
from modelfleet.registry.service_certificates import controller_name, keep_controller, keep_server
from modelfleet.registry.tables import DeviceCertificate
from modelfleet.service.cli import main
from tests.unit.registry.conftest import Fleet, serve
from tests.unit.registry.test_enroll import ask
from tests.unit.registry.test_enroll import token as token

NOW = datetime.now(UTC)


def test_a_ca_is_made_once_and_only_issues_what_cannot_issue(tmp_path: Path) -> None:
    ca = create_ca(tmp_path, "acme", NOW)
    assert create_ca(tmp_path, "acme", NOW + timedelta(days=1)).pem == ca.pem
    own = x509.load_pem_x509_certificate(ca.pem.encode())
    assert own.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    made = ca.client_certificate("x", ec.generate_private_key(ec.SECP256R1()).public_key(), NOW)
    found = x509.load_pem_x509_certificate(made.pem.encode())
    found.verify_directly_issued_by(own)
    assert found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert f"{found.serial_number:x}" == made.serial
    assert all((tmp_path / name).stat().st_mode & 0o077 == 0 for name in ("key.pem", "certificate.pem"))


def test_another_tenants_ca_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    create_ca(tmp_path, "acme", NOW)
    with pytest.raises(FleetCaError, match="'beta'"):
        create_ca(tmp_path, "beta", NOW)
    create_ca(tmp_path / "other", "acme", NOW)
    (tmp_path / "key.pem").write_bytes((tmp_path / "other" / "key.pem").read_bytes())
    with pytest.raises(FleetCaError, match="belongs to"):
        load_ca(tmp_path)
    (tmp_path / "key.pem").write_text("hello")
    with pytest.raises(FleetCaError, match=r"key\.pem"):
        load_ca(tmp_path)


def test_the_services_certificates_are_renewed_in_time_and_keep_their_keys(tmp_path: Path) -> None:
    ca = create_ca(tmp_path / "ca", "acme", NOW)
    for keep in (lambda at: keep_controller(ca, tmp_path, at), lambda at: keep_server(ca, tmp_path, ["localhost"], at)):
        kept = keep(NOW)
        first, key = kept.certificate.read_bytes(), kept.key.read_bytes()
        assert keep(NOW + CERTIFICATE_LIFE / 2).certificate.read_bytes() == first
        assert keep(NOW + timedelta(days=300)).certificate.read_bytes() != first
        assert kept.key.read_bytes() == key
    before = (tmp_path / "broker.pem").read_bytes()
    keep_server(ca, tmp_path, ["localhost", "10.0.0.1"], NOW + timedelta(days=300))
    assert (tmp_path / "broker.pem").read_bytes() != before


def test_a_controllers_name_fits_into_a_certificate() -> None:
    assert controller_name("acme") == "controller.acme"
    assert len(controller_name("a" * 64)) <= 64
    assert controller_name("a" * 64) != controller_name("a" * 63 + "b")


def test_the_revocation_list_is_kept_until_something_changes(fleet: Fleet, token) -> None:
    device = ask(fleet, token()).json()["device"]
    lists = fleet.registry.revocations
    first = lists.pem(NOW)
    assert lists.pem(NOW + timedelta(hours=1)) is first
    assert lists.pem(NOW + CRL_FRESH) != first
    before = lists.pem(NOW + timedelta(hours=1))
    with fleet.sessions.begin() as session:
        revoke_device(session, "acme", device, reason="key_compromise", actor="admin", now=NOW)
    found = x509.load_pem_x509_crl(lists.pem(NOW + timedelta(hours=1)))
    assert found.tbs_certlist_bytes != x509.load_pem_x509_crl(before).tbs_certlist_bytes
    assert [entry.extensions[0].value for entry in found] == [x509.CRLReason(x509.ReasonFlags.key_compromise)]
    assert found.next_update_utc is not None and found.next_update_utc - NOW > CRL_LIFE - timedelta(hours=1)
    with fleet.sessions.begin() as session:
        session.execute(update(DeviceCertificate).values(expires_at=NOW - CRL_LIFE))
    assert not list(x509.load_pem_x509_crl(lists.pem(NOW + timedelta(hours=1))))


def test_revoking_is_recorded_and_done_once(fleet: Fleet, token) -> None:
    device, gone = ask(fleet, token()).json()["device"], list[str]()
    fleet.registry.on_device_revoked.append(gone.append)
    path = f"/v1/devices/{device}/revoke"
    for _ in range(2):
        answer = fleet.as_("admin").post(path, json={"reason": "key_compromise"})
        assert answer.status_code == 200 and answer.json()["revoked_at"]
    records = fleet.as_("admin").get("/v1/audit", params={"subject": f"device/{device}"}).json()["records"]
    assert [record["action"] for record in records] == ["device.enroll", "certificate.issue", "device.revoke"]
    assert records[-1]["detail"] == {"reason": "key_compromise"}
    assert set(gone) == {device}
    assert fleet.as_("admin").post(f"/v1/devices/{'0' * 36}/revoke", json={}).status_code == 404
    assert fleet.as_("admin").post(path, json={"reason": "because"}).status_code == 422
    assert fleet.as_("viewer").get("/v1/devices").json()["devices"] == []


def test_claim_tokens_are_listed_and_revoked_by_the_start_of_their_hash(fleet: Fleet, token) -> None:
    token(uses=3)
    admin = fleet.as_("admin")
    (row,) = admin.get("/v1/claim-tokens").json()["claim_tokens"]
    assert (row["uses_left"], row["serials"], row["revoked_at"], row["created_by"]) == (3, None, None, "admin")
    revoked = admin.post(f"/v1/claim-tokens/{row['id']}/revoke").json()
    assert revoked["revoked_at"] and revoked["id"] == row["id"]
    assert admin.post(f"/v1/claim-tokens/{row['id'][:8]}/revoke").status_code == 404
    assert admin.post("/v1/claim-tokens/%25/revoke").status_code == 404
    assert fleet.as_("viewer").get("/v1/claim-tokens").status_code == 403
    actions = [record["action"] for record in admin.get("/v1/audit").json()["records"]]
    assert {"claim-token.create", "claim-token.revoke"} <= set(actions)


def test_serial_numbers_that_cannot_be_are_refused(fleet: Fleet, token) -> None:
    for serials in ([""], ["a\nb"], ["x" * 129], ["x"] * 2001):
        assert (
            fleet.as_("admin").post("/v1/claim-tokens", json={"group": "line", "serials": serials}).status_code == 422
        )
    made = fleet.as_("admin").post("/v1/claim-tokens", json={"group": "line", "serials": ["a", "b", " a "]})
    assert made.json()["uses"] == 2


def test_the_last_admin_stays(fleet: Fleet) -> None:
    admin = fleet.as_("admin")
    assert admin.post("/v1/users/admin/disable").status_code == 409
    assert admin.post("/v1/users/nobody/disable").status_code == 404
    assert fleet.as_("viewer").post("/v1/users/admin/disable").status_code == 403


def test_the_commands_fetch_certificate_and_list(fleet: Fleet, tmp_path: Path) -> None:
    with serve(fleet.app) as url:
        run = CliRunner().invoke
        environment = {"MODELFLEET_URL": url}
        ca, crl = tmp_path / "ca.pem", tmp_path / "crl.pem"
        assert run(main, ["ca", "certificate", "--out", str(ca)], env=environment).exit_code == 0
        assert ca.read_text() == fleet.registry.ca.pem
        assert run(main, ["ca", "crl", "--ca", str(ca), "--out", str(crl)], env=environment).exit_code == 0
        before = crl.read_bytes()
        other = tmp_path / "other.pem"
        other.write_text(create_ca(tmp_path / "other", "acme", NOW).pem)
        no_ca = run(main, ["ca", "crl", "--ca", str(crl), "--out", str(crl)], env=environment)
        assert (no_ca.exit_code, f"expected a certificate in PEM at {crl}" in no_ca.stderr) == (1, True)
        refused = run(main, ["ca", "crl", "--ca", str(other), "--out", str(crl)], env=environment)
        assert refused.exit_code == 1 and "by another key" in refused.output
        assert crl.read_bytes() == before
    made = run(main, ["ca", "server-certificate", "--data", str(fleet.folder / "data"), "--out", str(tmp_path / "tls")])
    assert made.exit_code == 0, made.output


def test_a_serial_number_is_what_the_firmware_says(tmp_path: Path) -> None:
    assert detect_serial(tmp_path) is None
    dmi = tmp_path / "sys/class/dmi/id"
    dmi.mkdir(parents=True)
    (dmi / "product_serial").write_text("To be filled by O.E.M.\n")
    assert detect_serial(tmp_path) is None
    (dmi / "board_serial").write_text("B-77\n")
    assert detect_serial(tmp_path) == "B-77"
    tree = tmp_path / "proc/device-tree"
    tree.mkdir(parents=True)
    (tree / "serial-number").write_bytes(b"100000001234abcd\0")
    assert detect_serial(tmp_path) == "100000001234abcd"
