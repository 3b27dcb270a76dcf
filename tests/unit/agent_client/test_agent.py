"""The agent from desired state to the active model and back, against a real server over HTTP."""

import json
import threading
import time
from datetime import timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from modelfleet.agent_client import Model, NoModelError, open_model
from modelfleet.agent_client.agent import Agent
from modelfleet.agent_client.errors import LockedError
from modelfleet.agent_client.identity import key_path
from modelfleet.agent_client.protocol import MAX_CLASSES, device_topic
from modelfleet.agent_client.slot_state import MAX_BENCHMARKS
from modelfleet.benchmarks.runtimes.table import OPENERS
from modelfleet.benchmarks.session import Session
from modelfleet.signer.ceremony import update_policy
from modelfleet.signer.desired import GROUP_PAYLOAD_TYPE, Limits, Request
from modelfleet.signer.dsse import sign_envelope
from modelfleet.signer.keys import generate_key, load_signer, public_key
from modelfleet.signer.sign import encode_payload, sign_assignment, sign_group
from modelfleet.signer.verify import verify_report
from tests.unit.agent_client.fleet import QUICK, SLOT, TENANT, Device, Fleet, commit, make_device, now

IMAGE = np.ones((1, 4), dtype=np.float32)
SLOW_PROBATION = Limits(latency_ms=100.0, probation_seconds=60.0, probation_inferences=10, metrics_seconds=0.2)


def runs_until_answered_by(model: Model, version: str) -> None:
    """Call as an application does, until the switch to that version was followed."""
    until = time.monotonic() + 10
    while model.version != version and time.monotonic() < until:
        model.run({"image": IMAGE})
    assert model.version == version


def test_takes_a_candidate_through_every_state_and_commits_it(fleet: Fleet, device: Device) -> None:
    fleet.candidates = (fleet.candidate(fleet.release("1.0.0")),)
    device.told()
    device.waits_for("COMMITTED", "1.0.0")
    with open_model(SLOT, root=device.root) as model:
        assert model.run({"image": IMAGE})["scores"].shape == (1, 3)
        assert (model.version, model.parameters) == ("1.0.0", {"threshold": "0.5"})
    report = device.waits_for_report("COMMITTED")
    assert report.digest == report.active == fleet.candidates[0].release.sha256
    assert report.bench is not None and report.bench.accuracy == 1.0
    states = [found.state for found in device.reports()]
    path = ["PREFLIGHT", "DOWNLOADING", "VERIFYING", "BENCHMARKING", "ACTIVATING", "PROBATION", "COMMITTED"]
    assert [state for state in states if state != "IDLE"] == path
    assert [found.seq for found in device.reports()] == sorted(found.seq for found in device.reports())


def test_signs_terminal_reports_with_the_key_of_the_device(fleet: Fleet, device: Device) -> None:
    commit(fleet, device)
    device.waits_for_report("COMMITTED")
    topic = device_topic(TENANT, device.id, "report")
    signed = [data for name, data in fleet.server.messages if name == topic and b"payloadType" in data]
    key = public_key(f"file:{key_path(device.root)}")
    assert json.loads(verify_report(signed[0], key))["state"] == "COMMITTED"


def test_goes_back_without_a_download_when_the_candidate_is_dropped(fleet: Fleet, device: Device) -> None:
    commit(fleet, device)
    fleet.candidates = (fleet.candidate(fleet.release("1.1.0", seed=2), rollout="r2", limits=SLOW_PROBATION),)
    device.told()
    device.waits_for("PROBATION", "1.1.0")
    fetched = len(blob_requests(fleet))
    fleet.candidates = ()
    device.told()
    device.waits_for("ROLLED_BACK", "1.0.0")
    report = device.waits_for_report("ROLLED_BACK")
    assert (report.rollout, report.version, report.active) == (
        "r2",
        "1.1.0",
        fleet.stable.sha256 if fleet.stable else "",
    )
    assert len(blob_requests(fleet)) == fetched


def test_goes_back_by_itself_when_the_candidate_is_wrong_in_probation(fleet: Fleet, device: Device) -> None:
    commit(fleet, device)
    bad = fleet.release("1.1.0", seed=2)
    fleet.candidates = (fleet.candidate(bad, rollout="r2", limits=SLOW_PROBATION),)
    model = open_model(SLOT, root=device.root)
    device.told()
    device.waits_for("PROBATION", "1.1.0")
    runs_until_answered_by(model, "1.1.0")
    for _ in range(12):
        model.run({"image": IMAGE})
        model.report_error()
    device.waits_for("ROLLED_BACK", "1.0.0")
    runs_until_answered_by(model, "1.0.0")
    report = device.waits_for_report("ROLLED_BACK")
    assert report.error is not None and report.error.kind == "UnhealthyError"
    device.told()
    time.sleep(0.5)
    assert device.slot["version"] == "1.0.0", "a digest that was rejected came back"


def test_rejects_what_its_own_benchmark_refuses_until_a_retry_is_asked_for(fleet: Fleet, tmp_path: Path) -> None:
    broken = True

    class Rotated:
        def __init__(self, session: Session) -> None:
            self.session, self.inputs, self.outputs = session, session.inputs, session.outputs

        def run(self, inputs: Any) -> Any:
            return {name: np.roll(value, 1, axis=-1) for name, value in self.session.run(inputs).items()}

    def faulty(path: Path) -> Any:
        session = OPENERS["onnxruntime"](path)
        return Rotated(session) if broken else session

    device = make_device(fleet, tmp_path / "faulty", runtimes={"onnxruntime": faulty})
    device.start()
    fleet.candidates = (fleet.candidate(fleet.release("1.0.0")),)
    device.told()
    device.waits_for("REJECTED")
    report = device.waits_for_report("REJECTED")
    assert report.error is not None and report.error.kind == "BenchmarkError"
    assert report.bench is not None and report.bench.accuracy == 0.0
    broken = False
    device.told()
    time.sleep(0.5)
    assert device.slot["state"] == "REJECTED"
    fleet.asked = (Request(id="again", kind="retry"),)
    device.told()
    device.waits_for("COMMITTED", "1.0.0")
    device.stop()


def test_an_agent_that_is_asked_to_end_in_its_benchmark_again_and_again_rejects_nothing(
    fleet: Fleet, tmp_path: Path
) -> None:
    measuring, go_on = threading.Event(), threading.Event()

    def held(path: Path) -> Any:
        measuring.set()
        assert go_on.wait(20)
        return OPENERS["onnxruntime"](path)

    device = make_device(fleet, tmp_path / "held", runtimes={"onnxruntime": held})
    fleet.candidates = (fleet.candidate(fleet.release("1.0.0")),)
    for _ in range(MAX_BENCHMARKS + 1):
        measuring.clear()
        go_on.clear()
        device.start()
        device.told()
        assert measuring.wait(20), device.slot
        threading.Timer(0.1, go_on.set).start()
        device.stop()
        assert device.slot["state"] == "BENCHMARKING", device.slot
    go_on.set()
    device.start()
    device.told()
    device.waits_for("COMMITTED", "1.0.0")
    device.stop()


def test_returns_to_a_former_release_only_with_its_approvals(fleet: Fleet, device: Device) -> None:
    commit(fleet, device)
    former = fleet.stable
    assert former is not None
    commit(fleet, device, "1.1.0", seed=2)
    fleet.stable = msgspec.structs.replace(former, approvals=())
    device.told()
    device.waits_for_refusal("ApprovalError")
    assert device.slot["version"] == "1.1.0", "a stolen director key alone brought a release back"
    fetched = len(blob_requests(fleet))
    fleet.stable = former
    device.told()
    device.waits_for("ROLLED_BACK", "1.0.0")
    assert len(blob_requests(fleet)) == fetched


def test_returns_to_no_release_that_was_revoked_meanwhile(fleet: Fleet, device: Device) -> None:
    commit(fleet, device)
    former = fleet.stable
    assert former is not None
    commit(fleet, device, "1.1.0", seed=2)
    revoked = (former.sha256,)
    update_policy(fleet.keys.data_dir, TENANT, lambda policy: msgspec.structs.replace(policy, revoked=revoked), now())
    fleet.stable = former
    device.told()
    device.waits_for_refusal("RevokedError")
    assert device.slot["version"] == "1.1.0"


def test_goes_back_while_the_server_is_away(fleet: Fleet, device: Device) -> None:
    commit(fleet, device)
    fleet.candidates = (fleet.candidate(fleet.release("1.1.0", seed=2), rollout="r2", limits=SLOW_PROBATION),)
    device.told()
    device.waits_for("PROBATION", "1.1.0")
    fleet.server.fault = lambda request: (request.send_error(503), True)[1]
    fleet.candidates = ()
    device.told()
    device.waits_for("ROLLED_BACK", "1.0.0")


def test_cancels_an_update_by_request(fleet: Fleet, device: Device) -> None:
    commit(fleet, device)
    started = threading.Event()
    fleet.candidates = (fleet.candidate(fleet.release("1.1.0", seed=2, padding=2_000_000)),)
    fleet.server.fault = trickle(fleet, started)
    device.told()
    assert started.wait(10)
    fleet.asked = (Request(id="stop", kind="cancel"),)
    device.told()
    device.waits_for("CANCELLED", "1.0.0")


def test_measures_again_by_request(fleet: Fleet, device: Device) -> None:
    commit(fleet, device)
    device.waits_for_report("COMMITTED")
    before = len(device.reports())
    fleet.asked = (Request(id="measure", kind="re-benchmark"),)
    device.told()
    until = time.monotonic() + 10
    while len(device.reports()) == before and time.monotonic() < until:
        time.sleep(0.02)
    assert device.reports()[-1].bench is not None
    assert device.reports()[-1].state == "COMMITTED"


def test_remembers_a_rejection_across_a_restart(fleet: Fleet, device: Device) -> None:
    fleet.candidates = (fleet.candidate(fleet.release("1.0.0", golden_seed=9)),)
    device.told()
    device.waits_for("REJECTED")
    device.stop()
    device.start()
    device.told()
    time.sleep(0.5)
    assert device.slot["state"] == "REJECTED"
    assert device.agent.status()["boot"] == 2


def test_refuses_a_release_without_approvals_and_takes_it_once_approved(fleet: Fleet, device: Device) -> None:
    fleet.candidates = (fleet.candidate(fleet.release("1.0.0", approved=False)),)
    device.told()
    device.waits_for_refusal("ApprovalError")
    report = device.waits_for_report("REJECTED")
    assert report.error is not None and report.error.kind == "ApprovalError"
    with pytest.raises(NoModelError):
        open_model(SLOT, root=device.root)
    fleet.counter = 0
    fleet.candidates = (fleet.candidate(fleet.release("1.0.0")),)
    assert fleet.candidates[0].release.sha256 == report.digest
    device.told()
    device.waits_for("COMMITTED", "1.0.0")


def test_refuses_a_document_that_no_director_signed(fleet: Fleet, device: Device, tmp_path: Path) -> None:
    commit(fleet, device)
    fleet.candidates = (fleet.candidate(fleet.release("1.1.0", seed=2)),)
    stranger = load_signer(generate_key(tmp_path / "stranger.pem"))
    device.hears(sign_group(fleet.group_document(), stranger))
    device.waits_for_refusal("UnknownKeyError")
    unsigned = json.loads(sign_group(fleet.group_document(), stranger)) | {"signatures": []}
    device.hears(json.dumps(unsigned).encode())
    device.waits_for_refusal("SignatureError")
    assert device.slot["version"] == "1.0.0"


def test_refuses_an_old_document_that_is_replayed(fleet: Fleet, device: Device) -> None:
    fleet.candidates = (fleet.candidate(fleet.release("1.0.0")),)
    old = sign_group(fleet.group_document(), fleet.director)
    commit(fleet, device, "1.1.0", seed=2)
    device.hears(old)
    assert "seq" in device.waits_for_refusal("ReplayError")
    assert device.slot["version"] == "1.1.0"


def test_refuses_a_replay_after_a_restart_with_its_documents_lost(fleet: Fleet, device: Device) -> None:
    fleet.candidates = (fleet.candidate(fleet.release("1.0.0")),)
    old = sign_group(fleet.group_document(), fleet.director)
    commit(fleet, device, "1.1.0", seed=2)
    device.stop()
    (device.root / "desired" / "group.json").unlink()
    device.start()
    device.hears(old)
    device.waits_for_refusal("ReplayError")


def test_refuses_tampered_bytes_and_takes_the_signed_ones_when_they_come(fleet: Fleet, device: Device) -> None:
    """A hostile store delays; it cannot make the device reject a release for good."""
    commit(fleet, device)
    fleet.candidates = (fleet.candidate(fleet.release("1.1.0", seed=2)),)
    honest = dict(fleet.server.blobs)
    for digest, data in honest.items():
        fleet.server.blobs[digest] = data.replace(b"linear", b"LINEAR")
    device.told()
    device.waits_for("FAILED", "1.0.0")
    assert device.agent.status()["refusals"][-1]["kind"] == "DigestError"
    fleet.server.blobs.update(honest)
    device.waits_for("COMMITTED", "1.1.0")


def test_refuses_a_document_of_another_tenant_or_needing_more_than_it_can(fleet: Fleet, device: Device) -> None:
    commit(fleet, device)
    device.hears(sign_group(fleet.group_document(tenant="umbrella"), fleet.director))
    device.waits_for_refusal("ScopeError")
    device.hears(sign_group(fleet.group_document(must_understand=("teleport",)), fleet.director))
    device.waits_for_refusal("MustUnderstandError")


def test_an_x86_agent_refuses_a_raspberry_pi_5_variant(fleet: Fleet, tmp_path: Path) -> None:
    fleet.profile = "raspberry-pi-5"
    device = make_device(fleet, tmp_path / "pi")
    device.start()
    fleet.candidates = (fleet.candidate(fleet.release("1.0.0")),)
    device.told()
    message = device.waits_for_refusal("IncompatibleReleaseError")
    assert "aarch64" in message or "Raspberry" in message
    assert device.waits_for_report("REJECTED").active is None
    device.stop()


def test_a_pin_wins_and_an_emptied_stable_empties_the_slot(fleet: Fleet, device: Device) -> None:
    commit(fleet, device)
    fleet.pins = {SLOT: fleet.release("0.9.0", seed=3)}
    device.told()
    until = time.monotonic() + 10
    while device.slot["version"] != "0.9.0" and time.monotonic() < until:
        time.sleep(0.02)
    assert device.slot["version"] == "0.9.0"
    fleet.pins = {SLOT: None}
    device.told()
    device.waits_for("ROLLED_BACK")
    with pytest.raises(NoModelError):
        open_model(SLOT, root=device.root)


def test_starts_nothing_on_an_expired_document(fleet: Fleet, device: Device) -> None:
    commit(fleet, device)
    fleet.expires_in = timedelta(seconds=-1)
    fleet.candidates = (fleet.candidate(fleet.release("1.1.0", seed=2)),)
    device.told()
    device.waits_for_refusal("ExpiredError")
    assert device.slot == device.slot | {"state": "COMMITTED", "version": "1.0.0"}


def test_starts_nobody_new_on_a_halted_candidate_but_keeps_who_has_it(fleet: Fleet, device: Device) -> None:
    commit(fleet, device)
    release = fleet.release("1.1.0", seed=2)
    fleet.candidates = (fleet.candidate(release, accept=False),)
    device.told()
    time.sleep(0.5)
    assert device.slot["version"] == "1.0.0"
    fleet.candidates = (fleet.candidate(release),)
    device.told()
    device.waits_for("COMMITTED", "1.1.0")
    fleet.candidates = (fleet.candidate(release, accept=False),)
    device.told()
    time.sleep(0.5)
    assert device.slot == device.slot | {"state": "COMMITTED", "version": "1.1.0"}


def test_says_that_what_runs_is_another_rollouts_candidate_now(fleet: Fleet, device: Device) -> None:
    release = commit(fleet, device)
    device.waits_for_report("COMMITTED")
    fleet.candidates = (fleet.candidate(release, rollout="r2"),)
    device.told()
    until = time.monotonic() + 10
    while device.reports()[-1].rollout != "r2" and time.monotonic() < until:
        time.sleep(0.02)
    said = device.reports()[-1]
    assert (said.state, said.rollout, said.active) == ("COMMITTED", "r2", release.sha256)


def test_a_newer_desired_state_stops_a_download(fleet: Fleet, device: Device) -> None:
    commit(fleet, device)
    big = fleet.release("1.1.0", seed=2, padding=4_000_000)
    started = threading.Event()
    fleet.server.fault = trickle(fleet, started)
    fleet.candidates = (fleet.candidate(big),)
    device.told()
    assert started.wait(10)
    fleet.candidates = ()
    device.told()
    device.waits_for("CANCELLED", "1.0.0", seconds=5)
    assert device.waits_for_report("CANCELLED").version == "1.1.0"


def test_a_device_goes_on_counting_while_it_downloads(fleet: Fleet, device: Device) -> None:
    commit(fleet, device)
    started = threading.Event()
    big = fleet.release("1.1.0", seed=2, padding=4_000_000)
    fleet.server.fault = trickle(fleet, started)
    fleet.candidates = (fleet.candidate(big),)
    device.told()
    assert started.wait(10)
    with open_model(SLOT, root=device.root) as model:
        for _ in range(20):
            model.run({"image": IMAGE})
    device.waits_for("DOWNLOADING", "1.0.0")
    assert counted(fleet, device, n=20)["n"] == 20
    assert device.slot["state"] == "DOWNLOADING", device.slot


def test_a_device_that_has_nothing_to_count_says_again_where_it_stands(fleet: Fleet, device: Device) -> None:
    started = threading.Event()
    big = fleet.release("1.0.0", padding=4_000_000)
    fleet.server.fault = trickle(fleet, started)
    fleet.candidates = (fleet.candidate(big),)
    device.told()
    until = time.monotonic() + 15
    while (
        len(said := [each for each in device.reports() if each.state == "DOWNLOADING"]) < 3 and time.monotonic() < until
    ):
        time.sleep(0.05)
    assert len({each.seq for each in said}) >= 3, "silent while it downloads"
    assert len(said) < 20, "at most once in an interval, and once a second"


def test_the_deadline_of_a_rollout_ends_a_failing_update(fleet: Fleet, device: Device) -> None:
    commit(fleet, device)
    release = fleet.release("1.1.0", seed=2)
    for entry in [digest for digest, data in fleet.server.blobs.items() if b"linear" in data]:
        fleet.server.blobs.pop(entry)
    fleet.candidates = (fleet.candidate(release, deadline=now() + timedelta(seconds=1.5)),)
    device.told()
    device.waits_for("EXPIRED", "1.0.0")
    states = [report.state for report in device.reports()]
    assert "FAILED" in states


def test_retries_after_the_server_was_away(fleet: Fleet, device: Device) -> None:
    commit(fleet, device)
    fleet.candidates = (fleet.candidate(fleet.release("1.1.0", seed=2)),)
    fleet.server.fault = refuse_blobs
    device.told()
    device.waits_for("FAILED", "1.0.0")
    fleet.server.fault = lambda _request: False
    device.waits_for("COMMITTED", "1.1.0")


def test_believes_a_new_director_after_one_refresh(fleet: Fleet, device: Device, tmp_path: Path) -> None:
    commit(fleet, device)
    uri = generate_key(tmp_path / "director2.pem")
    key = public_key(uri)
    keyid = load_signer(uri).public_key.keyid
    update_policy(
        fleet.keys.data_dir, TENANT, lambda policy: msgspec.structs.replace(policy, directors={keyid: key}), now()
    )
    fleet.stable = fleet.release("1.1.0", seed=2)
    device.hears(sign_group(fleet.group_document(), load_signer(uri)))
    until = time.monotonic() + 10
    while device.slot["version"] != "1.1.0" and time.monotonic() < until:
        time.sleep(0.02)
    assert device.slot["version"] == "1.1.0"


def test_sends_cumulative_counters_of_the_application(fleet: Fleet, device: Device) -> None:
    fleet.candidates = (fleet.candidate(fleet.release("1.0.0"), limits=QUICK),)  # it stays: its interval is a short one
    device.told()
    device.waits_for("COMMITTED", "1.0.0")
    model = open_model(SLOT, root=device.root)
    for number in range(20):
        model.run({"image": IMAGE})
        if number < 3:
            model.report_error()
    model.close()
    found = counted(fleet, device, n=20)
    assert (found["n"], found["errors"]) == (20, 3)
    assert sum(found["latency"]) == 20
    assert sum(found["classes"]) == 20 and len(found["classes"]) <= MAX_CLASSES


def test_refuses_to_share_its_folder(device: Device) -> None:
    time.sleep(0.2)
    with pytest.raises(LockedError):
        Agent(device.root).run(threading.Event())


def test_polls_desired_state_with_an_etag_and_posts_its_reports(fleet: Fleet, device: Device) -> None:
    fleet.candidates = (fleet.candidate(fleet.release("1.0.0")),)
    fleet.server.desired = {
        "assignment": json.loads(sign_assignment(fleet.assignment(device.id), fleet.director)),
        "group": json.loads(sign_group(fleet.group_document(), fleet.director)),
    }
    device.waits_for("COMMITTED", "1.0.0")
    device.waits_for_report("COMMITTED")
    asked = [headers for path, headers in fleet.server.requests if path == "/v1/device/desired"]
    assert any("If-None-Match" in headers for headers in asked)
    assert all(headers["Authorization"].startswith("Bearer ") for headers in asked)


def test_takes_the_slot_from_a_document_it_cannot_read_not_at_all(fleet: Fleet, device: Device) -> None:
    commit(fleet, device)
    slots = {"../evil": json.loads(encode_payload(fleet.group_document()))["slots"][SLOT]}
    document = json.loads(encode_payload(fleet.group_document())) | {"slots": slots}
    device.hears(sign_envelope(json.dumps(document).encode(), GROUP_PAYLOAD_TYPE, fleet.director))
    device.waits_for_refusal("FormatError")


def blob_requests(fleet: Fleet) -> list[str]:
    return [path for path, _ in fleet.server.requests if path.startswith("/v1/blobs/")]


def refuse_blobs(request: BaseHTTPRequestHandler) -> bool:
    if request.path.startswith("/v1/blobs/"):
        request.send_error(503)
        return True
    return False


def counted(fleet: Fleet, device: Device, *, n: int) -> dict[str, Any]:
    """Return the device's newest counters, once they are of `n` inferences or time is up."""
    topic = device_topic(TENANT, device.id, "metrics")
    until = time.monotonic() + 10
    found: dict[str, Any] = {}
    while found.get("n") != n and time.monotonic() < until:
        heard = [data for name, data in list(fleet.server.messages) if name == topic]
        found = json.loads(heard[-1]) if heard else {}
        time.sleep(0.1)
    return found


def trickle(fleet: Fleet, started: threading.Event) -> Any:
    """Large files come a piece at a time, for a minute."""
    large = {digest: len(data) for digest, data in fleet.server.blobs.items() if len(data) > 1_000_000}

    def fault(request: BaseHTTPRequestHandler) -> bool:
        length = large.get(request.path.rpartition("/")[2])
        if length is None:
            return False
        request.send_response(200)
        request.send_header("Content-Length", str(length))
        request.end_headers()
        try:
            for _ in range(600):
                request.wfile.write(b"x" * 1000)
                started.set()
                time.sleep(0.1)
        except OSError:
            pass
        return True

    return fault
