"""What deploy/ ships is what the programs take: each file read by its program, each name checked against the code."""

import json
import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from modelfleet.service.cli import main
from modelfleet.service.initialise import initialise
from modelfleet.service.settings import Settings
from modelfleet.signer.ceremony import CeremonyPlan
from tests.servers import free_port, program, running
from tests.waiting import until

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SCRIPTS = Path(sys.executable).parent


def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def services() -> dict[str, dict[str, Any]]:
    return compose()["services"]


def test_the_compose_file_keeps_the_compose_specification() -> None:
    checker = [str(SCRIPTS / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*checker, str(DEPLOY / "compose.yaml")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_check_of_the_compose_file_can_fail(tmp_path: Path) -> None:
    wrong = compose()
    wrong["services"]["api"]["portz"] = ["80"]
    path = tmp_path / "compose.yaml"
    path.write_text(yaml.safe_dump(wrong))
    checker = [str(SCRIPTS / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(path)]
    assert subprocess.run(checker, capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("name", ["api", "controller", "worker"])
def test_every_variable_is_a_setting_and_the_settings_take_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"MODELFLEET_TENANT": "acme", "MODELFLEET_NAME": "fleet.example", "POSTGRES_PASSWORD": "secret"}
    for variable, value in services()[name]["environment"].items():
        assert variable.removeprefix("MODELFLEET_").lower() in Settings.model_fields, variable
        monkeypatch.setenv(variable, re.sub(r"\$\{(\w+)[^}]*\}", lambda found: given[found[1]], value))
    made = Settings()
    assert made.sqlalchemy_url == "postgresql+psycopg://modelfleet:secret@postgres/modelfleet"
    assert made.mqtt_url == "mqtts://fleet.example:8883"


def test_every_variable_that_a_person_fills_in_is_in_the_example() -> None:
    asked = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text()))
    offered = {line.split("=")[0] for line in (DEPLOY / ".env.example").read_text().splitlines() if "=" in line}
    assert asked == offered


def test_every_command_is_one_that_modelfleet_has() -> None:
    for name, service in services().items():
        command = service.get("command", [])
        if command[:1] == ["modelfleet"]:
            options = {option for each in main.commands[command[1]].params for option in each.opts}
            assert {word for word in command[2:] if word.startswith("--")} <= options, name


def test_every_file_that_is_mounted_is_there_or_made_by_the_readme() -> None:
    readme = (DEPLOY / "README.md").read_text()
    for service in services().values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./run/"):
                assert f"deploy/{source.removeprefix('./')}".removesuffix("/blobs") in readme, source
            elif source.startswith("./"):
                assert (DEPLOY / source).exists(), source


@pytest.mark.parametrize("setting", ["shared_buffers", "synchronous_commit", "lock_timeout", "tcp_keepalives_idle"])
def test_postgresql_takes_its_settings(setting: str, tmp_path: Path) -> None:
    """It refuses a name or value that it does not know, whichever one is asked for."""
    path = DEPLOY / "postgresql" / "postgresql.conf"
    expected = re.search(rf"^{setting} = '?(\w+)'?", path.read_text(), re.MULTILINE)
    assert expected is not None
    found = ask_postgresql(path.read_text(), setting, tmp_path)
    assert found.returncode == 0, found.stderr
    units = {"4GB": "524288", "30s": "30000"}  # as the server counts: pages of 8 KiB, milliseconds
    assert found.stdout.strip() == units.get(expected[1], expected[1])


def test_postgresql_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    assert ask_postgresql("fsynk = on\n", "fsync", tmp_path).returncode != 0


def ask_postgresql(text: str, setting: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Ask the real server what it would run with."""
    folder.chmod(0o755)
    config = folder / "postgresql.conf"
    config.write_text(text)
    config.chmod(0o644)
    data = folder / "data"
    data.mkdir(mode=0o700, exist_ok=True)
    as_user: list[str] = []
    if os.getuid() == 0:
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        subprocess.run(["chown", "-R", "postgres:", str(data)], check=True)
        for parent in [*folder.parents][:3]:
            if parent.owner() == "root" and parent != Path("/tmp"):
                parent.chmod(parent.stat().st_mode | 0o011)
    command = [*as_user, program("postgres"), "-C", setting, "-D", str(data), "-c", f"config_file={config}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")


def test_the_yaml_of_prometheus_and_grafana_is_whole() -> None:
    scraping = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    for name in scraping["rule_files"]:
        rules = yaml.safe_load((DEPLOY / "prometheus" / name).read_text())
        alerts = [rule for group in rules["groups"] for rule in group["rules"]]
        assert len({rule["alert"] for rule in alerts}) == len(alerts)
        assert all(
            rule["labels"]["severity"] in ("page", "ticket") and "summary" in rule["annotations"] for rule in alerts
        )
    targets = [
        target for job in scraping["scrape_configs"] for each in job["static_configs"] for target in each["targets"]
    ]
    assert {target.split(":")[0] for target in targets} <= set(services())
    for path in (DEPLOY / "grafana" / "provisioning").rglob("*.yml"):
        assert yaml.safe_load(path.read_text())["apiVersion"] == 1


def test_the_panels_of_the_dashboard_lie_beside_each_other() -> None:
    panels = json.loads((DEPLOY / "grafana" / "modelfleet.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


@pytest.mark.slow
def test_granian_serves_the_application_and_ends_in_order(tmp_path: Path) -> None:
    data, port = tmp_path / "fleet", free_port()
    plan = CeremonyPlan(tenant="acme", bits=1, approvers={"bob": ""}, approvals_required=1)
    initialise(Settings(data=data, tenant="acme"), plan, users={}, now=datetime.now(UTC))
    command = [str(SCRIPTS / word) if word == "granian" else word for word in services()["api"]["command"]]
    command[command.index("--host") + 1], command[command.index("--port") + 1] = "127.0.0.1", str(port)
    environment = {"MODELFLEET_DATA": str(data), "MODELFLEET_TENANT": "acme", "MODELFLEET_MQTT_PORT": "0"}
    with running(command, log=tmp_path / "log", ports=[port], environment=environment) as process:
        url = f"http://127.0.0.1:{port}/v1/healthz"
        until(lambda: httpx.get(url, timeout=5).status_code == 200, seconds=60)
        assert httpx.get(f"http://127.0.0.1:{port}/metrics").headers["content-type"] == "application/problem+json"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, (tmp_path / "log").read_text()[-2000:]
