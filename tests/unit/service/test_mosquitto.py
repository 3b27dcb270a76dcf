import stat
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509

from modelfleet.service.cli import main
from modelfleet.service.errors import SettingsError
from modelfleet.service.mosquitto import TenantListener, access_rules, configuration, parse_listener
from tests.mosquitto import make_tenant

EXAMPLE = Path(__file__).resolve().parents[3] / "deploy" / "mosquitto" / "example"


def test_the_example_in_deploy_is_what_the_command_writes() -> None:
    listeners = [TenantListener(tenant=t, data=Path(), port=p) for t, p in (("acme", 8883), ("beta", 8884))]
    written = configuration(listeners, place=Path("/etc/mosquitto/fleet"), state=Path("/var/lib/mosquitto"))
    assert (EXAMPLE / "mosquitto.conf").read_text() == written
    for each in listeners:
        assert (EXAMPLE / each.tenant / "acl").read_text() == access_rules(each.tenant)


@pytest.mark.parametrize(
    "text", ["acme", "acme=./fleet", "acme=./fleet:0", "acme=./fleet:99999", "A/B=./fleet:8883", "=x:1"]
)
def test_a_listener_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="TENANT=DATA:PORT"):
        parse_listener(text)


def test_the_command_writes_all_that_a_broker_needs(tmp_path: Path) -> None:
    tenant, out = make_tenant(tmp_path, "acme"), tmp_path / "out"
    arguments = ["deploy", "mosquitto", "--tenant", f"acme={tenant.data}:8883", "--name", "broker.example"]
    done = CliRunner().invoke(main, [*arguments, "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert {path.name for path in (out / "acme").iterdir()} == {
        "acl",
        "broker-key.pem",
        "broker.pem",
        "ca.pem",
        "crl.pem",
    }
    assert stat.S_IMODE((out / "acme" / "broker-key.pem").stat().st_mode) == 0o600
    broker = x509.load_pem_x509_certificate((out / "acme" / "broker.pem").read_bytes())
    names = broker.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["broker.example"]
    assert not list(x509.load_pem_x509_crl((out / "acme" / "crl.pem").read_bytes()))


def test_another_tenants_folder_is_refused(tmp_path: Path) -> None:
    tenant = make_tenant(tmp_path, "acme")
    for listeners in ([f"beta={tenant.data}:8883"], [f"acme={tenant.data}:8883", f"acme={tenant.data}:8884"]):
        options = [word for text in listeners for word in ("--tenant", text)]
        done = CliRunner().invoke(main, ["deploy", "mosquitto", *options, "--out", str(tmp_path / "out")])
        assert done.exit_code == 1
        assert "expected" in done.output
        assert not (tmp_path / "out").exists()


def test_several_controllers_of_a_tenant_are_let_in_by_name() -> None:
    rules = access_rules("acme", ["modelfleet", "east-2"])
    assert rules.startswith(access_rules("acme"))
    assert rules.endswith("\nuser controller.acme@east-2\ntopic readwrite mf/v1/acme/#\n")
