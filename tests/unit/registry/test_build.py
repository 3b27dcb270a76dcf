import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from modelfleet.registry import audit, catalog
from modelfleet.registry.build import build_variant, finish_version, variant_profiles
from modelfleet.registry.errors import ConflictError, NotFoundError
from modelfleet.registry.tables import Variant, Version
from modelfleet.service.signer_process import SignerProcess
from modelfleet.signer.ceremony import update_policy
from modelfleet.signer.errors import SignerUnavailableError
from modelfleet.signer.keys import key_id, public_key
from modelfleet.signer.manifest import parse_manifest
from modelfleet.signer.names import sha256_of
from tests.unit.registry.conftest import Fleet
from tests.unit.registry.samples import constant_model, worse_model

FLOAT, INT8 = "linux-cpu-float", "linux-cpu-int8"
AtOnce = Callable[[int, Callable[[int], object]], list[object]]


@contextmanager
def signing(fleet) -> Iterator[None]:
    """Run the fleet's own signer, a process."""
    process = SignerProcess(fleet.paths.data_dir, "acme")
    fleet.use_signer(process.socket)
    process.start()
    try:
        yield
    finally:
        process.stop()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[Fleet]:
    """A fleet with its signer and one version that is built; tests add to it, and change nothing of 1.0.0's bytes."""
    fleet = Fleet(tmp_path_factory.mktemp("built") / "fleet", template)
    with signing(fleet):
        version_id = publish(fleet)
        assert variant_profiles(fleet.registry, version_id) == [FLOAT]
        build_variant(fleet.registry, version_id, FLOAT)
        finish_version(fleet.registry, version_id)
        yield fleet
    fleet.engine.dispose()


def publish(fleet, *, version: str = "1.0.0", profiles: tuple[str, ...] = (FLOAT,), model: bytes | None = None) -> int:
    publication = fleet.publication()
    named = ", ".join(f'"{name}"' for name in profiles)
    publication.card = publication.card.replace("1.0.0", version).replace(f'"{FLOAT}"', named)
    publication.model = model or publication.model
    answer = fleet.publish(publication.parts())
    assert answer.status_code == 201, answer.text
    return fleet.queue.waiting[-1]


def variant(fleet, version_id: int, profile: str = FLOAT) -> Variant:
    with fleet.sessions() as session:
        return session.query(Variant).filter_by(version_id=version_id, profile=profile).one()


def state_of(fleet, version_id: int) -> str:
    with fleet.sessions() as session:
        return session.get_one(Version, version_id).state


def actions(fleet, subject: str) -> list[str]:
    with fleet.sessions() as session:
        return [record.action for record in audit.records(session, "acme", subject=subject)]


def test_a_version_is_built_proved_signed_and_listed(built) -> None:
    viewer = built.as_("viewer")
    shown = viewer.get("/v1/versions/ui/shapes/1.0.0").json()
    assert shown["state"] == "READY"
    (row,) = shown["variants"]
    assert (row["state"], row["profile"], row["counter"]) == ("READY", FLOAT, 1)
    assert row["evidence"]["gate"]["accuracy"] == 1.0

    target = Path(row["path"])
    served = viewer.get(f"/tuf/acme/targets/{target.parent}/{row['manifest_sha256']}.{target.name}")
    manifest = parse_manifest(served.content)
    assert sha256_of(served.content) == row["manifest_sha256"]
    assert len(served.content) == row["manifest_length"]
    assert (manifest.model, manifest.version, manifest.profile, manifest.counter) == ("ui/shapes", "1.0.0", FLOAT, 1)
    assert dict(manifest.parameters) == {"threshold": 70, "label": "shape"}
    for file in manifest.files:
        blob = viewer.get(f"/v1/blobs/{file.sha256}").content
        assert (len(blob), sha256_of(blob)) == (file.length, file.sha256)
    assert [file["sha256"] for file in row["files"]] == [file.sha256 for file in manifest.files]
    for digest in (row["attestation_sha256"], row["bundle_sha256"]):
        assert json.loads(viewer.get(f"/v1/blobs/{digest}").content)
    assert actions(built, f"variant/ui/shapes@1.0.0/{FLOAT}") == ["variant.begin", "variant.built", "variant.ready"]
    assert actions(built, "version/ui/shapes@1.0.0") == ["version.publish", "version.ready"]


def test_building_again_changes_nothing(built) -> None:
    fleet, version_id = built, 1
    before, first = fleet.stored(), variant(fleet, version_id)
    build_variant(fleet.registry, version_id, FLOAT)
    finish_version(fleet.registry, version_id)
    again = variant(fleet, version_id)
    assert fleet.stored() == before
    assert (again.manifest_sha256, again.ready_at) == (first.manifest_sha256, first.ready_at)
    assert actions(fleet, "version/ui/shapes@1.0.0") == ["version.publish", "version.ready"]


def test_a_model_that_fails_its_gates_fails_its_variant_and_says_why(fleet) -> None:
    version_id = publish(fleet, model=constant_model())
    for profile in variant_profiles(fleet.registry, version_id):
        build_variant(fleet.registry, version_id, profile)
    finish_version(fleet.registry, version_id)
    failed = variant(fleet, version_id)
    assert failed.state == "FAILED"
    assert (failed.error or "").startswith("GateError: linux-cpu-float")
    assert "accuracy" in (failed.error or "")
    assert state_of(fleet, version_id) == "FAILED"
    assert fleet.stored()[3] == 0
    with fleet.sessions() as session, pytest.raises(ConflictError, match="it is FAILED: GateError"):
        catalog.release_of(session, "acme", "ui/shapes", "1.0.0", FLOAT)


def test_a_publisher_whose_key_was_withdrawn_fails_the_variant(fleet) -> None:
    version_id, data = publish(fleet), fleet.paths.data_dir
    other = public_key(fleet.paths.gate_key)
    only = {key_id(other): other}
    update_policy(data, "acme", lambda policy: msgspec.structs.replace(policy, publishers=only), datetime.now(UTC))
    with signing(fleet):
        build_variant(fleet.registry, version_id, FLOAT)
    failed = variant(fleet, version_id)
    assert failed.state == "FAILED"
    assert (failed.error or "").startswith("UnknownKeyError")
    assert not list(fleet.paths.targets_dir.rglob("*manifest.json"))


def test_two_workers_on_one_variant_end_with_one_manifest(fleet, at_once: AtOnce) -> None:
    version_id = publish(fleet)
    with signing(fleet):
        assert at_once(2, lambda _: build_variant(fleet.registry, version_id, FLOAT)) == [None, None]
    assert variant(fleet, version_id).state == "READY"
    assert actions(fleet, f"variant/ui/shapes@1.0.0/{FLOAT}") == ["variant.begin", "variant.built", "variant.ready"]
    assert len(list(fleet.paths.targets_dir.rglob("*manifest.json"))) == 1


def test_a_release_names_the_signed_manifest_and_becomes_the_baseline(built) -> None:
    fleet, version_id = built, 1
    now = datetime.now(UTC)
    with fleet.sessions.begin() as session:
        release = catalog.release_of(session, "acme", "ui/shapes", "1.0.0", FLOAT)
        assert catalog.stable_variant(session, "acme", "ui/shapes", FLOAT) is None
        catalog.mark_released(session, "acme", "ui/shapes", "1.0.0", FLOAT, now)
    row = variant(fleet, version_id)
    assert (release.path, release.sha256, release.counter, release.approvals) == (row.path, row.manifest_sha256, 1, ())
    with fleet.sessions() as session:
        stable = catalog.stable_variant(session, "acme", "ui/shapes", FLOAT)
        assert stable is not None
        assert stable.released_at == now
        assert catalog.stable_variant(session, "acme", "ui/shapes", INT8) is None
        with pytest.raises(NotFoundError):
            catalog.release_of(session, "acme", "ui/shapes", "1.0.0", INT8)


def test_a_version_worse_than_the_stable_one_is_refused(built) -> None:
    with built.sessions.begin() as session:
        catalog.mark_released(session, "acme", "ui/shapes", "1.0.0", FLOAT, datetime.now(UTC))
    worse = publish(built, version="1.0.1", model=worse_model())
    build_variant(built.registry, worse, FLOAT)
    assert variant(built, worse).state == "FAILED"
    assert "stable" in (variant(built, worse).error or "")


@pytest.mark.parametrize(
    ("states", "expected"),
    [(("READY", "FAILED"), "READY"), (("FAILED", "FAILED"), "FAILED"), (("READY", "READY"), "READY"), ((), "FAILED")],
)
def test_a_version_is_ready_if_one_of_its_variants_is(fleet, states: tuple[str, ...], expected: str) -> None:
    version_id = publish(fleet, profiles=(FLOAT, INT8))
    with fleet.sessions.begin() as session:
        for profile, state in zip((FLOAT, INT8), states, strict=False):
            row = Variant(version_id=version_id, tenant="acme", model="ui/shapes", version="1.0.0", profile=profile)
            row.state, row.counter, row.created_at = state, 1, datetime.now(UTC)
            session.add(row)
    for _ in range(2):
        finish_version(fleet.registry, version_id)
    assert state_of(fleet, version_id) == expected
    assert actions(fleet, "version/ui/shapes@1.0.0") == ["version.publish", f"version.{expected.lower()}"]


def test_a_variant_that_ended_is_not_built_again(fleet) -> None:
    version_id = publish(fleet)
    with fleet.sessions.begin() as session:
        row = Variant(version_id=version_id, tenant="acme", model="ui/shapes", version="1.0.0", profile=FLOAT)
        row.state, row.counter, row.created_at, row.error = "FAILED", 1, datetime.now(UTC), "ConversionError: x"
        session.add(row)
    before = fleet.stored()
    build_variant(fleet.registry, version_id, FLOAT)  # there is no signer: a build would raise
    assert fleet.stored() == before
    assert variant(fleet, version_id).error == "ConversionError: x"


def test_after_a_signer_was_away_versions_are_signed_in_order_and_not_built_again(fleet) -> None:
    first, second = publish(fleet), publish(fleet, version="1.1.0")
    for version_id in (first, second):
        with pytest.raises(SignerUnavailableError):
            build_variant(fleet.registry, version_id, FLOAT)
    waiting = variant(fleet, first)
    assert (waiting.state, waiting.error) == ("BUILDING", None)
    assert waiting.manifest_sha256 is not None
    source = fleet.publication().model
    fleet.registry.store.path(sha256_of(source)).unlink()  # a second conversion would need it
    with signing(fleet):
        build_variant(fleet.registry, second, FLOAT)  # the later one first: it brings the earlier to its end
    assert variant(fleet, first).state == "READY"
    assert variant(fleet, second).state == "READY"
    assert variant(fleet, first).manifest_sha256 == waiting.manifest_sha256


def test_a_profile_that_is_gone_fails_its_variant(fleet) -> None:
    version_id = publish(fleet)
    fleet.registry = replace(fleet.registry, profiles={})
    build_variant(fleet.registry, version_id, FLOAT)
    assert "no longer there" in (variant(fleet, version_id).error or "")


def test_a_version_that_is_not_there_is_not_found(fleet) -> None:
    for ask in (variant_profiles, finish_version):
        with pytest.raises(NotFoundError):
            ask(fleet.registry, 77)
