import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime

import onnx
import pytest
from onnx import TensorProto, helper

from modelfleet.hardware_profiles.profile import load_profiles
from modelfleet.registry import audit, catalog
from modelfleet.registry.context import UploadLimits
from modelfleet.registry.tables import Device, Group, Version
from modelfleet.signer.keys import generate_key
from tests.unit.registry.samples import golden_of, small_model

AtOnce = Callable[[int, Callable[[int], object]], list[object]]


@pytest.fixture
def refused(fleet):
    """Publish what must be refused: an answer as problem+json, and nothing stored or queued."""

    def check(parts: dict[str, bytes], status: int = 422, by=None):
        target = by or fleet
        before = target.stored()
        answer = target.publish(parts)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert set(problem) >= {"type", "title", "status", "detail"}
        assert problem["status"] == status
        assert "Traceback" not in answer.text
        assert str(target.folder) not in answer.text
        assert target.stored() == before
        assert target.queue.waiting == []
        return problem

    return check


def test_a_publication_becomes_a_version_that_waits_to_be_built(fleet) -> None:
    parts = fleet.publication().parts()
    answer = fleet.publish(parts)
    assert answer.status_code == 201, answer.text
    version = answer.json()
    assert (version["model"], version["version"], version["counter"], version["state"]) == (
        "ui/shapes",
        "1.0.0",
        1,
        "BUILDING",
    )
    assert version["published_by"] == "publisher"
    assert version["card"]["parameters"] == {"threshold": 70, "label": "shape"}
    for part, field in (("model", "source"), ("card", "card"), ("golden", "golden"), ("statement", "statement")):
        sha256 = hashlib.sha256(parts[part]).hexdigest()
        assert version[f"{field}_sha256"] == sha256
        assert fleet.as_("viewer").get(f"/v1/blobs/{sha256}").content == parts[part]
    assert fleet.stored() == (1, 0, 4, 0)
    assert len(fleet.queue.waiting) == 1
    with fleet.sessions() as session:
        (record,) = audit.records(session, "acme", subject="version/ui/shapes@1.0.0")
        assert (record.actor, record.action, record.detail["counter"]) == ("publisher", "version.publish", 1)


def test_the_same_bytes_again_are_the_same_version(fleet) -> None:
    publication = fleet.publication()
    first, again = (
        fleet.publish(publication.parts()),
        fleet.publish(publication.parts(issued=datetime(2030, 1, 1, tzinfo=UTC))),
    )
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert fleet.stored() == (1, 0, 4, 0)


@pytest.mark.parametrize("part", ["model", "golden", "card"])
def test_other_bytes_under_the_same_version_are_a_conflict(fleet, part: str) -> None:
    publication = fleet.publication()
    fleet.publish(publication.parts())
    changed = {"model": small_model(2.0), "golden": golden_of(samples=300), "card": publication.card + "\n# changed\n"}
    setattr(publication, part, changed[part])
    before = fleet.stored()
    answer = fleet.publish(publication.parts())
    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:modelfleet:problem:version-conflict"
    assert "publish under a new version number" in answer.json()["detail"]
    assert fleet.stored() == before


def test_the_counter_grows_also_for_a_lower_version(fleet) -> None:
    publication = fleet.publication()
    card, counters = publication.card, []
    for version in ("2.0.0", "1.0.1", "2.0.1-rc.1"):
        publication.card = card.replace("1.0.0", version)
        counters.append(fleet.publish(publication.parts()).json()["counter"])
    assert counters == [1, 2, 3]


def test_a_version_that_was_not_queued_is_queued_when_it_comes_again(fleet) -> None:
    parts = fleet.publication().parts()
    fleet.publish(parts)
    fleet.queue.waiting.clear()  # as if the process had ended between the commit and the queue
    fleet.publish(parts)
    assert len(fleet.queue.waiting) == 1


def test_many_requests_with_the_same_bytes_make_one_version(fleet, at_once: AtOnce) -> None:
    parts = fleet.publication().parts()
    statuses = [answer.status_code for answer in at_once(4, lambda _: fleet.publish(parts))]
    assert sorted(statuses) == [200, 200, 200, 201]
    assert fleet.stored() == (1, 0, 4, 0)
    assert len(fleet.queue.waiting) == 1


def test_many_versions_at_once_get_counters_of_their_own(fleet, at_once: AtOnce) -> None:
    publication, uploads = fleet.publication(), []
    card = publication.card
    for number in range(4):
        publication.card = card.replace("1.0.0", f"1.0.{number}")
        uploads.append(publication.parts())
    answers = at_once(4, lambda number: fleet.publish(uploads[number]))
    assert sorted(answer.json()["counter"] for answer in answers) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("not ONNX", b"\x89PNG\r\n\x1a\n" + bytes(500)),
        ("a pickle", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00cposix\nsystem\n."),
        ("text", b"hello"),
        ("empty", b""),
        ("a zip", b"PK\x05\x06" + bytes(18)),
    ],
)
def test_refuses_what_is_no_onnx_model(fleet, refused, name: str, data: bytes) -> None:
    publication = fleet.publication()
    publication.model = data
    assert refused(publication.parts())["type"] == "urn:modelfleet:problem:scan"


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_refuses_a_truncated_model(fleet, refused, share: float) -> None:
    publication = fleet.publication()
    publication.model = publication.model[: int(len(publication.model) * share)]
    assert refused(publication.parts())["type"] == "urn:modelfleet:problem:scan"


def test_refuses_a_corrupt_model(fleet, refused) -> None:
    publication = fleet.publication()
    data = bytearray(publication.model)
    for index in range(20, len(data), 7):
        data[index] ^= 0xFF
    publication.model = bytes(data)
    assert refused(publication.parts())["type"] == "urn:modelfleet:problem:scan"


def test_refuses_a_model_whose_weights_lie_elsewhere(fleet, refused) -> None:
    model = onnx.load_from_string(fleet.publication().model)
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    entry = weights.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    publication = fleet.publication()
    publication.model = model.SerializeToString()
    assert "weights" in refused(publication.parts())["detail"]


def test_refuses_a_model_whose_inputs_are_no_tensors(fleet, refused) -> None:
    sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [None, 4])
    output = helper.make_tensor_value_info("n", TensorProto.INT64, [])
    graph = helper.make_graph([helper.make_node("SequenceLength", ["x"], ["n"])], "g", [sequence], [output])
    publication = fleet.publication()
    opsets = [helper.make_opsetid("", 17)]
    publication.model = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    assert "expected a tensor" in refused(publication.parts())["detail"]


def test_names_every_fault_of_a_card_at_once(fleet, refused) -> None:
    publication = fleet.publication()
    lines = [line for line in publication.card.splitlines() if not re.match("license|summary", line)]
    publication.card = "colour = 1\n" + "\n".join(lines)
    problem = refused(publication.parts())
    assert problem["type"] == "urn:modelfleet:problem:card"
    assert [line.split(":")[0] for line in problem["errors"]] == ["colour", "license", "summary"]


@pytest.mark.parametrize("version", ["1.0", "v1.0.0", "1.0.0+build.1", "1.0.0.0", "newest"])
def test_refuses_a_version_that_is_not_semver(fleet, refused, version: str) -> None:
    publication = fleet.publication()
    publication.card = publication.card.replace('"1.0.0"', f'"{version}"')
    assert "SemVer" in refused(publication.parts())["detail"]


def test_refuses_an_unknown_profile_and_names_the_known_ones(fleet, refused) -> None:
    publication = fleet.publication()
    publication.card = publication.card.replace("linux-cpu-float", "toaster-9000")
    detail = refused(publication.parts())["detail"]
    assert "toaster-9000" in detail
    assert all(name in detail for name in load_profiles())


def test_refuses_a_card_without_profiles_while_no_device_is_enrolled(fleet, refused) -> None:
    publication = fleet.publication()
    publication.card = publication.card.replace('profiles = ["linux-cpu-float"]', "")
    assert "the card must name its profiles" in refused(publication.parts())["detail"]


def test_a_card_without_profiles_means_those_of_the_enrolled_devices(fleet) -> None:
    from modelfleet.registry.build import variant_profiles

    now = datetime.now(UTC)
    with fleet.sessions.begin() as session:
        session.add(Group(tenant="acme", name="g", created_at=now))
        for number, profile in enumerate(["linux-cpu-int8", "linux-cpu-float", "linux-cpu-int8"]):
            row = Device(
                id=str(number), tenant="acme", group="g", profile=profile, public_key="", key_sha256=str(number)
            )
            row.claim_sha256, row.facts, row.agent_version, row.enrolled_at = "", {}, "", now
            session.add(row)
    publication = fleet.publication()
    publication.card = publication.card.replace('profiles = ["linux-cpu-float"]', "")
    assert fleet.publish(publication.parts()).status_code == 201
    assert variant_profiles(fleet.registry, fleet.queue.waiting[0]) == ["linux-cpu-float", "linux-cpu-int8"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"width": 5}, "expected shape"),
        ({"name": "pixels"}, "expected inputs"),
        ({"samples": 7}, "samples"),
    ],
)
def test_refuses_a_golden_set_of_the_wrong_shape(fleet, refused, changed: dict, said: str) -> None:
    publication = fleet.publication()
    publication.golden = golden_of(**changed)
    problem = refused(publication.parts())
    assert problem["type"] == "urn:modelfleet:problem:golden-set"
    assert said in problem["detail"]


@pytest.mark.parametrize("data", [b"", b"not a zip", b"PK\x05\x06" + bytes(18)])
def test_refuses_what_is_no_golden_set(fleet, refused, data: bytes) -> None:
    publication = fleet.publication()
    publication.golden = data
    assert refused(publication.parts())["type"] == "urn:modelfleet:problem:golden-set"


def test_refuses_a_statement_by_nobody_we_know(fleet, refused, tmp_path) -> None:
    problem = refused(fleet.publication().parts(key=generate_key(tmp_path / "stranger.pem")), 403)
    assert problem["type"] == "urn:modelfleet:problem:untrusted:unknown-key"


@pytest.mark.parametrize("who", ["gate_key", "director_key", "releases_key"])
def test_refuses_a_statement_under_a_key_for_something_else(fleet, refused, who: str) -> None:
    refused(fleet.publication().parts(key=getattr(fleet.paths, who)), 403)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "ui/other"),
        ("version", "9.9.9"),
        ("channel", "preview"),
        ("source_sha256", "0" * 64),
        ("source_length", 1),
        ("card_sha256", "0" * 64),
        ("golden_sha256", "0" * 64),
    ],
)
def test_refuses_a_statement_about_something_else(fleet, refused, field: str, value: object) -> None:
    problem = refused(fleet.publication().parts(**{field: value}))
    assert field in problem["detail"]


def test_refuses_another_tenants_statement(fleet, refused) -> None:
    assert refused(fleet.publication().parts(tenant="other"))["type"].startswith("urn:modelfleet:problem:untrusted")


def test_refuses_bytes_that_were_changed_after_signing(fleet, refused) -> None:
    parts = fleet.publication().parts()
    parts["model"] = parts["model"][:-1] + bytes([parts["model"][-1] ^ 1])
    assert "source_sha256" in refused(parts)["detail"]


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"{" * 5000, b'{"payload": 1}', b"\xff"])
def test_refuses_what_is_no_statement(fleet, refused, data: bytes) -> None:
    parts = fleet.publication().parts()
    parts["statement"] = data
    assert refused(parts)["type"].startswith("urn:modelfleet:problem:untrusted")


@pytest.mark.parametrize("part", ["model", "golden", "card", "statement"])
def test_refuses_a_part_that_is_too_large(make_fleet, refused, part: str) -> None:
    limits = {"model_bytes": 10_000, "golden_bytes": 20_000, "card_bytes": 5_000, "statement_bytes": 5_000}
    small = make_fleet(limits=UploadLimits(**limits))
    parts = small.publication().parts()
    parts[part] = bytes(limits[f"{part}_bytes"] + 1)
    problem = refused(parts, 413, by=small)
    assert problem["type"] == "urn:modelfleet:problem:upload-too-large"


def test_refuses_a_request_that_announces_too_much_before_reading_it(fleet) -> None:
    read = 0

    def body():
        nonlocal read
        for _ in range(100):
            read += 1
            yield bytes(1024)

    headers = {"content-type": "multipart/form-data; boundary=x", "content-length": str(10**12)}
    answer = fleet.as_("publisher").post("/v1/versions", content=body(), headers=headers)
    assert answer.status_code == 413
    assert fleet.stored() == (0, 0, 0, 0)


@pytest.mark.parametrize("missing", ["model", "card", "golden", "statement"])
def test_names_a_part_that_is_missing(fleet, refused, missing: str) -> None:
    parts = fleet.publication().parts()
    del parts[missing]
    assert refused(parts)["errors"] == [f"{missing}: missing"]


def test_refuses_a_part_that_nobody_asked_for(fleet, refused) -> None:
    assert "weights" in refused({**fleet.publication().parts(), "weights": b"x"})["detail"]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"--y\r\n"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\ncut off'),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: " + b"a" * 100_000),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\nbody\r\n--x--\r\n"),
        ("multipart/form-data; boundary=" + "x" * 300, b"--x"),
        ("", b"x"),
    ],
)
def test_refuses_what_is_no_upload(fleet, kind: str, body: bytes) -> None:
    answer = fleet.as_("publisher").post("/v1/versions", content=body, headers={"content-type": kind})
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert fleet.stored() == (0, 0, 0, 0)


def test_a_part_that_comes_twice_is_refused(fleet) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="card"; filename="card"\r\n\r\na\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = fleet.as_("publisher").post("/v1/versions", content=part * 2 + b"--x--\r\n", headers=headers)
    assert answer.status_code == 422
    assert "once" in answer.json()["detail"]


def test_nothing_is_read_from_somebody_who_may_not_publish(fleet) -> None:
    assert fleet.publish(fleet.publication().parts(), role="viewer").status_code == 403
    assert fleet.stored() == (0, 0, 0, 0)
    assert not fleet.registry.work_dir.exists()


def test_refusals_do_not_disturb_what_is_there(fleet) -> None:
    publication = fleet.publication()
    assert fleet.publish(publication.parts()).status_code == 201
    before = fleet.stored()
    publication.card = publication.card.replace("1.0.0", "1.0.1")
    publication.model = b"broken"
    assert fleet.publish(publication.parts()).status_code == 422
    assert fleet.stored() == before
    with fleet.sessions() as session:
        assert [row.version for row in catalog.versions(session, "acme")] == ["1.0.0"]
        assert session.query(Version).one().state == "BUILDING"
