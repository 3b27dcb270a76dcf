"""Every DDI route: who may call it, what it answers, and what hostile clients get."""

import hashlib
import json
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from modelfleet.registry.auth import undeclared_routes
from modelfleet.rollout.ddi.feedback import MAX_BODY_BYTES, MAX_REPORTS
from modelfleet.rollout.ddi.target import current_target
from modelfleet.rollout.ddi.tokens import make_token
from modelfleet.signer.cms import read_certificate
from tests.servers import program
from tests.unit.rollout.ddi.conftest import TENANT, Ddi, Polling, another_group, problem

OPERATIONS = (
    ("GET", ""),
    ("GET", "/deploymentBase/1"),
    ("POST", "/deploymentBase/1/feedback"),
    ("GET", "/cancelAction/1"),
    ("POST", "/cancelAction/1/feedback"),
    ("PUT", "/configData"),
    ("GET", "/softwaremodules/1/artifacts"),
    ("GET", "/softwaremodules/1/artifacts/model.onnx"),
)


def gateway(ddi: Ddi, group: str) -> str:
    with ddi.fleet.registry.sessions.begin() as session:
        return make_token(session, TENANT, group=group, actor="root", now=ddi.fleet.now)[0]


def started(ddi: Ddi) -> tuple[Polling, int]:
    ddi.publish("1.0.0", 1)
    device = ddi.device()
    ddi.launch("1.0.0")
    action = device.offered()
    assert action is not None
    return device, action


def test_every_route_says_who_may_call_it(ddi: Ddi) -> None:
    assert undeclared_routes(ddi.app, others=[current_target]) == []
    assert undeclared_routes(ddi.app) != []


def test_no_operation_is_open_to_anybody_but_the_device(ddi: Ddi) -> None:
    device, other = ddi.device(), ddi.device("cam-2")
    for method, path in OPERATIONS:
        for headers in (
            {},
            {"Authorization": "TargetToken"},
            {"Authorization": f"TargetToken {other.token}"},
            {"Authorization": f"TargetToken {device.token}x"},
            {"Authorization": f"GatewayToken {device.token}"},
            {"Authorization": f"Bearer {device.token}"},
            ddi.admin,
        ):
            answer = ddi.http.request(method, device.path + path, headers=headers)
            assert (answer.status_code, problem(answer)["title"]) == (401, "No valid credential")
        for elsewhere in (f"/other/controller/v1/{device.name}", f"/{TENANT}/controller/v1/nobody"):
            assert ddi.http.request(method, elsewhere + path, headers=device.headers).status_code == 401


def test_a_gateway_token_stands_for_its_own_group_and_makes_no_device(ddi: Ddi) -> None:
    another_group(ddi.fleet)
    mine, theirs = ddi.device("mine"), ddi.device("theirs", group="annex")
    headers = {"Authorization": f"GatewayToken {gateway(ddi, 'lab')}"}
    assert ddi.http.get(mine.path, headers=headers).status_code == 200
    assert ddi.http.get(theirs.path, headers=headers).status_code == 401
    assert ddi.http.get(f"/{TENANT}/controller/v1/new", headers=headers).status_code == 401


def test_tokens_are_listed_by_hash_rotated_with_grace_revoked_and_audited(ddi: Ddi) -> None:
    device = ddi.device()
    (row,) = ddi.http.get("/v1/ddi/tokens", headers=ddi.admin).json()["tokens"]
    assert row["id"] == hashlib.sha256(device.token.encode()).hexdigest()[:16]
    assert device.token not in json.dumps(row)
    made = ddi.http.post(f"/v1/ddi/tokens/{row['id']}/rotate", json={"grace_hours": 1}, headers=ddi.admin).json()
    former = replace(device)
    device.token = made["token"]
    assert (former.get().status_code, device.get().status_code) == (200, 200)
    assert (
        ddi.http.post(f"/v1/ddi/tokens/{made['id']}/rotate", json={"grace_hours": 0}, headers=ddi.admin).status_code
        == 201
    )
    assert device.get().status_code == 401
    assert ddi.http.post(f"/v1/ddi/tokens/{row['id']}/revoke", headers=ddi.admin).status_code == 200
    assert former.get().status_code == 401
    assert ddi.http.post("/v1/ddi/tokens/0123456789abcdef/revoke", headers=ddi.admin).status_code == 404
    assert ddi.http.post("/v1/ddi/tokens", json={}, headers=ddi.admin).status_code == 422
    assert ddi.http.post("/v1/ddi/tokens", json={"device": "nobody"}, headers=ddi.admin).status_code == 404


def test_a_token_ends_when_it_was_made_to(ddi: Ddi) -> None:
    device = ddi.device()
    with ddi.fleet.registry.sessions.begin() as session:
        long_ago = datetime.now(UTC) - timedelta(days=2)
        device.token = make_token(session, TENANT, device=device.id, days=1, actor="root", now=long_ago)[0]
    assert device.get().status_code == 401


def test_a_proxys_word_counts_only_where_its_header_is_configured_and_comes_once(ddi: Ddi) -> None:
    device = ddi.device()
    headers = {"X-Verified-Name": device.name}
    assert ddi.http.get(device.path, headers=headers).status_code == 401
    ddi.app.state.registry = replace(ddi.app.state.registry, ddi_proxy_header="X-Verified-Name")
    assert ddi.http.get(device.path, headers=headers).status_code == 200
    assert ddi.http.get(device.path, headers={"X-Verified-Name": "cam-2"}).status_code == 401
    assert ddi.http.get(device.path, headers={"X-Verified-Name": ""}).status_code == 401
    twice = [("X-Verified-Name", device.name), ("X-Verified-Name", "cam-2")]
    assert ddi.http.get(device.path, headers=twice).status_code == 401


def test_a_device_has_a_name_that_can_stand_in_a_path(ddi: Ddi) -> None:
    for name in ("", "a/b", "..", "ä", "a b", "x" * 129, "-a"):
        asked = {"name": name, "group": "lab", "profile": "linux-cpu-float"}
        assert (name, ddi.http.post("/v1/ddi/devices", json=asked, headers=ddi.admin).status_code) == (name, 422)


def test_a_device_is_registered_once_in_a_group_and_profile_that_there_are(ddi: Ddi) -> None:
    asked = {"name": "cam-9", "group": "lab", "profile": "linux-cpu-float"}
    assert ddi.http.post("/v1/ddi/devices", json=asked).status_code == 401
    made = ddi.http.post("/v1/ddi/devices", json=asked, headers=ddi.admin)
    assert (made.status_code, made.json()["name"], made.json()["artifacts"]) == (201, "cam-9", "swu")
    assert ddi.http.post("/v1/ddi/devices", json=asked, headers=ddi.admin).status_code == 409
    for wrong, status in (({"group": "none"}, 404), ({"profile": "none"}, 422), ({"artifacts": "raucb"}, 422)):
        answer = ddi.http.post("/v1/ddi/devices", json=asked | {"name": "cam-10"} | wrong, headers=ddi.admin)
        assert answer.status_code == status
    (row,) = ddi.http.get("/v1/ddi/devices", headers=ddi.admin).json()["devices"]
    assert row["id"] == ddi.device_of("cam-9")


def test_the_root_is_not_sent_again_to_who_has_it(ddi: Ddi) -> None:
    device, action = started(ddi)
    etag = device.get().headers["etag"]
    assert device.get(**{"If-None-Match": etag}).status_code == 304
    device.fetch(action)
    assert device.feedback(action, "closed", "success") == 200
    assert device.get(**{"If-None-Match": etag}).status_code == 200


def test_an_artifact_comes_whole_in_ranges_and_with_its_digest(ddi: Ddi) -> None:
    device, action = started(ddi)
    deployment = device.get(f"/deploymentBase/{action}").json()["deployment"]
    assert (deployment["download"], deployment["update"]) == ("forced", "forced")
    (chunk,) = deployment["chunks"]
    assert (chunk["part"], chunk["name"], chunk["version"]) == ("bApp", "digits", "1.0.0")
    model = next(each for each in chunk["artifacts"] if each["filename"] == "model.onnx")
    listed = device.get(
        model["_links"]["download"]["href"].removeprefix("http://127.0.0.1:1" + device.path).rsplit("/", 1)[0]
    )
    assert listed.json() == chunk["artifacts"]
    whole = ddi.http.get(model["_links"]["download"]["href"], headers=device.headers)
    part = ddi.http.get(model["_links"]["download"]["href"], headers=device.headers | {"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    assert hashlib.sha1(whole.content).hexdigest() == model["hashes"]["sha1"]
    assert (len(whole.content), hashlib.sha256(whole.content).hexdigest()) == (model["size"], model["hashes"]["sha256"])
    md5 = ddi.http.get(model["_links"]["md5sum"]["href"], headers=device.headers).text
    assert md5 == f"{hashlib.md5(whole.content).hexdigest()}  model.onnx"


def test_nobody_fetches_what_is_not_to_be_installed_there_now(ddi: Ddi) -> None:
    device, action = started(ddi)
    other = ddi.device("cam-2")
    module = ddi.action(action).module
    for name in ("manifest.json", "../manifest.json", "none", "manifest.json.MD5SUM.MD5SUM"):
        assert other.get(f"/softwaremodules/{module}/artifacts/{name}").status_code == 404
    assert device.get(f"/softwaremodules/{module}/artifacts/none").status_code == 404
    assert device.get(f"/softwaremodules/{module}/artifacts/none.MD5SUM").status_code == 404
    device.install()
    assert device.get(f"/softwaremodules/{module}/artifacts/manifest.json").status_code == 404


def test_a_success_without_a_download_is_not_believed(ddi: Ddi) -> None:
    device, action = started(ddi)
    assert device.feedback(action, "closed", "success") == 200
    assert ddi.actions(device) == [("1.0.0", "OPEN")]
    assert device.offered() == action


def test_all_chunks_installed_is_no_success_and_ends_after_three_times(ddi: Ddi) -> None:
    device, action = started(ddi)
    device.fetch(action)
    for _ in range(2):
        assert device.feedback(action, "proceeding", "success", ["All Chunks Installed."]) == 200
        assert ddi.actions(device) == [("1.0.0", "OPEN")]
    assert device.feedback(action, "proceeding", "none", ["All Chunks Installed."]) == 200
    assert ddi.actions(device) == [("1.0.0", "FAILED")]
    assert "never confirmed" in ddi.action(action).reason


def test_an_end_may_be_told_again_and_no_other(ddi: Ddi) -> None:
    device, action = started(ddi)
    device.fetch(action)
    assert [device.feedback(action, "closed", "success") for _ in range(2)] == [200, 200]
    assert device.feedback(action, "closed", "failure") == 410
    assert device.feedback(action, "proceeding") == 410
    assert device.feedback(action, "closed", "success", kind="cancelAction") == 410
    assert device.get(f"/deploymentBase/{action}").status_code == 410
    assert ddi.actions(device) == [("1.0.0", "SUCCEEDED")]


def test_another_devices_action_is_none(ddi: Ddi) -> None:
    device, action = started(ddi)
    other = ddi.device("cam-2")
    assert other.get(f"/deploymentBase/{action}").status_code == 404
    assert other.feedback(action, "closed", "failure") == 404
    assert other.feedback(action, "closed", "success", kind="cancelAction") == 404
    assert ddi.actions(device) == [("1.0.0", "OPEN")]


def test_an_id_that_is_none_is_not_found(ddi: Ddi) -> None:
    device = ddi.device()
    for number in ("0", "-1", "1e3", "x", "²", "9" * 19, "9" * 20, "1%00", "0x1", "%2e%2e"):
        for path in (f"deploymentBase/{number}", f"cancelAction/{number}", f"softwaremodules/{number}/artifacts"):
            assert (path, device.get(f"/{path}").status_code) == (path, 404)


STATUS = {"execution": "proceeding", "result": {"finished": "none"}, "details": []}
HOSTILE = (
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"[" * 50_000,
    b'{"a":' * 50_000,
    b"\xff\xfe\x00",
    json.dumps({"status": None}).encode(),
    json.dumps({"status": []}).encode(),
    json.dumps({"status": {}}).encode(),
    json.dumps({"status": STATUS | {"execution": "exploded"}}).encode(),
    json.dumps({"status": STATUS | {"execution": ["closed"]}}).encode(),
    json.dumps({"status": STATUS | {"execution": {"closed": 1}}}).encode(),
    json.dumps({"status": STATUS | {"result": {"finished": "maybe"}}}).encode(),
    json.dumps({"status": STATUS | {"result": {"finished": ["none"]}}}).encode(),
    json.dumps({"status": STATUS | {"result": "success"}}).encode(),
)


def test_what_is_no_feedback_is_refused_and_changes_nothing(ddi: Ddi) -> None:
    device, action = started(ddi)
    for body in HOSTILE:
        for path in (f"/deploymentBase/{action}/feedback", f"/cancelAction/{action}/feedback", "/configData"):
            method = "PUT" if path == "/configData" else "POST"
            answer = ddi.http.request(method, device.path + path, content=body, headers=device.headers)
            assert (body[:80], answer.status_code, problem(answer)["title"]) == (body[:80], 400, "Not a feedback")
    assert ddi.actions(device) == [("1.0.0", "OPEN")]


DETAILS = (
    None,
    "text",
    7,
    {"a": 1},
    [None, 7, ["x"], "line\x00\x1b[31m\ud800"],
    ["x" * 1000] * 200,
    ["a"] * 20_000,
)


def test_details_of_any_kind_are_taken_and_kept_short(ddi: Ddi) -> None:
    device, action = started(ddi)
    for details in DETAILS:
        assert device.feedback(action, "closed", "failure", details) == 200
        assert len(ddi.action(action).reason) <= 1024
        assert ddi.action(action).reason.isprintable()
        ddi.http.post("/v1/ddi/devices/cam-1/retry", headers=ddi.admin)
        action = device.offered() or 0
    assert len(ddi.actions(device)) == len(DETAILS) + 1


def test_swupdates_log_with_its_control_characters_is_taken(ddi: Ddi) -> None:
    device, action = started(ddi)
    raw = b'{"id": 1, "time": "x", "status": {"result": {"progress": {"cnt": 0, "of": 1}, "finished": "failure"},'
    raw += b' "execution": "closed", "details": ["\tno file \x01here"]}}'
    url = f"{device.path}/deploymentBase/{action}/feedback"
    assert ddi.http.post(url, content=raw, headers=device.headers).status_code == 200
    assert ddi.action(action).reason == " no file  here"


def test_a_body_beyond_what_any_client_sends_is_not_read(ddi: Ddi) -> None:
    device, action = started(ddi)
    url = f"{device.path}/deploymentBase/{action}/feedback"
    answer = ddi.http.post(url, content=b" " * (MAX_BODY_BYTES + 1), headers=device.headers)
    assert answer.status_code == 413


def test_progress_without_end_is_refused_and_the_end_is_taken(ddi: Ddi) -> None:
    device, action = started(ddi)
    device.fetch(action)
    with ddi.fleet.registry.sessions.begin() as session:
        session.merge(ddi.action(action)).reports = MAX_REPORTS - 1
    assert [device.feedback(action, "proceeding") for _ in range(2)] == [200, 429]
    assert device.feedback(action, "closed", "success") == 200


def test_attributes_are_merged_replaced_removed_and_bounded(ddi: Ddi) -> None:
    device = ddi.device()

    def put(data: object, **more: str) -> int:
        body = {"data": data, **more}
        content = json.dumps(body).encode()  # escapes, so that half a surrogate pair travels
        return ddi.http.put(f"{device.path}/configData", content=content, headers=device.headers).status_code

    def kept() -> dict[str, str]:
        return ddi.http.get("/v1/ddi/devices", headers=ddi.admin).json()["devices"][0]["attributes"]

    assert "configData" in device.links()
    assert put({"board": "a", "rev": 2}) == 200
    assert "configData" not in device.links()
    assert (put({"board": "b"}), kept()) == (200, {"board": "b", "rev": "2"})
    assert (put({"board": ""}, mode="remove"), kept()) == (200, {"rev": "2"})
    assert (put({"x": True}, mode="replace"), kept()) == (200, {"x": "True"})
    assert (put({"odd\x00": "a\ud800b"}, mode="replace"), kept()) == (200, {"odd ": "a b"})
    assert put({"x": True}, mode="replace") == 200
    for wrong in ({"a": {}}, {"a": "x" * 513}, {"n" * 129: ""}, {str(number): "" for number in range(65)}):
        assert put(wrong) == 422
    assert put({}, mode="explode") == 400
    assert kept() == {"x": "True"}


def test_the_container_is_signed_by_the_signers_key_and_packs_what_was_signed(ddi: Ddi, tmp_path: Path) -> None:
    openssl, cpio = program("openssl"), program("cpio")
    ddi.publish("1.0.0", 1)
    device = ddi.device(artifacts="swu")
    ddi.launch("1.0.0")
    (container,) = device.fetch(device.offered() or 0)
    (tmp_path / "swu").mkdir()
    subprocess.run(
        [cpio, "--extract", "--quiet", "--only-verify-crc"], input=container, cwd=tmp_path / "swu", check=True
    )
    subprocess.run([cpio, "--extract", "--quiet"], input=container, cwd=tmp_path / "swu", check=True)
    names = sorted(path.name for path in (tmp_path / "swu").iterdir())
    assert names == [
        "000-model.onnx",
        "001-golden.npz",
        "activate.sh",
        "manifest.json",
        "sw-description",
        "sw-description.sig",
    ]
    (tmp_path / "ca.pem").write_bytes(ddi.certificate)
    assert read_certificate(ddi.certificate).subject.rfc4514_string() == "CN=a fleet"
    verify = [openssl, "cms", "-verify", "-binary", "-inform", "DER", "-in", "sw-description.sig"]
    verify += ["-content", "sw-description", "-CAfile", str(tmp_path / "ca.pem"), "-out", "/dev/null"]
    subprocess.run(verify, cwd=tmp_path / "swu", check=True, capture_output=True)
    description = (tmp_path / "swu" / "sw-description").read_text()
    for path in (tmp_path / "swu").iterdir():
        if not path.name.startswith("sw-description"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() in description
    with (tmp_path / "swu" / "sw-description").open("a") as file:
        file.write("\n")
    assert subprocess.run(verify, cwd=tmp_path / "swu", check=False, capture_output=True).returncode != 0
