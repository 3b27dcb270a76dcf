"""The HTTP routes and the commands, over a real server."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import httpx
import msgspec
import pytest
import uvicorn
from click.testing import CliRunner, Result
from fastapi import FastAPI
from fastapi.testclient import TestClient

from modelfleet.agent_client.identity import device_token
from modelfleet.policies.plan import parse_plan
from modelfleet.policies.roles import Role
from modelfleet.registry import people, problems
from modelfleet.registry.auth import undeclared_routes
from modelfleet.rollout.cli import COMMANDS
from modelfleet.rollout.cli_approve import require_same
from modelfleet.rollout.decisions.residual import canaries, residual_risk, unseen_failures
from modelfleet.rollout.devices.routes import router as device_router
from modelfleet.rollout.routes import router
from modelfleet.signer.errors import DigestError
from modelfleet.signer.statements import Approval

FLOAT = "linux-cpu-float"
main = click.Group("modelfleet", commands={found.name: found for found in COMMANDS if found.name})
BODY = {"model": "digits", "version": "1.0.0", "slot": "detector", "groups": ["lab"]}


@pytest.fixture
def app(fleet) -> FastAPI:
    fleet.now = datetime.now(UTC)
    fleet.enrol(FLOAT, 4)
    fleet.publish("1.0.0", 1)
    made = FastAPI()
    problems.install(made)
    made.include_router(router)
    made.include_router(device_router)
    made.state.registry, made.state.controller = fleet.registry, fleet.controller
    return made


@pytest.fixture
def tokens(fleet) -> dict[str, str]:
    with fleet.registry.sessions.begin() as session:
        return {
            name: people.make_user(session, "acme", name=name, role=role, actor="test", now=fleet.now)[1]
            for name, role in {
                "ada": Role.RELEASER,
                "bob": Role.APPROVER,
                "vic": Role.VIEWER,
                "root": Role.ADMIN,
            }.items()
        }


@pytest.fixture
def as_(app: FastAPI, tokens: dict[str, str]) -> Callable[[str], TestClient]:
    return lambda name: TestClient(app, headers={"Authorization": f"Bearer {tokens[name]}"})


@pytest.fixture
def as_device(fleet, app: FastAPI) -> Callable[[int], TestClient]:
    def client(number: int) -> TestClient:
        device = fleet.devices[number]
        made = TestClient(app)

        def sign(request: httpx.Request) -> httpx.Request:
            request.headers["Authorization"] = f"Bearer {device_token(device.id, device.key._private_key)}"
            return request

        made.auth = sign  # a token is good for one request
        return made

    return client


@pytest.fixture
def modelfleet(app: FastAPI, tokens: dict[str, str]) -> Iterator[Callable[..., Result]]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]

    def run(*arguments: str, user: str = "ada") -> Result:
        environment = {"MODELFLEET_URL": f"http://127.0.0.1:{port}", "MODELFLEET_TOKEN": tokens[user]}
        return CliRunner().invoke(main, ["rollout", *arguments], env=environment)

    yield run
    server.should_exit = True
    thread.join(10)


def test_every_route_declares_who_may_call_it(app: FastAPI):
    assert undeclared_routes(app) == []


@pytest.mark.parametrize(
    ("method", "path", "user", "status"),
    [
        ("POST", "", "vic", 403),
        ("POST", "", "bob", 403),
        ("GET", "", "vic", 200),
        ("POST", "/x/start", "bob", 403),
        ("POST", "/x/rollback", "vic", 403),
        ("POST", "/x/approvals", "ada", 403),
        ("GET", "/x", "vic", 404),
        ("POST", "/x/start", "ada", 404),
    ],
)
def test_roles_decide_who_may_do_what(as_, method, path, user, status):
    body = BODY if path == "" else {"envelope": {}} if path.endswith("approvals") else {}
    answer = as_(user).request(method, f"/v1/rollouts{path}", json=body if method == "POST" else None)
    assert answer.status_code == status
    if status >= 400:
        assert answer.headers["content-type"] == "application/problem+json"


def test_without_a_token_nothing_is_answered(app: FastAPI):
    assert TestClient(app).get("/v1/rollouts").status_code == 401
    assert TestClient(app).get("/v1/device/desired").status_code == 401


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"plan": {"stages": [0.5, 0.25, 1.0]}}, 422, "grow"),
        ({"plan": {"error_threshold": 0.2}}, 422, "p0_reason"),
        ({"version": "7.7.7"}, 404, "7.7.7"),
        ({"groups": ["shop"]}, 422, "enrol"),
        ({"groups": ["no"]}, 404, "no group"),
        ({"surprise": 1}, 422, ""),
    ],
)
def test_a_bad_rollout_is_a_problem_that_says_what_to_do(as_, changes, status, said):
    answer = as_("ada").post("/v1/rollouts", json=BODY | changes)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert said in answer.text
    assert as_("vic").get("/v1/rollouts").json() == {"rollouts": []}


def test_a_hostile_approval_is_refused_and_changes_nothing(as_):
    made = as_("ada").post("/v1/rollouts", json=BODY).json()
    for envelope in ({}, {"payload": "x", "payloadType": "y", "signatures": []}, {"a": {"b": []}}):
        answer = as_("bob").post(f"/v1/rollouts/{made['id']}/approvals", json={"envelope": envelope})
        assert answer.status_code in (403, 422)
    assert as_("vic").get(f"/v1/rollouts/{made['id']}").json()["state"] == "AWAITING_APPROVAL"


def test_what_an_approver_is_shown_names_what_is_not_proved(as_):
    made = as_("ada").post("/v1/rollouts", json=BODY).json()
    assert any("0 failures in 2 only bounds failures below 77.6 %" in line for line in made["not_proved"])


def test_a_polling_device_gets_its_documents_and_an_etag(fleet, as_device):
    first = as_device(0).get("/v1/device/desired")
    assert first.status_code == 200
    found = first.json()
    assert found["topics"]["assignment"] == f"mf/v1/acme/d/{fleet.devices[0].id}/desired"
    assert msgspec.json.encode(found["assignment"]) == fleet.hub.retained[found["topics"]["assignment"]]
    assert msgspec.json.encode(found["group"]) == fleet.hub.retained[found["topics"]["group"]]
    again = as_device(0).get("/v1/device/desired", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    fleet.launch("1.0.0")
    assert as_device(0).get("/v1/device/desired", headers={"If-None-Match": first.headers["etag"]}).status_code == 200


def test_a_polling_device_reports_for_itself_only(fleet, as_device):
    mine, other = fleet.devices[0], fleet.devices[1]
    mine.active = other.active = "a" * 64
    mine.run_inferences()
    other.run_inferences()
    messages = [{"topic": topic, "payload": payload.decode()} for topic, payload in (mine.sent[-1], other.sent[-1])]
    assert as_device(0).post("/v1/device/messages", json={"messages": messages}).json() == {"accepted": 1}


def test_the_whole_way_by_commands(fleet, modelfleet):
    plan = fleet.registry.work_dir / "plan.toml"
    plan.write_text("stages = [0.25, 1.0]\nbake_seconds = 0\nsoak_seconds = 0\n")
    made = modelfleet(
        "create", "digits", "1.0.0", "--slot", "detector", "--group", "lab", "--plan", str(plan), "--json"
    )
    assert made.exit_code == 0, made.output
    rollout = json.loads(made.stdout)["id"]
    key = fleet.ceremony.approver_keys["bob"]
    assert modelfleet("start", rollout).exit_code == 1
    approved = modelfleet("approve", rollout, "--key", key, "--yes", user="bob")
    assert approved.exit_code == 0, approved.output
    assert "only bounds failures below" in approved.output
    assert "SCHEDULED" in approved.output
    assert modelfleet("start", rollout).exit_code == 0
    assert modelfleet("pause", rollout, "--reason", "lunch").exit_code == 0
    assert "lunch" in modelfleet("status", rollout, "--json").stdout
    assert modelfleet("halt", rollout).exit_code == 0
    assert modelfleet("resume", rollout).exit_code == 0
    fleet.now = datetime.now(UTC)
    fleet.run_until(rollout, "COMPLETED")
    watched = modelfleet("status", rollout, "--watch")
    assert watched.exit_code == 0, watched.output
    assert "COMPLETED" in watched.output
    assert rollout in modelfleet("list", "--json", user="vic").stdout
    assert modelfleet("rollback", rollout).exit_code == 0
    fleet.run_until(rollout, "ROLLED_BACK")
    assert modelfleet("status", rollout, "--watch").exit_code == 1


def test_an_approver_who_says_no_signs_nothing(fleet, modelfleet):
    rollout = json.loads(
        modelfleet("create", "digits", "1.0.0", "--slot", "detector", "--group", "lab", "--json").stdout
    )["id"]
    asked = modelfleet("approve", rollout, "--key", fleet.ceremony.approver_keys["bob"], user="bob")
    assert asked.exit_code == 1
    assert fleet.state(rollout) == "AWAITING_APPROVAL"


def test_commands_end_with_the_status_that_says_why(fleet, modelfleet, tmp_path: Path):
    assert modelfleet("status", "nothing").exit_code == 1
    assert modelfleet("approve", "x", "--key", "nonsense", user="bob").exit_code == 2
    bad = tmp_path / "bad.toml"
    bad.write_text("stages = [")
    assert modelfleet("create", "digits", "1.0.0", "--slot", "s", "--group", "lab", "--plan", str(bad)).exit_code == 2
    bad.write_text("alpha = nan")
    refused = modelfleet("create", "digits", "1.0.0", "--slot", "s", "--group", "lab", "--plan", str(bad))
    assert (refused.exit_code, "finite" in refused.stderr) == (2, True)
    stranger = fleet.ceremony.publisher_key
    made = json.loads(modelfleet("create", "digits", "1.0.0", "--slot", "detector", "--group", "lab", "--json").stdout)
    assert modelfleet("approve", made["id"], "--key", stranger, "--yes", user="bob").exit_code == 3


def test_a_server_that_shows_one_thing_and_asks_to_sign_another_is_refused(fleet, as_):
    made = as_("ada").post("/v1/rollouts", json=BODY).json()
    asked = as_("bob").get(f"/v1/rollouts/{made['id']}/approval-request").json()
    approval = msgspec.convert(asked, Approval)
    require_same(made, approval)
    other = made | {"plan": made["plan"] | {"stages": [0.5, 1.0], "bake_seconds": [1, 1]}}
    with pytest.raises(DigestError, match="something else than it shows"):
        require_same(other, approval)
    with pytest.raises(DigestError):
        require_same(made, msgspec.structs.replace(approval, groups=("lab", "shop")))


def test_status_says_what_a_rollout_that_has_not_started_waits_for(fleet, modelfleet, tmp_path: Path):
    plan = tmp_path / "plan.toml"
    plan.write_text(f"start_at = {fleet.now + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}")
    asked = ("create", "digits", "1.0.0", "--slot", "detector", "--group", "lab", "--plan", str(plan), "--json")
    made = json.loads(modelfleet(*asked).stdout)
    assert "other than ada to approve; approved by nobody" in modelfleet("status", made["id"]).stdout
    modelfleet("approve", made["id"], "--key", fleet.ceremony.approver_keys["bob"], "--yes", user="bob")
    shown = modelfleet("status", made["id"]).stdout
    assert f"Starts by itself at {made['plan']['start_at']}; approved by bob" in shown


def test_every_command_shows_an_example_and_takes_json():
    group = COMMANDS[0]
    assert isinstance(group, click.Group)
    for name in group.commands:
        shown = CliRunner().invoke(main, ["rollout", name, "--help"]).output
        assert "Example: modelfleet rollout" in shown
        assert "--json" in shown


def test_an_unreachable_server_is_status_four():
    environment = {"MODELFLEET_URL": "http://127.0.0.1:9", "MODELFLEET_TOKEN": "mf_x"}
    assert CliRunner().invoke(main, ["rollout", "list"], env=environment).exit_code == 4


def test_figures_of_what_is_not_proved(fleet):
    assert "below 5.8 %" in unseen_failures(50)
    plan = parse_plan()
    assert (canaries(plan, 1000), canaries(plan, 10), canaries(plan, 1)) == (50, 2, 1)
    assert any("of 1000 devices 50 go first" in line for line in residual_risk(plan, {"x": 1000}))


def test_an_emergency_by_commands_takes_two_and_says_so_loudly(fleet, modelfleet):
    made = modelfleet(
        "create",
        "digits",
        "1.0.0",
        "--slot",
        "detector",
        "--group",
        "lab",
        "--emergency",
        "--reason",
        "it misses people",
    )
    assert "two other persons" in made.output
    listed = json.loads(modelfleet("list", "--json").stdout)[0]
    assert listed["emergency"] == "it misses people"
    keys = fleet.ceremony.approver_keys
    signed = modelfleet("approve", listed["id"], "--key", keys["bob"], "--yes", "--valid-for", "7d", user="bob")
    assert "EMERGENCY: it misses people" in signed.output
    assert "AWAITING_APPROVAL" in signed.output
    assert modelfleet("approve", listed["id"], "--key", keys["eve"], "--yes", user="bob").exit_code == 0
    shown = json.loads(modelfleet("status", listed["id"], "--json").stdout)
    assert shown["state"] == "SCHEDULED"
    bob = next(each for each in shown["approvals"] if each["person"] == "bob")
    assert datetime.fromisoformat(bob["not_after"]) - datetime.fromisoformat(bob["approved_at"]) < timedelta(days=7)
    assert "EMERGENCY" in modelfleet("start", listed["id"]).output
    assert modelfleet("create", "digits", "1.0.0", "--slot", "x", "--group", "lab", "--emergency").exit_code == 1


@pytest.mark.parametrize("length", ["0d", "7", "181d", "1y", "-1d"])
def test_a_validity_that_no_approval_can_have_is_wrong_usage(modelfleet, length):
    assert modelfleet("approve", "x", "--key", "file:y", "--valid-for", length, user="bob").exit_code == 2


def test_a_draft_is_changed_and_an_approval_withdrawn_by_commands(fleet, modelfleet):
    rollout = json.loads(
        modelfleet("create", "digits", "1.0.0", "--slot", "detector", "--group", "lab", "--json").stdout
    )["id"]
    key = fleet.ceremony.approver_keys["bob"]
    modelfleet("approve", rollout, "--key", key, "--yes", user="bob")
    assert modelfleet("withdraw", rollout, "--reason", "stale", user="bob").exit_code == 0
    assert fleet.state(rollout) == "AWAITING_APPROVAL"
    modelfleet("approve", rollout, "--key", key, "--yes", user="bob")
    plan = fleet.registry.work_dir / "other.toml"
    plan.write_text("stages = [0.5, 1.0]\n")
    assert "AWAITING_APPROVAL" in modelfleet("change", rollout, "--plan", str(plan)).output
    assert fleet.row(rollout).plan["stages"] == [0.5, 1.0]
    assert modelfleet("change", rollout).exit_code == 1
    assert modelfleet("withdraw", rollout).exit_code == 1


def test_devices_are_listed_counted_and_asked_again_by_commands(fleet, modelfleet):
    rollout = fleet.launch("1.0.0", plan={"stages": [1.0], "bake_seconds": 3600, "alpha": 0.00001})
    refused = fleet.devices[0]
    refused.rejects = {fleet.profile(rollout, FLOAT).release["sha256"]}
    fleet.steps(2)
    assert json.loads(modelfleet("devices", rollout, "--count", "--json").stdout) == {"committed": 3, "failed": 1}
    (failed,) = json.loads(modelfleet("devices", rollout, "--state", "failed", "--json", user="vic").stdout)
    assert (failed["device"], failed["error"]["kind"]) == (refused.id, "ParityError")
    everybody = json.loads(modelfleet("devices", rollout, "--limit", "9", "--json").stdout)
    after = json.loads(modelfleet("devices", rollout, "--after", everybody[1]["device"], "--json").stdout)
    assert after == everybody[2:]
    assert modelfleet("retry", rollout, "--all-failed", user="vic").exit_code == 1
    assert "1 devices asked" in modelfleet("retry", rollout, "--all-failed").output
    assert "has not failed" in modelfleet("retry", rollout, "--device", fleet.devices[1].id).output
    for arguments in ((), ("--all-failed", "--device", refused.id)):
        assert modelfleet("retry", rollout, *arguments).exit_code == 2


def test_one_profile_is_steered_by_commands(fleet, modelfleet):
    rollout = fleet.launch("1.0.0", plan={"bake_seconds": 3600})
    assert modelfleet("halt", rollout, "--profile", FLOAT, "--reason", "line 4").exit_code == 0
    assert fleet.verdicts(rollout) == {FLOAT: "HALTED"}
    assert modelfleet("resume", rollout, "--profile", "toaster").exit_code == 1
    assert modelfleet("cancel", rollout).exit_code == 0
    assert fleet.state(rollout) == "ROLLING_BACK"


def test_a_page_of_devices_names_the_next(fleet, as_):
    rollout = fleet.launch("1.0.0")
    first = as_("vic").get(f"/v1/rollouts/{rollout}/devices", params={"limit": 3}).json()
    assert first["next"] == first["devices"][-1]["device"]
    last = as_("vic").get(f"/v1/rollouts/{rollout}/devices", params={"limit": 3, "after": first["next"]}).json()
    assert (len(last["devices"]), last["next"]) == (1, None)
    for bad in ({"limit": 0}, {"limit": 1001}, {"state": "lost"}):
        assert as_("vic").get(f"/v1/rollouts/{rollout}/devices", params=bad).status_code == 422
