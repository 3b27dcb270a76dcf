"""The whole path as a list, from publish to activate and back. Each step is a test, and they run in this order.

Nothing here is a mock: `modelfleet serve` and its signer are processes, MQTT is a broker, the agents are the agents.
"""

import json
from pathlib import Path

import pytest

from examples.demo.devices import SLOT
from examples.demo.story import FLOAT, GROUPS, INT8, MODEL, Story
from modelfleet.registry.audit_verify import verify_export
from modelfleet.signer.keys import public_key_of_pem

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_01_a_fleet_is_made_with_keys_groups_and_enrolled_devices(story: Story) -> None:
    story.create_fleet()
    devices = story.admin.get("/v1/devices")["devices"]
    assert len(devices) == 8
    assert {(row["group"], row["profile"]) for row in devices} == {(g, p) for g in GROUPS for p in (FLOAT, INT8)}


def test_02_ci_publishes_and_every_profile_gets_a_proven_signed_variant(story: Story) -> None:
    story.publish("1.0.0")
    rows = {row["profile"]: row for row in story.admin.get("/v1/variants", model=MODEL, version="1.0.0")["variants"]}
    assert {profile: row["state"] for profile, row in rows.items()} == {FLOAT: "READY", INT8: "READY"}
    assert {profile: row["precision"] for profile, row in rows.items()} == {FLOAT: "float", INT8: "int8"}
    assert all(row["manifest_sha256"] and row["evidence"]["gate"]["accuracy"] > 0.95 for row in rows.values())


def test_03_a_rollout_is_drafted_approved_by_another_person_and_completes(story: Story) -> None:
    story.roll_out("1.0.0")
    assert {row["profile"]: row["verdict"] for row in story.rollout("1.0.0")["profiles"]} == {
        FLOAT: "COMPLETED",
        INT8: "COMPLETED",
    }


def test_04_every_device_runs_the_version_that_it_verified_itself(story: Story) -> None:
    assert {device.status()["slots"][SLOT]["version"] for device in story.devices.all} == {"1.0.0"}
    assert all(device.model is not None and device.model.version == "1.0.0" for device in story.devices.all)


def test_05_the_trail_says_who_did_what_in_which_order(story: Story) -> None:
    records = story.admin.get("/v1/audit", subject=f"rollout/{story.rollouts['1.0.0']}")["records"]
    actions = [row["action"] for row in records]
    assert actions[:3] == ["rollout.validate", "rollout.request-approval", "rollout.approve"]
    actors = {row["action"]: row["actor"] for row in records}
    assert actors["rollout.request-approval"] == "alice"
    assert actors["rollout.approve"] == "bob"
    assert actors["rollout.complete"] == "system:controller"


def test_06_the_next_version_replaces_it_without_a_restart_of_the_application(story: Story) -> None:
    handles = [device.model for device in story.devices.all]
    story.publish("1.1.0")
    story.roll_out("1.1.0")
    assert [device.model for device in story.devices.all] == handles
    assert {device.model.version for device in story.devices.all if device.model is not None} == {"1.1.0"}


def test_07_a_version_that_one_profile_computes_wrongly_stops_there_and_only_there(story: Story) -> None:
    story.publish("1.2.0")
    story.roll_out("1.2.0")
    assert {row["profile"]: row["verdict"] for row in story.rollout("1.2.0")["profiles"]} == {
        FLOAT: "COMPLETED",
        INT8: "ROLLED_BACK",
    }
    running = {(device.profile, device.status()["slots"][SLOT]["version"]) for device in story.devices.all}
    assert running == {(FLOAT, "1.2.0"), (INT8, "1.1.0")}


def test_08_a_version_whose_errors_show_in_traffic_only_is_taken_back_everywhere(story: Story) -> None:
    story.publish("1.3.0")
    story.roll_out("1.3.0")
    assert {row["profile"]: row["verdict"] for row in story.rollout("1.3.0")["profiles"]} == {
        FLOAT: "ROLLED_BACK",
        INT8: "ROLLED_BACK",
    }
    running = {(device.profile, device.status()["slots"][SLOT]["version"]) for device in story.devices.all}
    assert running == {(FLOAT, "1.2.0"), (INT8, "1.1.0")}


def test_09_hostile_documents_and_bytes_are_refused_by_the_device(story: Story) -> None:
    story.attack()
    assert {outcome.attack: outcome.refused_with for outcome in story.outcomes} == {
        "an old document, replayed": "ReplayError",
        "an unsigned desired state": "SignatureError",
        "a release without approvals (director's key stolen)": "ApprovalError",
        "tampered bytes (director's key stolen too)": "DigestError",
    }
    assert all("CHANGED" not in outcome.still_runs for outcome in story.outcomes)


def test_10_the_verdicts_read_from_the_api_are_the_expected_ones(story: Story) -> None:
    assert story.judge()


def test_11_the_audit_log_of_all_of_it_verifies_without_the_server(story: Story, tmp_path: Path) -> None:
    trail = tmp_path / "trail.jsonl"
    story.admin.download("/v1/audit/records", trail)
    key = public_key_of_pem((story.server.data / "audit.pub").read_text())
    with trail.open("rb") as lines:
        found = verify_export(lines, key)
    assert found.checkpoints > 1  # it was signed along the way
    entries = [json.loads(line).get("entry") for line in trail.read_text().splitlines()]
    said = [entry["detail"]["state"] for entry in entries if entry and entry["action"] == "device.report"]
    assert {"COMMITTED", "ROLLED_BACK"} <= set(said)
