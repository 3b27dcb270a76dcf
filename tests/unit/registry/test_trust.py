"""`GET /v1/trust/status`: who signs what and until when, for those who may read."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from modelfleet.policies.roles import Role
from modelfleet.service.cli import main
from modelfleet.signer.rotate import renewal
from modelfleet.signer.stage import publish, sign_here
from tests.unit.registry.conftest import Fleet


def about_to_expire(fleet: Fleet) -> None:
    """Let targets.json have ten days left."""
    paths, then = fleet.paths, datetime.now(UTC) - timedelta(days=170)
    change, _ = sign_here(paths, renewal(paths, paths.repository().policy_chain(), ["targets"], then))
    publish(paths, change, datetime.now(UTC))


def test_tells_roles_keys_and_expiries(fleet: Fleet) -> None:
    answer = fleet.as_("admin").get("/v1/trust/status")
    assert answer.status_code == 200, answer.text
    status = answer.json()
    assert (status["tenant"], status["epoch"], status["level"]) == ("acme", 1, "ok")
    roles = {row["role"]: row for row in status["roles"]}
    assert set(roles) == {
        "root", "targets", "releases", "snapshot", "timestamp", "director", "publisher", "gate", "approver"
    }  # fmt: skip
    assert roles["root"]["threshold"] == 2
    assert [key["person"] for key in roles["approver"]["keys"]] == ["bob"]
    assert {row["kind"] for row in status["expiries"]} == {"root", "targets", "bins", "snapshot", "timestamp"}
    assert "file:" not in answer.text  # where a key lies is nobody's business here


def test_says_what_is_about_to_expire_and_what_to_do(fleet: Fleet) -> None:
    about_to_expire(fleet)
    status = fleet.as_("admin").get("/v1/trust/status").json()
    assert status["level"] == "warning"
    (row,) = [row for row in status["expiries"] if row["level"] != "ok"]
    assert (row["kind"], round(row["days_left"])) == ("targets", 10)
    assert row["remedy"] == "run `modelfleet keys renew targets`"


@pytest.mark.parametrize(("role", "status"), [("admin", 200), ("viewer", 200), ("approver", 200), ("publisher", 403)])
def test_is_for_readers(fleet: Fleet, role: Role, status: int) -> None:
    assert fleet.as_(role).get("/v1/trust/status").status_code == status


def test_is_not_for_strangers(fleet: Fleet) -> None:
    assert fleet.anonymous.get("/v1/trust/status").status_code == 401


def test_keys_status_asks_a_server(fleet: Fleet, served: str) -> None:
    arguments = ["keys", "status", "--url", served, "--token", fleet.tokens["viewer"]]
    shown = CliRunner().invoke(main, arguments)
    assert shown.exit_code == 0, shown.output
    assert "timestamp" in shown.stdout
    about_to_expire(fleet)
    warned = CliRunner().invoke(main, [*arguments, "--json"])
    assert (warned.exit_code, json.loads(warned.stdout)["level"]) == (1, "warning")
    refused = CliRunner().invoke(main, [*arguments[:-1], fleet.tokens["publisher"]])
    assert refused.exit_code == 1
    assert CliRunner().invoke(main, ["keys", "status", "--url", "http://127.0.0.1:9"]).exit_code == 4
