"""Every change that the registry's API makes is in the audit trail."""

from modelfleet.registry import audit
from modelfleet.registry.build import build_variant, finish_version
from modelfleet.service.signer_process import SignerProcess
from tests.audited import watch
from tests.unit.registry.test_enroll import ask


def test_people_devices_and_versions_change_nothing_without_a_record(fleet) -> None:
    admin = fleet.as_("admin")

    def post(path: str, **body: object):
        answer = admin.post(f"/v1/{path}", json=body)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()

    process = SignerProcess(fleet.paths.data_dir, "acme")
    fleet.use_signer(process.socket)
    process.start()
    try:
        with watch(fleet.engine) as unaudited:
            post("users", name="carla", role="viewer")
            post("users/carla/token")
            post("users/carla/disable")
            post("users/carla/enable")
            post("groups", name="line")
            claim = post("claim-tokens", group="line", uses=2, hours=1)
            device = ask(fleet, claim["token"])
            assert device.status_code == 200, device.text
            (listed,) = admin.get("/v1/claim-tokens").json()["claim_tokens"]
            post(f"claim-tokens/{listed['id']}/revoke")
            post(f"devices/{device.json()['device']}/revoke", reason="key_compromise")
            assert fleet.publish(fleet.publication().parts()).status_code == 201
            (version_id,) = fleet.queue.waiting
            build_variant(fleet.registry, version_id, "linux-cpu-float")
            finish_version(fleet.registry, version_id)
    finally:
        process.stop()
    assert unaudited == []
    with fleet.sessions() as session:
        found = [record.action for record in audit.records(session, "acme")]
    assert found[found.index("group.create") - 4 :] == [
        "user.create",
        "user.new-token",
        "user.disable",
        "user.enable",
        "group.create",
        "claim-token.create",
        "device.enroll",
        "certificate.issue",
        "claim-token.revoke",
        "device.revoke",
        "version.publish",
        "variant.begin",
        "variant.built",
        "variant.ready",
        "version.ready",
    ]
